// Gives back what was added to source planes in their scratch arrangement: the adjoint of packing.
#pragma once

#include <cstring>

#include "plan.h"
#include "simd.h"
#include "transpose.h"

namespace mest::MEST_VARIANT {
namespace {

// A row of a plane is the sum of what its copies hold: of a step of 2, even and odd columns apart.
template <int N, int Step>
inline void sum_row(float* row, const float* from, const Scratch& s, const Reading& r) {
    using bits = typename Simd<N>::bits;
    using type = typename Simd<N>::type;
    const int64_t copy_floats = int64_t{s.rows} * s.pitch;
    const int last = r.domain_width - N;
    for (int j = 0; j <= last; j += N) {
        type sum[Step] = {};
        const float* copy_row = from + j;
        for (const Copy& copy : s.copies) {
            bits piece = (bits)load<N>(copy_row + copy.back);
            if (j == 0) piece &= *reinterpret_cast<const bits*>(copy.back_first);
            if (j == last) piece &= *reinterpret_cast<const bits*>(copy.back_last);
            sum[Step == 2 && copy.odd] += (type)piece;
            copy_row += copy_floats;
        }
        if constexpr (Step == 1) {
            store<N>(row + j, sum[0]);
        } else {
            constexpr std::make_integer_sequence<int, N> lanes;
            store<N>(row + 2 * j, zipped<0>(sum[0], sum[1], lanes));
            store<N>(row + 2 * j + N, zipped<1>(sum[0], sum[1], lanes));
        }
    }
}

inline void sum_row_by_floats(float* row, const float* from, const Scratch& s, const Reading& r) {
    const int64_t copy_floats = int64_t{s.rows} * s.pitch;
    for (int j = 0; j < r.source_width; ++j) row[j] = 0.0f;
    for (const Copy& copy : s.copies) {
        for (int j = 0; j < r.domain_width; ++j) {
            const int at = copy.start + j * r.step_width;
            if (at >= 0 && at < r.source_width) row[at] += from[j];
        }
        from += copy_floats;
    }
}

inline void take_row(float* row, const float* from, const Scratch& s, const Reading& r) {
    const int margin = -s.copies[0].start;
    const int begin = margin < 0 ? -margin : 0;
    const int end = r.source_width + margin < s.pitch ? r.source_width : s.pitch - margin;
    for (int j = 0; j < begin; ++j) row[j] = 0.0f;
    int j = begin;
    for (; j + V <= end; j += V) store(row + j, load(from + margin + j));
    for (; j < end; ++j) row[j] = from[margin + j];
    for (j = begin < end ? end : begin; j < r.source_width; ++j) row[j] = 0.0f;
}

// One channel of one image back from its place; rows that no tap reaches become zero.
template <int N>
inline void unpack_plane(float* plane, const float* from, const Scratch& s, const Reading& r) {
    int reached = 0;
    for (const Phase& phase : s.phases) {
        for (int i = 0; i < phase.rows; ++i) {
            const int row = phase.start + i * r.step_height;
            reached += row >= 0 && row < r.source_height;
        }
    }
    if (reached < r.source_height) {
        std::memset(plane, 0, int64_t{r.source_height} * r.source_width * sizeof(float));
    }
    for (const Phase& phase : s.phases) {
        const float* source = from + int64_t{phase.base} * s.pitch;
        for (int i = 0; i < phase.rows; ++i, source += s.pitch) {
            const int row = phase.start + i * r.step_height;
            if (row < 0 || row >= r.source_height) continue;
            float* to = plane + int64_t{row} * r.source_width;
            if (s.padded) {
                take_row(to, source, s, r);
            } else if constexpr (N > 1) {
                (r.step_width == 2 ? sum_row<N, 2> : sum_row<N, 1>)(to, source, s, r);
            } else {
                sum_row_by_floats(to, source, s, r);
            }
        }
    }
}

// The unit's channels of its images. Leaves zeros behind, while the planes are in the first cache.
inline void unpack(float* scratch, float* x, const Plan& plan, const Unit& unit) {
    const Scratch& s = plan.scratch;
    const Reading& r = plan.reading;
    const int piece = r.source_width == r.step_width * r.domain_width ? s.piece : 0;
    const int64_t size = int64_t{r.source_height} * r.source_width;
    float* from = scratch + unit.begin * s.channel_floats;
    if (plan.features) {
        out_of_lanes(from, s.channel_floats, x + unit.first * plan.in_channels + unit.begin,
                     plan.in_channels, unit.end - unit.begin, unit.count);
        std::memset(from, 0, (unit.end - unit.begin) * s.channel_floats * sizeof(float));
        return;
    }
    for (int c = unit.begin; c < unit.end; ++c, from += s.channel_floats) {
        for (int image = 0; image < unit.count; ++image) {
            float* plane = x + ((unit.first + image) * plan.in_channels + c) * size;
            const float* place = from + image / s.side_by_side * s.image_floats +
                                 image % s.side_by_side * r.domain_width;
            if (V >= 16 && piece == 16) {
                unpack_plane<V >= 16 ? 16 : 4>(plane, place, s, r);
            } else if (V >= 8 && piece == 8) {
                unpack_plane<V >= 8 ? 8 : 4>(plane, place, s, r);
            } else if (piece == 4) {
                unpack_plane<4>(plane, place, s, r);
            } else {
                unpack_plane<1>(plane, place, s, r);
            }
        }
        std::memset(from, 0, s.channel_floats * sizeof(float));
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
