// Vectors under a mask: mask registers where there are some, else lanes of ones to be ANDed.
#pragma once

#include "plane.h"
#include "simd.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Before a loop over vectors that are to stay in registers: arrays of them must not lie in memory.
#ifdef __clang__
#define MEST_IN_REGISTERS _Pragma("unroll")
#else
#define MEST_IN_REGISTERS _Pragma("GCC unroll 16")
#endif

namespace mest::MEST_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr bool mask_registers = true;
using Lanes = __mmask16;

inline Lanes lanes_of(const LineMask* line, int) { return *line; }
inline vec load(const float* p, Lanes lanes) {
    return (vec)_mm512_maskz_loadu_ps(lanes, p);
}
inline __m512i load_words(const bf16* p, Lanes lanes) {
    return _mm512_maskz_cvtepu16_epi32(lanes, _mm256_loadu_si256((const __m256i*)p));
}
inline vec load(const bf16* p, Lanes lanes) {
    return (vec)((words)load_words(p, lanes) << 16);
}
inline vec masked(vec v, Lanes lanes) {
    return (vec)_mm512_maskz_mov_ps(lanes, (__m512)v);
}
#else
constexpr bool mask_registers = false;
typedef int32_t Lanes __attribute__((vector_size(V * sizeof(float))));

template <int... I>
inline Lanes lane_bits(std::integer_sequence<int, I...>) {
    return Lanes{(1 << I)...};
}
// Of the part of a line that begins `part` lanes after it.
inline Lanes lanes_of(const LineMask* line, int part) {
    const int32_t bits = *line >> part;
    return ((Lanes{} + bits) & lane_bits(std::make_integer_sequence<int, V>())) != 0;
}
inline vec masked(vec v, Lanes lanes) { return (vec)((Lanes)v & lanes); }
template <class T>
inline vec load(const T* p, Lanes lanes) {
    return masked(load(p), lanes);
}
#endif

// The lanes of vector v of a plane.
inline Lanes lanes_at(const LineMask* masks, int v) {
    return lanes_of(masks + v * V / 16, v * V % 16);
}

// Whether that is all of them.
inline bool all_lanes_at(const LineMask* masks, int v) {
    return (masks[v * V / 16] >> v * V % 16 & ((1 << V) - 1)) == (1 << V) - 1;
}

inline int vectors_of(int plane) { return (plane + V - 1) / V; }

// Sums over the lanes of four vectors, in an order that is fixed.
template <int... I>
inline vec zip_add(vec a, vec b, std::integer_sequence<int, I...>) {
    constexpr int n = sizeof...(I);
    // In each four lanes: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * n)...) +
           __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + 2 + I % 2 * n)...);
}
template <int... I>
inline vec halves_add(vec a, vec b, std::integer_sequence<int, I...>) {
    constexpr int n = sizeof...(I);
    // In each four lanes: a0 + a2, a1 + a3, b0 + b2, b1 + b3.
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * n)...) +
           __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + 2 + I % 4 / 2 * n)...);
}
template <int N, int... I>
inline typename Simd<N>::type fold(typename Simd<2 * N>::type v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + N)...);
}
template <int N>
inline Simd<4>::type fours(typename Simd<N>::type v) {
    if constexpr (N == 4) {
        return v;
    } else {
        return fours<N / 2>(fold<N / 2>(v, std::make_integer_sequence<int, N / 2>()));
    }
}
inline Simd<4>::type four_sums(vec a, vec b, vec c, vec d) {
    constexpr std::make_integer_sequence<int, V> all_lanes;
    return fours<V>(halves_add(zip_add(a, b, all_lanes), zip_add(c, d, all_lanes), all_lanes));
}

}  // namespace
}  // namespace mest::MEST_VARIANT
