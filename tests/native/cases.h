// Drawn cases: small convolutions with sparse weights, sizes below, at and above the vector width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "convolve.h"

namespace selftest {

// SplitMix64: the same cases on every machine.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int from(int least, int most) {
        return least + static_cast<int>(bits() % static_cast<uint64_t>(most - least + 1));
    }
    int among(const std::vector<int>& choices) {
        return choices[static_cast<size_t>(from(0, static_cast<int>(choices.size()) - 1))];
    }
    double share() { return static_cast<double>(bits() >> 11) / 9007199254740992.0; }

private:
    uint64_t state_;
};

struct Case {
    uint64_t seed;
    bool whole;  // small integers everywhere, so that sums of floats are exact
    mest::Convolution p;
    int rows, variants, width;
    std::vector<int32_t> cells, slots;  // no cells: strips of `rows`
    std::vector<float> values, x, bias, dy;

    int64_t in_size() const { return p.batch * p.in_channels * p.height * p.width; }
    int64_t out_size() const { return p.batch * p.out_channels * p.out_height * p.out_width; }
    int64_t num_slots() const {
        if (!cells.empty()) return int64_t{p.out_channels} * p.in_channels * variants;
        return ((p.out_channels - 1) / rows + 1) * p.columns();
    }
    mest::Granules granules() const {
        return {slots.data(), static_cast<int64_t>(slots.size()), rows,
                cells.empty() ? nullptr : cells.data(), variants, width};
    }
    const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

inline std::string describe(const Case& c) {
    const mest::Convolution& p = c.p;
    std::ostringstream text;
    text << "case " << c.seed << ": n=" << p.batch << " in=" << p.in_channels << "x" << p.height
         << "x" << p.width << " out=" << p.out_channels << "x" << p.out_height << "x" << p.out_width
         << " kernel=" << p.kernel_height << "x" << p.kernel_width << " stride=" << p.stride_height
         << "," << p.stride_width << " padding=" << p.padding_height << "," << p.padding_width
         << " dilation=" << p.dilation_height << "," << p.dilation_width << " active="
         << c.slots.size() << "/" << c.num_slots();
    if (c.cells.empty()) text << " strips of " << c.rows;
    if (!c.cells.empty()) text << " kernels of " << c.width << " in " << c.variants << " variants";
    return text.str();
}

// Fit the input's side to the kernel, then return the output's side.
inline int fit(int& side, int kernel, int stride, int padding, int dilation) {
    side = std::max(side, dilation * (kernel - 1) + 1 - 2 * padding);
    return (side + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

inline mest::Convolution draw_convolution(Random& random) {
    mest::Convolution p{};
    const bool linear = random.from(0, 7) == 0, simple = random.from(0, 1) == 0;
    p.in_channels = random.from(1, 6), p.out_channels = random.from(1, 18);
    p.batch = random.among({1, 1, 2, 3, 4, 5, 17, 33});
    const auto side = [&](int most, int& taps, int& stride, int& padding, int& dilation) {
        taps = linear ? 1 : random.among({1, 2, 3, 3, 5});
        stride = linear ? 1 : random.among({1, 1, 2, 3});
        padding = linear ? 0 : simple ? taps / 2 : random.from(0, 4);
        dilation = linear || simple ? 1 : random.among({1, 2, 3});
        return linear ? 1 : random.from(1, most);
    };
    const int high = p.batch > 5 ? 4 : 9;
    p.height = side(high, p.kernel_height, p.stride_height, p.padding_height, p.dilation_height);
    p.width = side(40, p.kernel_width, p.stride_width, p.padding_width, p.dilation_width);
    p.out_height = fit(p.height, p.kernel_height, p.stride_height, p.padding_height,
                       p.dilation_height);
    p.out_width = fit(p.width, p.kernel_width, p.stride_width, p.padding_width, p.dilation_width);
    return p;
}

// Taps that each variant keeps, in no order.
inline void draw_cells(Random& random, Case& c) {
    c.variants = random.from(1, 8);
    c.width = random.from(1, std::min(4, c.p.taps()));
    for (int v = 0; v < c.variants; ++v) {
        std::vector<int32_t> taps;
        for (int t = 0; t < c.p.taps(); ++t) taps.push_back(t);
        for (int i = 0; i < c.width; ++i) {
            std::swap(taps[i], taps[random.from(i, c.p.taps() - 1)]);
            c.cells.push_back(taps[i]);
        }
    }
}

inline std::vector<int32_t> draw_slots(Random& random, int64_t end) {
    std::vector<int32_t> slots;
    const int kind = random.from(0, 9);
    if (kind == 0) return slots;
    if (kind == 1) return {random.from(0, static_cast<int>(end) - 1)};
    const double density = kind == 2 ? 1.0 : random.share() * random.share();
    for (int32_t slot = 0; slot < end; ++slot) {
        if (random.share() < density) slots.push_back(slot);
    }
    slots.shrink_to_fit();
    return slots;
}

// Exactly as long as it says, so that AddressSanitizer sees any step beyond.
inline std::vector<float> draw_floats(Random& random, int64_t count, bool whole) {
    std::vector<float> floats(static_cast<size_t>(count));
    for (float& f : floats) {
        f = whole ? static_cast<float>(random.from(-4, 4))
                  : static_cast<float>(2 * random.share() - 1);
    }
    return floats;
}

inline Case draw_case(uint64_t seed) {
    Random random(seed);
    Case c{};
    c.seed = seed;
    c.whole = random.from(0, 1) == 0;
    c.p = draw_convolution(random);
    c.rows = random.among({1, 1, 2, 3, 4, 4, 5, 8, 16});
    c.variants = 1, c.width = c.rows;
    if (random.from(0, 3) == 0) c.rows = 1, draw_cells(random, c);
    c.slots = draw_slots(random, c.num_slots());
    c.values = draw_floats(random, static_cast<int64_t>(c.slots.size()) * c.width, c.whole);
    c.x = draw_floats(random, c.in_size(), c.whole);
    c.dy = draw_floats(random, c.out_size(), c.whole);
    if (random.from(0, 1) == 0) c.bias = draw_floats(random, c.p.out_channels, c.whole);
    return c;
}

}  // namespace selftest
