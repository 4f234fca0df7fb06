// Copies source planes into their scratch arrangement.
#pragma once

#include "scratch.h"

namespace mest::MEST_VARIANT {

// A whole tensor (images, channels, height, width), to know which loads stay inside it.
struct Source {
    const float* begin;
    const float* end;
    int channels;
    int64_t plane;  // floats
};

inline Source source_of(const float* x, int64_t batch, int channels, int height, int width) {
    const int64_t plane = int64_t{height} * width;
    return {x, x + batch * channels * plane, channels, plane};
}

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

// One channel of one image to its place; margin rows and columns hold zeros already.
template <int N>
inline void pack_plane(float* to, const float* plane, const Source& x, const Scratch& s,
                       const Reading& r) {
    const int64_t copy_floats = int64_t{s.rows} * s.pitch;
    for (const Phase& phase : s.phases) {
        for (int i = 0; i < phase.rows; ++i) {
            const int row = phase.start + i * r.step_height;
            if (row < 0 || row >= r.source_height) continue;
            const float* source = plane + int64_t{row} * r.source_width;
            float* target = to + int64_t{phase.base + i} * s.pitch;
            for (const Copy& copy : s.copies) {
                const float* a = source + copy.start;
                if (N > 1 && a >= x.begin && a + r.domain_width <= x.end) {
                    copy_row<N>(target, source, copy, r);
                } else {
                    copy_row_by_floats(target, source, copy.start, r);
                }
                target += copy_floats;
            }
        }
    }
}

// Plane::padded keeps one copy whose margins are zero: the source row goes to its middle.
inline void pack_padded(float* to, const float* plane, const Scratch& s, const Reading& r) {
    const int margin = -s.copies[0].start;  // columns left of the source
    const int from = std::max(0, -margin);
    const int until = std::min(r.source_width, s.pitch - margin);
    if (until <= from) return;
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

// `count` images from image `first` on, all channels.
inline void pack(float* scratch, const Source& x, int64_t first, int count, const Scratch& s,
                 const Reading& r) {
    const int piece = piece_of(r);
    for (int image = 0; image < count; ++image) {
        const float* plane = x.begin + (first + image) * x.channels * x.plane;
        float* to = scratch + image / s.side_by_side * s.image_floats +
                    image % s.side_by_side * r.domain_width;
        for (int c = 0; c < x.channels; ++c, plane += x.plane, to += s.channel_floats) {
            if (s.plane == Plane::padded) {
                pack_padded(to, plane, s, r);
            } else if (V >= 16 && piece == 16) {
                pack_plane<V >= 16 ? 16 : 4>(to, plane, x, s, r);
            } else if (V >= 8 && piece == 8) {
                pack_plane<V >= 8 ? 8 : 4>(to, plane, x, s, r);
            } else if (piece == 4) {
                pack_plane<4>(to, plane, x, s, r);
            } else {
                pack_plane<1>(to, plane, x, s, r);
            }
        }
    }
}

}  // namespace mest::MEST_VARIANT
