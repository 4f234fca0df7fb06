// Operators that treat each element alone: an output may stand where an input stood.
#include <cmath>
#include <cstring>
#include <functional>

#include "builder.h"
#include "functions.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// `write(i)` for all elements of arguments of one shape.
template <class Write>
void for_elements(int64_t count, const Run& run, const Write& write) {
    for_runs(count, 1, run.threads, [&](int64_t begin, int64_t end) {
        MEST_EACH_ALONE
        for (int64_t i = begin; i < end; ++i) write(i);
    });
}

// The number, or zero: by its bits, since the compiler makes a branch of a choice.
float only(bool open, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= -static_cast<uint32_t>(open);
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

struct Relu {
    static float of(float x) { return x < 0 ? 0 : x; }
    static float slope(float y) { return y > 0 ? 1 : 0; }
};
struct Relu6 {
    static float of(float x) { return x < 0 ? 0 : x > 6 ? 6 : x; }
    static float slope(float y) { return y > 0 && y < 6 ? 1 : 0; }
};
struct Silu {
    static float of(float x) { return x * sigmoid_of(x); }
    static float slope(float x) {
        const float s = sigmoid_of(x);
        return s * (1 + x * (1 - s));
    }
};
struct Gelu {
    static float of(float x) { return x * normal_of(x).below; }
    static float slope(float x) {
        const Normal normal = normal_of(x);
        return normal.below + x * normal.density;
    }
};
struct HardSwish {
    static float of(float x) { return x * Relu6::of(x + 3) / 6; }
    static float slope(float x) { return x <= -3 ? 0 : x < 3 ? x / 3 + 0.5f : 1; }
};

template <class Function>
Step forward(Builder& b) {
    const Tensor x = b["x"], y = b["y"];
    b.expect("y", x.shape);
    return [=](const Run& run) {
        const float* from = run.at(x);
        float* to = run.at(y);
        for_elements(x.count(), run, [=](int64_t i) { to[i] = Function::of(from[i]); });
    };
}

// Of the output where the slope is a function of it, else of the input. Where the slope is zero so
// is the gradient, whatever comes from above.
template <class Function>
Step backward(Builder& b) {
    const Tensor kept = b["x"] ? b["x"] : b["y"], dy = b["dy"], dx = b["dx"];
    for (const char* name : {"x", "y", "dx"}) b.expect(name, dy.shape);
    return [=](const Run& run) {
        const float *from = run.at(kept), *up = run.at(dy);
        float* to = run.at(dx);
        for_elements(dy.count(), run, [=](int64_t i) {
            const float slope = Function::slope(from[i]);
            to[i] = only(slope != 0, up[i] * slope);
        });
    };
}

template <class Function>
void add(std::vector<Operator>& to, const char* name, const char* gradient, const char* kept) {
    to.push_back({name, {{"x"}}, {{"y"}}, {}, {}, forward<Function>});
    to.push_back({gradient, {{kept}, {"dy"}}, {{"dx"}}, {}, {}, backward<Function>});
}

template <class Function>
Step of_two(Builder& b) {
    const Tensor a = b["a"], other = b["b"], c = b["c"];
    b.expect("b", a.shape);
    b.expect("c", a.shape);
    return [=](const Run& run) {
        const float *p = run.at(a), *q = run.at(other);
        float* to = run.at(c);
        for_elements(a.count(), run, [=](int64_t i) { to[i] = Function()(p[i], q[i]); });
    };
}

Step accumulate(Builder& b) {
    const Tensor a = b["a"], into = b["into"];
    b.expect("into", a.shape);
    return [=](const Run& run) {
        const float* from = run.at(a);
        float* to = run.at(into);
        for_elements(a.count(), run, [=](int64_t i) { to[i] += from[i]; });
    };
}

// Word i of SplitMix64 (Steele, Lea and Flood 2014): elements draw without regard to each other.
uint64_t word(uint64_t seed, uint64_t i) {
    uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

Step dropout(Builder& b) {
    const Tensor x = b["x"], seed = b["seed"], y = b["y"], kept = b["kept"];
    b.expect("seed", {1});
    b.expect("y", x.shape);
    b.expect("kept", x.shape);
    const double probability = b.real("probability");
    const auto least = static_cast<uint64_t>(std::floor(probability * (1 << 24) + 0.5));
    const auto factor = static_cast<float>(1 / (1 - probability));
    return [=](const Run& run) {
        const float* from = run.at(x);
        float* to = run.at(y);
        uint8_t* keeps = run.at<uint8_t>(kept);
        const auto first = static_cast<uint64_t>(*run.at<int64_t>(seed));
        const auto before = static_cast<uint64_t>(run.earlier(x.count()));
        for_elements(x.count(), run, [=](int64_t i) {
            keeps[i] = word(first, before + static_cast<uint64_t>(i)) >> 40 >= least;
            to[i] = keeps[i] ? from[i] * factor : 0;
        });
    };
}

Step dropout_gradient(Builder& b) {
    const Tensor kept = b["kept"], dy = b["dy"], dx = b["dx"];
    b.expect("kept", dy.shape);
    b.expect("dx", dy.shape);
    const auto factor = static_cast<float>(1 / (1 - b.real("probability")));
    return [=](const Run& run) {
        const uint8_t* keeps = run.at<uint8_t>(kept);
        const float* up = run.at(dy);
        float* to = run.at(dx);
        for_elements(dy.count(), run, [=](int64_t i) { to[i] = keeps[i] ? up[i] * factor : 0; });
    };
}

}  // namespace

std::vector<Operator> elementwise() {
    std::vector<Operator> found;
    add<Relu>(found, "relu", "relu_gradient", "y");
    add<Relu6>(found, "relu6", "relu6_gradient", "y");
    add<Silu>(found, "silu", "silu_gradient", "x");
    add<Gelu>(found, "gelu", "gelu_gradient", "x");
    add<HardSwish>(found, "hard_swish", "hard_swish_gradient", "x");
    const Attribute probability{"probability", 0, 0.999};
    const Argument kept{"kept", uint8}, seed{"seed", int64};
    for (Operator one : std::vector<Operator>{
             {"add", {{"a"}, {"b"}}, {{"c"}}, {}, {}, of_two<std::plus<float>>},
             {"multiply", {{"a"}, {"b"}}, {{"c"}}, {}, {}, of_two<std::multiplies<float>>},
             {"accumulate", {{"a"}}, {{"into"}}, {}, {}, accumulate},
             {"dropout", {{"x"}, seed}, {{"y"}, kept}, {}, {probability}, dropout},
             {"dropout_gradient", {kept, {"dy"}}, {{"dx"}}, {}, {probability}, dropout_gradient}}) {
        found.push_back(std::move(one));
    }
    return found;
}

}  // namespace mest::runtime::MEST_VARIANT
