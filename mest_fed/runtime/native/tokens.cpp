// Operators of sequences, (examples, length, features), and those that only move numbers.
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "builder.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

Step reshape(Builder& b) {
    const Tensor x = b["x"], y = b["y"];
    b.require(x.count() == y.count(), "y has shape " + text_of(y.shape),
              "as many values as " + text_of(x.shape));
    return [=](const Run& run) {
        // Mostly the output is the input's memory.
        if (run.at(x) != run.at(y)) std::memmove(run.at(y), run.at(x), x.count() * sizeof(float));
    };
}

// Thirds of the last axis, and back.
template <bool Apart>
Step split(Builder& b) {
    const Tensor whole = b.dims(Apart ? "x" : "dx", -1);
    const Tensor parts[3] = {b[Apart ? "a" : "da"], b[Apart ? "b" : "db"], b[Apart ? "c" : "dc"]};
    const int64_t last = whole.shape.back(), third = last / 3, rows = whole.count() / last;
    Shape shape = whole.shape;
    shape.back() = third;
    b.require(last % 3 == 0, "shape " + text_of(whole.shape), "a multiple of 3 at the end");
    for (const char* name : {"a", "b", "c", "da", "db", "dc"}) b.expect(name, shape);
    return [=, a = parts[0], second = parts[1], c = parts[2]](const Run& run) {
        float* const part[3] = {run.at(a), run.at(second), run.at(c)};
        float* all = run.at(whole);
        for_runs(rows, last, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                for (int k = 0; k < 3; ++k) {
                    float *one = part[k] + row * third, *place = all + row * last + k * third;
                    std::memcpy(Apart ? one : place, Apart ? place : one, third * sizeof(float));
                }
            }
        });
    };
}

struct Sequence {
    int64_t examples, length, features;
};

Step sequence_mean(Builder& b) {
    const Tensor x = b.dims("x", 3), y = b["y"];
    const Sequence s{x.shape[0], x.shape[1], x.shape[2]};
    b.expect("y", {s.examples, s.features});
    return [=](const Run& run) {
        for_runs(s.examples, s.length * s.features, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                float* to = run.at(y) + n * s.features;
                std::fill(to, to + s.features, 0.0f);
                for (int64_t l = 0; l < s.length; ++l) {
                    const float* from = run.at(x) + (n * s.length + l) * s.features;
                    for (int64_t f = 0; f < s.features; ++f) to[f] += from[f];
                }
                for (int64_t f = 0; f < s.features; ++f) to[f] /= static_cast<float>(s.length);
            }
        });
    };
}

Step sequence_mean_gradient(Builder& b) {
    const Tensor dx = b.dims("dx", 3), dy = b["dy"];
    const Sequence s{dx.shape[0], dx.shape[1], dx.shape[2]};
    b.expect("dy", {s.examples, s.features});
    return [=](const Run& run) {
        for_runs(s.examples * s.length, s.features, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float* from = run.at(dy) + row / s.length * s.features;
                float* to = run.at(dx) + row * s.features;
                for (int64_t f = 0; f < s.features; ++f) to[f] = from[f] / static_cast<float>(s.length);
            }
        });
    };
}

int64_t checked(const Run& run, const Tensor& indices, int64_t at, int64_t end) {
    const int64_t number = run.at<int64_t>(indices)[at];
    if (number >= 0 && number < end) return number;
    throw std::invalid_argument("indices[" + std::to_string(run.earlier(indices.count()) + at) +
                                "] = " + std::to_string(number) + "; allowed: 0 to " +
                                std::to_string(end - 1));
}

// Rows of a table, one for each index.
Tensor rows_of(const Builder& b, const char* y, const char* name) {
    const Tensor table = b.dims(name, 2);
    Shape shape = b["indices"].shape;
    shape.push_back(table.shape[1]);
    b.expect(y, shape);
    return table;
}

Step embedding(Builder& b) {
    const Tensor table = rows_of(b, "y", "table"), indices = b["indices"], y = b["y"];
    const int64_t rows = table.shape[0], width = table.shape[1];
    return [=](const Run& run) {
        for_runs(indices.count(), width, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = checked(run, indices, i, rows);
                std::memcpy(run.at(y) + i * width, run.at(table) + row * width, width * sizeof(float));
            }
        });
    };
}

// Threads take columns: each adds its rows in order.
Step embedding_gradient(Builder& b) {
    const Tensor table = rows_of(b, "dy", "dtable"), indices = b["indices"], dy = b["dy"];
    const int64_t rows = table.shape[0], width = table.shape[1], count = indices.count();
    return [=](const Run& run) {
        float* to = run.at(table);
        for_runs(width, rows + count, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = 0; row < rows; ++row) {
                std::fill(to + row * width + begin, to + row * width + end, 0.0f);
            }
            for (int64_t i = 0; i < count; ++i) {
                const int64_t row = checked(run, indices, i, rows);
                const float* from = run.at(dy) + i * width;
                MEST_EACH_ALONE
                for (int64_t f = begin; f < end; ++f) to[row * width + f] += from[f];
            }
        });
    };
}

Sequence positions_of(const Builder& b, const char* x, const char* name) {
    const Shape shape = b.dims(x, 3).shape, table = b.dims(name, 2).shape;
    b.require(table[0] >= shape[1] && table[1] == shape[2], "table of shape " + text_of(table),
              "a row for each position of " + text_of(shape));
    b.expect("y", shape);
    return {shape[0], shape[1], shape[2]};
}

Step add_positions(Builder& b) {
    const Sequence s = positions_of(b, "x", "table");
    const Tensor x = b["x"], table = b["table"], y = b["y"];
    return [=](const Run& run) {
        for_runs(s.examples * s.length, s.features, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float* from = run.at(x) + row * s.features;
                const float* position = run.at(table) + row % s.length * s.features;
                float* to = run.at(y) + row * s.features;
                for (int64_t f = 0; f < s.features; ++f) to[f] = from[f] + position[f];
            }
        });
    };
}

Step add_positions_gradient(Builder& b) {
    const Sequence s = positions_of(b, "dy", "dtable");
    const Tensor dy = b["dy"], table = b["dtable"];
    const int64_t rows = table.shape[0];
    return [=](const Run& run) {
        for_runs(rows, s.examples * s.features, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t l = begin; l < end; ++l) {
                float* to = run.at(table) + l * s.features;
                std::fill(to, to + s.features, 0.0f);
                for (int64_t n = 0; n < (l < s.length ? s.examples : 0); ++n) {
                    const float* from = run.at(dy) + (n * s.length + l) * s.features;
                    for (int64_t f = 0; f < s.features; ++f) to[f] += from[f];
                }
            }
        });
    };
}

}  // namespace

std::vector<Operator> tokens() {
    const Argument indices{"indices", int64};
    std::vector<Operator> found{
        {"sequence_mean", {{"x"}}, {{"y"}}, {}, {}, sequence_mean},
        {"sequence_mean_gradient", {{"dy"}}, {{"dx"}}, {}, {}, sequence_mean_gradient},
        {"reshape", {{"x"}}, {{"y"}}, {}, {}, reshape},
        {"split", {{"x"}}, {{"a"}, {"b"}, {"c"}}, {}, {}, split<true>},
        {"split_gradient", {{"da"}, {"db"}, {"dc"}}, {{"dx"}}, {}, {}, split<false>},
        {"embedding", {indices, {"table"}}, {{"y"}}, {}, {}, embedding},
        {"embedding_gradient", {indices, {"dy"}}, {{"dtable"}}, {}, {}, embedding_gradient},
        {"add_positions", {{"x"}, {"table"}}, {{"y"}}, {}, {}, add_positions},
        {"add_positions_gradient", {{"dy"}}, {{"dtable"}}, {}, {}, add_positions_gradient},
    };
    return found;
}

}  // namespace mest::runtime::MEST_VARIANT
