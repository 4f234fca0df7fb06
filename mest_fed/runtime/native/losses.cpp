// Losses of numbers and labels, and what stands between gradients and updates.
#include <algorithm>
#include <cmath>

#include "builder.h"
#include "functions.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// Losses of an output x for a target t, and their slopes.
struct Squared {
    static float of(float x, float t) { return (x - t) * (x - t); }
    static float slope(float x, float t) { return 2 * (x - t); }
};
struct Absolute {
    static float of(float x, float t) { return std::fabs(x - t); }
    static float slope(float x, float t) { return x > t ? 1 : x < t ? -1 : 0 * (x - t); }
};
struct Huber {
    static float of(float x, float t) {
        const float d = std::fabs(x - t);
        return d <= 1 ? 0.5f * d * d : d - 0.5f;
    }
    static float slope(float x, float t) {
        const float d = x - t;
        return d < -1 ? -1 : d > 1 ? 1 : d;
    }
};
struct Binary {
    static float of(float x, float t) {
        return (x > 0 ? x : 0) - x * t + std::log1p(std::exp(-std::fabs(x)));
    }
    static float slope(float x, float t) { return sigmoid_of(x) - t; }
};

struct Rows {
    int64_t rows, numbers;
    Tensor outputs, targets, share;

    explicit Rows(const Builder& b)
        : outputs(b["outputs"] ? b["outputs"] : b["logits"]), targets(b.dims("targets", 2)),
          share(b["share"]) {
        rows = targets.shape[0], numbers = targets.shape[1];
        for (const char* name : {"outputs", "logits", "doutputs", "dlogits"}) {
            b.expect(name, targets.shape);
        }
        b.expect("share", {1});
        b.expect("loss", {});
    }
};

// Rows in order, each of which adds its numbers in an order that is fixed.
template <class Function>
Step loss(Builder& b) {
    const Rows r(b);
    const Tensor made = b["loss"];
    b.doubles(r.rows);
    return [=](const Run& run) {
        double* losses = run.shared.doubles.data();
        for_runs(r.rows, r.numbers, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float *x = run.at(r.outputs) + row * r.numbers;
                const float *t = run.at(r.targets) + row * r.numbers;
                losses[row] = sum_of(r.numbers, [=](int64_t i) { return Function::of(x[i], t[i]); });
            }
        });
        double total = 0;
        for (int64_t row = 0; row < r.rows; ++row) total += losses[row];
        const double each = *run.at(r.share) / static_cast<double>(r.numbers);
        *run.at(made) = static_cast<float>(total * each);
    };
}

template <class Function>
Step loss_gradient(Builder& b) {
    const Rows r(b);
    const Tensor made = b["doutputs"] ? b["doutputs"] : b["dlogits"];
    return [=](const Run& run) {
        const float *x = run.at(r.outputs), *t = run.at(r.targets);
        const float each = *run.at(r.share) / static_cast<float>(r.numbers);
        float* to = run.at(made);
        for_runs(r.rows * r.numbers, 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = Function::slope(x[i], t[i]) * each;
        });
    };
}

template <class Function>
void add(std::vector<Operator>& to, const char* name, const char* gradient, const char* outputs,
         const char* doutputs) {
    const std::vector<Argument> given{{outputs}, {"targets"}, {"share"}};
    to.push_back({name, given, {{"loss"}}, {}, {}, loss<Function>});
    to.push_back({gradient, given, {{doutputs}}, {}, {}, loss_gradient<Function>});
}

// Runs of elements may be other threads'; their sums are added in order.
Step sum_of_squares(Builder& b) {
    const Tensor x = b["x"], before = b["before"], total = b["total"];
    b.expect("before", {1});
    b.expect("total", {1});
    const int64_t count = x.count(), parts = (count + worth - 1) / worth;
    b.doubles(parts);
    return [=](const Run& run) {
        double* sums = run.shared.doubles.data();
        const float* from = run.at(x);
        parallel_for(parts, run.threads, [&](int64_t part) {
            const float* at = from + part * worth;
            sums[part] = sum_of(std::min(worth, count - part * worth),
                                [=](int64_t i) { return at[i] * at[i]; });
        });
        double sum = before ? *run.at(before) : 0;
        for (int64_t part = 0; part < parts; ++part) sum += sums[part];
        *run.at(total) = static_cast<float>(sum);
    };
}

Step clip(Builder& b) {
    const Tensor gradient = b["gradient"], total = b["total"], y = b["y"];
    const double most = b.real("most");
    b.expect("total", {1});
    b.expect("y", gradient.shape);
    return [=](const Run& run) {
        const double share = most / (std::sqrt(static_cast<double>(*run.at(total))) + 1e-6);
        const float factor = share > 1 ? 1 : static_cast<float>(share);
        const float* from = run.at(gradient);
        float* to = run.at(y);
        for_runs(y.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = from[i] * factor;
        });
    };
}

Step proximal(Builder& b) {
    const Tensor gradient = b["gradient"], parameter = b["parameter"], reference = b["reference"];
    const Tensor y = b["y"];
    const auto strength = static_cast<float>(b.real("strength"));
    for (const char* name : {"parameter", "reference", "y"}) b.expect(name, gradient.shape);
    return [=](const Run& run) {
        const float *g = run.at(gradient), *p = run.at(parameter), *r = run.at(reference);
        float* to = run.at(y);
        for_runs(y.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = g[i] + strength * (p[i] - r[i]);
        });
    };
}

}  // namespace

std::vector<Operator> losses() {
    const Argument gradient{"gradient"}, parameter{"parameter"};
    std::vector<Operator> found;
    add<Squared>(found, "squared_error", "squared_error_gradient", "outputs", "doutputs");
    add<Absolute>(found, "absolute_error", "absolute_error_gradient", "outputs", "doutputs");
    add<Huber>(found, "huber", "huber_gradient", "outputs", "doutputs");
    add<Binary>(found, "binary_cross_entropy", "binary_cross_entropy_gradient", "logits", "dlogits");
    found.push_back({"sum_of_squares", {{"x"}, {"before", float32, true}}, {{"total"}}, {}, {},
                     sum_of_squares});
    found.push_back({"clip", {gradient, {"total"}}, {{"y"}}, {}, {{"most", 0, 1e6}}, clip});
    found.push_back({"proximal", {gradient, parameter, {"reference"}}, {{"y"}}, {},
                     {{"strength", 0, 1e6}}, proximal});
    return found;
}

}  // namespace mest::runtime::MEST_VARIANT
