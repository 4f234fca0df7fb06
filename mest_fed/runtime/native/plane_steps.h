// Steps of convolutions whose planes lie in place (a margin of their buffers).
#pragma once

#include "builder.h"
#include "plane_product.h"

namespace mest::runtime {

// A convolution between arguments, of which x and y, or their gradients, have margins.
struct PlaneConvolution {
    Convolution p;
    Tensor x, y;
    Tensor values;  // of a sparse weight, or a dense weight; or the gradient of either
    Tensor slots;   // absent: the weight is dense
    int rows;       // of a strip
    Tensor bias;    // may be absent
};

// Throw std::invalid_argument for what planes in place cannot do.
Step planes_forward(Builder& b, const PlaneConvolution& c);
Step planes_input_gradient(Builder& b, const PlaneConvolution& c);
Step planes_values_gradient(Builder& b, const PlaneConvolution& c);

}  // namespace mest::runtime
