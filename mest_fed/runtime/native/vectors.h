// Walks over a run of floats by vectors of this instruction set, and sums that they leave.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstring>

#include "simd.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

namespace simd = mest::MEST_VARIANT;
using simd::load;
using simd::store;
using simd::V;
using simd::vec;

struct Whole {};  // a vector that lies within the run

template <class T>
inline vec load_some(const T* p, Whole) {
    return load(p);
}
template <class T>
inline void store_some(T* p, vec v, Whole) {
    store(p, v);
}
inline vec only_some(vec v, Whole) { return v; }

// The first lanes of a vector; of the others nothing is read, and they are zero.
#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline vec load_some(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
inline void store_some(float* p, vec v, int64_t count) {
    _mm512_mask_storeu_ps(p, first_lanes(count), v);
}
inline vec load_some(const bf16* p, int64_t count) {
    return simd::wide((simd::halves)_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
inline void store_some(bf16* p, vec v, int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)simd::narrow(v));
}
inline vec only_some(vec v, int64_t count) { return _mm512_maskz_mov_ps(first_lanes(count), v); }
#else
template <class T>
inline vec load_some(const T* p, int64_t count) {
    T lanes[V] = {};
    std::memcpy(lanes, p, count * sizeof(T));
    return load(lanes);
}
template <class T>
inline void store_some(T* p, vec v, int64_t count) {
    T lanes[V];
    store(lanes, v);
    std::memcpy(p, lanes, count * sizeof(T));
}
inline vec only_some(vec v, int64_t count) {
    for (int i = static_cast<int>(count); i < V; ++i) v[i] = 0.0f;
    return v;
}
#endif

// work(offset, which lanes, turn): turns 0 to 3 go round, so that sums need not wait for each other.
template <class Work>
inline void for_vectors(int64_t count, const Work& work) {
    int64_t i = 0;
    for (; i + 4 * V <= count; i += 4 * V) {
        for (int turn = 0; turn < 4; ++turn) work(i + turn * V, Whole(), turn);
    }
    for (; i + V <= count; i += V) work(i, Whole(), 0);
    if (i < count) work(i, count - i, 1);
}

inline vec sum4(const vec (&v)[4]) { return (v[0] + v[1]) + (v[2] + v[3]); }

// Pairs of vectors whose lanes are summed, as many at once as a vector has lanes:
// take(place, first sum, second sum), in the order in which they were added.
template <class Take>
class Pairs {
public:
    explicit Pairs(const Take& take) : take_(take) {}

    void add(int64_t place, vec first, vec second) {
        places_[count_] = place;
        waiting_[2 * count_] = first, waiting_[2 * count_ + 1] = second;
        if (++count_ == V / 2) flush();
    }
    void flush() {
        float lanes[V];
        store(lanes, simd::sums_of(waiting_));
        for (int i = 0; i < count_; ++i) take_(places_[i], lanes[2 * i], lanes[2 * i + 1]);
        count_ = 0;
    }

private:
    Take take_;
    vec waiting_[V] = {};
    int64_t places_[V / 2];
    int count_ = 0;
};

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
