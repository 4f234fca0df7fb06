// Products of small dense matrices whose rows lie anywhere: to(m, n) = a(m, k) b(k, n). The numbers of
// a row of b, and of the result, lie side by side.
#pragma once

#include <cstdint>

#include "simd.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

namespace simd = mest::MEST_VARIANT;

struct Left {
    const float* at;
    int64_t row, column;  // distances
};

struct Right {
    const float* at;
    int64_t row;
};

// R rows and C vectors of N of the result, which is added to what is there or written.
template <int R, int C, int N>
inline void block_product(const Left& a, const Right& b, int64_t count, float* to, int64_t row,
                          bool add) {
    typename simd::Simd<N>::type sums[R][C] = {};
    if (add) {
        for (int r = 0; r < R; ++r) {
            for (int c = 0; c < C; ++c) sums[r][c] = simd::load<N>(to + r * row + c * N);
        }
    }
    for (int64_t k = 0; k < count; ++k) {
        for (int c = 0; c < C; ++c) {
            const auto some = simd::load<N>(b.at + k * b.row + c * N);
            for (int r = 0; r < R; ++r) sums[r][c] += a.at[r * a.row + k * a.column] * some;
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) simd::store<N>(to + r * row + c * N, sums[r][c]);
    }
}

// Columns from `done` on, as far as vectors of N go; the rest in ever shorter ones.
template <int R, int C, int N>
inline void columns_product(const Left& a, const Right& b, int64_t columns, int64_t count, float* to,
                            int64_t row, bool add, int64_t done = 0) {
    for (; done + C * N <= columns; done += C * N) {
        block_product<R, C, N>(a, {b.at + done, b.row}, count, to + done, row, add);
    }
    if (done == columns) return;
    if constexpr (C > 1) {
        columns_product<R, 1, N>(a, b, columns, count, to, row, add, done);
    } else if constexpr (N > 4) {
        columns_product<R, 1, N / 2>(a, b, columns, count, to, row, add, done);
    } else if constexpr (N > 1) {
        columns_product<R, 1, 1>(a, b, columns, count, to, row, add, done);
    }
}

// to = a b, or to += a b: `rows` and `columns` of the result, sums of `count` terms in order.
inline void product(const Left& a, const Right& b, int64_t rows, int64_t columns, int64_t count,
                    float* to, int64_t row, bool add = false) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        columns_product<4, 2, simd::V>({a.at + r * a.row, a.row, a.column}, b, columns, count,
                                       to + r * row, row, add);
    }
    for (; r < rows; ++r) {
        columns_product<1, 2, simd::V>({a.at + r * a.row, a.row, a.column}, b, columns, count,
                                       to + r * row, row, add);
    }
}

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
