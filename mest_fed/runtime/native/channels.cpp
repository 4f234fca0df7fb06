// Operators that move, weight and repeat channels and axes.
#include <cstring>
#include <stdexcept>

#include "builder.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

void copy(const float* from, float* to, int64_t count) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// Some channels among all: increasing slots, and -1 behind them.
struct Chosen {
    int64_t images, all, some, plane;
    Tensor slots;

    Chosen(const Builder& b, const char* whole, const char* part)
        : slots(b.dims("slots", 1)) {
        const Shape of_all = b.dims(whole, -2).shape;
        images = of_all[0], all = of_all[1], some = slots.shape[0];
        plane = product_of(of_all, 2);
        Shape of_some = of_all;
        of_some[1] = some;
        b.expect(part, of_some);
        b.require(some <= all, std::to_string(some) + " slots", "at most as many as channels");
    }

    // The number of active ones, all of which are right.
    int64_t checked(const int32_t* given) const {
        int64_t active = some;
        while (active > 0 && given[active - 1] == -1) --active;
        for (int64_t i = 0; i < active; ++i) {
            if (given[i] > (i > 0 ? given[i - 1] : -1) && given[i] < all) continue;
            throw std::invalid_argument("slots[" + std::to_string(i) + "] = " +
                                        std::to_string(given[i]) + "; allowed: increasing, up to " +
                                        std::to_string(all - 1));
        }
        return active;
    }
};

Step take_channels(Builder& b) {
    const Chosen c(b, "x", "y");
    const Tensor x = b["x"], y = b["y"];
    return [=](const Run& run) {
        const int32_t* slots = run.at<int32_t>(c.slots);
        const int64_t active = c.checked(slots);
        for_runs(c.images, c.some * c.plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const float* from = run.at(x) + n * c.all * c.plane;
                float* to = run.at(y) + n * c.some * c.plane;
                for (int64_t i = 0; i < active; ++i) {
                    copy(from + slots[i] * c.plane, to + i * c.plane, c.plane);
                }
                std::fill(to + active * c.plane, to + c.some * c.plane, 0.0f);
            }
        });
    };
}

Step place_channels(Builder& b) {
    const Chosen c(b, "y", "x");
    const Tensor x = b["x"], y = b["y"], bias = b["b"];
    b.expect("b", {c.all});
    b.require(b.whole("channels") == c.all, "y has " + std::to_string(c.all) + " channels",
              std::to_string(b.whole("channels")));
    return [=](const Run& run) {
        const int32_t* slots = run.at<int32_t>(c.slots);
        const int64_t active = c.checked(slots);
        const float* more = run.at(bias);
        for_runs(c.images, c.all * c.plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const float* from = run.at(x) + n * c.some * c.plane;
                float* to = run.at(y) + n * c.all * c.plane;
                for (int64_t channel = 0, i = 0; channel < c.all; ++channel, to += c.plane) {
                    const float offset = more ? more[channel] : 0;
                    if (i == active || slots[i] != channel) {
                        std::fill(to, to + c.plane, offset);
                        continue;
                    }
                    for (int64_t j = 0; j < c.plane; ++j) to[j] = from[i * c.plane + j] + offset;
                    ++i;
                }
            }
        });
    };
}

// Two arguments one behind the other on the second axis, and back.
template <bool Together>
Step concat(Builder& b) {
    const Tensor first = b.dims(Together ? "a" : "da", -2), second = b[Together ? "b" : "db"];
    const Tensor whole = b[Together ? "c" : "dc"];
    Shape shape = first.shape;
    b.require(second.shape.size() == shape.size(), "shapes " + text_of(shape) + " and " +
              text_of(second.shape), "the same but for the second axis");
    shape[1] = second.shape[1];
    b.expect(Together ? "b" : "db", shape);
    shape[1] += first.shape[1];
    b.expect(Together ? "c" : "dc", shape);
    const int64_t images = shape[0], one = product_of(first.shape, 1);
    const int64_t two = product_of(second.shape, 1);
    return [=](const Run& run) {
        float *p = run.at(first), *q = run.at(second), *all = run.at(whole);
        for_runs(images, one + two, run.threads, [=](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                float* place = all + n * (one + two);
                copy(Together ? p + n * one : place, Together ? place : p + n * one, one);
                place += one;
                copy(Together ? q + n * two : place, Together ? place : q + n * two, two);
            }
        });
    };
}

int64_t plane_of(const Builder& b, const char* factors) {
    const Shape shape = b.dims("x", -3).shape;
    for (const char* name : {"y", "dx", "dy"}) b.expect(name, shape);
    b.expect("s", {shape[0], shape[1]});
    b.expect(factors, {shape[0], shape[1]});
    return product_of(shape, 2);
}

Step multiply_channels(Builder& b) {
    const int64_t plane = plane_of(b, "s");
    const Tensor x = b["x"], s = b["s"], y = b["y"];
    return [=](const Run& run) {
        for_runs(s.count(), plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p) {
                const float *from = run.at(x) + p * plane, factor = run.at(s)[p];
                float* to = run.at(y) + p * plane;
                MEST_EACH_ALONE
                for (int64_t i = 0; i < plane; ++i) to[i] = from[i] * factor;
            }
        });
    };
}

// Of a plane, the sum before the product: dx may stand where x or dy stands.
Step multiply_channels_gradient(Builder& b) {
    const int64_t plane = plane_of(b, "ds");
    const Tensor x = b["x"], s = b["s"], dy = b["dy"], dx = b["dx"], ds = b["ds"];
    return [=](const Run& run) {
        for_runs(s.count(), plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p) {
                const float *from = run.at(x) + p * plane, *up = run.at(dy) + p * plane;
                const float factor = run.at(s)[p];
                float* to = run.at(dx) + p * plane;
                run.at(ds)[p] = static_cast<float>(
                    sum_of(plane, [=](int64_t i) { return from[i] * up[i]; }));
                MEST_EACH_ALONE
                for (int64_t i = 0; i < plane; ++i) to[i] = up[i] * factor;
            }
        });
    };
}

// Pixels that are repeated `down` times `across`, and back.
template <bool Up>
Step upsample(Builder& b) {
    const Tensor small = b.dims(Up ? "x" : "dx", 4), large = b[Up ? "y" : "dy"];
    const int64_t down = b.whole("factors", 0), across = b.whole("factors", 1);
    const int64_t height = small.shape[2], width = small.shape[3];
    b.expect(Up ? "y" : "dy", {small.shape[0], small.shape[1], height * down, width * across});
    const int64_t planes = small.shape[0] * small.shape[1];
    const int64_t lines = width * across;
    return [=](const Run& run) {
        for_runs(planes * height, lines * down, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                float *few = run.at(small) + row * width, *many = run.at(large) + row * lines * down;
                if (!Up) std::fill(few, few + width, 0.0f);
                for (int64_t i = 0; i < down; ++i, many += lines) {
                    for (int64_t j = 0; j < lines; ++j) {
                        if (Up) many[j] = few[j / across];
                        else few[j / across] += many[j];
                    }
                }
            }
        });
    };
}

// Outer axes, the first of the two, those between, the second, inner ones: blocks of inner ones move.
Step transpose(Builder& b) {
    const Tensor x = b["x"], y = b["y"];
    const int64_t low = std::min(b.whole("axes", 0), b.whole("axes", 1));
    const int64_t high = std::max(b.whole("axes", 0), b.whole("axes", 1));
    const auto dims = static_cast<int64_t>(x.shape.size());
    b.require(high < dims, "axes up to " + std::to_string(high), "those of " + text_of(x.shape));
    Shape turned = x.shape;
    std::swap(turned[low], turned[high]);
    b.expect("y", turned);
    const int64_t outer = product_of(x.shape, 0, low), first = x.shape[low];
    const int64_t between = low == high ? 1 : product_of(x.shape, low + 1, high);
    const int64_t second = low == high ? 1 : x.shape[high], inner = product_of(x.shape, high + 1);
    return [=](const Run& run) {
        const int64_t line = first * inner;  // of the output, for one place of the second axis between
        for_runs(outer * second, between * line, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t o = unit / second, s = unit % second;
                for (int64_t m = 0; m < between; ++m) {
                    for (int64_t f = 0; f < first; ++f) {
                        const int64_t from = ((o * first + f) * between + m) * second + s;
                        const int64_t to = ((o * second + s) * between + m) * first + f;
                        copy(run.at(x) + from * inner, run.at(y) + to * inner, inner);
                    }
                }
            }
        });
    };
}

// One position of the second axis, and back.
template <bool Out>
Step select(Builder& b) {
    const Tensor whole = b.dims(Out ? "x" : "dx", -2), part = b[Out ? "y" : "dy"];
    const int64_t index = b.whole("index"), length = whole.shape[1];
    b.require(index < length, "index = " + std::to_string(index), "0 to " + std::to_string(length - 1));
    Shape shape = whole.shape;
    shape.erase(shape.begin() + 1);
    b.expect(Out ? "y" : "dy", shape);
    const int64_t size = product_of(whole.shape, 2);
    return [=](const Run& run) {
        for_runs(whole.shape[0], size * length, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                float *all = run.at(whole) + n * length * size, *one = run.at(part) + n * size;
                if (Out) {
                    copy(all + index * size, one, size);
                } else {
                    std::fill(all, all + length * size, 0.0f);
                    copy(one, all + index * size, size);
                }
            }
        });
    };
}

}  // namespace

std::vector<Operator> channels() {
    const Argument slots{"slots", int32}, bias{"b", float32, true};
    const Attribute axes{"axes", 0, 7, 2}, index{"index"}, count{"channels", 1};
    const Attribute factors{"factors", 1, 2147483647, 2};
    return {
        {"take_channels", {{"x"}, slots}, {{"y"}}, {}, {}, take_channels},
        {"place_channels", {{"x"}, slots, bias}, {{"y"}}, {count}, {}, place_channels},
        {"concat", {{"a"}, {"b"}}, {{"c"}}, {}, {}, concat<true>},
        {"concat_gradient", {{"dc"}}, {{"da"}, {"db"}}, {}, {}, concat<false>},
        {"multiply_channels", {{"x"}, {"s"}}, {{"y"}}, {}, {}, multiply_channels},
        {"multiply_channels_gradient", {{"x"}, {"s"}, {"dy"}}, {{"dx"}, {"ds"}}, {}, {},
         multiply_channels_gradient},
        {"upsample_nearest", {{"x"}}, {{"y"}}, {factors}, {}, upsample<true>},
        {"upsample_nearest_gradient", {{"dy"}}, {{"dx"}}, {factors}, {}, upsample<false>},
        {"transpose", {{"x"}}, {{"y"}}, {axes}, {}, transpose},
        {"select", {{"x"}}, {{"y"}}, {index}, {}, select<true>},
        {"select_gradient", {{"dy"}}, {{"dx"}}, {index}, {}, select<false>},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
