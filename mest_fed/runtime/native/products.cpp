// Convolutions and linear layers, which are convolutions of 1x1 planes.
#include <algorithm>

#include "dense.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

struct Window {
    Shape kernel{1, 1}, stride{1, 1}, padding{0, 0};
};

// `weight`: (out, in, kernel height, kernel width), in of all groups.
Convolution convolution(const Builder& b, const Shape& x, const Shape& y, const Shape& weight,
                        const Window& window) {
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

Shape planes(const Shape& shape) {
    Shape wide = shape;
    wide.resize(4, 1);
    return wide;
}

// The convolution between arguments of these names; a linear layer has no attribute of a window.
Convolution between(const Builder& b, const Tensor& x, const Tensor& y, const Shape& weight,
                    bool linear) {
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

void check_bias(const Builder& b, const Convolution& p) { b.expect("b", {p.out_channels}); }

Dense dense(const Builder& b, const Tensor& x, const Tensor& y, const Tensor& w, bool linear) {
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

template <bool Linear>
Step forward(Builder& b) {
    constexpr int dims = Linear ? 2 : 4;
    const Tensor x = b.dims("x", dims), w = b.dims("w", dims), y = b.dims("y", dims), bias = b["b"];
    const Dense d = dense(b, x, y, w, Linear);
    check_bias(b, d.p);
    b.floats(d.floats());
    const auto product = b.product(Way::forward, d.p, d.rows, d.entries());
    return [=](const Run& run) {
        float* values = run.shared.floats.data();
        d.fill(run.shared.index);
        d.lay_out(run.at(w), values, run.threads);
        product->forward(run.shared.product, run.shared.index, values, run.at(x), run.at(bias),
                         run.at(y));
    };
}

// Where a stride of 1 allows, the way back is a convolution with the turned kernel.
template <bool Linear>
Step input_gradient(Builder& b) {
    constexpr int dims = Linear ? 2 : 4;
    const Tensor dx = b.dims("dx", dims), w = b.dims("w", dims), dy = b.dims("dy", dims);
    const Dense d = dense(b, dx, dy, w, Linear);
    if (!turns(d.p)) {
        b.floats(d.floats());
        const auto product = b.product(Way::input, d.p, d.rows, d.entries());
        return [=](const Run& run) {
            float* values = run.shared.floats.data();
            d.fill(run.shared.index);
            d.lay_out(run.at(w), values, run.threads);
            product->input(run.shared.product, run.shared.index, values, run.at(dy), run.at(dx));
        };
    }
    const Dense t(turned(d.p), d.groups);
    b.require(t.entries() <= largest, "weight of shape " + text_of(w.shape),
              "up to " + std::to_string(largest) + " columns of strips");
    b.floats(t.floats());
    const auto product = b.product(Way::forward, t.p, t.rows, t.entries());
    return [=](const Run& run) {
        float* values = run.shared.floats.data();
        t.fill(run.shared.index);
        t.lay_out_turned(d, run.at(w), values, run.threads);
        product->forward(run.shared.product, run.shared.index, values, run.at(dy), nullptr,
                         run.at(dx));
    };
}

template <bool Linear>
Step weight_gradient(Builder& b) {
    constexpr int dims = Linear ? 2 : 4;
    const Tensor x = b.dims("x", dims), dw = b.dims("dw", dims), dy = b.dims("dy", dims);
    const Dense d = dense(b, x, dy, dw, Linear);
    b.floats(d.floats());
    const auto product = b.product(Way::values, d.p, d.rows, d.entries());
    return [=](const Run& run) {
        float *values = run.shared.floats.data(), *weight = run.at(dw);
        d.fill(run.shared.index);
        product->values(run.shared.product, run.shared.index, run.at(x), run.at(dy), values);
        d.gather(values, weight, run.threads);
    };
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

Sparse sparse(const Builder& b, const Tensor& x, const Tensor& y, const char* values, bool linear) {
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

template <bool Linear>
Step sparse_forward(Builder& b) {
    const Tensor x = b.dims("x", Linear ? 2 : 4), y = b.dims("y", Linear ? 2 : 4);
    const Tensor values = b["values"], bias = b["b"];
    const Sparse s = sparse(b, x, y, "values", Linear);
    check_bias(b, s.p);
    const auto product = b.product(Way::forward, s.p, s.rows, s.capacity);
    return [=](const Run& run) {
        s.fill(run);
        product->forward(run.shared.product, run.shared.index, run.at(values), run.at(x),
                         run.at(bias), run.at(y));
    };
}

template <bool Linear>
Step sparse_input_gradient(Builder& b) {
    const Tensor dx = b.dims("dx", Linear ? 2 : 4), dy = b.dims("dy", Linear ? 2 : 4);
    const Tensor values = b["values"];
    const Sparse s = sparse(b, dx, dy, "values", Linear);
    const auto product = b.product(Way::input, s.p, s.rows, s.capacity);
    return [=](const Run& run) {
        s.fill(run);
        product->input(run.shared.product, run.shared.index, run.at(values), run.at(dy),
                       run.at(dx));
    };
}

template <bool Linear>
Step sparse_values_gradient(Builder& b) {
    const Tensor x = b.dims("x", Linear ? 2 : 4), dy = b.dims("dy", Linear ? 2 : 4);
    const Tensor dvalues = b["dvalues"];
    const Sparse s = sparse(b, x, dy, "dvalues", Linear);
    const auto product = b.product(Way::values, s.p, s.rows, s.capacity);
    return [=](const Run& run) {
        const int64_t active = s.fill(run);
        float* to = run.at(dvalues);
        product->values(run.shared.product, run.shared.index, run.at(x), run.at(dy), to);
        std::fill(to + active * s.rows, to + s.capacity * s.rows, 0.0f);
    };
}

Step bias_gradient(Builder& b) {
    const Tensor dy = b.dims("dy", -2), db = b["db"];
    const int64_t images = dy.shape[0], channels = dy.shape[1];
    const int64_t plane = product_of(dy.shape, 2);
    b.expect("db", {channels});
    return [=](const Run& run) {
        const float* from = run.at(dy);
        float* to = run.at(db);
        if (plane == 1) {
            sum_rows(images, channels, run.threads, to,
                     [=](int64_t image, int64_t c) { return from[image * channels + c]; });
            return;
        }
        for_runs(channels, images * plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; ++c) {
                double total = 0;
                for (int64_t image = 0; image < images; ++image) {
                    const float* at = from + (image * channels + c) * plane;
                    total += sum_of(plane, [&](int64_t i) { return at[i]; });
                }
                to[c] = static_cast<float>(total);
            }
        });
    };
}

}  // namespace

std::vector<Operator> products() {
    const Attribute stride{"stride", 1, largest, 2}, padding{"padding", 0, largest, 2};
    const Attribute groups{"groups", 1}, rows{"rows", 1, largest};
    const Attribute shape4{"weight_shape", 1, largest, 4}, shape2{"weight_shape", 1, largest, 2};
    const std::vector<Attribute> conv{stride, padding, groups};
    const std::vector<Attribute> sparse4{stride, padding, shape4, rows}, sparse2{shape2, rows};
    const Argument b{"b", float32, true}, slots{"slots", int32};
    return {
        {"conv2d", {{"x"}, {"w"}, b}, {{"y"}}, conv, {}, forward<false>},
        {"conv2d_input_gradient", {{"w"}, {"dy"}}, {{"dx"}}, conv, {}, input_gradient<false>},
        {"conv2d_weight_gradient", {{"x"}, {"dy"}}, {{"dw"}}, conv, {}, weight_gradient<false>},
        {"bias_gradient", {{"dy"}}, {{"db"}}, {}, {}, bias_gradient},
        {"sparse_conv2d", {{"x"}, {"values"}, slots, b}, {{"y"}}, sparse4, {},
         sparse_forward<false>},
        {"sparse_conv2d_input_gradient", {{"values"}, slots, {"dy"}}, {{"dx"}}, sparse4, {},
         sparse_input_gradient<false>},
        {"sparse_conv2d_values_gradient", {{"x"}, slots, {"dy"}}, {{"dvalues"}}, sparse4, {},
         sparse_values_gradient<false>},
        {"linear", {{"x"}, {"w"}, b}, {{"y"}}, {}, {}, forward<true>},
        {"linear_input_gradient", {{"w"}, {"dy"}}, {{"dx"}}, {}, {}, input_gradient<true>},
        {"linear_weight_gradient", {{"x"}, {"dy"}}, {{"dw"}}, {}, {}, weight_gradient<true>},
        {"sparse_linear", {{"x"}, {"values"}, slots, b}, {{"y"}}, sparse2, {},
         sparse_forward<true>},
        {"sparse_linear_input_gradient", {{"values"}, slots, {"dy"}}, {{"dx"}}, sparse2, {},
         sparse_input_gradient<true>},
        {"sparse_linear_values_gradient", {{"x"}, slots, {"dy"}}, {{"dvalues"}}, sparse2, {},
         sparse_values_gradient<true>},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
