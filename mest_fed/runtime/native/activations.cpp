// Further functions of single elements, and the softmax over the last axis.
#include "builder.h"
#include "functions.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// Functions, whose slope is one of the output y.
struct Sigmoid {
    explicit Sigmoid(const Builder&) {}
    float of(float x) const { return sigmoid_of(x); }
    float slope(float y) const { return y * (1 - y); }
};
struct HardSigmoid {
    explicit HardSigmoid(const Builder&) {}
    float of(float x) const {
        const float y = x * (1.0f / 6) + 0.5f;
        return y < 0 ? 0 : y > 1 ? 1 : y;
    }
    float slope(float y) const { return y > 0 && y < 1 ? 1.0f / 6 : 0; }
};
struct Tanh {
    explicit Tanh(const Builder&) {}
    float of(float x) const { return tanh_of(x); }
    float slope(float y) const { return 1 - y * y; }
};
struct LeakyRelu {
    float below;
    explicit LeakyRelu(const Builder& b) : below(static_cast<float>(b.real("slope"))) {}
    float of(float x) const { return x > 0 ? x : below * x; }
    float slope(float y) const { return y > 0 ? 1 : below; }
};
struct Elu {
    float alpha;
    explicit Elu(const Builder& b) : alpha(static_cast<float>(b.real("alpha"))) {}
    float of(float x) const { return x > 0 ? x : alpha * (exp_of(x) - 1); }
    float slope(float y) const { return y > 0 ? 1 : y + alpha; }
};

template <class Function>
Step forward(Builder& b) {
    const Tensor x = b["x"], y = b["y"];
    const Function function(b);
    b.expect("y", x.shape);
    return [=](const Run& run) {
        const float* from = run.at(x);
        float* to = run.at(y);
        for_runs(x.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = function.of(from[i]);
        });
    };
}

template <class Function>
Step backward(Builder& b) {
    const Tensor y = b["y"], dy = b["dy"], dx = b["dx"];
    const Function function(b);
    b.expect("y", dy.shape);
    b.expect("dx", dy.shape);
    return [=](const Run& run) {
        const float *from = run.at(y), *up = run.at(dy);
        float* to = run.at(dx);
        for_runs(y.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = up[i] * function.slope(from[i]);
        });
    };
}

template <class Function>
void add(std::vector<Operator>& to, const char* name, const char* gradient,
         const std::vector<Attribute>& attributes = {}) {
    to.push_back({name, {{"x"}}, {{"y"}}, {}, attributes, forward<Function>});
    to.push_back({gradient, {{"y"}, {"dy"}}, {{"dx"}}, {}, attributes, backward<Function>});
}

Step softmax(Builder& b) {
    const Tensor x = b.dims("x", -1), y = b["y"];
    const int64_t last = x.shape.back(), rows = x.count() / last;
    b.expect("y", x.shape);
    return [=](const Run& run) {
        for_runs(rows, last, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float* from = run.at(x) + row * last;
                float* to = run.at(y) + row * last;
                const float most = largest_of(last, [=](int64_t i) { return from[i]; });
                MEST_EACH_ALONE
                for (int64_t i = 0; i < last; ++i) to[i] = exp_of(from[i] - most);
                const auto part =
                    static_cast<float>(1 / sum_of(last, [=](int64_t i) { return to[i]; }));
                MEST_EACH_ALONE
                for (int64_t i = 0; i < last; ++i) to[i] *= part;
            }
        });
    };
}

Step softmax_gradient(Builder& b) {
    const Tensor y = b["y"], dy = b.dims("dy", -1), dx = b["dx"];
    const int64_t last = dy.shape.back(), rows = dy.count() / last;
    b.expect("y", dy.shape);
    b.expect("dx", dy.shape);
    return [=](const Run& run) {
        for_runs(rows, last, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float *share = run.at(y) + row * last, *up = run.at(dy) + row * last;
                float* to = run.at(dx) + row * last;
                const auto along = static_cast<float>(
                    sum_of(last, [=](int64_t i) { return share[i] * up[i]; }));
                MEST_EACH_ALONE
                for (int64_t i = 0; i < last; ++i) to[i] = share[i] * (up[i] - along);
            }
        });
    };
}

Step scale(Builder& b) {
    const Tensor x = b["x"], y = b["y"];
    const auto factor = static_cast<float>(b.real("factor"));
    const auto offset = static_cast<float>(b.real("offset"));
    b.expect("y", x.shape);
    return [=](const Run& run) {
        const float* from = run.at(x);
        float* to = run.at(y);
        for_runs(x.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = factor * from[i] + offset;
        });
    };
}

Step subtract(Builder& b) {
    const Tensor first = b["a"], second = b["b"], c = b["c"];
    b.expect("b", first.shape);
    b.expect("c", first.shape);
    return [=](const Run& run) {
        const float *p = run.at(first), *q = run.at(second);
        float* to = run.at(c);
        for_runs(first.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) to[i] = p[i] - q[i];
        });
    };
}

}  // namespace

std::vector<Operator> activations() {
    const Attribute slope{"slope", 0, 1}, alpha{"alpha", 0, 1e6};
    const Attribute factor{"factor", -1e6, 1e6}, offset{"offset", -1e6, 1e6};
    std::vector<Operator> found;
    add<Sigmoid>(found, "sigmoid", "sigmoid_gradient");
    add<HardSigmoid>(found, "hard_sigmoid", "hard_sigmoid_gradient");
    add<Tanh>(found, "tanh", "tanh_gradient");
    add<LeakyRelu>(found, "leaky_relu", "leaky_relu_gradient", {slope});
    add<Elu>(found, "elu", "elu_gradient", {alpha});
    found.push_back({"softmax", {{"x"}}, {{"y"}}, {}, {}, softmax});
    found.push_back({"softmax_gradient", {{"y"}, {"dy"}}, {{"dx"}}, {}, {}, softmax_gradient});
    found.push_back({"scale", {{"x"}}, {{"y"}}, {}, {factor, offset}, scale});
    found.push_back({"subtract", {{"a"}, {"b"}}, {{"c"}}, {}, {}, subtract});
    return found;
}

}  // namespace mest::runtime::MEST_VARIANT
