// The loops of pooling over one plane; see pool.h.
#pragma once

#include <cstring>
#include <type_traits>

#include "pool.h"
#include "simd.h"

namespace mest::MEST_VARIANT {
namespace {

template <int N>
struct Codes {
    typedef int32_t wide __attribute__((vector_size(N * sizeof(int32_t))));
    typedef uint8_t narrow __attribute__((vector_size(N)));
};

// work(N, first) for runs of N outputs that cover `count`. The last run repeats some of the one
// before it, where a row is no multiple of a vector; a row shorter than a vector takes half ones.
template <int N, class Work>
inline void for_runs(int64_t count, const Work& work) {
    if constexpr (N > 1) {
        if (count < N) return for_runs<N / 2>(count, work);
    }
    for (int64_t first = 0; first + N <= count; first += N) {
        work(std::integral_constant<int, N>(), first);
    }
    if (count % N != 0) work(std::integral_constant<int, N>(), count - N);
}

// N windows of two rows.
template <int N>
inline void pool_some(const float* upper, const float* lower, float* z, uint8_t* where) {
    using Floats = typename Simd<N>::type;
    using Wide = typename Codes<N>::wide;
    const auto lanes = std::make_integer_sequence<int, N>();
    const Floats above[2] = {load<N>(upper), load<N>(upper + N)};
    const Floats below[2] = {load<N>(lower), load<N>(lower + N)};
    Floats best = evens(above[0], above[1], lanes);
    Wide at = {};
    const auto offer = [&](Floats value, int place) {
        const Wide better = (value > best) | (value != value);
        best = better ? value : best;
        at = better ? Wide{} + place : at;
    };
    offer(odds(above[0], above[1], lanes), 1);
    offer(evens(below[0], below[1], lanes), 2);
    offer(odds(below[0], below[1], lanes), 3);
    const Wide shut = best <= Floats{};
    store<N>(z, shut ? Floats{} : best);
    if (where == nullptr) return;
    at = shut ? Wide{} + nowhere : at;
    const auto codes = __builtin_convertvector(at, typename Codes<N>::narrow);
    std::memcpy(where, &codes, N);
}

template <int N>
inline void spread_some(const float* dz, const uint8_t* where, float* upper, float* lower) {
    using Floats = typename Simd<N>::type;
    using Wide = typename Codes<N>::wide;
    const auto lanes = std::make_integer_sequence<int, N>();
    typename Codes<N>::narrow codes;
    std::memcpy(&codes, where, N);
    const Wide at = __builtin_convertvector(codes, Wide);
    const Floats given = load<N>(dz);
    const auto into = [&](float* row, int place) {
        const Floats left = at == place ? given : Floats{};
        const Floats right = at == place + 1 ? given : Floats{};
        store<N>(row, zipped<0>(left, right, lanes));
        store<N>(row + N, zipped<1>(left, right, lanes));
    };
    into(upper, 0);
    into(lower, 2);
}

inline void pool_forward(const Pool& pool, const float* x, float* z, uint8_t* where) {
    const int64_t width = pool.out_width();
    for (int64_t row = 0; row < pool.out_height(); ++row) {
        const float* upper = x + 2 * row * pool.width;
        const float* lower = upper + pool.width;
        for_runs<V>(width, [&](auto size, int64_t first) {
            const int64_t to = row * width + first;
            pool_some<size()>(upper + 2 * first, lower + 2 * first, z + to,
                              where == nullptr ? nullptr : where + to);
        });
    }
}

inline void pool_backward(const Pool& pool, const float* dz, const uint8_t* where, float* dx) {
    const int64_t width = pool.out_width();
    for (int64_t row = 0; row < pool.out_height(); ++row) {
        float* upper = dx + 2 * row * pool.width;
        float* lower = upper + pool.width;
        for_runs<V>(width, [&](auto size, int64_t first) {
            const int64_t from = row * width + first;
            spread_some<size()>(dz + from, where + from, upper + 2 * first, lower + 2 * first);
        });
        if (pool.width % 2 != 0) upper[pool.width - 1] = lower[pool.width - 1] = 0.0f;
    }
    if (pool.height % 2 != 0) {
        std::memset(dx + (pool.height - 1) * pool.width, 0, pool.width * sizeof(float));
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
