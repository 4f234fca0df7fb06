// Operators that treat each element alone: an output may stand where an input stood.
#include <cmath>
#include <cstring>
#include <functional>
#include <type_traits>

#include "channels.h"
#include "functions.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// `write(i)` for a run of elements.
template <class Write>
void for_each_of(int64_t count, const Write& write) {
    MEST_EACH_ALONE
    for (int64_t i = 0; i < count; ++i) write(i);
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
    const Elements<2> elements({x, y});
    return [=](const Run& run) {
        elements.walk(run, [&](const auto& at, int64_t count) {
            const float* from = run.at(x) + at[0];
            float* to = run.at(y) + at[1];
            for_each_of(count, [=](int64_t i) { to[i] = Function::of(from[i]); });
        });
    };
}

// Of the output where the slope is a function of it, else of the input. Where the slope is zero so
// is the gradient, whatever comes from above.
template <class Function>
Step backward(Builder& b) {
    const Tensor kept = b["x"] ? b["x"] : b["y"], dy = b["dy"], dx = b["dx"];
    for (const char* name : {"x", "y", "dx"}) b.expect(name, dy.shape);
    const Elements<3> elements({kept, dy, dx});
    return [=](const Run& run) {
        elements.walk(run, [&](const auto& at, int64_t count) {
            const float *from = run.at(kept) + at[0], *up = run.at(dy) + at[1];
            float* to = run.at(dx) + at[2];
            for_each_of(count, [=](int64_t i) {
                const float slope = Function::slope(from[i]);
                to[i] = only(slope != 0, up[i] * slope);
            });
        });
    };
}

template <class Function>
void add(std::vector<Operator>& to, const char* name, const char* gradient, const char* kept) {
    const Argument x = on_planes("x"), y = on_planes("y"), dy = on_planes("dy");
    to.push_back({name, {x}, {y}, {}, {}, forward<Function>});
    to.push_back({gradient, {on_planes(kept), dy}, {on_planes("dx")}, {}, {}, backward<Function>});
}

template <class Function>
Step of_two(Builder& b) {
    const Tensor a = b["a"], other = b["b"], c = b["c"];
    b.expect("b", a.shape);
    b.expect("c", a.shape);
    const Elements<3> elements({a, other, c});
    return [=](const Run& run) {
        elements.walk(run, [&](const auto& at, int64_t count) {
            const float *p = run.at(a) + at[0], *q = run.at(other) + at[1];
            float* to = run.at(c) + at[2];
            for_each_of(count, [=](int64_t i) { to[i] = Function()(p[i], q[i]); });
        });
    };
}

Step accumulate(Builder& b) {
    const Tensor a = b["a"], into = b["into"];
    b.expect("into", a.shape);
    const Elements<2> elements({a, into});
    return [=](const Run& run) {
        elements.walk(run, [&](const auto& at, int64_t count) {
            const float* from = run.at(a) + at[0];
            float* to = run.at(into) + at[1];
            for_each_of(count, [=](int64_t i) { to[i] += from[i]; });
        });
    };
}

// From one layout to another, and from one type to another.
template <class From, class To>
Step copy_of(const Tensor& x, const Tensor& y) {
    const Elements<2> elements({x, y});
    return [=](const Run& run) {
        elements.walk(run, [&](const auto& at, int64_t count) {
            const From* from = run.at<From>(x) + at[0];
            To* to = run.at<To>(y) + at[1];
            if constexpr (std::is_same_v<From, To>) {
                std::memmove(to, from, count * sizeof(To));
            } else {
                for_vectors(count, [=](int64_t i, auto some, int) {
                    store_some(to + i, load_some(from + i, some), some);
                });
            }
        });
    };
}

Step copy(Builder& b) {
    const Tensor x = b["x"], y = b["y"];
    b.expect("y", x.shape);
    if (x.narrow) return y.narrow ? copy_of<bf16, bf16>(x, y) : copy_of<bf16, float>(x, y);
    return y.narrow ? copy_of<float, bf16>(x, y) : copy_of<float, float>(x, y);
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
    const Elements<3> elements({kept, x, y});
    return [=](const Run& run) {
        const auto first = static_cast<uint64_t>(*run.at<int64_t>(seed));
        const auto before = static_cast<uint64_t>(run.earlier(x.count()));
        elements.walk(run, [&](const auto& at, int64_t count) {
            const float* from = run.at(x) + at[1];
            float* to = run.at(y) + at[2];
            uint8_t* keeps = run.at<uint8_t>(kept) + at[0];
            const auto begin = before + static_cast<uint64_t>(at[0]);  // kept is in C order
            for_each_of(count, [=](int64_t i) {
                keeps[i] = word(first, begin + static_cast<uint64_t>(i)) >> 40 >= least;
                to[i] = keeps[i] ? from[i] * factor : 0;
            });
        });
    };
}

Step dropout_gradient(Builder& b) {
    const Tensor kept = b["kept"], dy = b["dy"], dx = b["dx"];
    b.expect("kept", dy.shape);
    b.expect("dx", dy.shape);
    const auto factor = static_cast<float>(1 / (1 - b.real("probability")));
    const Elements<3> elements({kept, dy, dx});
    return [=](const Run& run) {
        elements.walk(run, [&](const auto& at, int64_t count) {
            const uint8_t* keeps = run.at<uint8_t>(kept) + at[0];
            const float* up = run.at(dy) + at[1];
            float* to = run.at(dx) + at[2];
            for_each_of(count, [=](int64_t i) { to[i] = keeps[i] ? up[i] * factor : 0; });
        });
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
    const Argument x = on_planes("x"), y = on_planes("y"), dx = on_planes("dx");
    const auto any = [](const char* name) {
        return Argument{name, float32, false, Argument::any_planes};
    };
    const Argument a = on_planes("a"), b = on_planes("b"), c = on_planes("c");
    for (Operator one : std::vector<Operator>{
             {"add", {a, b}, {c}, {}, {}, of_two<std::plus<float>>},
             {"multiply", {a, b}, {c}, {}, {}, of_two<std::multiplies<float>>},
             {"accumulate", {a}, {on_planes("into")}, {}, {}, accumulate},
             {"copy", {any("x")}, {any("y")}, {}, {}, copy},
             {"dropout", {x, seed}, {y, kept}, {}, {probability}, dropout},
             {"dropout_gradient", {kept, on_planes("dy")}, {dx}, {}, {probability},
              dropout_gradient}}) {
        found.push_back(std::move(one));
    }
    return found;
}

}  // namespace mest::runtime::MEST_VARIANT
