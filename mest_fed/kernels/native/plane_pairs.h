// Products of pairs of bfloat16, where one instruction multiplies two pairs and adds both to a float:
// the walk pairs entries of a strip, the spread rows of it, and the dots positions that lie side by
// side. Else planes of bfloat16 are taken as floats.
#pragma once

#include "plane_dots.h"
#include "plane_spread.h"

namespace mest::MEST_VARIANT {
namespace {

#if defined(__AVX512BF16__)
constexpr bool paired = true;
#else
constexpr bool paired = false;
#endif

inline uint32_t narrow_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// work(first value, entries, their number, rows, strip), of each strip.
template <class Work>
inline void for_packed_strips(const PlaneTask& task, const float* values, const Work& work) {
    for (int strip = 0; strip < task.strips; ++strip) {
        const PlaneStrip s = strip_of(task, values, strip, 0);
        const int left = task.own.channels - strip * task.rows;
        work(s.values, task.entries + s.first[0], s.first[task.groups] - s.first[0],
             left < task.rows ? left : task.rows, strip);
    }
}

// Where a strip's pairs of entries begin: none has more than the next one leaves it.
inline int64_t first_pair(const PlaneTask& task, int strip) {
    if (task.shared) return int64_t{strip} * ((task.first[task.groups] + 1) / 2);
    return (int64_t{task.first[int64_t{strip} * task.groups]} + strip + 1) / 2;
}

inline int64_t first_entry(const PlaneTask& task, int strip) {
    if (task.shared) return int64_t{strip} * task.first[task.groups];
    return task.first[int64_t{strip} * task.groups];
}

void pack_entries(const PlaneTask& task, const float* values, uint32_t* pairs) {
    for_packed_strips(task, values, [&](const float* from, const PlaneEntry* e, int count, int rows,
                                        int strip) {
        uint32_t* to = pairs + first_pair(task, strip) * task.rows;
        for (int i = 0; i < count; i += 2, to += task.rows) {
            const bool two = i + 1 < count;
            const float *a = from + e[i].value, *b = two ? from + e[i + 1].value : a;
#if defined(__AVX512BF16__)
            if (rows == 4 && task.row_values == 1 && two) {
                const auto p = (__m128i)_mm_cvtneps_pbh(_mm_loadu_ps(a));
                const auto q = (__m128i)_mm_cvtneps_pbh(_mm_loadu_ps(b));
                _mm_storeu_si128((__m128i*)to, _mm_unpacklo_epi16(p, q));
                continue;
            }
#endif
            for (int r = 0; r < rows; ++r) {
                const int64_t at = r * task.row_values;
                to[r] = narrow_bits(a[at]) | (two ? narrow_bits(b[at]) << 16 : 0);
            }
        }
    });
}

void pack_rows(const PlaneTask& task, const float* values, uint32_t* pairs) {
    const int words = task.rows / 2;
    for_packed_strips(task, values, [&](const float* from, const PlaneEntry* e, int count, int rows,
                                        int strip) {
        uint32_t* to = pairs + first_entry(task, strip) * words;
        for (int i = 0; i < count; ++i, to += words) {
            const float* a = from + e[i].value;
#if defined(__AVX512BF16__)
            if (rows == 4 && task.row_values == 1) {
                _mm_storel_epi64((__m128i*)to, (__m128i)_mm_cvtneps_pbh(_mm_loadu_ps(a)));
                continue;
            }
#endif
            for (int h = 0; h < words; ++h) {
                const int r = 2 * h;
                to[h] = (r < rows ? narrow_bits(a[r * task.row_values]) : 0) |
                        (r + 1 < rows ? narrow_bits(a[(r + 1) * task.row_values]) << 16 : 0);
            }
        }
    });
}

#if defined(__AVX512BF16__)
inline vec add_pairs_of(vec sum, __m512i a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Moved to the upper, and to the lower halves of words.
inline __m512i upper(__m512i v) { return (__m512i)((words)v << 16); }
inline __m512i lower(__m512i v) { return (__m512i)((words)v >> 16); }

inline __m512i load_lines(const bf16* p, __mmask32 lanes) {
    return _mm512_maskz_loadu_epi16(lanes, p);
}

// Of an even line and the next one.
inline __mmask32 two_lines(const LineMask* masks) {
    __mmask32 both;
    std::memcpy(&both, masks, sizeof both);
    return both;
}

// sum[r][k] += weights[r] * pixels[k]
template <int R, int K>
inline __attribute__((always_inline)) void add_pair(const uint32_t* weights,
                                                    const __m512i (&pixels)[K], vec (&sum)[R][K]) {
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        const __m512i weight = _mm512_set1_epi32(static_cast<int>(weights[r]));
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) sum[r][k] = add_pairs_of(sum[r][k], pixels[k], weight);
    }
}

template <int R, int K>
inline __attribute__((always_inline)) void start_sums(const PlaneStrip& s, vec (&sum)[R][K]) {
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) sum[r][k] = all(s.bias == nullptr ? 0.0f : s.bias[r]);
    }
}

// Positions of a vector after the other: pixels of two entries are put side by side.
template <int R, int K, bool Alternate>
void walk_pairs(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& tile) {
    vec sum[R][K];
    start_sums<R, K>(s, sum);
    const bf16* source = static_cast<const bf16*>(s.from);
    const PlaneEntry *e = s.entries + s.first[0], *end = s.entries + s.first[task.groups];
    const uint32_t* weights = s.pairs;
    for (; e < end; e += 2, weights += task.rows) {
        const PlaneEntry &a = e[0], &b = e + 1 < end ? e[1] : e[0];
        __m512i pixels[K];
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            const Lanes p = Alternate ? (k % 2 ? a.odd : a.even) : tile.masks[a.even][k];
            const Lanes q = Alternate ? (k % 2 ? b.odd : b.even) : tile.masks[b.even][k];
            const bf16* x = source + tile.from[k];
            const __m512i second = upper(load_words(x + b.offset, q));
            pixels[k] = _mm512_or_si512(load_words(x + a.offset, p), second);
        }
        add_pair<R, K>(weights, pixels, sum);
    }
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        bf16* to = static_cast<bf16*>(s.to) + r * task.own.pitch;
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) store(to + tile.to[k], masked(sum[r][k], tile.inside[k]));
    }
}

// Two lines at once, where masks repeat after two: sums are of even and of odd positions, so that
// pixels need not be widened. 2K vectors.
template <int R, int K>
void walk_wide_pairs(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& tile) {
    vec sum[R][2 * K];
    start_sums<R, 2 * K>(s, sum);
    const bf16* source = static_cast<const bf16*>(s.from) + tile.from[0];
    const PlaneEntry *e = s.entries + s.first[0], *end = s.entries + s.first[task.groups];
    const uint32_t* weights = s.pairs;
    const __m512i low = _mm512_set1_epi32(0xffff);
    for (; e < end; e += 2, weights += task.rows) {
        const PlaneEntry &a = e[0], &b = e + 1 < end ? e[1] : e[0];
        const __mmask32 p = two_lines(&a.even), q = two_lines(&b.even);
        __m512i pixels[2 * K];
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            const __m512i x = load_lines(source + a.offset + 32 * k, p);
            const __m512i y = load_lines(source + b.offset + 32 * k, q);
            // (x & low) | y << 16, and (y & ~low) | x >> 16
            pixels[2 * k] = _mm512_ternarylogic_epi32(x, low, upper(y), 0xEA);
            pixels[2 * k + 1] = _mm512_ternarylogic_epi32(y, low, lower(x), 0xBA);
        }
        add_pair<R, 2 * K>(weights, pixels, sum);
    }
    alignas(64) static constexpr uint16_t zip[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5,
                                                     21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26,
                                                     11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i places = _mm512_load_si512(zip);
    const __mmask32 inside = two_lines(task.inside);
    MEST_IN_REGISTERS
    for (int r = 0; r < R; ++r) {
        bf16* to = static_cast<bf16*>(s.to) + tile.to[0] + r * task.own.pitch;
        MEST_IN_REGISTERS
        for (int k = 0; k < K; ++k) {
            const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)sum[r][2 * k + 1],
                                                           (__m512)sum[r][2 * k]);
            _mm512_storeu_si512(to + 32 * k, _mm512_maskz_permutexvar_epi16(inside, places, both));
        }
    }
}

constexpr int most_paired(int rows) { return rows == 4 ? 6 : 8; }

template <int R, int... K>
PlaneWalk pair_walk(int vectors, bool alternate, std::integer_sequence<int, K...>) {
    static constexpr PlaneWalk same[] = {walk_pairs<R, K + 1, false>...};
    static constexpr PlaneWalk alternating[] = {walk_pairs<R, K + 1, true>...};
    return (alternate ? alternating : same)[vectors - 1];
}

template <int R, int... K>
PlaneWalk wide_pair_walk(int pairs, std::integer_sequence<int, K...>) {
    static constexpr PlaneWalk walks[] = {walk_wide_pairs<R, K + 1>...};
    return walks[pairs - 1];
}

template <int R>
PlaneWalk pair_walk_of(const PlaneTask& task, const PlaneTile& tile, int size) {
    constexpr int most = most_paired(R);
    if (task.alternate && tile.run && size % 2 == 0 && task.lines % 2 == 0) {
        return wide_pair_walk<R>(size / 2, std::make_integer_sequence<int, most / 2>());
    }
    return pair_walk<R>(size, task.alternate, std::make_integer_sequence<int, most>());
}

template <int R, int K, bool Run>
void spread_pairs(const PlaneTask& task, const PlaneStrip& s, const PlaneTile& tile) {
    const int64_t pitch = task.own.pitch, words = task.rows / 2;
    const bf16* source = static_cast<const bf16*>(s.from) + tile.from[0];
    float* target = static_cast<float*>(s.to) + tile.to[0];
    const uint32_t* weights = s.pairs;
    for (int g = 0; g < task.groups; ++g) {
        const PlaneEntry *e = s.entries + s.first[g], *end = s.entries + s.first[g + 1];
        if (e == end) continue;
        const Lanes* masks = tile.masks[task.mask_of[g]];
        __m512i gradient[R / 2][K];
        MEST_IN_REGISTERS
        for (int h = 0; h < R / 2; ++h) {
            const bf16* from = source + task.moved[g] + 2 * h * pitch;
            MEST_IN_REGISTERS
            for (int k = 0; k < K; ++k) {
                const bf16* at = from + vector_at<Run>(tile.from, k);
                const __m512i second = upper(load_words(at + pitch, masks[k]));
                gradient[h][k] = _mm512_or_si512(load_words(at, masks[k]), second);
            }
        }
        for (; e != end; ++e, weights += words) {
            float* x = target + e->offset;
            vec sum[K];
            MEST_IN_REGISTERS
            for (int k = 0; k < K; ++k) sum[k] = load(x + vector_at<Run>(tile.to, k));
            MEST_IN_REGISTERS
            for (int h = 0; h < R / 2; ++h) {
                const __m512i weight = _mm512_set1_epi32(static_cast<int>(weights[h]));
                MEST_IN_REGISTERS
                for (int k = 0; k < K; ++k) sum[k] = add_pairs_of(sum[k], gradient[h][k], weight);
            }
            MEST_IN_REGISTERS
            for (int k = 0; k < K; ++k) store(x + vector_at<Run>(tile.to, k), sum[k]);
        }
    }
}

constexpr int most_spread_pairs = 8;

template <int R, bool Run, int... K>
PlaneWalk pair_spread(int vectors, std::integer_sequence<int, K...>) {
    static constexpr PlaneWalk spreads[] = {spread_pairs<R, K + 1, Run>...};
    return spreads[vectors - 1];
}

template <int R>
PlaneWalk pair_spread_of(const PlaneTile& tile, int size) {
    constexpr std::make_integer_sequence<int, most_spread_pairs> sizes;
    return tile.run ? pair_spread<R, true>(size, sizes) : pair_spread<R, false>(size, sizes);
}

// Positions in pairs, two lines at once; a last line alone.
template <int R, int C>
void dot_pairs(const PlaneTask& task, const PlaneDots<bf16>& d, const PlaneEntry* entries) {
    vec sum[C][R];
    int64_t offset[C];
    MEST_IN_REGISTERS
    for (int c = 0; c < C; ++c) {
        offset[c] = entries[c].offset;
        MEST_IN_REGISTERS
        for (int r = 0; r < R; ++r) sum[c][r] = vec{};
    }
    const bf16 *own = d.own, *other = d.other;
    const auto add = [&](int line, __mmask32 lanes, __mmask32 lines) __attribute__((always_inline)) {
        __m512i gradient[R];
        MEST_IN_REGISTERS
        for (int r = 0; r < R; ++r) {
            gradient[r] = load_lines(own + r * task.own.pitch + line * 16, lines);
        }
        MEST_IN_REGISTERS
        for (int c = 0; c < C; ++c) {
            const __m512i pixels = load_lines(other + offset[c] + line * 16, lanes);
            MEST_IN_REGISTERS
            for (int r = 0; r < R; ++r) sum[c][r] = add_pairs_of(sum[c][r], pixels, gradient[r]);
        }
    };
    for (int64_t image = 0; image < d.images; ++image) {
        int line = 0;
        for (; line + 1 < task.lines; line += 2) add(line, two_lines(d.masks + line), ~0u);
        if (line < task.lines) add(line, d.masks[line], 0xffff);
        own += task.own.image;
        other += task.other.image;
    }
    MEST_IN_REGISTERS
    for (int i = 0; i < (C * R + 3) / 4; ++i) add_four<R, C>(task, entries, sum, 4 * i, d.gradient);
}

template <int R, int... C>
PlaneDot<bf16> pair_dot(int entries, std::integer_sequence<int, C...>) {
    static constexpr PlaneDot<bf16> dots[] = {dot_pairs<R, C + 1>...};
    return dots[entries - 1];
}

template <int R>
struct DotOf<R, bf16> {
    static PlaneDot<bf16> taking(int entries, const LineMask*) {
        return pair_dot<R>(entries, std::make_integer_sequence<int, most_dotted<R>()>());
    }
};
#endif

void narrow_forward(const PlaneTask& task, const PlaneValues& values, const bf16* other,
                    const float* bias, bf16* own, int64_t images) {
#if defined(__AVX512BF16__)
    if (task.rows > 1) {
        const int most = most_paired(taken_rows(task.rows));
        for_plane_tiles(task, images, most, [&](int64_t first, int size) {
            const PlaneTile tile(task, task.other, task.own, first, size);
            for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
                PlaneStrip s = strip_of(task, values.each, strip, row);
                s.pairs = values.pairs + first_pair(task, strip) * task.rows + row;
                s.from = other;
                s.to = own + channel * task.own.pitch;
                s.bias = bias == nullptr ? nullptr : bias + channel;
                (taken == 4   ? pair_walk_of<4>
                 : taken == 2 ? pair_walk_of<2>
                              : pair_walk_of<1>)(task, tile, size)(task, s, tile);
            });
        });
        return;
    }
#endif
    plane_forward<bf16, bf16>(task, values.each, other, bias, own, images, false);
}

void narrow_spread(const PlaneTask& task, const PlaneValues& values, const bf16* own, float* other,
                   int64_t images, bool add) {
#if defined(__AVX512BF16__)
    for_spread_tiles(task, other, images, add, most_spread_pairs, [&](const PlaneTile& tile, int size) {
        for_strip_rows(task, [&](int strip, int row, int taken, int channel) {
            PlaneStrip s = strip_of(task, values.each, strip, row);
            s.pairs = values.pairs + first_entry(task, strip) * (task.rows / 2) + row / 2;
            s.from = own + channel * task.own.pitch;
            s.to = other;
            (taken == 4   ? pair_spread_of<4>(tile, size)
             : taken == 2 ? pair_spread_of<2>(tile, size)
                          : plane_spread<1, bf16>(size, tile.run))(task, s, tile);
        });
    });
#else
    plane_spread_back<bf16>(task, values.each, own, other, images, add);
#endif
}

}  // namespace
}  // namespace mest::MEST_VARIANT
