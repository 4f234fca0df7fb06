// The loops that part zeros from the rest over one image, 8 elements (a byte of bits) at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace mest::MEST_VARIANT {
namespace {

// Permutations of 8 floats are one instruction where vectors are that long. Clang has no name for it.
#if defined(__AVX2__) && !defined(__clang__)
#define MEST_PERMUTES
#endif

#ifdef MEST_PERMUTES
// For each byte of bits 8 lanes, of 4 bits each: where the elements that are not zero stand, and
// where among them each element stands.
struct ByteTable {
    uint32_t stands[256] = {}, rank[256] = {};

    constexpr ByteTable() {
        for (int byte = 0; byte < 256; ++byte) {
            uint32_t count = 0;
            for (uint32_t j = 0; j < 8; ++j) {
                rank[byte] |= count << 4 * j;
                if (byte >> j & 1) stands[byte] |= j << 4 * count++;
            }
        }
    }
};
constexpr ByteTable byte_table;

// 8 floats by their bits: nothing is computed with them, NaN keeps its payload.
typedef uint32_t Eight __attribute__((vector_size(32)));

inline Eight load_eight(const float* p) {
    Eight v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Of each lane's index the lowest 3 bits count.
inline Eight permuted(Eight v, uint32_t lanes) {
    return __builtin_shuffle(v, lanes >> Eight{0, 4, 8, 12, 16, 20, 24, 28});
}
#endif

// Writes the elements that are not zero, then anything: 8 floats. Returns how many are not zero.
inline int front(float* to, const float* x, unsigned byte) {
#ifdef MEST_PERMUTES
    const Eight moved = permuted(load_eight(x), byte_table.stands[byte]);
    std::memcpy(to, &moved, sizeof moved);
    return __builtin_popcount(byte);
#else
    unsigned count = 0;
    for (int j = 0; j < 8; ++j) {
        std::memcpy(to + count, x + j, sizeof *to);
        count += byte >> j & 1;
    }
    return static_cast<int>(count);
#endif
}

// Its reverse: reads 8 values, returns how many it used.
inline int spread(float* to, const float* values, unsigned byte) {
#ifdef MEST_PERMUTES
    constexpr Eight bit = {1, 2, 4, 8, 16, 32, 64, 128};
    const Eight active = (Eight)((bit & byte) == bit);
    const Eight moved = permuted(load_eight(values), byte_table.rank[byte]) & active;
    std::memcpy(to, &moved, sizeof moved);
    return __builtin_popcount(byte);
#else
    unsigned count = 0;
    for (int j = 0; j < 8; ++j) {
        const unsigned active = byte >> j & 1;
        uint32_t word;
        std::memcpy(&word, values + count, sizeof word);
        word &= -active;
        std::memcpy(to + j, &word, sizeof word);
        count += active;
    }
    return static_cast<int>(count);
#endif
}

inline uint64_t eight_bytes(const uint8_t* p) {
    uint64_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline bool is_zero(const float* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word << 1 == 0;  // not a comparison of floats: subnormal ones might count as zero there
}

// Writes an image's bits; returns how many elements are not zero.
int64_t pack_bits(const float* __restrict x, int64_t elements, uint8_t* __restrict bits) {
    constexpr int block = 64;
    constexpr uint64_t ones = 0x0101010101010101, to_bits = 0x0102040810204080;
    int64_t count = 0, i = 0;
    for (; i + block <= elements; i += block) {
        uint8_t active[block];
        for (int j = 0; j < block; ++j) active[j] = !is_zero(x + i + j);
        for (int j = 0; j < block; j += 8) {
            // Of 8 bytes that are 0 or 1, the products' top bytes are their bits, and their sum.
            const uint64_t bytes = eight_bytes(active + j);
            bits[(i + j) / 8] = static_cast<uint8_t>(bytes * to_bits >> 56);
            count += static_cast<int64_t>(bytes * ones >> 56);
        }
    }
    for (; i < elements; i += 8) {
        unsigned byte = 0;
        for (int64_t j = i; j < i + 8 && j < elements; ++j) byte |= !is_zero(x + j) << (j - i);
        bits[i / 8] = static_cast<uint8_t>(byte);
        count += __builtin_popcount(byte);
    }
    return count;
}

// The image's values are [values, end).
void pack_values(const float* x, int64_t elements, const uint8_t* bits, float* values,
                    const float* end) {
    int64_t i = 0;  // while there is room for 8 floats, which are written whatever the bits say
    for (; i + 8 <= elements && end - values >= 8; i += 8) {
        values += front(values, x + i, bits[i / 8]);
    }
    for (; i < elements; i += 8) {
        for (unsigned byte = bits[i / 8]; byte != 0; byte &= byte - 1) {
            std::memcpy(values++, x + i + __builtin_ctz(byte), sizeof *x);
        }
    }
}

// The image's values start at `values`; up to `end` there is something to read.
void unpack_nonzeros(const uint8_t* bits, int64_t elements, const float* values, const float* end,
            float* x) {
    int64_t i = 0;
    for (; i + 8 <= elements && end - values >= 8; i += 8) {
        values += spread(x + i, values, bits[i / 8]);
    }
    std::memset(x + i, 0, (elements - i) * sizeof *x);
    for (; i < elements; i += 8) {
        for (unsigned byte = bits[i / 8]; byte != 0; byte &= byte - 1) {
            std::memcpy(x + i + __builtin_ctz(byte), values++, sizeof *x);
        }
    }
}

int64_t count_bits(const uint8_t* bits, int64_t bytes) {
    int64_t count = 0, i = 0;
    for (; i + 8 <= bytes; i += 8) count += __builtin_popcountll(eight_bytes(bits + i));
    for (; i < bytes; ++i) count += __builtin_popcount(bits[i]);
    return count;
}

}  // namespace
}  // namespace mest::MEST_VARIANT
