// The loops of 8-bit codes over one plane. The compiler may fuse a product with a sum in one variant
// and not in another: here each such product is exact, so that all give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace mest::MEST_VARIANT {
namespace {

inline vec least(vec a, vec b) { return a < b ? a : b; }
inline vec most(vec a, vec b) { return a > b ? a : b; }

// Smallest and largest float of a plane, and a sum that is 0 unless one is NaN or infinite.
struct Range {
    float low, high, zero;
};

inline Range range_of(const float* x, int64_t plane) {
    constexpr int ways = 4;  // chains of dependent instructions side by side
    vec low[ways], high[ways], zero[ways];
    for (int w = 0; w < ways; ++w) {
        low[w] = all(__builtin_inff()), high[w] = all(-__builtin_inff()), zero[w] = vec{};
    }
    const auto add = [&](int w, vec v) {
        low[w] = least(v, low[w]), high[w] = most(v, high[w]), zero[w] += v * 0.0f;
    };
    int64_t i = 0;
    for (; i + ways * V <= plane; i += ways * V) {
        for (int w = 0; w < ways; ++w) add(w, load(x + i + w * V));
    }
    for (; i + V <= plane; i += V) add(0, load(x + i));
    for (; i < plane; ++i) add(0, all(x[i]));
    for (int w = 1; w < ways; ++w) {
        low[0] = least(low[w], low[0]), high[0] = most(high[w], high[0]), zero[0] += zero[w];
    }
    Range range{low[0][0], high[0][0], sum_of(zero[0])};
    for (int j = 1; j < V; ++j) {
        range.low = low[0][j] < range.low ? low[0][j] : range.low;
        range.high = high[0][j] > range.high ? high[0][j] : range.high;
    }
    return range;
}

constexpr float largest = 3.402823466e38f, least_step = 0x1p-110f;

// See compact.h.
inline float step_of(float span) {
    if (span == 0.0f) return 0.0f;
    const float step = span * (1.0f / 255.0f);
    uint32_t word;
    std::memcpy(&word, &step, sizeof word);
    word = (word + 0xff) & ~uint32_t{0xff};
    float rounded;
    std::memcpy(&rounded, &word, sizeof rounded);
    return rounded < least_step ? least_step : rounded;
}

// Codes are rounded in integers, since the product of difference and scale is not exact.
void quantise(const float* __restrict x, int64_t plane, uint8_t* __restrict codes,
              float* __restrict levels) {
    const Range range = range_of(x, plane);
    const float low = range.low + 0.0f;  // never -0.0, whose place among zeros depends on the lanes
    const float step = step_of(range.high - range.low), span = step * 255.0f;
    if (!(range.zero == 0.0f && span <= largest && low + span <= largest)) {
        levels[0] = levels[1] = __builtin_nanf("");
        std::memset(codes, 0, plane);
        return;
    }
    levels[0] = low, levels[1] = step;
    constexpr int fraction = 15;  // bits: codes of 8 and these are exact in a float
    const float scale = step == 0.0f ? 0.0f : (1 << fraction) / step;
    for (int64_t i = 0; i < plane; ++i) {
        const auto fixed = static_cast<int32_t>((x[i] - low) * scale);
        codes[i] = static_cast<uint8_t>((fixed + (1 << (fraction - 1))) >> fraction);
    }
}

void dequantise(const uint8_t* __restrict codes, int64_t plane, const float* __restrict levels,
                float* __restrict x) {
    const float low = levels[0], step = levels[1];
    for (int64_t i = 0; i < plane; ++i) x[i] = low + step * static_cast<float>(codes[i]);
}

}  // namespace
}  // namespace mest::MEST_VARIANT
