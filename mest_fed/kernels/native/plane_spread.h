// The spread: R rows' gradients of K vectors of positions are held in registers, and each entry adds
// its share to the planes where it stands. The gradients of a group are read moved, so that what is
// added to is always a whole vector of positions: a load never waits for two stores.
#pragma once

#include "plane_walk.h"

namespace mest::MEST_VARIANT {
namespace {

template <int R, int K, bool Run, class S>
void spread_planes(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& tile) {
    const int64_t pitch = task.own.pitch;
    const S* source = static_cast<const S*>(s.from) + tile.from[0];
    const float* values[R];
    float* target = static_cast<float*>(s.to) + tile.to[0];
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) values[r] = s.values + r * s.row_values;
    for (int g = 0; g < task.groups; ++g) {
        const PlaneEntry *e = s.entries + s.first[g], *end = s.entries + s.first[g + 1];
        if (e == end) continue;
        const Lanes* masks = tile.masks[task.mask_of[g]];
        vec gradient[R][K];
        MEST_IN_REGISTERS
        for (int r = 0; r < R; ++r) {
            const S* from = source + task.moved[g] + r * pitch;
            MEST_IN_REGISTERS
            for (int k = 0; k < K; ++k) {
                gradient[r][k] = load(from + vector_at<Run>(tile.from, k), masks[k]);
            }
        }
        for (; e != end; ++e) {
            float* x = target + e->offset;
            vec sum[K];
            MEST_IN_REGISTERS
            for (int k = 0; k < K; ++k) sum[k] = load(x + vector_at<Run>(tile.to, k));
            MEST_IN_REGISTERS
            for (int r = 0; r < R; ++r) {
                const vec weight = all(values[r][e->value]);
                MEST_IN_REGISTERS
                for (int k = 0; k < K; ++k) sum[k] += gradient[r][k] * weight;
            }
            MEST_IN_REGISTERS
            for (int k = 0; k < K; ++k) store(x + vector_at<Run>(tile.to, k), sum[k]);
        }
    }
}

constexpr int most_spread_planes(int rows) {
    if (many_registers) return rows == 4 ? 4 : 8;
    return rows == 4 ? 2 : rows == 2 ? 4 : 8;
}

template <int R, bool Run, class S, int... K>
PlaneWalk plane_spread_of(int vectors, std::integer_sequence<int, K...>) {
    static constexpr PlaneWalk spreads[] = {spread_planes<R, K + 1, Run, S>...};
    return spreads[vectors - 1];
}

template <int R, class S>
PlaneWalk plane_spread(int vectors, bool run) {
    constexpr std::make_integer_sequence<int, most_spread_planes(R)> sizes;
    return run ? plane_spread_of<R, true, S>(vectors, sizes)
               : plane_spread_of<R, false, S>(vectors, sizes);
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

// work(tile, size) for the tiles of images. Unless it adds to `other`, that is zeroed.
template <class Work>
inline void for_spread_tiles(const PlaneTask& task, float* other, int64_t images, bool add, int most,
                             const Work& work) {
    const int64_t count = images * vectors_of(task.plane), ahead = (task.ahead + V - 1) / V;
    int64_t zeroed = add ? count : 0;
    for_plane_tiles(task, images, most, [&](int64_t first, int size) {
        // Just before they are added to, so that they are in the first cache.
        const int64_t until = first + size + ahead < count ? first + size + ahead : count;
        if (until > zeroed) {
            zero_vectors(task, other, zeroed, until);
            zeroed = until;
        }
        work(PlaneTile(task, task.own, task.other, first, size), size);
    });
}

template <class S>
void plane_spread_back(const PlaneTask& task, const float* values, const S* own, float* other,
                       int64_t images, bool add) {
    const int most = most_spread_planes(taken_rows(task.rows));
    for_spread_tiles(task, other, images, add, most, [&](const PlaneTile& tile, int size) {
        for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
            PlaneStrip s = strip_of(task, values, strip, row);
            s.from = own + channel * task.own.pitch;
            s.to = other;
            (taken == 4   ? plane_spread<4, S>
             : taken == 2 ? plane_spread<2, S>
                          : plane_spread<1, S>)(size, tile.run)(task, s, tile);
        });
    });
}

}  // namespace
}  // namespace mest::MEST_VARIANT
