// The three products of a sparse convolution.
#pragma once

#include "index.h"

namespace mest {

// y (batch, out, oh, ow) from x (batch, in, h, w); bias (out) may be null.
void forward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
             const float* bias, float* y, Call call);

// dx from dy.
void backward_input(const Convolution& p, const StripIndex& index, const float* values,
                    const float* dy, float* dx, Call call);

// Gradients of the active values alone, (entries, rows), from x and dy.
void backward_values(const Convolution& p, const StripIndex& index, const float* x, const float* dy,
                     float* gradient, Call call);

// Both of them, reading dy once.
void backward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
              const float* dy, float* dx, float* gradient, Call call);

}  // namespace mest
