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

template <int Step>
void split_rows(const PlanePhase& p, const float* plane, float* phase) {
    const int step = Step > 0 ? Step : p.step_width;
    for_phase_rows(p, [&](int64_t from, int64_t to, int columns) {
        const float* __restrict x = plane + from;
        float* __restrict y = phase + to;
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

void plane_split(const PlanePhase& p, const float* plane, float* phase) {
    const int columns = phase_count(p.width, p.column, p.step_width);
    if (columns < p.columns || phase_count(p.height, p.row, p.step_height) < p.rows) {
        for (int i = 0; i < p.rows * p.columns; ++i) phase[i] = 0;
    }
    (p.step_width == 2 ? split_rows<2> : split_rows<0>)(p, plane, phase);
}

void plane_join(const PlanePhase& p, const float* phase, float* plane, bool add) {
    if (add) {
        (p.step_width == 2 ? join_rows<2, true> : join_rows<0, true>)(p, phase, plane);
    } else {
        (p.step_width == 2 ? join_rows<2, false> : join_rows<0, false>)(p, phase, plane);
    }
}

// Zeros in [from, until), where `until` is a multiple of a line away from the channel's begin.
inline void clear_run(float* channel, int64_t from, int64_t until) {
    while (from < until && from % V != 0) channel[from++] = 0;
    for (; from < until; from += V) store(channel + from, vec{});
}

void plane_clear(const PlaneView& view, int plane, int64_t lead, float* first, int64_t images) {
    for (int64_t image = 0; image < images; ++image, first += view.image) {
        clear_run(first - lead, 0, lead);
        for (int c = 0; c < view.channels; ++c) {
            clear_run(first + c * view.pitch, plane, view.pitch);
        }
    }
}

}  // namespace
}  // namespace mest::MEST_VARIANT
