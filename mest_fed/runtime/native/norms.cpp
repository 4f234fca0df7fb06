// Normalisation: of groups and of batches by the kernels' fused walks in C order and by those of
// norm_channels.h on planes, of last axes here.
#include <cmath>

#include "norm_channels.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// x (images, channels, ...) normalised; groups 0: batch norm.
Norm norm_of(const Builder& b, int groups) {
    const Tensor x = b.dims("x", -2);
    constexpr int64_t largest = 1 << 29;
    b.require(x.shape[0] <= largest && x.shape[1] <= largest, "x has shape " + text_of(x.shape),
              "sizes up to " + std::to_string(largest));
    const int channels = static_cast<int>(x.shape[1]);
    b.require(groups == 0 || channels % groups == 0, "groups = " + std::to_string(groups),
              "a divisor of " + std::to_string(channels));
    for (const char* name : {"y", "residual", "dx", "dy", "more", "dresidual"}) {
        b.expect(name, x.shape);
    }
    for (const char* name : {"gamma", "beta", "dgamma", "dbeta", "running_mean", "running_variance"}) {
        b.expect(name, {channels});
    }
    const Shape statistics = groups == 0 ? Shape{channels} : Shape{x.shape[0], groups};
    b.expect("mean", statistics);
    b.expect("scale", statistics);
    const bool relu = b.whole("relu") != 0;
    return {x.shape[0], channels, product_of(x.shape, 2), groups, relu, 0, nullptr, nullptr,
            nullptr};
}

// What a norm walks over forward, and where it lies.
struct Walked {
    Tensor x, residual, y, mean, scale;
    std::array<Channels, 3> on;

    explicit Walked(const Builder& b)
        : x(b["x"]), residual(b["residual"]), y(b["y"]), mean(b["mean"]), scale(b["scale"]),
          on{channels_of(x), channels_of(residual), channels_of(y)} {}

    bool in_c_order() const { return x.margin == 0 && y.margin == 0 && residual.margin == 0; }

    // work(norm over planes of their type)
    template <class Work>
    void over(const Norm& norm, const Run& run, const Work& work) const {
        if (x.narrow) work(of<bf16>(norm, run));
        else work(of<float>(norm, run));
    }

private:
    template <class T>
    ForwardNorm<T> of(const Norm& norm, const Run& run) const {
        return {norm, {on[0], run.at<T>(x)}, {on[1], run.at<T>(residual)}, {on[2], run.at<T>(y)},
                run.at(mean), run.at(scale)};
    }
};

template <bool Batch>
Step forward(Builder& b) {
    Norm given = norm_of(b, Batch ? 0 : static_cast<int>(b.whole("groups")));
    given.epsilon = static_cast<float>(b.real("epsilon"));
    const Walked walked(b);
    const Tensor x = walked.x, gamma = b["gamma"], beta = b["beta"], residual = walked.residual;
    const Tensor y = walked.y, mean = walked.mean, scale = walked.scale;
    const Tensor means = b["running_mean"], variances = b["running_variance"];
    const double momentum = Batch ? b.real("momentum") : 0;
    const double count = static_cast<double>(given.images * given.plane);
    b.require(!Batch || count > 1, "x has shape " + text_of(x.shape),
              "more than one value a channel");
    return [=](const Run& run) {
        Norm norm = given;
        norm.gamma = run.at(gamma), norm.beta = run.at(beta), norm.residual = run.at(residual);
        if (walked.in_c_order()) {
            norm_forward(norm, run.at(x), run.at(y), run.at(mean), run.at(scale), run.threads);
        } else {
            walked.over(norm, run, [&](const auto& f) {
                parallel_for(norm.units(), run.threads, [&](int64_t i) { forward_unit(f, i); });
            });
        }
        if (!Batch) return;
        for (int c = 0; c < norm.channels; ++c) {
            const double spread = 1.0 / run.at(scale)[c], variance = spread * spread - norm.epsilon;
            const double unbiased = std::max(0.0, variance) * count / (count - 1);
            const auto move = [&](float& to, double now) {
                to = static_cast<float>(to * (1 - momentum) + momentum * now);
            };
            move(run.at(means)[c], run.at(mean)[c]);
            move(run.at(variances)[c], std::isnan(variance) ? variance : unbiased);
        }
    };
}

// y again, by means and scales that are known.
template <bool Batch>
Step apply(Builder& b) {
    const Norm given = norm_of(b, Batch ? 0 : static_cast<int>(b.whole("groups")));
    const Tensor gamma = b["gamma"], beta = b["beta"];
    const Walked walked(b);
    return [=](const Run& run) {
        Norm norm = given;
        norm.gamma = run.at(gamma), norm.beta = run.at(beta);
        walked.over(norm, run, [&](const auto& f) {
            parallel_for(norm.units(), run.threads, [&](int64_t i) { apply_unit(f, i); });
        });
    };
}

template <bool Batch>
Step gradient(Builder& b) {
    const Norm given = norm_of(b, Batch ? 0 : static_cast<int>(b.whole("groups")));
    const Tensor x = b["x"], y = b["y"], mean = b["mean"], scale = b["scale"], gamma = b["gamma"];
    const Tensor dy = b["dy"], dx = b["dx"], dgamma = b["dgamma"], dbeta = b["dbeta"];
    const Tensor more = b["more"], dresidual = b["dresidual"];
    b.require(y || !given.relu, "y is absent", "the output where there is a ReLU");
    b.doubles(given.sums());
    const bool adds = b.adds();
    if (adds) b.floats(2 * given.channels);
    const std::array<Tensor, 6> walked{x, y, dy, more, dx, dresidual};
    std::array<Channels, 6> on;
    std::transform(walked.begin(), walked.end(), on.begin(), channels_of);
    // The kernels' walk knows neither margins nor a gradient in two parts.
    const bool by_channels = more || std::any_of(walked.begin(), walked.end(), [](const Tensor& it) {
        return it.margin > 0;
    });
    return [=](const Run& run) {
        Norm norm = given;
        // The sign of y says where the ReLU was open: beta is not read. The walk takes y where
        // there is a residual.
        norm.gamma = norm.beta = run.at(gamma);
        norm.residual = norm.relu ? run.at(y) : nullptr;
        float* of_gamma = adds ? run.shared.floats.data() : run.at(dgamma);
        float* of_beta = adds ? of_gamma + norm.channels : run.at(dbeta);
        const auto walk_over = [&](auto type) {
            using T = decltype(type);
            const BackwardNorm<T> backward{norm, {on[0], run.at<T>(x)}, {on[1], run.at<T>(y)},
                                           {on[2], run.at(dy)}, {on[3], run.at(more)},
                                           {on[4], run.at<T>(dx)}, {on[5], run.at(dresidual)},
                                           run.at(mean), run.at(scale), run.shared.doubles.data()};
            parallel_for(norm.units(), run.threads, [&](int64_t i) { backward_unit(backward, i); });
            norm_parameters(norm, backward.sums, of_gamma, of_beta);
        };
        if (x.narrow) {
            walk_over(bf16{});
        } else if (by_channels) {
            walk_over(float{});
        } else {
            norm_backward(norm, {run.at(dy), run.at(x), run.at(y), run.at(mean), run.at(scale)},
                          run.at(dx), run.at(dresidual), of_gamma, of_beta,
                          run.shared.doubles.data(), run.threads);
        }
        for (int c = 0; adds && c < norm.channels; ++c) {
            run.at(dgamma)[c] += of_gamma[c];
            run.at(dbeta)[c] += of_beta[c];
        }
    };
}

// A normalisation by running statistics: a factor and a constant for each channel.
Step inference(Builder& b) {
    const Shape shape = b.dims("x", -2).shape;
    for (const char* name : {"y", "residual"}) b.expect(name, shape);
    for (const char* name : {"gamma", "beta", "running_mean", "running_variance"}) {
        b.expect(name, {shape[1]});
    }
    const double epsilon = b.real("epsilon");
    const bool relu = b.whole("relu") != 0;
    const Tensor x = b["x"], gamma = b["gamma"], beta = b["beta"], residual = b["residual"];
    const Tensor means = b["running_mean"], variances = b["running_variance"], y = b["y"];
    const Channels on_x = channels_of(x), on_residual = channels_of(residual), on = channels_of(y);
    const int64_t channels = on.channels, plane = on.plane;
    return [=](const Run& run) {
        for_runs(on.images * channels, plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at) {
                const int64_t image = at / channels, c = at % channels;
                const double scale = run.at(gamma)[c] / std::sqrt(run.at(variances)[c] + epsilon);
                const auto factor = static_cast<float>(scale);
                const auto constant = static_cast<float>(run.at(beta)[c] - run.at(means)[c] * scale);
                const float* from = run.at(x) + on_x.at(image, c);
                const float* add = residual ? run.at(residual) + on_residual.at(image, c) : nullptr;
                float* to = run.at(y) + on.at(image, c);
                const auto each = [&](const auto& value) {
                    MEST_EACH_ALONE
                    for (int64_t i = 0; i < plane; ++i) {
                        const float sum = value(i);
                        to[i] = relu && sum < 0 ? 0.0f : sum;
                    }
                };
                if (add != nullptr) each([&](int64_t i) { return from[i] * factor + constant + add[i]; });
                else each([&](int64_t i) { return from[i] * factor + constant; });
                on.clear(run.at(y), image, c);
            }
        });
    };
}

// Rows of last axes.
struct Rows {
    int64_t rows, size;
};

Rows rows_of(const Builder& b) {
    const int64_t axes = b.whole("axes");
    b.require(axes <= 8, "axes = " + std::to_string(axes), "fewer than dimensions");
    const Shape shape = b.dims("x", -static_cast<int>(axes + 1)).shape;
    const Shape lead(shape.begin(), shape.end() - axes), last(shape.end() - axes, shape.end());
    for (const char* name : {"y", "dx", "dy"}) b.expect(name, shape);
    for (const char* name : {"gamma", "beta", "dgamma", "dbeta"}) b.expect(name, last);
    for (const char* name : {"mean", "scale"}) b.expect(name, lead);
    return {product_of(lead), product_of(last)};
}

Step layer_norm(Builder& b) {
    const auto [rows, size_] = rows_of(b);
    const int64_t size = size_;
    const double epsilon = b.real("epsilon");
    const Tensor x = b["x"], gamma = b["gamma"], beta = b["beta"];
    const Tensor y = b["y"], mean = b["mean"], scale = b["scale"];
    return [=, rows = rows](const Run& run) {
        const float *g = run.at(gamma), *add = run.at(beta);
        for_runs(rows, size, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float* from = run.at(x) + row * size;
                float* to = run.at(y) + row * size;
                const double n = static_cast<double>(size);
                const auto m = static_cast<float>(sum_of(size, [=](int64_t i) { return from[i]; }) / n);
                const double variance =
                    sum_of(size, [=](int64_t i) { return (from[i] - m) * (from[i] - m); }) / n;
                const auto s = static_cast<float>(1 / std::sqrt(variance + epsilon));
                MEST_EACH_ALONE
                for (int64_t i = 0; i < size; ++i) to[i] = (from[i] - m) * s * g[i] + add[i];
                run.at(mean)[row] = m;
                run.at(scale)[row] = s;
            }
        });
    };
}

struct LayerNormGradient {
    int64_t rows, size;
    const float *x, *mean, *scale, *gamma, *dy;
    float* dx;
};

void layer_norm_row(const LayerNormGradient& g, int64_t row) {
    const float *x = g.x + row * g.size, *dy = g.dy + row * g.size, *gamma = g.gamma;
    float* to = g.dx + row * g.size;
    const float mean = g.mean[row], scale = g.scale[row];
    const double n = static_cast<double>(g.size);
    const auto flat = static_cast<float>(
        sum_of(g.size, [=](int64_t i) { return dy[i] * gamma[i]; }) / n);
    const auto slope = static_cast<float>(sum_of(g.size, [=](int64_t i) {
        return dy[i] * gamma[i] * ((x[i] - mean) * scale); }) / n);
    MEST_EACH_ALONE
    for (int64_t i = 0; i < g.size; ++i) {
        to[i] = scale * (dy[i] * gamma[i] - flat - (x[i] - mean) * scale * slope);
    }
}

Step layer_norm_gradient(Builder& b) {
    const auto [rows, size_] = rows_of(b);
    const int64_t size = size_;
    const Tensor x = b["x"], mean = b["mean"], scale = b["scale"], gamma = b["gamma"];
    const Tensor dy = b["dy"], dx = b["dx"], dgamma = b["dgamma"], dbeta = b["dbeta"];
    return [=, rows = rows](const Run& run) {
        const LayerNormGradient g{rows, size, run.at(x), run.at(mean), run.at(scale), run.at(gamma),
                                  run.at(dy), run.at(dx)};
        // First what sums over rows, since dx may stand where dy stood.
        sum_rows(rows, size, run.threads, run.at(dgamma), [=](int64_t row, int64_t i) {
            return g.dy[row * size + i] * ((g.x[row * size + i] - g.mean[row]) * g.scale[row]);
        });
        sum_rows(rows, size, run.threads, run.at(dbeta),
                 [=](int64_t row, int64_t i) { return g.dy[row * size + i]; });
        for_runs(rows, size, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) layer_norm_row(g, row);
        });
    };
}

}  // namespace

std::vector<Operator> norms() {
    const Attribute groups{"groups", 1}, relu{"relu", 0, 1}, axes{"axes", 1};
    const Attribute epsilon{"epsilon", 0, 1e6}, momentum{"momentum", 0, 1};
    const Argument x = on_bf16_planes("x"), residual = on_bf16_planes("residual", true);
    const std::vector<Argument> made{on_bf16_planes("y"), {"mean"}, {"scale"}};
    const std::vector<Argument> given{
        x, on_bf16_planes("y", true), {"mean"}, {"scale"}, {"gamma"}, on_planes("dy"),
        on_planes("more", true)};
    const std::vector<Argument> known{x, {"mean"}, {"scale"}, {"gamma"}, {"beta"}, residual};
    const std::vector<Argument> back{on_bf16_planes("dx"), {"dgamma"}, {"dbeta"},
                                     on_planes("dresidual", true)};
    return {
        {"group_norm", {x, {"gamma"}, {"beta"}, residual}, made, {groups, relu}, {epsilon},
         forward<false>},
        {"group_norm_gradient", given, back, {groups, relu}, {}, gradient<false>},
        {"group_norm_gradient_added", given, back, {groups, relu}, {}, gradient<false>, true},
        {"group_norm_apply", known, {on_bf16_planes("y")}, {groups, relu}, {}, apply<false>},
        {"batch_norm_apply", known, {on_bf16_planes("y")}, {relu}, {}, apply<true>},
        {"batch_norm",
         {x, {"gamma"}, {"beta"}, residual, {"running_mean"}, {"running_variance"}},
         made, {relu}, {epsilon, momentum}, forward<true>},
        {"batch_norm_gradient", given, back, {relu}, {}, gradient<true>},
        {"batch_norm_inference",
         {on_planes("x"), {"gamma"}, {"beta"}, on_planes("residual", true), {"running_mean"},
          {"running_variance"}},
         {on_planes("y")}, {relu}, {epsilon}, inference},
        {"layer_norm", {{"x"}, {"gamma"}, {"beta"}}, {{"y"}, {"mean"}, {"scale"}}, {axes}, {epsilon},
         layer_norm},
        {"layer_norm_gradient", {{"x"}, {"mean"}, {"scale"}, {"gamma"}, {"dy"}},
         {{"dx"}, {"dgamma"}, {"dbeta"}}, {axes}, {}, layer_norm_gradient},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
