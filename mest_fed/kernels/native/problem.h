// What a caller describes: one convolution (a linear layer is one of 1x1 planes) and its weight.
#pragma once

#include <cstdint>

namespace mest {

struct Convolution {
    int64_t batch;
    int in_channels, height, width;
    int out_channels, out_height, out_width;
    int kernel_height, kernel_width;
    int stride_height, stride_width;
    int padding_height, padding_width;
    int dilation_height, dilation_width;

    int taps() const { return kernel_height * kernel_width; }
    int64_t columns() const { return int64_t{in_channels} * taps(); }
};

// Active granules of a weight seen as a matrix (out_channels, in_channels * taps).
//
// A granule is a strip of `rows` consecutive output channels at one column, slot = strip * columns
// + column; or, where `cells` is set, one kernel that keeps `width` of its taps, slot =
// (out * in_channels + in) * variants + variant, its taps being cells[variant * width + i].
struct Granules {
    const int32_t* slots;  // strictly increasing
    int64_t active;
    int rows;
    const int32_t* cells;
    int variants, width;
};

// How a source plane lies in scratch memory.
enum class Plane : int {
    padded,   // once, with zero margins: every tap is an unaligned load
    shifted,  // once for each horizontal tap: every load is aligned, stores are several times more
};

struct Call {
    Plane plane;
    int threads;
};

}  // namespace mest
