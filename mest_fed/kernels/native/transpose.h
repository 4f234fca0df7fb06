// Features of 1x1 planes: images are lanes, so that packing is transposing.
#pragma once

#include "simd.h"

namespace mest::MEST_VARIANT {
namespace {

template <int... I>
inline vec low_halves(vec a, vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + I % 2 * V)...);
}
template <int... I>
inline vec high_halves(vec a, vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (V / 2 + I / 2 + I % 2 * V)...);
}

// V rows of V floats: after log2(V) perfect shuffles rows are columns.
inline void transpose_square(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
    constexpr std::make_integer_sequence<int, V> lanes;
    vec row[V], next[V];
    for (int i = 0; i < V; ++i) row[i] = load(from + i * from_pitch);
#pragma GCC unroll 4
    for (int n = 1; n < V; n *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < V / 2; ++i) {
            next[2 * i] = low_halves(row[i], row[i + V / 2], lanes);
            next[2 * i + 1] = high_halves(row[i], row[i + V / 2], lanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < V; ++i) row[i] = next[i];
    }
    for (int i = 0; i < V; ++i) store(to + i * to_pitch, row[i]);
}

// to[j][i] = from[i][j] for i < rows, j < columns.
inline void transpose(const float* from, int64_t from_pitch, float* to, int64_t to_pitch,
                      int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += V) {
        for (int64_t j = 0; j < columns; j += V) {
            if (i + V <= rows && j + V <= columns) {
                transpose_square(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i,
                                 to_pitch);
                continue;
            }
            for (int64_t a = i; a < rows && a < i + V; ++a) {
                for (int64_t b = j; b < columns && b < j + V; ++b) {
                    to[b * to_pitch + a] = from[a * from_pitch + b];
                }
            }
        }
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
