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

// N floats, `Step` apart.
template <int N, int Step>
inline typename Simd<N>::type load_apart(const float* p) {
    if constexpr (Step == 1) {
        return load<N>(p);
    } else {
        return evens(load<N>(p), load<N>(p + N), std::make_integer_sequence<int, N>());
    }
}

// The rows of a plane that lie inside, one below the other: each in pieces of N floats, of which
// the first and the last may stick out.
template <int N, int Step>
inline void copy_rows(float* to, int64_t to_pitch, const float* from, int64_t from_pitch, int rows,
                      const Copy& copy, int width) {
    using bits = typename Simd<N>::bits;
    using type = typename Simd<N>::type;
    const bits first = *reinterpret_cast<const bits*>(copy.first);
    const bits last = *reinterpret_cast<const bits*>(copy.last);
    for (int i = 0; i < rows; ++i, to += to_pitch, from += from_pitch) {
        if (width == N) {
            store<N>(to, (type)((bits)load_apart<N, Step>(from) & first & last));
            continue;
        }
        store<N>(to, (type)((bits)load_apart<N, Step>(from) & first));
        for (int j = N; j < width - N; j += N) {
            store<N>(to + j, load_apart<N, Step>(from + Step * j));
        }
        const auto piece = (bits)load_apart<N, Step>(from + Step * (width - N));
        store<N>(to + width - N, (type)(piece & last));
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
    const int64_t size = int64_t{r.source_height} * r.source_width;
    for (const Phase& phase : s.phases) {
        int top = 0, rows = phase.rows;  // those that lie inside
        while (rows > 0 && phase.start + top * r.step_height < 0) ++top, --rows;
        while (rows > 0 && phase.start + (top + rows - 1) * r.step_height >= r.source_height) --rows;
        const float* source = plane + int64_t{phase.start + top * r.step_height} * r.source_width;
        float* target = to + int64_t{phase.base + top} * s.pitch;
        const int64_t below = int64_t{r.step_height} * r.source_width;
        for (const Copy& copy : s.copies) {
            const bool inside = plane + copy.start >= bounds.begin &&
                                plane + size + copy.start + r.step_width * r.domain_width <= bounds.end;
            if (N > 1 && inside) {
                const auto rows_of = r.step_width == 2 ? copy_rows<N, 2> : copy_rows<N, 1>;
                rows_of(target, s.pitch, source + copy.start, below, rows, copy, r.domain_width);
            } else {
                for (int i = 0; i < rows; ++i) {
                    copy_row_by_floats(target + int64_t{i} * s.pitch, source + i * below,
                                       copy.start, r);
                }
            }
            target += copy_floats;
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
        into_lanes(x + unit.first * plan.in_channels, plan.in_channels, scratch, s.channel_floats,
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
