// Products of a large dense weight and a small batch, from the weight as it lies: each number of it
// is read once for all images that registers hold.
#pragma once

#include "walk.h"
#include "weights.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

namespace simd = mest::MEST_VARIANT;
using simd::V;

// Larger batches are worth the time to lay out the weight.
constexpr int64_t most_direct = 64;

struct Layer {
    int64_t images, features, outputs;

    bool direct() const { return images <= most_direct; }
};

inline Layer layer_of(const Convolution& p) { return {p.batch, p.in_channels, p.out_channels}; }

// y of R outputs and N images.
template <int R, int N>
void linear_some(const Layer& l, const float* x, const float* w, const float* bias, float* y) {
    simd::vec sum[R][N] = {};
    int64_t k = 0;
    for (; k + V <= l.features; k += V) {
        simd::vec weight[R];
        for (int r = 0; r < R; ++r) weight[r] = simd::load(w + r * l.features + k);
        for (int i = 0; i < N; ++i) {
            const simd::vec value = simd::load(x + i * l.features + k);
            for (int r = 0; r < R; ++r) sum[r][i] += weight[r] * value;
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) {
            float total = simd::sum_of(sum[r][i]);
            for (int64_t j = k; j < l.features; ++j) {
                total += w[r * l.features + j] * x[i * l.features + j];
            }
            y[i * l.outputs + r] = total + (bias == nullptr ? 0.0f : bias[r]);
        }
    }
}

constexpr int linear_rows = simd::many_registers ? 4 : 2;
constexpr int linear_images = simd::many_registers ? 6 : 4;

using LinearSome = void (*)(const Layer&, const float*, const float*, const float*, float*);

template <int R, int... N>
LinearSome forward_of(int images, std::integer_sequence<int, N...>) {
    static constexpr LinearSome all[] = {linear_some<R, N + 1>...};
    return all[images - 1];
}

inline void linear_forward(const Layer& l, const float* x, const float* w, const float* bias,
                           float* y, int threads) {
    constexpr std::make_integer_sequence<int, linear_images> sizes;
    const int64_t groups = (l.outputs + linear_rows - 1) / linear_rows;
    for_runs(groups, linear_rows * l.features, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin * linear_rows; row < std::min(end * linear_rows, l.outputs);) {
            const bool whole = row + linear_rows <= l.outputs;
            simd::for_tiles(static_cast<int>(l.images), linear_images, [&](int first, int size) {
                const auto some = whole ? forward_of<linear_rows>(size, sizes)
                                        : forward_of<1>(size, sizes);
                some(l, x + first * l.features, w + row * l.features,
                     bias == nullptr ? nullptr : bias + row, y + first * l.outputs + row);
            });
            row += whole ? linear_rows : 1;
        }
    });
}

// What the gradients of a layer are made of. `dx` and `weights` say which are wanted; `also`, of the
// shape of the weight, is read with it, if not null.
struct LayerGradients {
    const float *x, *w, *also, *dy;
    float* dx;
    bool weights;
};

// R outputs from `output` on, B vectors of features from `at` on. vectors(place in the weight,
// gradient of the weight), when the weight before has been read.
template <int R, int B, class Vectors>
inline void gradients_some(const Layer& l, const LayerGradients& g, int64_t output, int64_t at,
                           const Vectors& vectors) {
    const float* up = g.dy + output;
    const int64_t place = output * l.features + at;
    if (g.dx != nullptr) {
        simd::vec weight[R][B];
        for (int r = 0; r < R; ++r) {
            for (int b = 0; b < B; ++b) weight[r][b] = simd::load(g.w + place + r * l.features + b * V);
        }
        for (int64_t i = 0; i < l.images; ++i) {
            float* to = g.dx + i * l.features + at;
            simd::vec sum[B] = {};
            for (int b = 0; b < B && output > 0; ++b) sum[b] = simd::load(to + b * V);
            for (int r = 0; r < R; ++r) {
                const simd::vec gradient = simd::all(up[i * l.outputs + r]);
                for (int b = 0; b < B; ++b) sum[b] += weight[r][b] * gradient;
            }
            for (int b = 0; b < B; ++b) simd::store(to + b * V, sum[b]);
        }
    }
    if (!g.weights) return;
    simd::vec sum[R][B] = {};
    for (int64_t i = 0; i < l.images; ++i) {
        for (int b = 0; b < B; ++b) {
            const simd::vec value = simd::load(g.x + i * l.features + at + b * V);
            for (int r = 0; r < R; ++r) sum[r][b] += value * simd::all(up[i * l.outputs + r]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < B; ++b) vectors(place + r * l.features + b * V, sum[r][b]);
    }
}

// The last features, which fill no vector.
template <class Numbers>
inline void gradients_single(const Layer& l, const LayerGradients& g, int64_t at,
                             const Numbers& numbers) {
    for (int64_t i = 0; i < l.images && g.dx != nullptr; ++i) {
        float total = 0;
        for (int64_t o = 0; o < l.outputs; ++o) {
            total += g.w[o * l.features + at] * g.dy[i * l.outputs + o];
        }
        g.dx[i * l.features + at] = total;
    }
    for (int64_t o = 0; o < l.outputs && g.weights; ++o) {
        float total = 0;
        for (int64_t i = 0; i < l.images; ++i) {
            total += g.x[i * l.features + at] * g.dy[i * l.outputs + o];
        }
        numbers(o * l.features + at, total);
    }
}

// All gradients: of a block of features, whose inputs and their gradients stay in the first caches,
// for a few outputs at a time. numbers(place, gradient) of the last features.
template <class Vectors, class Numbers>
void linear_gradients(const Layer& l, const LayerGradients& g, int threads, const Vectors& vectors,
                      const Numbers& numbers) {
    constexpr int R = 4, B = 2;
    constexpr int64_t step = B * V, cached = 8192;
    const int64_t block = std::clamp(cached / l.images / step * step, 4 * step, 64 * step);
    const int64_t whole = l.features / V * V, blocks = (whole + block - 1) / block;
    parallel_for(blocks, threads, [&](int64_t number) {
        const int64_t begin = number * block, end = std::min(whole, begin + block);
        const auto rows = [&](auto count, int64_t output) {
            constexpr int some = decltype(count)::value;
            int64_t at = begin;
            for (; at + step <= end; at += step) {
                for (const float* ahead : {g.w, g.also}) {
                    if (ahead == nullptr || output + 2 * some > l.outputs) continue;
                    const float* next = ahead + (output + some) * l.features + at;
                    for (int r = 0; r < some; ++r) {
                        for (int b = 0; b < B; ++b) __builtin_prefetch(next + r * l.features + b * V, 1);
                    }
                }
                gradients_some<some, B>(l, g, output, at, vectors);
            }
            for (; at < end; at += V) gradients_some<some, 1>(l, g, output, at, vectors);
        };
        int64_t output = 0;
        for (; output + R <= l.outputs; output += R) rows(std::integral_constant<int, R>(), output);
        for (; output < l.outputs; ++output) rows(std::integral_constant<int, 1>(), output);
    });
    for (int64_t at = whole; at < l.features; ++at) gradients_single(l, g, at, numbers);
}

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
