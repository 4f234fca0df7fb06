// The dots: gradients of values, sums over positions of R rows' gradients by C entries' sources. The
// entries of one group share their masks; their sums stay in registers over all images.
#pragma once

#include "plane_walk.h"

namespace mest::MEST_VARIANT {
namespace {

template <class S>
struct PlaneDots {
    const S *own, *other;
    float* gradient;
    const LineMask* masks;  // null: all lanes (where there are no mask registers)
    int64_t images;
};

// Adds four sums, from the first-th on, to the places of their values.
template <int R, int C>
inline void add_four(const PlaneTask& task, const PlaneEntry* entries, vec (&sum)[C][R], int first,
                     float* to) {
    vec some[4];
    MEST_IN_REGISTERS
    for (int i = 0; i < 4; ++i) {
        some[i] = first + i < C * R ? sum[(first + i) / R][(first + i) % R] : vec{};
    }
    const Simd<4>::type total = four_sums(some[0], some[1], some[2], some[3]);
    if (R == 4 && task.row_values == 1) {
        float* at = to + entries[first / R].value;
        return store<4>(at, load<4>(at) + total);
    }
    MEST_IN_REGISTERS
    for (int i = 0; i < 4; ++i) {
        if (first + i >= C * R) break;
        to[entries[(first + i) / R].value + (first + i) % R * task.row_values] += total[i];
    }
}

template <int R, int C, bool Masked, class S>
void dot_planes(const PlaneTask& task, const PlaneDots<S>& d, const PlaneEntry* entries) {
    vec sum[C][R];
    int64_t offset[C];
    MEST_IN_REGISTERS
    for (int c = 0; c < C; ++c) {
        offset[c] = entries[c].offset;
        MEST_IN_REGISTERS
        for (int r = 0; r < R; ++r) sum[c][r] = vec{};
    }
    const int vectors = vectors_of(task.plane);
    const S *own = d.own, *other = d.other;
    for (int64_t image = 0; image < d.images; ++image) {
        for (int v = 0; v < vectors; ++v) {
            const Lanes lanes = Masked ? lanes_at(d.masks, v) : Lanes{};
            vec gradient[R];
            MEST_IN_REGISTERS
            for (int r = 0; r < R; ++r) gradient[r] = load(own + r * task.own.pitch + v * V);
            MEST_IN_REGISTERS
            for (int c = 0; c < C; ++c) {
                const S* x = other + offset[c] + v * V;
                const vec pixels = Masked ? load(x, lanes) : load(x);
                MEST_IN_REGISTERS
                for (int r = 0; r < R; ++r) sum[c][r] += pixels * gradient[r];
            }
        }
        own += task.own.image;
        other += task.other.image;
    }
    MEST_IN_REGISTERS
    for (int i = 0; i < (C * R + 3) / 4; ++i) add_four<R, C>(task, entries, sum, 4 * i, d.gradient);
}

template <class S>
using PlaneDot = void (*)(const PlaneTask&, const PlaneDots<S>&, const PlaneEntry*);

template <int R>
constexpr int most_dotted() {
    if (many_registers) return R == 4 ? 6 : R == 2 ? 10 : 16;
    return R == 4 ? 2 : R == 2 ? 4 : 8;
}

template <int R, bool Masked, class S, int... C>
PlaneDot<S> plane_dot(int entries, std::integer_sequence<int, C...>) {
    static constexpr PlaneDot<S> dots[] = {dot_planes<R, C + 1, Masked, S>...};
    return dots[entries - 1];
}

// The loop for so many entries; other types may have another.
template <int R, class S>
struct DotOf {
    static PlaneDot<S> taking(int entries, const LineMask* masks) {
        constexpr std::make_integer_sequence<int, most_dotted<R>()> sizes;
        return masks == nullptr ? plane_dot<R, mask_registers, S>(entries, sizes)
                                : plane_dot<R, true, S>(entries, sizes);
    }
};

template <int R, class S>
void dot_group(const PlaneTask& task, const PlaneDots<S>& d, const PlaneEntry* entries, int count) {
    constexpr int most = most_dotted<R>();
    while (count > 0) {
        const int parts = (count + most - 1) / most, taken = (count + parts - 1) / parts;
        DotOf<R, S>::taking(taken, d.masks)(task, d, entries);
        entries += taken;
        count -= taken;
    }
}

// Whether masks keep all lanes of every vector.
inline bool all_lanes(const PlaneTask& task, const LineMask* masks) {
    for (int v = 0; v < vectors_of(task.plane); ++v) {
        if (!all_lanes_at(masks, v)) return false;
    }
    return true;
}

template <class S>
void plane_value_gradient(const PlaneTask& task, const S* own, const S* other, float* gradient,
                          int64_t images) {
    for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
        const PlaneStrip s = strip_of(task, nullptr, strip, row);
        float* to = gradient + (task.shared ? strip * task.strip_values : 0) + row * task.row_values;
        for (int g = 0; g < task.groups; ++g) {
            const LineMask* masks = task.masks + task.mask_of[g] * task.lines;
            const PlaneDots<S> d{own + channel * task.own.pitch, other, to,
                              mask_registers || !all_lanes(task, masks) ? masks : nullptr, images};
            (taken == 4   ? dot_group<4, S>
             : taken == 2 ? dot_group<2, S>
                          : dot_group<1, S>)(task, d, s.entries + s.first[g],
                                             s.first[g + 1] - s.first[g]);
        }
    });
}

}  // namespace
}  // namespace mest::MEST_VARIANT
