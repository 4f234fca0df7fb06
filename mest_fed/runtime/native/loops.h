// Loops that operators share. Work is cut without regard to the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "threads.h"

// Before a loop whose turns do not read what another turn writes: an output may stand where an input
// stands, element on element, which the compiler would otherwise take for an overlap.
#ifdef __clang__
#define MEST_EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#else
#define MEST_EACH_ALONE _Pragma("GCC ivdep")
#endif

namespace mest::runtime {

constexpr int64_t worth = 16384;  // floats that are worth a thread's while

// work(begin, end) over [0, count), where each number stands for `size` floats.
template <class Work>
void for_runs(int64_t count, int64_t size, int threads, const Work& work) {
    const int64_t run = std::max<int64_t>(1, worth / std::max<int64_t>(1, size));
    parallel_for((count + run - 1) / run, threads, [&](int64_t unit) {
        work(unit * run, std::min(count, (unit + 1) * run));
    });
}

// A sum in an order that is fixed, and that vectors can follow.
template <class Term>
inline double sum_of(int64_t count, const Term& term) {
    constexpr int64_t lanes = 16, block = 1024;
    double total = 0;
    for (int64_t from = 0; from < count; from += block) {
        const int64_t until = std::min(count, from + block);
        float lane[lanes] = {};
        int64_t i = from;
        for (; i + lanes <= until; i += lanes) {
            for (int64_t j = 0; j < lanes; ++j) lane[j] += term(i + j);
        }
        for (; i < until; ++i) lane[i % lanes] += term(i);
        for (int64_t n = lanes / 2; n > 0; n /= 2) {
            for (int64_t j = 0; j < n; ++j) lane[j] += lane[j + n];
        }
        total += lane[0];
    }
    return total;
}

constexpr int64_t strip = 32;  // columns whose sums over rows stay in registers

// to[i] = the sum of term(row, i) over rows, for columns from `first` on: a strip if Whole, else `some`.
template <bool Whole, class Term>
inline void sum_strip(int64_t rows, int64_t first, int64_t some, float* to, const Term& term) {
    constexpr int64_t block = 64;  // rows that are added up in floats
    const int64_t columns = Whole ? strip : some;
    double total[strip] = {};
    for (int64_t from = 0; from < rows; from += block) {
        float sums[strip] = {};
        for (int64_t row = from; row < std::min(rows, from + block); ++row) {
            for (int64_t i = 0; i < columns; ++i) sums[i] += term(row, first + i);
        }
        for (int64_t i = 0; i < columns; ++i) total[i] += sums[i];
    }
    for (int64_t i = 0; i < columns; ++i) to[first + i] = static_cast<float>(total[i]);
}

// The same for all columns.
template <class Term>
void sum_rows(int64_t rows, int64_t columns, int threads, float* to, const Term& term) {
    for_runs((columns - 1) / strip + 1, rows * strip, threads, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin * strip; first < std::min(columns, end * strip); first += strip) {
            const int64_t some = std::min(strip, columns - first);
            if (some == strip) {
                sum_strip<true>(rows, first, some, to, term);
            } else {
                sum_strip<false>(rows, first, some, to, term);
            }
        }
    });
}

// The largest of one number or more; NaNs are passed over.
template <class Term>
inline float largest_of(int64_t count, const Term& term) {
    constexpr int64_t lanes = 16;
    float lane[lanes];
    std::fill(lane, lane + lanes, -std::numeric_limits<float>::infinity());
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (int64_t j = 0; j < lanes; ++j) lane[j] = std::max(lane[j], term(i + j));
    }
    for (; i < count; ++i) lane[i % lanes] = std::max(lane[i % lanes], term(i));
    return *std::max_element(lane, lane + lanes);
}

}  // namespace mest::runtime
