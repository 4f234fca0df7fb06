// A dense weight is a sparse one whose strips are full (of their group's columns): its values are laid
// out anew in each call, which costs little beside the product.
#pragma once

#include <limits>

#include "builder.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

constexpr int64_t largest = std::numeric_limits<int32_t>::max() / 4;

// Rows of a strip never belong to two groups.
struct Dense {
    Convolution p;
    int groups, rows;

    Dense(const Convolution& p_, int groups_) : p(p_), groups(groups_) {
        const int own = p.out_channels / groups;
        rows = 4;
        while (rows > 1 && (own < rows || (groups > 1 && own % rows != 0))) rows /= 2;
    }
    int strips() const { return (p.out_channels - 1) / rows + 1; }
    int columns() const { return p.in_channels / groups * p.taps(); }  // of a strip
    int64_t entries() const { return int64_t{strips()} * columns(); }
    int64_t floats() const { return entries() * rows; }

    void fill(StripIndex& index) const {
        const int strips_of_group = strips() / groups;
        index.rows = rows;
        index.first.clear();
        index.columns.clear();
        for (int strip = 0; strip < strips(); ++strip) {
            index.first.push_back(static_cast<int32_t>(index.columns.size()));
            const int begin = groups == 1 ? 0 : strip / strips_of_group * columns();
            for (int c = 0; c < columns(); ++c) index.columns.push_back(begin + c);
        }
        index.first.push_back(static_cast<int32_t>(index.columns.size()));
    }

    // work(row, place of its first value): a row's values are `rows` apart.
    template <class Work>
    void for_rows(int threads, const Work& work) const {
        for_runs(strips(), int64_t{columns()} * rows, threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin * rows; row < std::min<int64_t>(end * rows, p.out_channels); ++row) {
                work(row, row / rows * rows * columns() + row % rows);
            }
        });
    }

    void lay_out(const float* weight, float* values, int threads) const {
        const int count = columns(), apart = rows;
        for_rows(threads, [=](int64_t row, int64_t place) {
            const float* from = weight + row * count;
            for (int c = 0; c < count; ++c) values[place + int64_t{c} * apart] = from[c];
        });
    }

    // This is the weight of the way back of `d`: input and output channels of a group change places,
    // (in, out of the group, taps reversed).
    void lay_out_turned(const Dense& d, const float* weight, float* values, int threads) const {
        const int64_t taps = d.p.taps(), own_in = d.p.in_channels / d.groups;
        const int64_t own_out = d.p.out_channels / d.groups;
        for_rows(threads, [&](int64_t row, int64_t place) {
            const float* from = weight + (row / own_in * own_out * own_in + row % own_in) * taps;
            for (int64_t out = 0; out < own_out; ++out, from += own_in * taps) {
                for (int64_t tap = taps; tap-- > 0; place += rows) values[place] = from[tap];
            }
        });
    }

    void gather(const float* values, float* weight, int threads) const {
        const int count = columns(), apart = rows;
        for_rows(threads, [=](int64_t row, int64_t place) {
            float* to = weight + row * count;
            for (int c = 0; c < count; ++c) to[c] = values[place + int64_t{c} * apart];
        });
    }
};

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
