// The gradient of a linear layer's weight and its update in one operator: the gradient is never
// written down, and weight and momentum are read and written once. The gradient of the input is that
// of the weight before.
#include "linear.h"
#include "sgd.h"
#include "transpose.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

Step linear_sgd(Builder& b) {
    const Tensor x = b.dims("x", 2), w = b.dims("w", 2), dy = b.dims("dy", 2), dx = b["dx"];
    const Tensor rates = b["rates"], momentum = b["momentum_buffer"];
    const Layer l = layer_of(dense(b, x, dy, w, true).p);
    b.expect("dx", x.shape);
    b.expect("momentum_buffer", w.shape);
    b.expect("rates", {1});
    const Sgd sgd(b);
    return [=](const Run& run) {
        float *weights = run.at(w), *moments = run.at(momentum);
        const float rate = *run.at(rates);
        const auto vectors = [=](int64_t at, simd::vec gradient) {
            simd::vec weight = simd::load(weights + at);
            if (moments == nullptr) {
                sgd.step<simd::vec>(gradient, rate, weight, nullptr);
            } else {
                simd::vec moment = simd::load(moments + at);
                sgd.step(gradient, rate, weight, &moment);
                simd::store(moments + at, moment);
            }
            simd::store(weights + at, weight);
        };
        const auto numbers = [=](int64_t at, float gradient) {
            sgd.step(gradient, rate, weights[at], moments == nullptr ? nullptr : moments + at);
        };
        const LayerGradients given{run.at(x), weights, moments, run.at(dy), run.at(dx), true};
        linear_gradients(l, given, run.threads, vectors, numbers);
    };
}

// Granules of a linear layer, taken by ranges of columns: of each, images lie side by side.
struct Ranges {
    Sparse s;
    Sgd sgd;
    bool moves;  // whether there is momentum

    static constexpr int64_t width = 512;

    int64_t images() const { return s.p.batch; }
    int64_t lanes() const { return whole_vectors(images()); }
    int64_t strips() const { return (s.p.out_channels - 1) / s.rows + 1; }
    int64_t scratch() const { return 2 * width * lanes() + s.rows; }
    // Gradients of the outputs: by output, images side by side; by strip and image, rows side by
    // side. Rows past the last output are zero.
    int64_t across() const { return strips() * s.rows * lanes(); }
    int64_t along() const { return strips() * s.rows * images(); }

    static int64_t whole_vectors(int64_t floats) { return (floats + V - 1) / V * V; }

    void arrange(const float* dy, float* to) const {
        const int64_t outputs = s.p.out_channels;
        std::fill(to, to + across() + along(), 0.0f);
        float* other = to + across();
        for (int64_t i = 0; i < images(); ++i) {
            for (int64_t o = 0; o < outputs; ++o) {
                const float gradient = dy[i * outputs + o];
                to[o * lanes() + i] = gradient;
                other[(o / s.rows * images() + i) * s.rows + o % s.rows] = gradient;
            }
        }
    }
};

// What an entry of a strip is: its inputs, and where its share of their gradient goes (may be null).
struct Entry {
    const float* x;
    float* dx;
};

template <int Rows>
void add_input(const Ranges& r, const Entry& e, const float* values, const float* across) {
    const int rows = Rows > 0 ? Rows : r.s.rows;
    for (int64_t at = 0; at < r.lanes(); at += V) {
        simd::vec sum = simd::load(e.dx + at);
        for (int row = 0; row < rows; ++row) {
            sum += simd::all(values[row]) * simd::load(across + row * r.lanes() + at);
        }
        simd::store(e.dx + at, sum);
    }
}

// The gradients of an entry's four values.
using quad = simd::Simd<4>::type;

inline quad four(const Ranges& r, const float* x, const float* along) {
    quad even{}, odd{};
    int64_t i = 0;
    for (; i + 2 <= r.images(); i += 2) {
        even += (quad{} + x[i]) * simd::load<4>(along + 4 * i);
        odd += (quad{} + x[i + 1]) * simd::load<4>(along + 4 * i + 4);
    }
    if (i < r.images()) even += (quad{} + x[i]) * simd::load<4>(along + 4 * i);
    return even + odd;
}

inline float dot(const Ranges& r, const float* x, const float* across) {
    simd::vec sum{};
    for (int64_t at = 0; at < r.lanes(); at += V) sum += simd::load(x + at) * simd::load(across + at);
    return simd::sum_of(sum);
}

template <int Rows>
void update_entry(const Ranges& r, const Entry& e, float rate, float* values, float* moments,
                  const float* across, const float* along) {
    if (e.dx != nullptr) add_input<Rows>(r, e, values, across);
    if constexpr (Rows == 4) {
        const quad gradient = four(r, e.x, along);
        quad value = simd::load<4>(values), moment{};
        if (r.moves) moment = simd::load<4>(moments);
        r.sgd.step(gradient, rate, value, r.moves ? &moment : nullptr);
        if (r.moves) simd::store<4>(moments, moment);
        simd::store<4>(values, value);
    } else {
        for (int row = 0; row < r.s.rows; ++row) {
            const float gradient = dot(r, e.x, across + row * r.lanes());
            r.sgd.step(gradient, rate, values[row], r.moves ? moments + row : nullptr);
        }
    }
}

// The entries of all strips whose columns are [begin, end).
template <int Rows>
void update_range(const Ranges& r, const StripIndex& index, int64_t begin, int64_t end,
                  const float* x, float* dx, float rate, float* values, float* moments,
                  const float* gradients) {
    const int32_t* columns = index.columns.data();
    const int rows = Rows > 0 ? Rows : r.s.rows;
    for (int64_t strip = 0; strip < r.strips(); ++strip) {
        const int32_t *until = columns + index.first[strip + 1],
                      *at = std::lower_bound(columns + index.first[strip], until, begin);
        const float* across = gradients + strip * rows * r.lanes();
        const float* along = gradients + r.across() + strip * rows * r.images();
        for (; at < until && *at < end; ++at) {
            const int64_t place = (*at - begin) * r.lanes(), value = (at - columns) * rows;
            const Entry entry{x + place, dx == nullptr ? nullptr : dx + place};
            update_entry<Rows>(r, entry, rate, values + value, r.moves ? moments + value : nullptr,
                               across, along);
        }
    }
}

Step sparse_linear_sgd(Builder& b) {
    const Tensor x = b.dims("x", 2), dy = b.dims("dy", 2), dx = b["dx"], values = b["values"];
    const Tensor rates = b["rates"], momentum = b["momentum_buffer"];
    const Sparse s = sparse(b, x, dy, "values", true);
    b.expect("dx", x.shape);
    b.expect("momentum_buffer", values.shape);
    b.expect("rates", {1});
    const Ranges r{s, Sgd(b), static_cast<bool>(momentum)};
    b.lists(r.strips(), s.capacity);
    b.floats(r.across() + r.along());
    b.scratch(r.scratch());
    const int64_t features = s.p.in_channels, images = r.images();
    const auto update = s.rows == 4 ? update_range<4> : s.rows == 1 ? update_range<1> : update_range<0>;
    return [=](const Run& run) {
        s.fill(run);
        float* gradients = run.shared.floats.data();
        r.arrange(run.at(dy), gradients);
        const int64_t ranges = (features + Ranges::width - 1) / Ranges::width;
        parallel_for(ranges, run.threads, [&](int64_t range) {
            const int64_t begin = range * Ranges::width;
            const int64_t size = std::min(Ranges::width, features - begin);
            float* own = thread_scratch(free_scratch, r.scratch());
            float* back = dx ? own + Ranges::width * r.lanes() : nullptr;
            std::fill(own, own + 2 * Ranges::width * r.lanes(), 0.0f);
            simd::into_lanes(run.at(x) + begin, features, own, r.lanes(), images, size);
            update(r, run.shared.index, begin, begin + size, own, back, *run.at(rates),
                   run.at(values), run.at(momentum), gradients);
            if (back == nullptr) return;
            simd::out_of_lanes(back, r.lanes(), run.at(dx) + begin, features, size, images);
        });
    };
}

}  // namespace

std::vector<Operator> linear_updates() {
    const Argument slots{"slots", int32}, dx{"dx", float32, true};
    const Argument momentum{"momentum_buffer", float32, true};
    const Attribute nesterov{"nesterov", 0, 1};
    const std::vector<Attribute> sparse{{"weight_shape", 1, largest, 2}, {"rows", 1, largest}, nesterov};
    return {
        {"linear_sgd", {{"x"}, {"dy"}, {"rates"}, {"w"}, momentum}, {dx}, {nesterov}, sgd_reals(),
         linear_sgd},
        {"sparse_linear_sgd", {{"x"}, slots, {"dy"}, {"rates"}, {"values"}, momentum}, {dx}, sparse,
         sgd_reals(), sparse_linear_sgd},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
