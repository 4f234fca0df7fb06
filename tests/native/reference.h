// All three products by their definition, in doubles, with what a sum of floats may be off by.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "cases.h"

namespace selftest {

struct Sum {
    double value = 0, magnitude = 0;
    int64_t terms = 0;

    void add(double a, double b) {
        value += a * b, magnitude += std::fabs(a * b);
        ++terms;
    }
    // n products summed in any order: each is rounded once, then at most n times as part of a sum.
    double tolerance() const {
        const double unit = std::numeric_limits<float>::epsilon() / 2;
        return static_cast<double>(terms + 1) * unit * magnitude * 1.001;
    }
};

struct Expected {
    std::vector<Sum> y, dx, gradient;
};

// One active weight: values[value] at (out, column).
struct Entry {
    int out, column;
    int64_t value;
};

inline std::vector<Entry> entries_of(const Case& c) {
    std::vector<Entry> entries;
    const int columns = static_cast<int>(c.p.columns()), taps = c.p.taps();
    for (size_t e = 0; e < c.slots.size(); ++e) {
        const int slot = c.slots[e];
        for (int i = 0; i < c.width; ++i) {
            Entry entry{slot / columns * c.rows + i, slot % columns,
                        static_cast<int64_t>(e) * c.width + i};
            if (!c.cells.empty()) {
                const int kernel = slot / c.variants, variant = slot % c.variants;
                entry.out = kernel / c.p.in_channels;
                entry.column = kernel % c.p.in_channels * taps + c.cells[variant * c.width + i];
            }
            if (entry.out < c.p.out_channels) entries.push_back(entry);
        }
    }
    return entries;
}

inline void add_entry(const Case& c, const Entry& entry, int64_t image, Expected& expected) {
    const mest::Convolution& p = c.p;
    const int channel = entry.column / p.taps(), tap = entry.column % p.taps();
    const int down = tap / p.kernel_width * p.dilation_height - p.padding_height;
    const int across = tap % p.kernel_width * p.dilation_width - p.padding_width;
    const int64_t in = (image * p.in_channels + channel) * p.height * p.width;
    const int64_t out = (image * p.out_channels + entry.out) * p.out_height * p.out_width;
    const float weight = c.values[entry.value];
    for (int i = 0; i < p.out_height; ++i) {
        const int row = i * p.stride_height + down;
        if (row < 0 || row >= p.height) continue;
        for (int j = 0; j < p.out_width; ++j) {
            const int column = j * p.stride_width + across;
            if (column < 0 || column >= p.width) continue;
            const int64_t from = in + int64_t{row} * p.width + column;
            const int64_t to = out + int64_t{i} * p.out_width + j;
            expected.y[to].add(weight, c.x[from]);
            expected.dx[from].add(weight, c.dy[to]);
            expected.gradient[entry.value].add(c.x[from], c.dy[to]);
        }
    }
}

inline Expected reference(const Case& c) {
    Expected expected;
    expected.y.resize(c.out_size());
    expected.dx.resize(c.in_size());
    expected.gradient.resize(c.values.size());
    const int64_t plane = int64_t{c.p.out_height} * c.p.out_width;
    if (!c.bias.empty()) {
        for (int64_t i = 0; i < c.out_size(); ++i) {
            expected.y[i].add(c.bias[i / plane % c.p.out_channels], 1);
        }
    }
    const std::vector<Entry> entries = entries_of(c);
    for (int64_t image = 0; image < c.p.batch; ++image) {
        for (const Entry& entry : entries) add_entry(c, entry, image, expected);
    }
    return expected;
}

}  // namespace selftest
