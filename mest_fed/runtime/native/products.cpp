// Convolutions and linear layers, which are convolutions of 1x1 planes. A dense weight is a sparse
// one whose strips are full (of their group's columns): its values are laid out anew in each call,
// which costs little beside the product.
#include <algorithm>

#include "channels.h"
#include "linear.h"
#include "plane_steps.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// The gradient of the input, of the weight, or both, from the weight as it lies.
Step linear_gradient(Builder& b, const Layer& l, const Tensor& x, const Tensor& w,
                     const Tensor& dw) {
    const Tensor dy = b["dy"], dx = b["dx"];
    return [=](const Run& run) {
        float* to = run.at(dw);
        const LayerGradients given{run.at(x), run.at(w), nullptr, run.at(dy), run.at(dx),
                                   to != nullptr};
        linear_gradients(
            l, given, run.threads,
            [=](int64_t at, simd::vec gradient) { simd::store(to + at, gradient); },
            [=](int64_t at, float gradient) { to[at] = gradient; });
    };
}

// Whether the planes of a convolution lie in place; then both sides' do.
bool in_place(const Builder& b, const Tensor& x, const Tensor& y) {
    b.require((x.margin > 0) == (y.margin > 0),
              "margins " + std::to_string(x.margin) + " and " + std::to_string(y.margin),
              "both 0, or both more");
    return x.margin > 0;
}

// A dense weight's rows are taken four at a time, wherever they lie.
PlaneConvolution dense_planes(const Builder& b, const Dense& d, const Tensor& x, const Tensor& y,
                              const Tensor& w) {
    b.require(d.groups == 1, "groups = " + std::to_string(d.groups), "1 where there are margins");
    return {d.p, x, y, w, {}, 4, {}};
}

// The step, or what its output held before is added to what it writes. The step takes the first `used`
// of the shared floats.
Step added(Builder& b, const Tensor& to, int64_t used, const Step& step) {
    if (!b.adds()) return step;
    const int64_t count = to.count();
    b.floats(used + count);
    return [=](const Run& run) {
        float *held = run.shared.floats.data() + used, *into = run.at(to);
        std::copy_n(into, count, held);
        step(run);
        for_runs(count, 1, run.threads, [=](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) into[i] += held[i];
        });
    };
}

template <bool Linear>
Step forward(Builder& b) {
    constexpr int dims = Linear ? 2 : 4;
    const Tensor x = b.dims("x", dims), w = b.dims("w", dims), y = b.dims("y", dims), bias = b["b"];
    const Dense d = dense(b, x, y, w, Linear);
    check_bias(b, d.p);
    if (in_place(b, x, y)) {
        PlaneConvolution c = dense_planes(b, d, x, y, w);
        c.bias = bias;
        return planes_forward(b, c);
    }
    if (const Layer l = layer_of(d.p); Linear && l.direct()) {
        return [=](const Run& run) {
            linear_forward(l, run.at(x), run.at(w), run.at(bias), run.at(y), run.threads);
        };
    }
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

// Where a stride of 1 allows, the way back is a convolution with the turned kernel, in whose weight
// input and output channels of a group change places: (in, out of the group, taps reversed).
template <bool Linear>
Step input_gradient(Builder& b) {
    constexpr int dims = Linear ? 2 : 4;
    const Tensor dx = b.dims("dx", dims), w = b.dims("w", dims), dy = b.dims("dy", dims);
    const Dense d = dense(b, dx, dy, w, Linear);
    if (in_place(b, dx, dy)) return planes_input_gradient(b, dense_planes(b, d, dx, dy, w));
    if (const Layer l = layer_of(d.p); Linear && l.direct()) return linear_gradient(b, l, {}, w, {});
    if (!turns(d.p)) {
        b.floats(d.floats());
        const auto product = b.product(Way::input, d.p, d.rows, d.entries());
        return added(b, dx, d.floats(), [=](const Run& run) {
            float* values = run.shared.floats.data();
            d.fill(run.shared.index);
            d.lay_out(run.at(w), values, run.threads);
            product->input(run.shared.product, run.shared.index, values, run.at(dy), run.at(dx));
        });
    }
    const Dense t(turned(d.p), d.groups);
    b.require(t.entries() <= largest, "weight of shape " + text_of(w.shape),
              "up to " + std::to_string(largest) + " columns of strips");
    b.floats(t.floats());
    const auto product = b.product(Way::forward, t.p, t.rows, t.entries());
    const int64_t taps = d.p.taps(), own_in = d.p.in_channels / d.groups;
    const int64_t own_out = d.p.out_channels / d.groups;
    return added(b, dx, t.floats(), [=](const Run& run) {
        float* values = run.shared.floats.data();
        const float* weight = run.at(w);
        t.fill(run.shared.index);
        t.for_rows(run.threads, [&](int64_t row, int64_t place) {
            const float* from = weight + (row / own_in * own_out * own_in + row % own_in) * taps;
            for (int64_t out = 0; out < own_out; ++out, from += own_in * taps) {
                for (int64_t tap = taps; tap-- > 0; place += t.rows) values[place] = from[tap];
            }
        });
        product->forward(run.shared.product, run.shared.index, values, run.at(dy), nullptr,
                         run.at(dx));
    });
}

template <bool Linear>
Step weight_gradient(Builder& b) {
    constexpr int dims = Linear ? 2 : 4;
    const Tensor x = b.dims("x", dims), dw = b.dims("dw", dims), dy = b.dims("dy", dims);
    const Dense d = dense(b, x, dy, dw, Linear);
    if (in_place(b, x, dy)) return planes_values_gradient(b, dense_planes(b, d, x, dy, dw));
    if (const Layer l = layer_of(d.p); Linear && l.direct()) return linear_gradient(b, l, x, {}, dw);
    b.floats(d.floats());
    const auto product = b.product(Way::values, d.p, d.rows, d.entries());
    return added(b, dw, d.floats(), [=](const Run& run) {
        float *values = run.shared.floats.data(), *weight = run.at(dw);
        d.fill(run.shared.index);
        product->values(run.shared.product, run.shared.index, run.at(x), run.at(dy), values);
        d.for_rows(run.threads, [&](int64_t row, int64_t place) {
            float* to = weight + row * d.columns();
            for (int c = 0; c < d.columns(); ++c) to[c] = values[place + int64_t{c} * d.rows];
        });
    });
}

template <bool Linear>
Step sparse_forward(Builder& b) {
    const Tensor x = b.dims("x", Linear ? 2 : 4), y = b.dims("y", Linear ? 2 : 4);
    const Tensor values = b["values"], bias = b["b"];
    const Sparse s = sparse(b, x, y, "values", Linear);
    check_bias(b, s.p);
    if (in_place(b, x, y)) return planes_forward(b, {s.p, x, y, values, s.slots, s.rows, bias});
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
    if (in_place(b, dx, dy)) {
        return planes_input_gradient(b, {s.p, dx, dy, values, s.slots, s.rows, {}});
    }
    const auto product = b.product(Way::input, s.p, s.rows, s.capacity);
    return added(b, dx, 0, [=](const Run& run) {
        s.fill(run);
        product->input(run.shared.product, run.shared.index, run.at(values), run.at(dy),
                       run.at(dx));
    });
}

template <bool Linear>
Step sparse_values_gradient(Builder& b) {
    const Tensor x = b.dims("x", Linear ? 2 : 4), dy = b.dims("dy", Linear ? 2 : 4);
    const Tensor dvalues = b["dvalues"];
    const Sparse s = sparse(b, x, dy, "dvalues", Linear);
    if (in_place(b, x, dy)) {
        return planes_values_gradient(b, {s.p, x, dy, dvalues, s.slots, s.rows, {}});
    }
    const auto product = b.product(Way::values, s.p, s.rows, s.capacity);
    return added(b, dvalues, 0, [=](const Run& run) {
        const int64_t active = s.fill(run);
        float* to = run.at(dvalues);
        product->values(run.shared.product, run.shared.index, run.at(x), run.at(dy), to);
        std::fill(to + active * s.rows, to + s.capacity * s.rows, 0.0f);
    });
}

Step bias_gradient(Builder& b) {
    const Tensor dy = b.dims("dy", -2), db = b["db"];
    const Channels on = channels_of(dy);
    b.expect("db", {on.channels});
    return [=](const Run& run) {
        const float* from = run.at(dy);
        float* to = run.at(db);
        if (on.plane == 1 && on.images > 0 && dy.shape.size() == 2) {
            const int64_t channels = on.channels;
            sum_rows(on.images, channels, run.threads, to,
                     [=](int64_t image, int64_t c) { return from[image * channels + c]; });
            return;
        }
        for_runs(on.channels, on.images * on.plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; ++c) {
                double total = 0;
                for (int64_t image = 0; image < on.images; ++image) {
                    const float* at = from + on.at(image, c);
                    total += sum_of(on.plane, [&](int64_t i) { return at[i]; });
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
    const Argument x = on_bf16_planes("x"), y = on_bf16_planes("y"), dx = on_planes("dx");
    const Argument dy = on_bf16_planes("dy"), wide_dy = on_planes("dy");
    std::vector<Operator> found{
        {"conv2d", {x, {"w"}, b}, {y}, conv, {}, forward<false>},
        {"conv2d_input_gradient", {{"w"}, dy}, {dx}, conv, {}, input_gradient<false>},
        {"conv2d_weight_gradient", {x, dy}, {{"dw"}}, conv, {}, weight_gradient<false>},
        {"bias_gradient", {wide_dy}, {{"db"}}, {}, {}, bias_gradient},
        {"sparse_conv2d", {x, {"values"}, slots, b}, {y}, sparse4, {},
         sparse_forward<false>},
        {"sparse_conv2d_input_gradient", {{"values"}, slots, dy}, {dx}, sparse4, {},
         sparse_input_gradient<false>},
        {"sparse_conv2d_values_gradient", {x, slots, dy}, {{"dvalues"}}, sparse4, {},
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
    for (const Operator& one : std::vector<Operator>{
             {"conv2d_input_gradient_added", {{"w"}, dy}, {dx}, conv, {}, input_gradient<false>, true},
             {"conv2d_weight_gradient_added", {x, dy}, {{"dw"}}, conv, {}, weight_gradient<false>,
              true},
             {"sparse_conv2d_input_gradient_added", {{"values"}, slots, dy}, {dx}, sparse4, {},
              sparse_input_gradient<false>, true},
             {"sparse_conv2d_values_gradient_added", {x, slots, dy}, {{"dvalues"}}, sparse4, {},
              sparse_values_gradient<false>, true}}) {
        found.push_back(one);
    }
    return found;
}

}  // namespace mest::runtime::MEST_VARIANT
