// What each instruction set's copy of the kernels offers.
#pragma once

#include "index.h"

namespace mest {

struct Kernels {
    const char* name;
    // y (batch, out, oh, ow) from x (batch, in, h, w); bias may be null
    void (*forward)(const Convolution&, const StripIndex&, const float* values, const float* x,
                    const float* bias, float* y, Call);
    // dx from dy
    void (*backward_input)(const Convolution&, const StripIndex&, const float* values,
                           const float* dy, float* dx, Call);
    // gradient of the values, (entries, rows), from x and dy
    void (*backward_values)(const Convolution&, const StripIndex&, const float* x, const float* dy,
                            float* gradient, Call);
};

// The best that this processor can run; MEST_FED_KERNELS=plain|avx2|avx512 asks for less.
const Kernels& kernels();

}  // namespace mest
