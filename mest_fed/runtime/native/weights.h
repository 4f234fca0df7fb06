// Weights of convolutions and linear layers as strips, dense and sparse. A linear layer is a
// convolution of 1x1 planes.
#pragma once

#include <limits>

#include "builder.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

constexpr int64_t largest = std::numeric_limits<int32_t>::max() / 4;

struct Window {
    Shape kernel{1, 1}, stride{1, 1}, padding{0, 0};
};

// `weight`: (out, in, kernel height, kernel width), in of all groups.
inline Convolution convolution(const Builder& b, const Shape& x, const Shape& y,
                               const Shape& weight, const Window& window) {
    for (const Shape* shape : {&x, &y, &weight, &window.stride, &window.padding}) {
        for (int64_t size : *shape) {
            b.require(size <= largest, std::to_string(size), "sizes up to " + std::to_string(largest));
        }
    }
    b.require(x[0] == y[0] && x[1] == weight[1] && y[1] == weight[0],
              "planes of shapes " + text_of(x) + " and " + text_of(y),
              "what fits a weight of shape " + text_of(weight));
    for (int i : {0, 1}) {
        const int64_t room = x[2 + i] + 2 * window.padding[i] - window.kernel[i];
        b.require(room >= 0 && y[2 + i] == room / window.stride[i] + 1,
                  "output planes of shape " + text_of(y), "what the convolution gives");
    }
    const auto n = [](int64_t size) { return static_cast<int>(size); };
    return {x[0],
            n(x[1]), n(x[2]), n(x[3]),
            n(y[1]), n(y[2]), n(y[3]),
            n(window.kernel[0]), n(window.kernel[1]),
            n(window.stride[0]), n(window.stride[1]),
            n(window.padding[0]), n(window.padding[1]),
            1, 1};
}

inline Shape planes(const Shape& shape) {
    Shape wide = shape;
    wide.resize(4, 1);
    return wide;
}

// The convolution between arguments of these names; a linear layer has no attribute of a window.
inline Convolution between(const Builder& b, const Tensor& x, const Tensor& y,
                           const Shape& weight, bool linear) {
    Window window;
    if (!linear) {
        for (int i : {0, 1}) {
            window.kernel[i] = weight[2 + i];
            window.stride[i] = b.whole("stride", i);
            window.padding[i] = b.whole("padding", i);
        }
    }
    return convolution(b, planes(x.shape), planes(y.shape), planes(weight), window);
}

inline void check_bias(const Builder& b, const Convolution& p) {
    b.expect("b", {p.out_channels});
}

// A dense weight as strips: rows of a strip never belong to two groups.
struct Dense {
    Convolution p;
    int groups, rows;

    Dense(const Convolution& p_, int groups_) : p(p_), groups(groups_) {
        const int own = p.out_channels / groups;
        rows = 4;
        while (rows > 1 && (own < rows || (groups > 1 && own % rows != 0))) rows /= 2;
    }
    int strips() const { return (p.out_channels - 1) / rows + 1; }
    int columns() const { return p.in_channels / groups * p.taps(); }  // of a strip
    int64_t entries() const { return int64_t{strips()} * columns(); }
    int64_t floats() const { return entries() * rows; }

    void fill(StripIndex& index) const {
        const int strips_of_group = strips() / groups;
        index.rows = rows;
        index.first.clear();
        index.columns.clear();
        for (int strip = 0; strip < strips(); ++strip) {
            index.first.push_back(static_cast<int32_t>(index.columns.size()));
            const int begin = groups == 1 ? 0 : strip / strips_of_group * columns();
            for (int c = 0; c < columns(); ++c) index.columns.push_back(begin + c);
        }
        index.first.push_back(static_cast<int32_t>(index.columns.size()));
    }

    // work(row, place of its first value): a row's values are `rows` apart.
    template <class Work>
    void for_rows(int threads, const Work& work) const {
        for_runs(strips(), int64_t{columns()} * rows, threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin * rows; row < std::min<int64_t>(end * rows, p.out_channels); ++row) {
                work(row, row / rows * rows * columns() + row % rows);
            }
        });
    }

    void lay_out(const float* weight, float* values, int threads) const {
        const int count = columns(), apart = rows;
        for_rows(threads, [=](int64_t row, int64_t place) {
            const float* from = weight + row * count;
            for (int c = 0; c < count; ++c) values[place + int64_t{c} * apart] = from[c];
        });
    }
};

inline Dense dense(const Builder& b, const Tensor& x, const Tensor& y, const Tensor& w,
                   bool linear) {
    const int64_t groups = linear ? 1 : b.whole("groups");
    Shape whole = w.shape;
    b.require(groups <= largest && whole[1] <= largest && whole[0] % groups == 0,
              "groups = " + std::to_string(groups), "a divisor of " + std::to_string(whole[0]));
    whole[1] *= groups;
    const Dense found(between(b, x, y, whole, linear), static_cast<int>(groups));
    b.require(found.entries() <= largest, "weight of shape " + text_of(w.shape),
              "up to " + std::to_string(largest) + " columns of strips");
    return found;
}

// Granules of a sparse weight, with room for more: slots past the active ones are -1.
struct Sparse {
    Convolution p;
    int rows;
    int64_t capacity;
    Tensor slots;

    // Returns how many are active. A -1 among them is a slot out of order, which is refused.
    int64_t fill(const Run& run) const {
        const int32_t* given = run.at<int32_t>(slots);
        int64_t active = capacity;
        while (active > 0 && given[active - 1] == -1) --active;
        strips_into(run.shared.index, {given, active, rows, nullptr, 1, rows}, p);
        return active;
    }
};

inline Sparse sparse(const Builder& b, const Tensor& x, const Tensor& y, const char* values,
                     bool linear) {
    Shape weight;
    for (int i = 0; i < (linear ? 2 : 4); ++i) weight.push_back(b.whole("weight_shape", i));
    const Tensor slots = b.dims("slots", 1);
    const int rows = static_cast<int>(b.whole("rows"));
    const int64_t capacity = slots.shape[0];
    const Convolution p = between(b, x, y, weight, linear);
    b.expect(values, {capacity, rows});
    b.require(capacity <= largest && capacity <= ((p.out_channels - 1) / rows + 1) * p.columns(),
              std::to_string(capacity) + " slots", "at most as many as granules");
    return {p, rows, capacity, slots};
}

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
