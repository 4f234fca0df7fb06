// Loops that operators share. Work is cut without regard to the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

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
        for (float some : lane) total += some;
    }
    return total;
}

}  // namespace mest::runtime
