// The spread: R rows' gradients of K vectors of positions are held in registers, and each entry adds
// its share to the planes where it stands. The gradients of a group are read moved, so that what is
// added to is always a whole vector of positions: a load never waits for two stores.
#pragma once

#include "plane_walk.h"

namespace mest::MEST_VARIANT {
namespace {

template <int R, int K>
void spread_planes(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& tile) {
    const int64_t pitch = task.own.pitch;
    int64_t to[K];
    for (int k = 0; k < K; ++k) to[k] = tile.to[k];
    for (int g = 0; g < task.groups; ++g) {
        const PlaneEntry *e = s.entries + s.first[g], *end = s.entries + s.first[g + 1];
        if (e == end) continue;
        const Lanes* masks = tile.masks[task.mask_of[g]];
        vec gradient[R][K];
        for (int r = 0; r < R; ++r) {
            const float* from = s.other + r * pitch + task.moved[g];
            for (int k = 0; k < K; ++k) gradient[r][k] = load(from + tile.from[k], masks[k]);
        }
        for (; e != end; ++e) {
            float* x = s.own + e->offset;
            const float* value = s.values + e->value;
            vec sum[K];
            for (int k = 0; k < K; ++k) sum[k] = load(x + to[k]);
            for (int r = 0; r < R; ++r) {
                const vec weight = all(value[r * s.row_values]);
                for (int k = 0; k < K; ++k) sum[k] += gradient[r][k] * weight;
            }
            for (int k = 0; k < K; ++k) store(x + to[k], sum[k]);
        }
    }
}

constexpr int most_spread_planes(int rows) {
    if (many_registers) return rows == 4 ? 4 : 8;
    return rows == 4 ? 2 : rows == 2 ? 4 : 8;
}

template <int R, int... K>
PlaneWalk plane_spread_of(int vectors, std::integer_sequence<int, K...>) {
    static constexpr PlaneWalk spreads[] = {
        spread_planes<R, (K < most_spread_planes(R) ? K + 1 : 1)>...};
    return spreads[vectors - 1];
}

inline PlaneWalk plane_spread(int rows, int vectors) {
    constexpr std::make_integer_sequence<int, most_tile> sizes;
    return rows == 4   ? plane_spread_of<4>(vectors, sizes)
           : rows == 2 ? plane_spread_of<2>(vectors, sizes)
                       : plane_spread_of<1>(vectors, sizes);
}

// Zeros in the vectors [begin, end) of all channels.
inline void zero_vectors(const PlaneTask& task, float* planes, int64_t begin, int64_t end) {
    const int vectors = vectors_of(task.plane);
    while (begin < end) {
        const int64_t image = begin / vectors, v = begin % vectors;
        const int64_t count = end - begin < vectors - v ? end - begin : vectors - v;
        float* at = planes + image * task.other.image + v * V;
        for (int c = 0; c < task.other.channels; ++c, at += task.other.pitch) {
            for (int64_t i = 0; i < count; ++i) store(at + i * V, vec{});
        }
        begin += count;
    }
}

void plane_spread_back(const PlaneTask& task, const float* values, const float* own, float* other,
                       int64_t images, bool add) {
    const int64_t count = images * vectors_of(task.plane), ahead = (task.ahead + V - 1) / V;
    const int rows = task.rows >= 4 ? 4 : task.rows >= 2 ? 2 : 1;
    int64_t zeroed = add ? count : 0;
    for_plane_tiles(count, most_spread_planes(rows), [&](int64_t first, int size) {
        // Just before they are added to, so that they are in the first cache.
        const int64_t until = first + size + ahead < count ? first + size + ahead : count;
        if (until > zeroed) {
            zero_vectors(task, other, zeroed, until);
            zeroed = until;
        }
        const PlaneTile tile(task, task.own, task.other, first, size);
        for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
            PlaneStrip s = strip_of(task, values, strip, row);
            s.other = own + channel * task.own.pitch;  // what is read
            s.own = other;
            plane_spread(taken, size)(task, s, tile);
        });
    });
}

}  // namespace
}  // namespace mest::MEST_VARIANT
