// A stride takes every second row and column: a plane is split into its phases, each a plane that a
// stride of one walks over, and the phases' gradients are joined.
#pragma once

#include "plane_simd.h"

namespace mest::MEST_VARIANT {
namespace {

// Rows and columns of the phase that the plane has.
inline int phase_count(int size, int start, int step) {
    return size > start ? (size - start + step - 1) / step : 0;
}

// work(row of the plane, row of the phase, columns): with the step as a constant, where it is common.
template <class Work>
inline void for_phase_rows(const PlanePhase& p, const Work& work) {
    const int rows = phase_count(p.height, p.row, p.step_height);
    const int columns = phase_count(p.width, p.column, p.step_width);
    for (int i = 0; i < rows; ++i) {
        work((p.row + int64_t{i} * p.step_height) * p.width + p.column, int64_t{i} * p.columns,
             columns);
    }
}

template <int Step, class S>
void split_rows(const PlanePhase& p, const S* plane, S* phase) {
    const int step = Step > 0 ? Step : p.step_width;
    for_phase_rows(p, [&](int64_t from, int64_t to, int columns) {
        const S* __restrict x = plane + from;
        S* __restrict y = phase + to;
        for (int j = 0; j < columns; ++j) y[j] = x[j * step];
    });
}

template <int Step, bool Add>
void join_rows(const PlanePhase& p, const float* phase, float* plane) {
    const int step = Step > 0 ? Step : p.step_width;
    for_phase_rows(p, [&](int64_t to, int64_t from, int columns) {
        float* __restrict x = plane + to;
        const float* __restrict y = phase + from;
        for (int j = 0; j < columns; ++j) x[j * step] = y[j] + (Add ? x[j * step] : 0.0f);
    });
}

// Every second column by whole vectors: what is stored past a row's end is written anew by the next
// row or plane, or is cleared at last.
template <class S>
inline void split_pairs(const PlanePhase& p, const S* plane, S* phase) {
    constexpr std::make_integer_sequence<int, V> all_lanes;
    for_phase_rows(p, [&](int64_t from, int64_t to, int columns) {
        for (int j = 0; j < columns; j += V) {
            const S* x = plane + from + 2 * j;
            store(phase + to + j, evens(load(x), load(x + V), all_lanes));
        }
    });
}

template <class S>
void plane_split(const PlanePhase& p, const S* plane, S* phase) {
    const int rows = phase_count(p.height, p.row, p.step_height);
    const int columns = phase_count(p.width, p.column, p.step_width);
    const bool pairs = p.step_width == 2 && columns == p.columns;
    if (pairs) split_pairs(p, plane, phase);
    for (int i = columns < p.columns ? 0 : rows * columns; i < p.rows * p.columns; ++i) {
        phase[i] = S{};
    }
    if (!pairs) (p.step_width == 2 ? split_rows<2, S> : split_rows<0, S>)(p, plane, phase);
}

// Rows of a plane from those of its even and odd columns' phases, of which one may be null: zeros.
// Whole vectors are stored past a row's end, up to a row further.
inline void zip_row(const float* even, const float* odd, int width, float* row) {
    constexpr std::make_integer_sequence<int, V> all_lanes;
    for (int j = 0; 2 * j < width; j += V) {
        const vec a = even == nullptr ? vec{} : load(even + j);
        const vec b = odd == nullptr ? vec{} : load(odd + j);
        store(row + 2 * j, zipped<0>(a, b, all_lanes));
        store(row + 2 * j + V, zipped<1>(a, b, all_lanes));
    }
}

inline void zip_phases(const PlanePhase* phases, int count, const float* first, int64_t pitch,
                       float* plane) {
    const PlanePhase& all = phases[0];
    for (int h = 0; h < all.height; ++h) {
        const float* columns[2] = {nullptr, nullptr};
        for (int i = 0; i < count; ++i) {
            if (phases[i].row != h % all.step_height) continue;
            columns[phases[i].column] = first + i * pitch + h / all.step_height * all.columns;
        }
        zip_row(columns[0], columns[1], all.width, plane + int64_t{h} * all.width);
    }
}

void plane_join(const PlanePhase* phases, int count, const float* first, int64_t pitch, float* plane,
                bool add) {
    const PlanePhase& all = phases[0];
    // Past a row's end is the next row, or the zeros behind the plane.
    if (!add && all.step_width == 2 && all.width >= V) {
        return zip_phases(phases, count, first, pitch, plane);
    }
    if (!add && count < all.step_width * all.step_height) {
        for (int64_t i = 0; i < int64_t{all.height} * all.width; ++i) plane[i] = 0;
    }
    for (int i = 0; i < count; ++i) {
        const float* phase = first + i * pitch;
        if (add) {
            (all.step_width == 2 ? join_rows<2, true> : join_rows<0, true>)(phases[i], phase, plane);
        } else {
            (all.step_width == 2 ? join_rows<2, false> : join_rows<0, false>)(phases[i], phase, plane);
        }
    }
}

// Zeros in [from, until), where `until` is a multiple of a line away from the channel's begin.
template <class T>
inline void clear_run(T* channel, int64_t from, int64_t until) {
    while (from < until && from % V != 0) channel[from++] = T{};
    for (; from < until; from += V) store(channel + from, vec{});
}

template <class T>
void plane_clear(const PlaneView& view, int plane, int64_t lead, T* first, int64_t images) {
    for (int64_t image = 0; image < images; ++image, first += view.image) {
        clear_run(first - lead, 0, lead);
        for (int c = 0; c < view.channels; ++c) {
            clear_run(first + c * view.pitch, plane, view.pitch);
        }
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
