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
    bool whole[most_shifts];  // whether a shift's masks keep all lanes
    bool run;                 // all vectors are of one image

    // The vectors from `first` on of `vectors` an image.
    PlaneTile(const PlaneTask& task, const PlaneView& read, const PlaneView& written, int64_t first,
              int size) {
        const int vectors = vectors_of(task.plane);
        run = first % vectors + size <= vectors;
        int shifts = 0;
        for (int g = 0; g < task.groups; ++g) {
            if (task.mask_of[g] >= shifts) shifts = task.mask_of[g] + 1;
        }
        for (int s = 0; s < shifts; ++s) whole[s] = true;
        for (int k = 0; k < size; ++k) {
            const int64_t image = (first + k) / vectors;
            const int v = static_cast<int>((first + k) % vectors);
            from[k] = image * read.image + v * V;
            to[k] = image * written.image + v * V;
            inside[k] = lanes_at(task.inside, v);
            for (int s = 0; s < shifts; ++s) {
                masks[s][k] = lanes_at(task.masks + s * task.lines, v);
                whole[s] = whole[s] && all_lanes_at(task.masks + s * task.lines, v);
            }
        }
    }
};

// work(first, size): the vectors [first, until), at most `most` at once. Tiles begin at even vectors,
// if `most` is even, so that masks that alternate do so in every tile.
template <class Work>
inline void for_run_tiles(int64_t first, int64_t until, int most, const Work& work) {
    while (first < until) {
        const int64_t left = until - first, tiles = (left + most - 1) / most;
        int64_t size = (left + tiles - 1) / tiles;
        if (tiles > 1 && most % 2 == 0) size += size % 2;
        work(first, static_cast<int>(size));
        first += size;
    }
}

// The same for all vectors of images. Only small planes share tiles: sources of one image more might
// leave the first cache.
template <class Work>
inline void for_plane_tiles(const PlaneTask& task, int64_t images, int most, const Work& work) {
    const int64_t vectors = vectors_of(task.plane), small = 4;
    const int64_t run = vectors < small ? images * vectors : vectors;
    for (int64_t first = 0; first < images * vectors; first += run) {
        for_run_tiles(first, first + run, most, work);
    }
}

// What one strip's rows take and give in a tile.
struct PlaneStrip {
    const PlaneEntry* entries;
    const int32_t* first;
    const float* values;  // of the first row
    int64_t row_values;
    const uint32_t* pairs;  // of the first row: the same as pairs of bfloat16
    const void* from;       // what is read
    void* to;               // what is written
    const float* bias;
    bool add;
};

inline PlaneStrip strip_of(const PlaneTask& task, const float* values, int strip, int row) {
    const int list = task.shared ? 0 : strip;
    return {task.entries, task.first + list * task.groups,
            values + (task.shared ? strip * task.strip_values : 0) + row * task.row_values,
            task.row_values, nullptr, nullptr, nullptr, nullptr, false};
}

// Where vector k of a tile is, from the first: known to the compiler where they are a run.
template <bool Run>
inline int64_t vector_at(const int64_t* places, int k) {
    return Run ? k * V : places[k] - places[0];
}

// Rows that one walk takes of so many.
inline int taken_rows(int rows) { return rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

// work(strip, row, taken, channel): rows of all strips, as many at once as a walk takes.
template <class Work>
inline void for_strip_rows(const PlaneTask& task, const Work& work) {
    for (int strip = 0; strip < task.strips; ++strip) {
        const int channel = strip * task.rows, left = task.own.channels - channel;
        const int rows = left < task.rows ? left : task.rows;
        for (int row = 0, taken; row < rows; row += taken) {
            taken = taken_rows(rows - row);
            work(strip, row, taken, channel + row);
        }
    }
}

// sum[r][k] += values[r] * pixels[k] of one entry
template <int R, int K>
inline __attribute__((always_inline)) void add_entry(const float* const (&values)[R], int32_t value,
                                                     const vec (&pixels)[K], vec (&sum)[R][K]) {
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        const vec weight = all(values[r][value]);
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) sum[r][k] += pixels[k] * weight;
    }
}

// Masks of alternate lines come with each entry: one loop, whose end is guessed right more often than
// those of short groups. It pays where a strip has so many rows.
constexpr int most_alternate = 2;

template <int R, int K, bool Run, class S>
inline __attribute__((always_inline)) void walk_alternate(const PlaneStrip& s, const PlaneTile& tile,
                                                          int groups, const float* const (&values)[R],
                                                          vec (&sum)[R][K]) {
#if defined(__AVX512F__)
    const S* source = static_cast<const S*>(s.from) + tile.from[0];
    const PlaneEntry *e = s.entries + s.first[0], *end = s.entries + s.first[groups];
    for (; e != end; ++e) {
        const S* x = source + e->offset;
        const Lanes lanes[2] = {e->even, e->odd};
        vec pixels[K];
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) pixels[k] = load(x + vector_at<Run>(tile.from, k), lanes[k % 2]);
        add_entry<R, K>(values, e->value, pixels, sum);
    }
#endif
}

// The entries of one group, whose masks stay in registers.
template <int R, int K, bool Run, bool Masked, class S>
inline __attribute__((always_inline)) void walk_group(const PlaneStrip& s, const PlaneTile& tile,
                                                      const Lanes* masks, int group,
                                                      const float* const (&values)[R],
                                                      vec (&sum)[R][K]) {
    const S* source = static_cast<const S*>(s.from) + tile.from[0];
    Lanes lanes[K];
    MEST_IN_REGISTERS
    for (int k = 0; k < K; ++k) lanes[k] = masks[k];
    const PlaneEntry *e = s.entries + s.first[group], *end = s.entries + s.first[group + 1];
    for (; e != end; ++e) {
        const S* x = source + e->offset;
        vec pixels[K];
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            const S* at = x + vector_at<Run>(tile.from, k);
            pixels[k] = Masked ? load(at, lanes[k]) : load(at);
        }
        add_entry<R, K>(values, e->value, pixels, sum);
    }
}

// Without mask registers, masks that keep all lanes are left out.
template <int R, int K, bool Run, class S>
inline __attribute__((always_inline)) void walk_groups(const PlaneStrip& s, const PlaneTile& tile,
                                                       const PlaneTask& task,
                                                       const float* const (&values)[R],
                                                       vec (&sum)[R][K]) {
    for (int g = 0; g < task.groups; ++g) {
        const int shift = task.mask_of[g];
        if (!mask_registers && tile.whole[shift]) {
            walk_group<R, K, Run, mask_registers, S>(s, tile, tile.masks[shift], g, values, sum);
        } else {
            walk_group<R, K, Run, true, S>(s, tile, tile.masks[shift], g, values, sum);
        }
    }
}

template <int R, int K, bool Alternate, bool Run, class S, class T>
void walk_planes(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& tile) {
    vec sum[R][K];
    const float* values[R];
    T* to = static_cast<T*>(s.to) + tile.to[0];
    const int64_t pitch = task.own.pitch;
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        values[r] = s.values + r * s.row_values;
        const vec start = all(s.bias == nullptr ? 0.0f : s.bias[r]);
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            sum[r][k] = s.add ? load(to + r * pitch + vector_at<Run>(tile.to, k))
                              : masked(start, tile.inside[k]);
        }
    }
    if constexpr (Alternate) {
        walk_alternate<R, K, Run, S>(s, tile, task.groups, values, sum);
    } else {
        walk_groups<R, K, Run, S>(s, tile, task, values, sum);
    }
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) store(to + r * pitch + vector_at<Run>(tile.to, k), sum[r][k]);
    }
}

using PlaneWalk = void (*)(const PlaneTask&, const PlaneStrip&, const PlaneTile&);

// The most vectors that a walk takes. Masks of more would not fit their registers.
constexpr int most_walked(int rows, bool alternate) {
    if (!many_registers) return rows == 4 ? 3 : rows == 2 ? 4 : 8;
    return alternate ? 8 : 6;
}

// The instances for 1 to most_walked vectors.
template <int R, bool Alternate, bool Run, class S, class T, int... K>
PlaneWalk plane_walk_of(int vectors, std::integer_sequence<int, K...>) {
    static constexpr PlaneWalk walks[] = {walk_planes<R, K + 1, Alternate, Run, S, T>...};
    return walks[vectors - 1];
}

template <int R, class S, class T>
PlaneWalk plane_walk(int vectors, bool alternate, bool run) {
    constexpr std::make_integer_sequence<int, most_walked(R, false)> sizes;
    if constexpr (mask_registers && R <= most_alternate) {
        constexpr std::make_integer_sequence<int, most_walked(R, true)> more;
        if (alternate) {
            return (run ? plane_walk_of<R, true, true, S, T>(vectors, more)
                        : plane_walk_of<R, true, false, S, T>(vectors, more));
        }
    }
    return run ? plane_walk_of<R, false, true, S, T>(vectors, sizes)
               : plane_walk_of<R, false, false, S, T>(vectors, sizes);
}

// Planes of S are read, and planes of T written.
template <class S, class T>
void plane_forward(const PlaneTask& task, const float* values, const S* other, const float* bias,
                   T* own, int64_t images, bool add) {
    const int rows = taken_rows(task.rows);
    const bool alternate = task.alternate && rows <= most_alternate;
    const int most = most_walked(rows, alternate);
    // A tile's sources stay in the first cache while all strips walk over them.
    for_plane_tiles(task, images, most, [&](int64_t first, int size) {
        const PlaneTile tile(task, task.other, task.own, first, size);
        for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
            PlaneStrip s = strip_of(task, values, strip, row);
            s.from = other;
            s.to = own + channel * task.own.pitch;
            s.bias = bias == nullptr ? nullptr : bias + channel;
            s.add = add;
            (taken == 4   ? plane_walk<4, S, T>
             : taken == 2 ? plane_walk<2, S, T>
                          : plane_walk<1, S, T>)(size, alternate, tile.run)(task, s, tile);
        });
    });
}

}  // namespace
}  // namespace mest::MEST_VARIANT
