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

struct Linear {
    int64_t images, features, outputs;

    bool direct() const { return images <= most_direct; }
};

inline Linear linear_of(const Convolution& p) { return {p.batch, p.in_channels, p.out_channels}; }

// y of R outputs and N images.
template <int R, int N>
void linear_some(const Linear& l, const float* x, const float* w, const float* bias, float* y) {
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

using LinearSome = void (*)(const Linear&, const float*, const float*, const float*, float*);

template <int R, int... N>
LinearSome forward_of(int images, std::integer_sequence<int, N...>) {
    static constexpr LinearSome all[] = {linear_some<R, N + 1>...};
    return all[images - 1];
}

inline void linear_forward(const Linear& l, const float* x, const float* w, const float* bias,
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

// Of N images and B vectors of features, which the pointers are at.
template <int N, int B>
void input_some(const Linear& l, const float* w, const float* dy, float* dx) {
    simd::vec sum[N][B] = {};
    for (int64_t o = 0; o < l.outputs; ++o, w += l.features) {
        simd::vec weight[B];
        for (int b = 0; b < B; ++b) {
            weight[b] = simd::load(w + b * V);
            __builtin_prefetch(w + (B + b) * V, 1);
        }
        for (int i = 0; i < N; ++i) {
            const simd::vec gradient = simd::all(dy[i * l.outputs + o]);
            for (int b = 0; b < B; ++b) sum[i][b] += weight[b] * gradient;
        }
    }
    for (int i = 0; i < N; ++i) {
        for (int b = 0; b < B; ++b) simd::store(dx + i * l.features + b * V, sum[i][b]);
    }
}

// Gradients of the weights of these features. finish(output, vector, gradient), where the images are
// the last ones; `held` keeps sums over images before that, (outputs, B vectors).
template <int N, int B, class Finish>
void weights_some(const Linear& l, const float* x, const float* dy, float* held, bool first,
                  bool last, const Finish& finish) {
    simd::vec value[N][B];
    for (int i = 0; i < N; ++i) {
        for (int b = 0; b < B; ++b) value[i][b] = simd::load(x + i * l.features + b * V);
    }
    for (int64_t o = 0; o < l.outputs; ++o) {
        simd::vec sum[B] = {};
        for (int b = 0; b < B && !first; ++b) sum[b] = simd::load(held + (o * B + b) * V);
        for (int i = 0; i < N; ++i) {
            const simd::vec gradient = simd::all(dy[i * l.outputs + o]);
            for (int b = 0; b < B; ++b) sum[b] += value[i][b] * gradient;
        }
        for (int b = 0; b < B; ++b) {
            if (last) {
                finish(o, b, sum[b]);
            } else {
                simd::store(held + (o * B + b) * V, sum[b]);
            }
        }
    }
}

constexpr int gradient_images = simd::many_registers ? 10 : 4;
constexpr int64_t gradient_beside = 2;

using InputSome = void (*)(const Linear&, const float*, const float*, float*);
template <class Finish>
using WeightsSome = void (*)(const Linear&, const float*, const float*, float*, bool, bool,
                             const Finish&);

template <int B, int... N>
InputSome input_of(int images, std::integer_sequence<int, N...>) {
    static constexpr InputSome all[] = {input_some<N + 1, B>...};
    return all[images - 1];
}
template <int B, class Finish, int... N>
WeightsSome<Finish> weights_of(int images, std::integer_sequence<int, N...>) {
    static constexpr WeightsSome<Finish> all[] = {weights_some<N + 1, B, Finish>...};
    return all[images - 1];
}

// dx (may be null) of the weight before it changes, then each gradient of the weight, if wanted:
// vectors(place in the weight, gradient), and numbers(place, gradient) of the last features.
template <class Vectors, class Numbers>
void linear_gradients(const Linear& l, const float* x, const float* w, const float* dy, float* dx,
                      bool weights, int threads, const Vectors& vectors, const Numbers& numbers) {
    constexpr std::make_integer_sequence<int, gradient_images> sizes;
    const int images = static_cast<int>(l.images);
    const auto block = [&](auto beside, int64_t at) {
        constexpr int B = decltype(beside)::value;
        float* held = thread_scratch(free_scratch, l.outputs * gradient_beside * V);
        if (dx != nullptr) {
            simd::for_tiles(images, gradient_images, [&](int first, int size) {
                input_of<B>(size, sizes)(l, w + at, dy + first * l.outputs,
                                         dx + first * l.features + at);
            });
        }
        if (!weights) return;
        const auto finish = [&](int64_t o, int b, simd::vec gradient) {
            vectors(o * l.features + at + b * V, gradient);
        };
        simd::for_tiles(images, gradient_images, [&](int first, int size) {
            weights_of<B, decltype(finish)>(size, sizes)(
                l, x + first * l.features + at, dy + first * l.outputs, held, first == 0,
                first + size == images, finish);
        });
    };
    const int64_t blocks = l.features / (gradient_beside * V);
    for_runs(blocks, gradient_beside * V * l.outputs, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            block(std::integral_constant<int, gradient_beside>(), i * gradient_beside * V);
        }
    });
    int64_t at = blocks * gradient_beside * V;
    for (; at + V <= l.features; at += V) block(std::integral_constant<int, 1>(), at);
    for (; at < l.features; ++at) {
        for (int64_t i = 0; i < images && dx != nullptr; ++i) {
            float total = 0;
            for (int64_t o = 0; o < l.outputs; ++o) {
                total += w[o * l.features + at] * dy[i * l.outputs + o];
            }
            dx[i * l.features + at] = total;
        }
        for (int64_t o = 0; o < l.outputs && weights; ++o) {
            float total = 0;
            for (int64_t i = 0; i < images; ++i) {
                total += x[i * l.features + at] * dy[i * l.outputs + o];
            }
            numbers(o * l.features + at, total);
        }
    }
}

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
