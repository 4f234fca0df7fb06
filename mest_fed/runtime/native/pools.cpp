// Pools over planes: a plane is never cut among threads.
#include <cstring>
#include <limits>

#include "channels.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

struct Pool {
    int64_t planes, height, width, out_height, out_width;
    int64_t kernel[2], stride[2], padding[2];

    int64_t size() const { return height * width; }
    int64_t out_size() const { return out_height * out_width; }

    // work(place of the window, its first row and column)
    template <class Work>
    void for_windows(const Work& work) const {
        int64_t out = 0;
        for (int64_t i = 0; i < out_height; ++i) {
            for (int64_t j = 0; j < out_width; ++j) {
                work(out++, i * stride[0] - padding[0], j * stride[1] - padding[1]);
            }
        }
    }

    // work(place in the kernel, place in the plane): inside the plane alone.
    template <class Work>
    void for_window(int64_t top, int64_t left, const Work& work) const {
        const int64_t last_row = std::min(kernel[0], height - top);
        const int64_t last_column = std::min(kernel[1], width - left);
        for (int64_t i = std::max<int64_t>(0, -top); i < last_row; ++i) {
            for (int64_t j = std::max<int64_t>(0, -left); j < last_column; ++j) {
                work(i * kernel[1] + j, (top + i) * width + left + j);
            }
        }
    }
};

int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil) {
    const int64_t room = size + 2 * padding - kernel;
    if (room < 0) return 0;
    const int64_t count = room / stride + 1;
    // A last window that is partly outside must begin inside.
    return count + (ceil && room % stride != 0 && count * stride < size + padding ? 1 : 0);
}

Pool pool_of(const Builder& b, const char* x, const char* y, bool ceil) {
    const Shape in = b.dims(x, 4).shape, out = b.dims(y, 4).shape;
    Pool p{in[0] * in[1], in[2], in[3], out[2], out[3], {}, {}, {}};
    for (int i : {0, 1}) {
        p.kernel[i] = b.whole("kernel", i), p.stride[i] = b.whole("stride", i);
        p.padding[i] = b.whole("padding", i);
        b.require(2 * p.padding[i] <= p.kernel[i], "padding", "at most half the kernel");
        b.require(out[2 + i] == pooled(in[2 + i], p.kernel[i], p.stride[i], p.padding[i], ceil),
                  std::string(y) + " has shape " + text_of(out), "what the pool gives");
    }
    b.require(out[0] == in[0] && out[1] == in[1], std::string(y) + " has shape " + text_of(out),
              "images and channels of " + text_of(in));
    b.require(p.kernel[0] * p.kernel[1] < 256, "kernel", "at most 255 places");
    return p;
}

// work(from, to, plane): a plane of a tensor that is read and of one that is written, whose margins
// are zeroed behind it.
template <class Work>
Step for_planes(const Pool& p, const Tensor& read, const Tensor& written, const Work& work) {
    const Channels from = channels_of(read), to = channels_of(written);
    return [=](const Run& run) {
        for_runs(p.planes, p.size(), run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t plane = begin; plane < end; ++plane) {
                const int64_t image = plane / to.channels, c = plane % to.channels;
                work(run, run.at(read) + from.at(image, c), run.at(written) + to.at(image, c), plane);
                to.clear(run.at(written), image, c);
            }
        });
    };
}

// The maximum of one window, and its place in the kernel.
void take(const Pool& p, int64_t top, int64_t left, const float* from, float& to, uint8_t& code) {
    float best = 0;
    int64_t at = -1;
    p.for_window(top, left, [&](int64_t place, int64_t i) {
        const float value = from[i];  // a NaN counts more than any number, as in torch
        if (at >= 0 && !(value > best) && value == value) return;
        best = value, at = place;
    });
    to = best;
    code = static_cast<uint8_t>(at);
}

// The same of windows side by side whose columns are all inside, from `left` on: place by place, so
// that vectors choose, where a branch for each could not be foretold.
template <int Stride>
void take_row(const Pool& p, int64_t top, int64_t left, const float* from, int64_t count, float* to,
              uint8_t* codes) {
    constexpr int64_t run = 64;
    float best[run];
    int32_t at[run];
    const int64_t first_row = std::max<int64_t>(0, -top);
    const int64_t last_row = std::min(p.kernel[0], p.height - top);
    for (int64_t done = 0; done < count; done += run) {
        const int64_t now = std::min(run, count - done);
        std::fill(at, at + now, -1);
        std::fill(best, best + now, -std::numeric_limits<float>::infinity());
        for (int64_t i = first_row; i < last_row; ++i) {
            for (int64_t j = 0; j < p.kernel[1]; ++j) {
                const float* row = from + (top + i) * p.width + left + done * Stride + j;
                const auto place = static_cast<int32_t>(i * p.kernel[1] + j);
                for (int64_t k = 0; k < now; ++k) {
                    const float value = row[k * Stride];
                    const bool better = (at[k] < 0) | (value > best[k]) | (value != value);
                    best[k] = better ? value : best[k];
                    at[k] = better ? place : at[k];
                }
            }
        }
        for (int64_t k = 0; k < now; ++k) {
            to[done + k] = best[k];
            codes[done + k] = static_cast<uint8_t>(at[k]);
        }
    }
}

void max_pool_plane(const Pool& p, const float* from, float* to, uint8_t* codes) {
    const int64_t stride = p.stride[1], padding = p.padding[1];
    const auto whole = stride == 1 ? take_row<1> : stride == 2 ? take_row<2> : nullptr;
    const int64_t begin = std::min(p.out_width, (padding + stride - 1) / stride);
    const int64_t inside = (p.width - p.kernel[1] + padding) / stride + 1;
    const int64_t end = whole ? std::clamp(inside, begin, p.out_width) : begin;
    for (int64_t i = 0; i < p.out_height; ++i, to += p.out_width, codes += p.out_width) {
        const int64_t top = i * p.stride[0] - p.padding[0];
        for (int64_t j = 0; j < begin; ++j) take(p, top, j * stride - padding, from, to[j], codes[j]);
        if (end > begin) {
            whole(p, top, begin * stride - padding, from, end - begin, to + begin, codes + begin);
        }
        for (int64_t j = end; j < p.out_width; ++j) {
            take(p, top, j * stride - padding, from, to[j], codes[j]);
        }
    }
}

Step max_pool(Builder& b) {
    const Pool p = pool_of(b, "x", "y", b.whole("ceil") != 0);
    const Tensor x = b["x"], y = b["y"], where = b["where"];
    b.expect("where", y.shape);
    return for_planes(p, x, y, [=](const Run& run, const float* from, float* to, int64_t plane) {
        max_pool_plane(p, from, to, run.at<uint8_t>(where) + plane * p.out_size());
    });
}

// Codes that name no place of the plane are passed over.
Step max_pool_gradient(Builder& b) {
    const Pool p = pool_of(b, "dx", "dy", b.whole("ceil") != 0);
    const Tensor where = b["where"], dy = b["dy"], dx = b["dx"];
    b.expect("where", dy.shape);
    return for_planes(p, dy, dx, [=](const Run& run, const float* from, float* to, int64_t plane) {
        const uint8_t* codes = run.at<uint8_t>(where) + plane * p.out_size();
        std::fill(to, to + p.size(), 0.0f);
        p.for_windows([&](int64_t out, int64_t top, int64_t left) {
            const int code = codes[out], across = static_cast<int>(p.kernel[1]);
            const int64_t row = top + code / across, column = left + code % across;
            if (code >= p.kernel[0] * p.kernel[1] || row < 0 || row >= p.height || column < 0 ||
                column >= p.width) {
                return;
            }
            to[row * p.width + column] += from[out];
        });
    });
}

Step average_pool(Builder& b) {
    const Pool p = pool_of(b, "x", "y", false);
    const Tensor x = b["x"], y = b["y"];
    const float share = 1 / static_cast<float>(p.kernel[0] * p.kernel[1]);
    return for_planes(p, x, y, [=](const Run&, const float* from, float* to, int64_t) {
        p.for_windows([&](int64_t out, int64_t top, int64_t left) {
            float total = 0;
            p.for_window(top, left, [&](int64_t, int64_t i) { total += from[i]; });
            to[out] = total * share;
        });
    });
}

Step average_pool_gradient(Builder& b) {
    const Pool p = pool_of(b, "dx", "dy", false);
    const Tensor dy = b["dy"], dx = b["dx"];
    const float share = 1 / static_cast<float>(p.kernel[0] * p.kernel[1]);
    return for_planes(p, dy, dx, [=](const Run&, const float* from, float* to, int64_t) {
        std::fill(to, to + p.size(), 0.0f);
        p.for_windows([&](int64_t out, int64_t top, int64_t left) {
            const float part = from[out] * share;
            p.for_window(top, left, [&](int64_t, int64_t i) { to[i] += part; });
        });
    });
}

float number(float x) { return x; }
float number(bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Means over all axes after the second.
template <class T>
Step global_pool_of(const Tensor& x, const Tensor& y) {
    const Channels on = channels_of(x);
    return [=](const Run& run) {
        float* to = run.at(y);
        for_runs(y.count(), on.plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const T* from = run.at<T>(x) + on.at(i / on.channels, i % on.channels);
                const double total = sum_of(on.plane, [&](int64_t j) { return number(from[j]); });
                to[i] = static_cast<float>(total / static_cast<double>(on.plane));
            }
        });
    };
}

Step global_pool(Builder& b) {
    const Tensor x = b.dims("x", -3), y = b["y"];
    b.expect("y", {x.shape[0], x.shape[1]});
    return x.narrow ? global_pool_of<bf16>(x, y) : global_pool_of<float>(x, y);
}

Step global_pool_gradient(Builder& b) {
    const Tensor dx = b.dims("dx", -3), dy = b["dy"];
    b.expect("dy", {dx.shape[0], dx.shape[1]});
    const Channels on = channels_of(dx);
    return [=](const Run& run) {
        const float* from = run.at(dy);
        for_runs(dy.count(), on.plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t image = i / on.channels, c = i % on.channels;
                float* to = run.at(dx) + on.at(image, c);
                std::fill(to, to + on.plane, from[i] / static_cast<float>(on.plane));
                on.clear(run.at(dx), image, c);
            }
        });
    };
}

}  // namespace

std::vector<Operator> pools() {
    const double largest = 1 << 29;
    const Attribute kernel{"kernel", 1, 255, 2}, stride{"stride", 1, largest, 2};
    const Attribute padding{"padding", 0, 255, 2}, ceil{"ceil", 0, 1};
    const Argument where{"where", uint8}, x = on_planes("x"), y = on_planes("y");
    const Argument dx = on_planes("dx"), dy = on_planes("dy");
    const std::vector<Attribute> most{kernel, stride, padding, ceil}, mean{kernel, stride, padding};
    return {
        {"max_pool2d", {x}, {y, where}, most, {}, max_pool},
        {"max_pool2d_gradient", {where, dy}, {dx}, most, {}, max_pool_gradient},
        {"average_pool2d", {x}, {y}, mean, {}, average_pool},
        {"average_pool2d_gradient", {dy}, {dx}, mean, {}, average_pool_gradient},
        {"global_average_pool", {on_bf16_planes("x")}, {{"y"}}, {}, {}, global_pool},
        {"global_average_pool_gradient", {{"dy"}}, {dx}, {}, {}, global_pool_gradient},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
