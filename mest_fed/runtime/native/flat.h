// Convolutions of stride 1 over planes as they lie. Position p of an output, counted in rows of the
// source's width, reads the source at p + ky * width + kx: nothing is packed. Positions where a
// kernel would stick out of its row are computed, and dropped.
#pragma once

#include <cstring>

#include "walk.h"
#include "weights.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

namespace simd = mest::MEST_VARIANT;
using simd::V;

inline int64_t whole_vectors(int64_t floats) { return (floats + V - 1) / V * V; }

// Where the vectors of a tile lie: one behind the other.
constexpr int most_steps = 64;
struct Steps {
    int32_t narrow[most_steps];
    int64_t wide[most_steps];
};
constexpr Steps steps = [] {
    Steps made{};
    for (int i = 0; i < most_steps; ++i) made.narrow[i] = i * V, made.wide[i] = i * V;
    return made;
}();

// The entries of a weight, strip by strip, with the places that they read.
struct Lists {
    const int32_t *first, *offsets;
    const float *values, *bias;
    int rows, channels;

    // work(first channel, rows, first entry, entries)
    template <class Work>
    void for_rows(const Work& work) const {
        for (int strip = 0; strip * rows < channels; ++strip) {
            const int until = std::min(rows, channels - strip * rows);
            for (int row = 0, taken; row < until; row += taken) {
                taken = simd::walked_rows(until - row);
                work(strip * rows + row, taken, first[strip], first[strip + 1] - first[strip]);
            }
        }
    }
    // Of a row of the strip that begins with this entry.
    int64_t value(int entry, int channel) const { return int64_t{entry} * rows + channel % rows; }
};

// out, (channels, vectors): bias and values times what the entries read, at each position.
inline void walk(const Lists& l, const float* source, int vectors, float* out) {
    const int64_t apart = int64_t{vectors} * V;
    const int most = simd::most_vectors(simd::walked_rows(l.rows));
    simd::for_tiles(vectors, most, [&](int start, int size) {
        l.for_rows([&](int channel, int taken, int entry, int count) {
            const simd::Strip strip{l.offsets + entry, count, l.values + l.value(entry, channel),
                                    l.rows, l.bias == nullptr ? nullptr : l.bias + channel};
            float* target = out + channel * apart + start * V;
            simd::strip_walk(taken, size)(
                strip, {source + start * V, steps.narrow, target, steps.wide, apart});
        });
    });
}

// Adds to sums, (entries, rows): a strip's gradients, whose channels lie `apart`, times what the
// entries read, over all positions. Gradients of positions that do not count are zero.
inline void dots(const Lists& l, const float* source, int vectors, const float* gradients,
                 int64_t apart, float* sums) {
    // Single rows use each vector once a row: a tile's sources should stay in the first cache.
    const int most = l.rows == 1 ? most_steps / 4 : most_steps;
    simd::for_tiles(vectors, most, [&](int start, int size) {
        l.for_rows([&](int channel, int taken, int entry, int count) {
            const float* own = gradients + channel * apart + start * V;
            const simd::Pairs pairs{own,     steps.wide,   apart, source + start * V,
                                    nullptr, steps.narrow, size,  own};
            const auto strip_dots = taken == 4   ? simd::strip_dots<4>
                                    : taken == 2 ? simd::strip_dots<2>
                                                 : simd::strip_dots<1>;
            strip_dots(pairs, l.offsets + entry, count, sums + l.value(entry, channel), l.rows);
        });
    });
}

// Planes of one image, and how they lie in scratch.
struct Flat {
    Convolution p;
    int64_t height, width;  // of a source plane with its padding
    int64_t out_rows;       // that are wanted

    Flat(const Convolution& p_, int64_t out_rows_)
        : p(p_),
          height(p_.height + 2 * p_.padding_height),
          width(p_.width + 2 * p_.padding_width),
          out_rows(out_rows_) {}

    static bool takes(const Convolution& p) {
        const int64_t plane = int64_t{p.height + 2 * p.padding_height} *
                              (p.width + 2 * p.padding_width);
        const int64_t most = std::max(p.in_channels, p.out_channels) + 2;
        return p.stride_height == 1 && p.stride_width == 1 && plane <= largest / most / 2;
    }

    int64_t plane() const { return height * width; }
    int64_t image() const { return int64_t{p.in_channels} * p.height * p.width; }
    bool padded() const { return p.padding_height > 0 || p.padding_width > 0; }
    int64_t corner() const { return p.padding_height * width + p.padding_width; }

    int out_vectors() const {
        return static_cast<int>(whole_vectors((out_rows - 1) * width + p.out_width) / V);
    }
    int64_t out_floats() const { return int64_t{p.out_channels} * out_vectors() * V; }
    int64_t source_floats() const { return whole_vectors(p.in_channels * plane()) + 2 * V; }

    // Where each column of the weight reads.
    std::vector<int32_t> columns() const {
        std::vector<int32_t> places;
        for (int c = 0; c < p.in_channels; ++c) {
            for (int tap = 0; tap < p.taps(); ++tap) places.push_back(
                static_cast<int32_t>(c * plane() + this->tap(tap)));
        }
        return places;
    }
    int64_t tap(int tap) const { return tap / p.kernel_width * width + tap % p.kernel_width; }

    // An image's planes, where whole vectors may be read past their end: in place, if they have no
    // padding and another image follows.
    const float* source(const float* x, int64_t number, float* scratch) const {
        const float* from = x + number * image();
        if (!padded() && number + 1 < p.batch) return from;
        std::memset(scratch, 0, source_floats() * sizeof(float));
        float* to = scratch + corner();
        for (int c = 0; c < p.in_channels; ++c, to += plane()) {
            for (int row = 0; row < p.height; ++row, from += p.width) {
                std::memcpy(to + row * width, from, p.width * sizeof(float));
            }
        }
        return scratch;
    }

    // Gradients of the outputs lie at the positions of their outputs, `gradient_apart` a channel,
    // behind zeros: what a kernel reads above and left of a plane is the end of the one before.
    int64_t gradient_apart() const { return whole_vectors(plane()); }
    int64_t lead() const {
        return whole_vectors((p.kernel_height - 1) * width + p.kernel_width - 1);
    }
    int64_t gradient_floats() const {
        return lead() + p.out_channels * gradient_apart() + 2 * V;
    }

    // The gradient of the source is wanted from its first float that is no padding to its last.
    int back_vectors() const {
        return static_cast<int>(whole_vectors((p.height - 1) * width + p.width) / V);
    }
    int64_t back_floats() const { return int64_t{p.in_channels} * back_vectors() * V; }
    // Where, from the first gradient, it reads for a tap of an output channel.
    int64_t back_place(int64_t channel, int tap) const {
        return lead() + channel * gradient_apart() + corner() - this->tap(tap);
    }
    void back_out(const float* made, float* dx, int64_t number) const {
        float* to = dx + number * image();
        for (int c = 0; c < p.in_channels; ++c, made += int64_t{back_vectors()} * V) {
            for (int row = 0; row < p.height; ++row, to += p.width) {
                std::memcpy(to, made + row * width, p.width * sizeof(float));
            }
        }
    }
};

// Sums over images, in chunks that threads do not change: work(image, sums of its chunk). `partial`
// holds min(chunks, threads) times as many numbers as the total, which is the first chunk's.
constexpr int64_t most_chunks = 4;

inline int64_t partial_sums(int64_t images, int64_t numbers, int threads) {
    const int64_t chunks = std::min(images, most_chunks);
    return chunks > 1 ? std::min<int64_t>(chunks, threads) * numbers : 0;
}

template <class Work>
void sum_images(int64_t images, int64_t numbers, float* total, float* partial, int threads,
                const Work& work) {
    const int64_t chunks = std::min(images, most_chunks);
    const int64_t wave = std::min<int64_t>(chunks, threads);
    std::fill(total, total + numbers, 0.0f);
    for (int64_t done = 0; done < chunks; done += wave) {
        const int64_t now = std::min(wave, chunks - done);
        parallel_for(now, threads, [&](int64_t i) {
            const int64_t chunk = done + i;
            float* sums = chunk == 0 ? total : partial + i * numbers;
            if (chunk > 0) std::fill(sums, sums + numbers, 0.0f);
            for (int64_t image = chunk * images / chunks; image < (chunk + 1) * images / chunks;
                 ++image) {
                work(image, sums);
            }
        });
        for (int64_t i = done == 0 ? 1 : 0; i < now; ++i) {
            const float* part = partial + i * numbers;
            for (int64_t j = 0; j < numbers; ++j) total[j] += part[j];
        }
    }
}

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
