// The walk: R rows of a strip by K vectors of positions are summed in registers over the entries.
#pragma once

#include "plane_simd.h"

namespace mest::MEST_VARIANT {
namespace {

constexpr int most_tile = 8;

// Vectors of positions that are worked on at once, whichever images they belong to.
struct PlaneTile {
    int64_t from[most_tile], to[most_tile];  // of each, in the planes that are read and written
    Lanes masks[most_shifts][most_tile], inside[most_tile];

    // The vectors from `first` on of `vectors` an image.
    PlaneTile(const PlaneTask& task, const PlaneView& read, const PlaneView& written, int64_t first,
              int size) {
        const int vectors = vectors_of(task.plane);
        int shifts = 0;
        for (int g = 0; g < task.groups; ++g) {
            if (task.mask_of[g] >= shifts) shifts = task.mask_of[g] + 1;
        }
        for (int k = 0; k < size; ++k) {
            const int64_t image = (first + k) / vectors;
            const int v = static_cast<int>((first + k) % vectors);
            from[k] = image * read.image + v * V;
            to[k] = image * written.image + v * V;
            inside[k] = lanes_at(task.inside, v);
            for (int s = 0; s < shifts; ++s) {
                masks[s][k] = lanes_at(task.masks + s * task.lines, v);
            }
        }
    }
};

// work(first, size): all vectors, at most `most` at once. Tiles begin at even vectors, if `most` is
// even, so that masks that alternate do so in every tile.
template <class Work>
inline void for_plane_tiles(int64_t count, int most, const Work& work) {
    for (int64_t first = 0; first < count;) {
        const int64_t left = count - first, tiles = (left + most - 1) / most;
        int64_t size = (left + tiles - 1) / tiles;
        if (tiles > 1 && most % 2 == 0) size += size % 2;
        work(first, static_cast<int>(size));
        first += size;
    }
}

// What one strip's rows take and give in a tile.
struct PlaneStrip {
    const PlaneEntry* entries;
    const int32_t* first;
    const float* values;
    int64_t row_values;
    const float* other;
    float* own;
    const float* bias;
    bool add;
};

inline PlaneStrip strip_of(const PlaneTask& task, const float* values, int strip, int row) {
    const int list = task.shared ? 0 : strip;
    return {task.entries, task.first + list * task.groups,
            values + (task.shared ? strip * task.strip_values : 0) + row * task.row_values,
            task.row_values, nullptr, nullptr, nullptr, false};
}

// work(strip, row, taken, channel): rows of all strips, as many at once as a walk takes.
template <class Work>
inline void for_strip_rows(const PlaneTask& task, const Work& work) {
    for (int strip = 0; strip < task.strips; ++strip) {
        const int channel = strip * task.rows, left = task.own.channels - channel;
        const int rows = left < task.rows ? left : task.rows;
        for (int row = 0, taken; row < rows; row += taken) {
            taken = rows - row >= 4 ? 4 : rows - row >= 2 ? 2 : 1;
            work(strip, row, taken, channel + row);
        }
    }
}

// One group's entries, whose vector k is under mask k % P; P = 0: under none.
template <int R, int K, int P>
inline __attribute__((always_inline)) void walk_group(const PlaneStrip& s, const PlaneTile& tile,
                                                      const Lanes* masks, int g, vec (&sum)[R][K]) {
    Lanes lanes[P > 0 ? P : 1];
    for (int k = 0; k < P; ++k) lanes[k] = masks[k];
    const PlaneEntry* end = s.entries + s.first[g + 1];
    for (const PlaneEntry* e = s.entries + s.first[g]; e != end; ++e) {
        const float *x = s.other + e->offset, *value = s.values + e->value;
        vec pixels[K];
        for (int k = 0; k < K; ++k) {
            if constexpr (P > 0) {
                pixels[k] = load(x + tile.from[k], lanes[k % P]);
            } else {
                pixels[k] = load(x + tile.from[k]);
            }
        }
        for (int r = 0; r < R; ++r) {
            const vec weight = all(value[r * s.row_values]);
            for (int k = 0; k < K; ++k) sum[r][k] += pixels[k] * weight;
        }
    }
}

template <int R, int K, int P>
void walk_planes(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& given) {
    vec sum[R][K];
    const int64_t pitch = task.own.pitch;
    for (int r = 0; r < R; ++r) {
        const vec start = all(s.bias == nullptr ? 0.0f : s.bias[r]);
        for (int k = 0; k < K; ++k) {
            sum[r][k] = s.add ? load(s.own + r * pitch + given.to[k]) : masked(start, given.inside[k]);
        }
    }
    const PlaneTile& tile = given;
    for (int g = 0; g < task.groups; ++g) {
        walk_group<R, K, P>(s, tile, tile.masks[task.mask_of[g]], g, sum);
    }
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < K; ++k) store(s.own + r * pitch + tile.to[k], sum[r][k]);
    }
}

using PlaneWalk = void (*)(const PlaneTask&, const PlaneStrip&, const PlaneTile&);

// Instances for 1 to 8 vectors; past `most` none is asked for.
template <int R, bool Alternate, int... K>
PlaneWalk plane_walk_of(int vectors, std::integer_sequence<int, K...>) {
    constexpr int most = many_registers ? (R == 4 ? 6 : 8) : (R == 4 ? 3 : R == 2 ? 4 : 8);
    static constexpr PlaneWalk walks[] = {
        walk_planes<R, (K < most ? K + 1 : 1),
                    (K >= most ? 1 : Alternate && K > 1 ? 2 : K + 1)>...};
    return walks[vectors - 1];
}

template <bool Alternate>
PlaneWalk plane_walk(int rows, int vectors) {
    constexpr std::make_integer_sequence<int, most_tile> sizes;
    return rows == 4   ? plane_walk_of<4, Alternate>(vectors, sizes)
           : rows == 2 ? plane_walk_of<2, Alternate>(vectors, sizes)
                       : plane_walk_of<1, Alternate>(vectors, sizes);
}

inline int most_walked(const PlaneTask& task) {
    const int rows = task.rows >= 4 ? 4 : task.rows >= 2 ? 2 : 1;
    if (!many_registers) return rows == 4 ? 3 : rows == 2 ? 4 : 8;
    return rows == 4 || !task.alternate ? 6 : 8;  // masks of more would not fit their registers
}

void plane_forward(const PlaneTask& task, const float* values, const float* other,
                   const float* bias, float* own, int64_t images, bool add) {
    // A tile's sources stay in the first cache while all strips walk over them.
    for_plane_tiles(images * vectors_of(task.plane), most_walked(task), [&](int64_t first, int size) {
        const PlaneTile tile(task, task.other, task.own, first, size);
        for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
            PlaneStrip s = strip_of(task, values, strip, row);
            s.other = other;
            s.own = own + channel * task.own.pitch;
            s.bias = bias == nullptr ? nullptr : bias + channel;
            s.add = add;
            (task.alternate ? plane_walk<true>(taken, size) : plane_walk<false>(taken, size))(
                task, s, tile);
        });
    });
}

}  // namespace
}  // namespace mest::MEST_VARIANT
