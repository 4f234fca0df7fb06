// Vectors of floats by the compiler's own extension, as wide as this variant's registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "bf16.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace mest::MEST_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr int V = 16;
#elif defined(__AVX2__)
constexpr int V = 8;
#else
constexpr int V = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool many_registers = true;  // 32 of them, else 16
#else
constexpr bool many_registers = false;
#endif

// Dot products of pairs of bfloat16, added to floats: VDPBF16PS, BFDOT.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool bf16_products = true;
#else
constexpr bool bf16_products = false;
#endif

template <int N>
struct Simd {
    typedef float type __attribute__((vector_size(N * sizeof(float))));
    typedef float loose __attribute__((vector_size(N * sizeof(float)), aligned(4), may_alias));
    typedef int32_t bits __attribute__((vector_size(N * sizeof(float)), aligned(4), may_alias));
};

using vec = Simd<V>::type;

template <int N = V>
inline typename Simd<N>::type load(const float* p) {
    return *reinterpret_cast<const typename Simd<N>::loose*>(p);
}

template <int N = V>
inline void store(float* p, typename Simd<N>::type v) {
    *reinterpret_cast<typename Simd<N>::loose*>(p) = v;
}

typedef uint16_t halves __attribute__((vector_size(V * sizeof(uint16_t))));
typedef uint16_t loose_halves
    __attribute__((vector_size(V * sizeof(uint16_t)), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(V * sizeof(uint32_t))));

inline vec wide(halves h) { return (vec)(__builtin_convertvector(h, words) << 16); }

// To the nearest, ties to even.
inline halves narrow(vec v) {
#if defined(__AVX512BF16__)
    return (halves)_mm512_cvtneps_pbh((__m512)v);
#else
    const words bits = (words)v, none = (words)(v != v);
    const words nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector((nearest & ~none) | ((bits >> 16 | 0x40) & none), halves);
#endif
}

inline vec load(const bf16* p) { return wide(*reinterpret_cast<const loose_halves*>(p)); }
inline void store(bf16* p, vec v) { *reinterpret_cast<loose_halves*>(p) = narrow(v); }

// Not vec{} + x, which would be an addition, since that makes 0 of -0.
template <int... I>
inline vec all(float x, std::integer_sequence<int, I...>) {
    return vec{(static_cast<void>(I), x)...};
}
inline vec all(float x) { return all(x, std::make_integer_sequence<int, V>()); }

template <int... I>
inline vec add_pairs(vec a, vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...) +
           __builtin_shufflevector(a, b, (2 * I + 1)...);
}

template <class Vector, int... I>
inline Vector evens(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
}

template <class Vector, int... I>
inline Vector odds(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// a[0], b[0], a[1], b[1] ...: the first or the second half of it.
template <int Half, class Vector, int... I>
inline Vector zipped(Vector a, Vector b, std::integer_sequence<int, I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(a, b, ((Half * n + I) / 2 + (Half * n + I) % 2 * n)...);
}

// Lane i of the result is the sum of the lanes of v[i]; a tree, so its order is fixed.
inline vec sums_of(vec (&v)[V]) {
    for (int n = V; n > 1; n /= 2) {
        for (int i = 0; i < n / 2; ++i) {
            v[i] = add_pairs(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, V>());
        }
    }
    return v[0];
}

inline float sum_of(vec v) {
    float lanes[V];
    std::memcpy(lanes, &v, sizeof lanes);
    for (int n = V / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
    }
    return lanes[0];
}

}  // namespace
}  // namespace mest::MEST_VARIANT
