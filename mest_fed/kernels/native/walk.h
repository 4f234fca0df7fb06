// The inner loops: R output channels by K vectors of positions, kept in registers over a list.
#pragma once

#include "simd.h"

namespace mest::MEST_VARIANT {
namespace {

// Vectors of positions that R channels keep in registers, walking and spreading; and how many
// (channel, entry) pairs the sums of dot_pairs fill.
constexpr int most_vectors(int rows) {
    if (many_registers) return rows == 4 ? 6 : 8;
    return rows == 4 ? 3 : rows == 2 ? 4 : 8;
}
constexpr int most_spread(int rows) {
    if (many_registers) return rows == 4 ? 4 : 8;
    return rows == 4 ? 2 : rows == 2 ? 4 : 8;
}
constexpr int most_pairs = many_registers ? 16 : 8;

// Where K vectors are read and written.
struct Tile {
    const float* source;
    const int32_t* from;   // of each vector, in floats
    float* target;         // of the first channel
    const int64_t* to;     // of each vector, in floats
    int64_t target_channel;
};

// Columns of one strip. The values of an entry are `stride` apart; R of them are taken.
struct Strip {
    const int32_t* offsets;  // of each entry's column in the scratch
    int count;
    const float* values;
    int stride;
    const float* bias;  // of the R channels, or null
};

// target[r] = bias[r] + sum over entries of values[r] * source[offset]
template <int R, int K>
void walk_strip(const Strip& strip, const Tile& tile) {
    vec sum[R][K];
    int64_t from[K];
    for (int k = 0; k < K; ++k) {
        from[k] = tile.from[k];
        // The planes lie far apart; without this the stores at the end would wait for memory.
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(tile.target + r * tile.target_channel + tile.to[k], 1);
        }
    }
    for (int r = 0; r < R; ++r) {
        const vec start = all(strip.bias == nullptr ? 0.0f : strip.bias[r]);
        for (int k = 0; k < K; ++k) sum[r][k] = start;
    }
    const float* value = strip.values;
    for (int e = 0; e < strip.count; ++e, value += strip.stride) {
        const float* x = tile.source + strip.offsets[e];
        vec pixels[K];
        for (int k = 0; k < K; ++k) pixels[k] = load(x + from[k]);
        for (int r = 0; r < R; ++r) {
            const vec weight = all(value[r]);
            for (int k = 0; k < K; ++k) sum[r][k] += pixels[k] * weight;
        }
    }
    for (int r = 0; r < R; ++r) {
        float* y = tile.target + r * tile.target_channel;
        for (int k = 0; k < K; ++k) store(y + tile.to[k], sum[r][k]);
    }
}

// Vectors of R channels' output gradients, and where in the scratch their shares go.
struct Spread {
    const float* gradient;   // of the first channel
    const int64_t* at;       // of each vector of it
    int64_t gradient_channel;
    float* target;
    const int32_t* to;       // of each vector, in floats
};

// target[offset] += sum over r of values[r] * gradient[r], for each entry of the strip
template <int R, int K>
void spread_strip(const Strip& strip, const Spread& spread) {
    vec gradient[R][K];
    int64_t to[K];
    for (int k = 0; k < K; ++k) {
        to[k] = spread.to[k];
        for (int r = 0; r < R; ++r) {
            const float* from = spread.gradient + r * spread.gradient_channel + spread.at[k];
            gradient[r][k] = load(from);
            __builtin_prefetch(from + R * spread.gradient_channel);  // the next rows'
        }
    }
    const float* value = strip.values;
    for (int e = 0; e < strip.count; ++e, value += strip.stride) {
        float* x = spread.target + strip.offsets[e];
        vec sum[K];
        for (int k = 0; k < K; ++k) sum[k] = load(x + to[k]);
        for (int r = 0; r < R; ++r) {
            const vec weight = all(value[r]);
            for (int k = 0; k < K; ++k) sum[k] += gradient[r][k] * weight;
        }
        for (int k = 0; k < K; ++k) store(x + to[k], sum[k]);
    }
}

// Gradients of C entries of a strip: sums over positions of R output gradients by C inputs.
struct Pairs {
    const float* gradient;  // of the first channel
    const int64_t* at;      // of each vector of it
    int64_t gradient_channel;
    const float* source;
    const int32_t* offsets;  // of the C columns
    const int32_t* from;     // of each vector
    int vectors;
    const float* next;       // gradients that will be read soon
};

// result[c * stride + r] += sum over vectors of gradient[r] * source[c]
template <int R, int C>
void dot_pairs(const Pairs& p, float* result, int stride) {
    vec sum[C][R];
    const float* x[C];
    for (int c = 0; c < C; ++c) {
        x[c] = p.source + p.offsets[c];
        for (int r = 0; r < R; ++r) sum[c][r] = vec{};
    }
    for (int v = 0; v < p.vectors; ++v) {
        const float* g = p.gradient + p.at[v];
        __builtin_prefetch(p.next + p.at[v]);
        vec gradient[R];
        for (int r = 0; r < R; ++r) gradient[r] = load(g + r * p.gradient_channel);
        for (int c = 0; c < C; ++c) {
            const vec pixels = load(x[c] + p.from[v]);
            for (int r = 0; r < R; ++r) sum[c][r] += gradient[r] * pixels;
        }
    }
    if constexpr (R * C % V == 0) {
        for (int first = 0; first < R * C; first += V) {
            vec some[V];
            for (int i = 0; i < V; ++i) some[i] = sum[(first + i) / R][(first + i) % R];
            const vec total = sums_of(some);
            if (stride == R) {
                store(result + first, load(result + first) + total);
            } else {
                float lanes[V];
                store(lanes, total);
                for (int i = 0; i < V; ++i) {
                    result[(first + i) / R * stride + (first + i) % R] += lanes[i];
                }
            }
        }
    } else {
        for (int c = 0; c < C; ++c) {
            for (int r = 0; r < R; ++r) result[c * stride + r] += sum_of(sum[c][r]);
        }
    }
}

// Gradients of R rows of a strip's entries, as many entries at once as registers hold.
template <int R>
void strip_dots(Pairs pairs, const int32_t* offsets, int count, float* result, int stride) {
    constexpr int most = most_pairs / R;
    using Dots = void (*)(const Pairs&, float*, int);
    static constexpr Dots fewer[] = {dot_pairs<R, 1>, dot_pairs<R, (most > 2 ? 2 : 1)>,
                                     dot_pairs<R, (most > 4 ? 4 : 1)>};
    int e = 0;
    for (; e + most <= count; e += most) {
        // Each turn fetches one of the next rows.
        pairs.next = pairs.gradient + (R + e / most % R) * pairs.gradient_channel;
        pairs.offsets = offsets + e;
        dot_pairs<R, most>(pairs, result + int64_t{e} * stride, stride);
    }
    while (e < count) {
        const int power = count - e >= 4 && most > 4 ? 2 : count - e >= 2 && most > 2 ? 1 : 0;
        pairs.offsets = offsets + e;
        fewer[power](pairs, result + int64_t{e} * stride, stride);
        e += 1 << power;
    }
}

using StripWalk = void (*)(const Strip&, const Tile&);
using StripSpread = void (*)(const Strip&, const Spread&);

// The instances for R rows and 1 to 8 vectors; past most_vectors(R), most_spread(R) none is asked.
template <int R, int... K>
StripWalk walk_of(int vectors, std::integer_sequence<int, K...>) {
    static constexpr StripWalk walks[] = {walk_strip<R, (K < most_vectors(R) ? K + 1 : 1)>...};
    return walks[vectors - 1];
}
template <int R, int... K>
StripSpread spread_of(int vectors, std::integer_sequence<int, K...>) {
    static constexpr StripSpread spreads[] = {spread_strip<R, (K < most_spread(R) ? K + 1 : 1)>...};
    return spreads[vectors - 1];
}

inline StripWalk strip_walk(int rows, int vectors) {
    constexpr std::make_integer_sequence<int, 8> sizes;
    return rows == 4   ? walk_of<4>(vectors, sizes)
           : rows == 2 ? walk_of<2>(vectors, sizes)
                       : walk_of<1>(vectors, sizes);
}
inline StripSpread strip_spread(int rows, int vectors) {
    constexpr std::make_integer_sequence<int, 8> sizes;
    return rows == 4   ? spread_of<4>(vectors, sizes)
           : rows == 2 ? spread_of<2>(vectors, sizes)
                       : spread_of<1>(vectors, sizes);
}

// Cuts [0, count) into runs of nearly equal size, at most `most` long: work(first, size).
template <class Work>
inline void for_tiles(int count, int most, const Work& work) {
    const int tiles = (count + most - 1) / most;
    for (int i = 0, first = 0; i < tiles; ++i) {
        const int size = count / tiles + (i < count % tiles ? 1 : 0);
        work(first, size);
        first += size;
    }
}

// Rows that one walk takes of `left` rows of a strip. More than four would not share more: four
// multiply-adds a load keep the arithmetic units busy.
inline int walked_rows(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

}  // namespace
}  // namespace mest::MEST_VARIANT
