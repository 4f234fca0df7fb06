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

// After log2(V) perfect shuffles rows are columns.
inline void turn(vec (&row)[V]) {
    constexpr std::make_integer_sequence<int, V> lanes;
    vec next[V];
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
}

// to[j][i] = from[i][j] for i < rows, j < columns: what no whole vector covers.
inline void transpose_floats(const float* from, int64_t from_pitch, float* to, int64_t to_pitch,
                             int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
    }
}

inline int at_most_a_vector(int64_t count) { return count < V ? static_cast<int>(count) : V; }

// to[j][i] = from[i][j] for i < images, j < features. Rows of `to` are whole vectors: lanes after
// the last image become zero.
inline void into_lanes(const float* from, int64_t from_pitch, float* to, int64_t to_pitch,
                       int64_t images, int64_t features) {
    for (int64_t i = 0; i < images; i += V) {
        const int here = at_most_a_vector(images - i);
        int64_t j = 0;
        for (; j + V <= features; j += V) {
            vec row[V] = {};
            for (int k = 0; k < here; ++k) row[k] = load(from + (i + k) * from_pitch + j);
            turn(row);
            for (int k = 0; k < V; ++k) store(to + (j + k) * to_pitch + i, row[k]);
        }
        transpose_floats(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch,
                         here, features - j);
    }
}

// to[j][i] = from[i][j] for i < features, j < images. Rows of `from` are whole vectors.
inline void out_of_lanes(const float* from, int64_t from_pitch, float* to, int64_t to_pitch,
                         int64_t features, int64_t images) {
    for (int64_t j = 0; j < images; j += V) {
        const int here = at_most_a_vector(images - j);
        int64_t i = 0;
        for (; i + V <= features; i += V) {
            vec row[V];
            for (int k = 0; k < V; ++k) row[k] = load(from + (i + k) * from_pitch + j);
            turn(row);
            for (int k = 0; k < here; ++k) store(to + (j + k) * to_pitch + i, row[k]);
        }
        transpose_floats(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch,
                         features - i, here);
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
