#include "index.h"

#include <stdexcept>

namespace mest {
namespace {

[[noreturn]] void reject(int32_t slot, int64_t at, int64_t end) {
    throw std::invalid_argument("slots[" + std::to_string(at) + "] = " + std::to_string(slot) +
                                ": slots must increase strictly within [0, " +
                                std::to_string(end) + ")");
}

void check(const Granules& granules, int64_t end) {
    int64_t previous = -1;
    for (int64_t i = 0; i < granules.live; ++i) {
        const int64_t slot = granules.slots[i];
        if (slot <= previous || slot >= end) reject(granules.slots[i], i, end);
        previous = slot;
    }
}

StripIndex from_strips(const Granules& granules, const Convolution& problem) {
    const int64_t columns = problem.columns();
    const int strips = (problem.out_channels - 1) / granules.rows + 1;
    check(granules, strips * columns);
    StripIndex index{granules.rows, {}, {}};
    index.first.reserve(strips + 1);
    index.columns.resize(granules.live);
    int64_t begin = -columns;  // slot of the first column of the current strip
    for (int64_t e = 0; e < granules.live; ++e) {
        while (granules.slots[e] >= begin + columns) {
            begin += columns;
            index.first.push_back(static_cast<int32_t>(e));
        }
        index.columns[e] = static_cast<int32_t>(granules.slots[e] - begin);
    }
    index.first.resize(strips + 1, static_cast<int32_t>(granules.live));
    return index;
}

StripIndex from_kernels(const Granules& granules, const Convolution& problem) {
    const int taps = problem.taps(), channels = problem.in_channels;
    check(granules, int64_t{problem.out_channels} * channels * granules.variants);
    for (int i = 0; i < granules.variants * granules.width; ++i) {
        if (granules.cells[i] < 0 || granules.cells[i] >= taps) {
            throw std::invalid_argument("cells: " + std::to_string(granules.cells[i]) +
                                        " must be within [0, " + std::to_string(taps) + ")");
        }
    }
    StripIndex index{1, {}, {}};
    index.first.reserve(problem.out_channels + 1);
    index.columns.reserve(granules.live * granules.width);
    for (int64_t i = 0; i < granules.live; ++i) {
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
    return index;
}

}  // namespace

StripIndex strips_of(const Granules& granules, const Convolution& problem) {
    return granules.cells ? from_kernels(granules, problem) : from_strips(granules, problem);
}

TransposedIndex transposed(const StripIndex& strips, const Convolution& problem) {
    const int taps = problem.taps();
    std::vector<int32_t> channel_of(problem.columns());
    for (size_t column = 0; column < channel_of.size(); ++column) {
        channel_of[column] = static_cast<int32_t>(column) / taps;
    }
    TransposedIndex index;
    std::vector<int32_t>& first = index.strips.first;
    index.strips.rows = 1;
    index.strips.columns.resize(strips.columns.size());
    index.from.resize(strips.columns.size());
    first.assign(problem.in_channels + 1, 0);
    for (int32_t column : strips.columns) ++first[channel_of[column] + 1];
    for (int c = 0; c < problem.in_channels; ++c) first[c + 1] += first[c];
    std::vector<int32_t> next(first.begin(), first.end() - 1);
    for (size_t strip = 0; strip + 1 < strips.first.size(); ++strip) {
        const int32_t last_tap = static_cast<int32_t>(strip) * taps + taps - 1;
        for (int32_t e = strips.first[strip]; e < strips.first[strip + 1]; ++e) {
            const int32_t channel = channel_of[strips.columns[e]];
            const int32_t tap = strips.columns[e] - channel * taps;
            const int32_t at = next[channel]++;
            index.strips.columns[at] = last_tap - tap;
            index.from[at] = e;
        }
    }
    return index;
}

}  // namespace mest
