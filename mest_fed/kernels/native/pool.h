// ReLU and the maxima of 2x2 windows in one pass over memory. A byte says where each maximum stood,
// so that the backward pass needs neither the input nor the output.
#pragma once

#include <cstdint>

namespace mest {

// Planes of an input; a last odd row or column belongs to no window.
struct Pool {
    int64_t planes, height, width;

    int64_t size() const { return height * width; }
    int64_t out_height() const { return height / 2; }
    int64_t out_width() const { return width / 2; }
    int64_t out_size() const { return out_height() * out_width(); }
};

// Codes of a window: 0 to 3 for its places row by row, or that no value in it is above zero.
constexpr int nowhere = 4;

// z: the maxima; where: their codes, unless it is null. Of equal values the first counts, and a NaN
// counts more than any number, the last NaN most: as torch has it.
void relu_pool_forward(const Pool& pool, const float* x, float* z, uint8_t* where, int threads);

// dx: each dz where its maximum stood, else zero. A code above `nowhere` is as good as that.
void relu_pool_backward(const Pool& pool, const float* dz, const uint8_t* where, float* dx,
                        int threads);

}  // namespace mest
