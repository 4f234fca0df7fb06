// Normalisation with the ReLU and the residual addition that follow it, in one pass over memory
// for each direction: a channel's planes (a group's, for group norm) stay in the second cache
// between the sums and their use.
#pragma once

#include <cstdint>

namespace mest {

// z = relu((x - mean) / deviation * gamma + beta + residual), x of shape (images, channels, plane).
//
// Statistics are of a channel over all images (`groups` = 0: batch norm), or of an image's run of
// channels / groups channels (group norm).
struct Norm {
    int64_t images;
    int channels;
    int64_t plane;
    int groups;
    bool relu;
    float epsilon;
    const float *gamma, *beta;  // of each channel
    const float* residual;      // or null

    // One of each channel, or of each image and group.
    int64_t statistics() const { return groups == 0 ? channels : images * groups; }

    // What one thread takes at once: a group of an image, or so many channels that their planes
    // make a long run of memory.
    int block() const {
        if (groups != 0) return 1;
        const int64_t run = 1024 / plane;
        return static_cast<int>(run < 1 ? 1 : run > most_block ? int64_t{most_block} : run);
    }
    // Sums that the backward pass writes down.
    int64_t sums() const { return (groups == 0 ? 1 : images) * channels * 2; }
    int64_t units() const { return (statistics() + block() - 1) / block(); }
    enum { most_block = 16 };
};

// mean and scale = 1 / sqrt(variance + epsilon): statistics() of each.
void norm_forward(const Norm& norm, const float* x, float* z, float* mean, float* scale,
                  int threads);

// What the backward pass reads. z is needed where there was a residual and a ReLU; it is else
// computed again.
struct NormGradient {
    const float *dz, *x, *z, *mean, *scale;
};

// dresidual may be null; dgamma and dbeta are of each channel. `sums` takes norm.sums().
void norm_backward(const Norm& norm, const NormGradient& given, float* dx, float* dresidual,
                   float* dgamma, float* dbeta, double* sums, int threads);

}  // namespace mest
