// Recurrent layers over whole sequences. The weight is laid out once; then each position multiplies the
// states of all examples by it. The weight's gradient is one product over all positions.
#include <algorithm>

#include "dense.h"
#include "functions.h"
#include "panels.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

Convolution flat(int64_t batch, int64_t inputs, int64_t outputs) {
    const auto in = static_cast<int>(inputs), out = static_cast<int>(outputs);
    return {batch, in, 1, 1, out, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1};
}

// One example at one position. `before` is what was kept of the position before.
struct Forward {
    int64_t hidden;
    const float *x, *share, *bias, *before;
    float *gates, *kept, *y, *state;
};

// The same on the way back. `dstate` is the gradient of the state that the next position gives, and
// `carried` what reaches it beside the product; `dshare` that of the state's share in the gates.
struct Back {
    int64_t hidden;
    const float *gates, *kept, *before, *dy, *dstate;
    float *carried, *dx, *dshare, *fresh;
};

// Hochreiter and Schmidhuber 1997, with a forget gate. It keeps its cells.
struct Lstm {
    static constexpr int gates = 4;
    static constexpr const char* kept = "cells";
    static constexpr bool keeps_states = false;

    static void forward(const Forward& r) {
        const int64_t h = r.hidden;
        MEST_EACH_ALONE
        for (int64_t j = 0; j < h; ++j) {
            const float i = sigmoid_of(r.x[j] + r.share[j] + r.bias[j]);
            const float f = sigmoid_of(r.x[h + j] + r.share[h + j] + r.bias[h + j]);
            const float g = tanh_of(r.x[2 * h + j] + r.share[2 * h + j] + r.bias[2 * h + j]);
            const float o = sigmoid_of(r.x[3 * h + j] + r.share[3 * h + j] + r.bias[3 * h + j]);
            const float c = f * r.before[j] + i * g, y = o * tanh_of(c);
            r.gates[j] = i;
            r.gates[h + j] = f;
            r.gates[2 * h + j] = g;
            r.gates[3 * h + j] = o;
            r.kept[j] = c;
            r.y[j] = y;
            r.state[j] = y;
        }
    }

    static void back(const Back& r) {
        const int64_t h = r.hidden;
        MEST_EACH_ALONE
        for (int64_t j = 0; j < h; ++j) {
            const float i = r.gates[j], f = r.gates[h + j];
            const float g = r.gates[2 * h + j], o = r.gates[3 * h + j];
            const float dy = r.dy[j] + r.dstate[j], bounded = tanh_of(r.kept[j]);
            const float dc = r.carried[j] + dy * o * (1 - bounded * bounded);
            const float di = dc * g * i * (1 - i), df = dc * r.before[j] * f * (1 - f);
            const float dg = dc * i * (1 - g * g), d_o = dy * bounded * o * (1 - o);
            r.carried[j] = dc * f;
            r.dx[j] = r.dshare[j] = di;
            r.dx[h + j] = r.dshare[h + j] = df;
            r.dx[2 * h + j] = r.dshare[2 * h + j] = dg;
            r.dx[3 * h + j] = r.dshare[3 * h + j] = d_o;
        }
    }
};

// Cho et al. 2014, as torch has it: reset works on the product. It keeps the state's share in the new
// gate. On the way back dx holds the gradient of the state's share until all products are done; that
// of the new gate itself stands in `fresh`.
struct Gru {
    static constexpr int gates = 3;
    static constexpr const char* kept = "candidate";
    static constexpr bool keeps_states = true;

    static void forward(const Forward& r) {
        const int64_t h = r.hidden;
        MEST_EACH_ALONE
        for (int64_t j = 0; j < h; ++j) {
            const float reset = sigmoid_of(r.x[j] + r.share[j] + r.bias[j]);
            const float update = sigmoid_of(r.x[h + j] + r.share[h + j] + r.bias[h + j]);
            const float candidate = r.share[2 * h + j] + r.bias[2 * h + j];
            const float fresh = tanh_of(r.x[2 * h + j] + reset * candidate);
            const float y = (1 - update) * fresh + update * r.state[j];
            r.gates[j] = reset;
            r.gates[h + j] = update;
            r.gates[2 * h + j] = fresh;
            r.kept[j] = candidate;
            r.y[j] = y;
            r.state[j] = y;
        }
    }

    static void back(const Back& r) {
        const int64_t h = r.hidden;
        MEST_EACH_ALONE
        for (int64_t j = 0; j < h; ++j) {
            const float reset = r.gates[j], update = r.gates[h + j], fresh = r.gates[2 * h + j];
            const float dy = r.dy[j] + r.dstate[j] + r.carried[j];
            const float dfresh = dy * (1 - update) * (1 - fresh * fresh);
            const float dupdate = dy * (r.before[j] - fresh) * update * (1 - update);
            const float dreset = dfresh * r.kept[j] * reset * (1 - reset);
            r.carried[j] = dy * update;
            r.dx[j] = r.dshare[j] = dreset;
            r.dx[h + j] = r.dshare[h + j] = dupdate;
            r.dx[2 * h + j] = r.dshare[2 * h + j] = dfresh * reset;
            r.fresh[j] = dfresh;
        }
    }
};

struct Layer {
    int64_t examples, length, hidden, width;

    Layer(const Builder& b, int gates, const char* kept) {
        const Shape u = b.dims("u", 2).shape, all = b.dims("gates", 3).shape;
        examples = all[0], length = all[1], hidden = u[1], width = u[0];
        b.require(width <= largest && examples <= largest && width == gates * hidden,
                  "u has shape " + text_of(u), std::to_string(gates) + " gates of hidden units");
        for (const char* name : {"x", "dx", "gates"}) b.expect(name, {examples, length, width});
        for (const char* name : {"y", "dy", kept}) b.expect(name, {examples, length, hidden});
        b.expect("du", u);
        b.expect("bias", {width});
        b.expect("dbias", {width});
    }

    int64_t row(int64_t example, int64_t position) const { return example * length + position; }
    int64_t states() const { return examples * hidden; }
    int64_t shares() const { return examples * width; }
    int64_t rows() const { return examples * length; }
};

void check_strips(const Builder& b, const Dense& d) {
    b.require(d.entries() <= largest, "u", "up to " + std::to_string(largest) + " columns of strips");
}

template <class Cell>
Step forward(Builder& b) {
    const Layer l(b, Cell::gates, Cell::kept);
    const Tensor x = b["x"], u = b["u"], bias = b["bias"];
    const Tensor y = b["y"], gates = b["gates"], kept = b[Cell::kept];
    const Panels panels{l.hidden, l.width};
    const int64_t pitch = panels.pitch();
    b.floats(panels.floats() + l.states() + (l.examples + 1) * pitch + l.hidden);
    return [=](const Run& run) {
        float* laid = run.shared.floats.data();
        float *state = laid + panels.floats(), *share = state + l.states();
        float *offset = share + l.examples * pitch, *zeros = offset + pitch;
        const float *weight = run.at(u), *given = run.at(bias);
        panels.lay_out(laid, run.threads, [=](int64_t k, int64_t out) {
            return weight[out * l.hidden + k];
        });
        std::fill(state, share, 0.0f);
        std::fill(offset, zeros + l.hidden, 0.0f);
        if (given) std::copy(given, given + l.width, offset);
        for (int64_t t = 0; t < l.length; ++t) {
            panels.multiply(laid, state, l.examples, share, run.threads);
            for_runs(l.examples, l.width, run.threads, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) {
                    const int64_t row = l.row(n, t);
                    float* own = run.at(kept) + row * l.hidden;
                    Cell::forward({l.hidden, run.at(x) + row * l.width, share + n * pitch, offset,
                                   t > 0 ? own - l.hidden : zeros, run.at(gates) + row * l.width,
                                   own, run.at(y) + row * l.hidden, state + n * l.hidden});
                }
            });
        }
    };
}

// The states before each position, example by example; zero before the first.
void states_before(const Layer& l, const float* y, float* to, int threads) {
    for_runs(l.examples, l.length * l.hidden, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            const int64_t first = l.row(n, 0) * l.hidden, rest = (l.length - 1) * l.hidden;
            std::fill(to + first, to + first + l.hidden, 0.0f);
            std::copy(y + first, y + first + rest, to + first + l.hidden);
        }
    });
}

template <class Cell>
Step backward(Builder& b) {
    const Layer l(b, Cell::gates, Cell::kept);
    const Tensor u = b["u"], y = b["y"], gates = b["gates"], kept = b[Cell::kept], dy = b["dy"];
    const Tensor dx = b["dx"], du = b["du"], dbias = b["dbias"];
    const Panels back{l.width, l.hidden};
    const Dense all(flat(l.rows(), l.hidden, l.width), 1);
    check_strips(b, all);
    const int64_t laid = std::max(back.floats(), all.floats()), states = l.rows() * l.hidden;
    const int64_t pitch = back.pitch();
    b.floats(laid + l.examples * pitch + l.states() + l.shares() + l.hidden +
             states * (Cell::keeps_states ? 2 : 1));
    const auto to_weight = b.product(Way::values, all.p, all.rows, all.entries());
    return [=](const Run& run) {
        float* values = run.shared.floats.data();
        float *dstate = values + laid, *carried = dstate + l.examples * pitch;
        float *dshare = carried + l.states(), *zeros = dshare + l.shares();
        float *before = zeros + l.hidden, *fresh = Cell::keeps_states ? before + states : nullptr;
        const float* earlier = run.at(Cell::keeps_states ? y : kept);
        const float* weight = run.at(u);
        back.lay_out(values, run.threads, [=](int64_t k, int64_t out) {
            return weight[k * l.hidden + out];
        });
        std::fill(dstate, dshare, 0.0f);
        std::fill(zeros, before, 0.0f);
        for (int64_t t = l.length; t-- > 0;) {
            for_runs(l.examples, l.width, run.threads, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) {
                    const int64_t row = l.row(n, t), at = row * l.hidden, state = n * l.hidden;
                    Cell::back({l.hidden, run.at(gates) + row * l.width, run.at(kept) + at,
                                t > 0 ? earlier + at - l.hidden : zeros, run.at(dy) + at,
                                dstate + n * pitch, carried + state, run.at(dx) + row * l.width,
                                dshare + n * l.width, fresh ? fresh + at : nullptr});
                }
            });
            if (t > 0) {
                back.multiply(values, dshare, l.examples, dstate, run.threads);
            }
        }
        states_before(l, run.at(y), before, run.threads);
        all.fill(run.shared.index);
        to_weight->values(run.shared.product, run.shared.index, before, run.at(dx), values);
        all.gather(values, run.at(du), run.threads);
        if (dbias) {
            const float* all_rows = run.at(dx);
            sum_rows(l.rows(), l.width, run.threads, run.at(dbias),
                     [=](int64_t row, int64_t i) { return all_rows[row * l.width + i]; });
        }
        if (!fresh) return;
        for_runs(l.rows(), l.hidden, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                std::copy(fresh + row * l.hidden, fresh + (row + 1) * l.hidden,
                          run.at(dx) + row * l.width + 2 * l.hidden);
            }
        });
    };
}

}  // namespace

std::vector<Operator> recurrent() {
    const Argument bias{"bias", float32, true}, dbias{"dbias", float32, true};
    return {
        {"lstm", {{"x"}, {"u"}, bias}, {{"y"}, {"gates"}, {"cells"}}, {}, {}, forward<Lstm>},
        {"lstm_gradient", {{"u"}, {"y"}, {"gates"}, {"cells"}, {"dy"}}, {{"dx"}, {"du"}, dbias}, {},
         {}, backward<Lstm>},
        {"gru", {{"x"}, {"u"}, bias}, {{"y"}, {"gates"}, {"candidate"}}, {}, {}, forward<Gru>},
        {"gru_gradient", {{"u"}, {"y"}, {"gates"}, {"candidate"}, {"dy"}},
         {{"dx"}, {"du"}, dbias}, {}, {}, backward<Gru>},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
