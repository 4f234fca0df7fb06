// The gradients of a dense convolution behind which maxima of windows were taken: of each window
// one position counts, and all input channels of a tap lie side by side.
#pragma once

#include "flat.h"
#include "transpose.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// A position whose output was a maximum above zero: where it reads, and its gradient.
struct Hit {
    int32_t at;
    float gradient;
};

// Vectors that a walk over hits keeps in registers: of R rows of taps, B of each.
constexpr int most_beside = simd::many_registers ? 6 : 4;

// sums[r][b] += gradient * what each hit reads there
template <int R, int B>
void gather_hits(const Hit* hits, int count, const float* source, int64_t row, float* sums,
                 int64_t sums_row) {
    simd::vec sum[R][B];
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < B; ++b) sum[r][b] = simd::load(sums + r * sums_row + b * V);
    }
    for (int i = 0; i < count; ++i) {
        const float* at = source + hits[i].at;
        const simd::vec gradient = simd::all(hits[i].gradient);
        for (int r = 0; r < R; ++r) {
            for (int b = 0; b < B; ++b) sum[r][b] += gradient * simd::load(at + r * row + b * V);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < B; ++b) simd::store(sums + r * sums_row + b * V, sum[r][b]);
    }
}

// What each hit read += gradient * weights[r][b]
template <int R, int B>
void scatter_hits(const Hit* hits, int count, float* target, int64_t row, const float* weights,
                  int64_t weights_row) {
    simd::vec weight[R][B];
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < B; ++b) weight[r][b] = simd::load(weights + r * weights_row + b * V);
    }
    for (int i = 0; i < count; ++i) {
        float* at = target + hits[i].at;
        const simd::vec gradient = simd::all(hits[i].gradient);
        for (int r = 0; r < R; ++r) {
            for (int b = 0; b < B; ++b) {
                float* to = at + r * row + b * V;
                simd::store(to, simd::load(to) + gradient * weight[r][b]);
            }
        }
    }
}

using Gather = void (*)(const Hit*, int, const float*, int64_t, float*, int64_t);
using Scatter = void (*)(const Hit*, int, float*, int64_t, const float*, int64_t);

template <int R, int... B>
Gather gather_of(int beside, std::integer_sequence<int, B...>) {
    static constexpr Gather all[] = {gather_hits<R, B + 1>...};
    return all[beside - 1];
}
template <int R, int... B>
Scatter scatter_of(int beside, std::integer_sequence<int, B...>) {
    static constexpr Scatter all[] = {scatter_hits<R, B + 1>...};
    return all[beside - 1];
}

// One image's planes with channels side by side, `beside()` floats a position.
struct Beside {
    Flat flat;

    int64_t beside() const { return whole_vectors(flat.p.in_channels); }
    int64_t row() const { return flat.width * beside(); }
    int64_t floats() const { return flat.plane() * beside(); }
    // Of one output channel's weights: (kernel height, kernel width, channels).
    int64_t weights() const { return flat.p.taps() * beside(); }

    // work(rows of taps, vectors side by side, first row, first float in the row)
    template <class Work>
    void for_blocks(const Work& work) const {
        const auto across = static_cast<int>(flat.p.kernel_width * beside() / V);
        const int rows = flat.p.kernel_height == 3 ? 3 : 1;
        for (int first = 0; first < flat.p.kernel_height; first += rows) {
            simd::for_tiles(across, most_beside, [&](int start, int size) {
                work(rows, size, first, int64_t{start} * V);
            });
        }
    }

    void gather(const Hit* hits, int count, const float* source, float* sums) const {
        constexpr std::make_integer_sequence<int, most_beside> sizes;
        const int64_t taps_row = flat.p.kernel_width * beside();
        for_blocks([&](int rows, int size, int first, int64_t at) {
            (rows == 3 ? gather_of<3>(size, sizes) : gather_of<1>(size, sizes))(
                hits, count, source + first * row() + at, row(), sums + first * taps_row + at,
                taps_row);
        });
    }
    void scatter(const Hit* hits, int count, const float* weights, float* target) const {
        constexpr std::make_integer_sequence<int, most_beside> sizes;
        const int64_t taps_row = flat.p.kernel_width * beside();
        for_blocks([&](int rows, int size, int first, int64_t at) {
            (rows == 3 ? scatter_of<3>(size, sizes) : scatter_of<1>(size, sizes))(
                hits, count, target + first * row() + at, row(), weights + first * taps_row + at,
                taps_row);
        });
    }

    void from_planes(const float* planes, float* to) const {
        const int64_t size = flat.plane(), tail = size % V;
        std::memset(to + (size - tail) * beside(), 0, tail * beside() * sizeof(float));
        simd::into_lanes(planes, size, to, beside(), flat.p.in_channels, size);
    }
    // Of an image without its padding.
    void to_planes(const float* from, float* dx, int64_t number) const {
        const Convolution& p = flat.p;
        float* to = dx + number * flat.image();
        if (!flat.padded()) {
            simd::out_of_lanes(from, beside(), to, flat.plane(), flat.plane(), p.in_channels);
            return;
        }
        for (int row = 0; row < p.height; ++row) {
            const float* at = from + (flat.corner() + row * flat.width) * beside();
            simd::out_of_lanes(at, beside(), to + row * p.width, int64_t{p.height} * p.width,
                               p.width, p.in_channels);
        }
    }

    // Weights (out, in, taps) to those above, and gradients of weights back.
    void lay_out(const float* weight, float* to) const {
        std::memset(to, 0, flat.p.out_channels * weights() * sizeof(float));
        for_weights([&](int64_t plain, int64_t beside) { to[beside] = weight[plain]; });
    }
    void bring_back(const float* sums, float* dw) const {
        for_weights([&](int64_t plain, int64_t beside) { dw[plain] = sums[beside]; });
    }
    template <class Work>
    void for_weights(const Work& work) const {
        int64_t plain = 0;
        for (int out = 0; out < flat.p.out_channels; ++out) {
            for (int c = 0; c < flat.p.in_channels; ++c) {
                for (int tap = 0; tap < flat.p.taps(); ++tap) {
                    work(plain++, out * weights() + tap * beside() + c);
                }
            }
        }
    }
};

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
