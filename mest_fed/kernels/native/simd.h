// Vectors of floats by the compiler's own extension, as wide as this variant's registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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

inline vec all(float x) { return vec{} + x; }

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
