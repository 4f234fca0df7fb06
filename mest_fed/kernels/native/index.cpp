#include "index.h"

#include <algorithm>
#include <stdexcept>

namespace mest {
namespace {

[[noreturn]] void reject(int32_t slot, int64_t at, int64_t end) {
    throw std::invalid_argument("slots[" + std::to_string(at) + "] = " + std::to_string(slot) +
                                ": slots must increase strictly within [0, " +
                                std::to_string(end) + ")");
}

void check(const Granules& granules, int64_t end) {
    const int32_t* slots = granules.slots;
    const int64_t active = granules.active;
    if (active == 0) return;
    bool falls = false;
    for (int64_t i = 1; i < active; ++i) falls |= slots[i] <= slots[i - 1];
    if (!falls && slots[0] >= 0 && slots[active - 1] < end) return;
    int64_t previous = -1;
    for (int64_t i = 0; i < active; ++i) {
        if (slots[i] <= previous || slots[i] >= end) reject(slots[i], i, end);
        previous = slots[i];
    }
}

void from_strips(StripIndex& index, const Granules& granules, const Convolution& problem) {
    const int64_t columns = problem.columns();
    const int strips = (problem.out_channels - 1) / granules.rows + 1;
    check(granules, strips * columns);
    const int32_t *slots = granules.slots, *end = slots + granules.active;
    index.rows = granules.rows;
    index.first.clear();
    index.first.reserve(strips + 1);
    index.columns.resize(granules.active);
    index.first.push_back(0);
    const int32_t* at = slots;
    for (int strip = 0; strip < strips; ++strip) {
        const int32_t* until = std::lower_bound(at, end, (strip + 1) * columns);
        const auto begin = static_cast<int32_t>(strip * columns);  // where it wraps, no slot is left
        for (; at < until; ++at) index.columns[at - slots] = *at - begin;
        index.first.push_back(static_cast<int32_t>(at - slots));
    }
}

void from_kernels(StripIndex& index, const Granules& granules, const Convolution& problem) {
    const int taps = problem.taps(), channels = problem.in_channels;
    check(granules, int64_t{problem.out_channels} * channels * granules.variants);
    for (int i = 0; i < granules.variants * granules.width; ++i) {
        if (granules.cells[i] < 0 || granules.cells[i] >= taps) {
            throw std::invalid_argument("cells: " + std::to_string(granules.cells[i]) +
                                        " must be within [0, " + std::to_string(taps) + ")");
        }
    }
    index.rows = 1;
    index.first.clear();
    index.columns.clear();
    index.first.reserve(problem.out_channels + 1);
    index.columns.reserve(granules.active * granules.width);
    for (int64_t i = 0; i < granules.active; ++i) {
        const int kernel = granules.slots[i] / granules.variants;
        const int variant = granules.slots[i] % granules.variants;
        const int row = kernel / channels, channel = kernel % channels;
        while (static_cast<int>(index.first.size()) <= row) {
            index.first.push_back(static_cast<int32_t>(index.columns.size()));
        }
        for (int k = 0; k < granules.width; ++k) {
            index.columns.push_back(channel * taps + granules.cells[variant * granules.width + k]);
        }
    }
    index.first.resize(problem.out_channels + 1, static_cast<int32_t>(index.columns.size()));
}

}  // namespace

void strips_into(StripIndex& index, const Granules& granules, const Convolution& problem) {
    (granules.cells ? from_kernels : from_strips)(index, granules, problem);
}

StripIndex strips_of(const Granules& granules, const Convolution& problem) {
    StripIndex index;
    strips_into(index, granules, problem);
    return index;
}

void transpose_into(TransposedIndex& index, const StripIndex& strips, const Convolution& problem) {
    const int taps = problem.taps();
    std::vector<int32_t>& first = index.strips.first;
    index.strips.rows = 1;
    index.strips.columns.resize(strips.columns.size());
    index.from.resize(strips.columns.size());
    // While entries are placed, first[c + 1] is where the next one of channel c goes; then its end.
    first.assign(problem.in_channels + 2, 0);
    for (int32_t column : strips.columns) ++first[column / taps + 2];
    for (int c = 0; c < problem.in_channels; ++c) first[c + 2] += first[c + 1];
    for (size_t strip = 0; strip + 1 < strips.first.size(); ++strip) {
        const int32_t last_tap = static_cast<int32_t>(strip) * taps + taps - 1;
        for (int32_t e = strips.first[strip]; e < strips.first[strip + 1]; ++e) {
            const int32_t channel = strips.columns[e] / taps;
            const int32_t tap = strips.columns[e] - channel * taps;
            const int32_t at = first[channel + 1]++;
            index.strips.columns[at] = last_tap - tap;
            index.from[at] = e;
        }
    }
    first.pop_back();
}

}  // namespace mest
