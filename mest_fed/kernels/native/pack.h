// Copies source planes into their scratch arrangement.
#pragma once

#include "plan.h"
#include "simd.h"
#include "transpose.h"

namespace mest::MEST_VARIANT {
namespace {

inline void copy_row_by_floats(float* to, const float* row, int start, const Reading& r) {
    for (int j = 0; j < r.domain_width; ++j) {
        const int at = start + j * r.step_width;
        to[j] = at >= 0 && at < r.source_width ? row[at] : 0.0f;
    }
}

template <int N>
inline void copy_row(float* to, const float* row, const Copy& copy, const Reading& r) {
    using bits = typename Simd<N>::bits;
    using type = typename Simd<N>::type;
    const int last = r.domain_width - N;
    for (int j = 0; j <= last; j += N) {
        bits piece = (bits)load<N>(row + copy.start + j);
        if (j == 0) piece &= *reinterpret_cast<const bits*>(copy.first);
        if (j == last) piece &= *reinterpret_cast<const bits*>(copy.last);
        store<N>(to + j, (type)piece);
    }
}

// The tensor's ends: loads of whole pieces must stay between them.
struct Bounds {
    const float *begin, *end;
};

// One channel of one image to its place; margin rows and columns hold zeros already.
template <int N>
inline void pack_shifted(float* to, const float* plane, const Plan& plan, Bounds bounds) {
    const Scratch& s = plan.scratch;
    const Reading& r = plan.reading;
    const int64_t copy_floats = int64_t{s.rows} * s.pitch;
    for (const Phase& phase : s.phases) {
        for (int i = 0; i < phase.rows; ++i) {
            const int row = phase.start + i * r.step_height;
            if (row < 0 || row >= r.source_height) continue;
            const float* source = plane + int64_t{row} * r.source_width;
            float* target = to + int64_t{phase.base + i} * s.pitch;
            for (const Copy& copy : s.copies) {
                const float* a = source + copy.start;
                if (N > 1 && a >= bounds.begin && a + r.domain_width <= bounds.end) {
                    copy_row<N>(target, source, copy, r);
                } else {
                    copy_row_by_floats(target, source, copy.start, r);
                }
                target += copy_floats;
            }
        }
    }
}

// One copy with margins of zeros: the source row goes to its middle.
inline void pack_padded(float* to, const float* plane, const Plan& plan) {
    const Scratch& s = plan.scratch;
    const Reading& r = plan.reading;
    const int margin = -s.copies[0].start;  // columns left of the source
    const int from = margin < 0 ? -margin : 0;
    const int until = r.source_width + margin < s.pitch ? r.source_width : s.pitch - margin;
    for (const Phase& phase : s.phases) {
        for (int i = 0; i < phase.rows; ++i) {
            const int row = phase.start + i * r.step_height;
            if (row < 0 || row >= r.source_height) continue;
            const float* source = plane + int64_t{row} * r.source_width;
            float* target = to + int64_t{phase.base + i} * s.pitch + margin;
            int j = from;
            for (; j + V <= until; j += V) store(target + j, load(source + j));
            for (; j < until; ++j) target[j] = source[j];
        }
    }
}

// All channels of the unit's images.
inline void pack(float* scratch, const float* x, const Plan& plan, const Unit& unit) {
    const Scratch& s = plan.scratch;
    const int64_t size = int64_t{plan.reading.source_height} * plan.reading.source_width;
    if (plan.features) {
        transpose(x + unit.first * plan.in_channels, plan.in_channels, scratch, s.channel_floats,
                  unit.count, plan.in_channels);
        return;
    }
    const Bounds bounds{x, x + plan.batch * plan.in_channels * size};
    for (int image = 0; image < unit.count; ++image) {
        const float* plane = x + (unit.first + image) * plan.in_channels * size;
        float* to = scratch + image / s.side_by_side * s.image_floats +
                    image % s.side_by_side * plan.reading.domain_width;
        for (int c = 0; c < plan.in_channels; ++c, plane += size, to += s.channel_floats) {
            if (s.padded) {
                pack_padded(to, plane, plan);
            } else if (V >= 16 && s.piece == 16) {
                pack_shifted<V >= 16 ? 16 : 4>(to, plane, plan, bounds);
            } else if (V >= 8 && s.piece == 8) {
                pack_shifted<V >= 8 ? 8 : 4>(to, plane, plan, bounds);
            } else if (s.piece == 4) {
                pack_shifted<4>(to, plane, plan, bounds);
            } else {
                pack_shifted<1>(to, plane, plan, bounds);
            }
        }
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
