// What each instruction set's copy of the kernels offers. A variant's file holds inner loops alone
// and defines nothing that another file might share: the linker could keep the copy of a function
// that only a newer processor can run.
#pragma once

#include "compact.h"
#include "norm.h"
#include "plan.h"
#include "pool.h"

namespace mest {

struct Variant {
    const char* name;
    int width;                      // floats of a vector
    bool bf16_products;             // whether it multiplies pairs of bfloat16 by one instruction
    int walk_vectors, dot_vectors;  // that a scratch should offer to the walks and to the dots

    // All three use `scratch` (plan.scratch_floats(), with `guard` floats to spare on both sides)
    // and `buffer` (a buffer channel for each channel in use) and write what their unit says.
    // y: all channels of the strips [begin, end)
    void (*forward)(const Plan&, const float* values, const float* x, const float* bias, float* y,
                    const Unit&, float* scratch, float* buffer);
    // dx: the channels [begin, end), whose scratch holds zeros before and after
    void (*backward_input)(const Plan&, const float* values, const float* dy, float* dx,
                           const Unit&, float* scratch, float* buffer);
    // added to gradient, (entries, rows): those of the strips [begin, end)
    void (*backward_values)(const Plan&, const float* x, const float* dy, float* gradient,
                            const Unit&, float* scratch, float* buffer);

    // One unit; see norm.h. `sums`: two of each (image, channel).
    void (*norm_forward)(const Norm&, const float* x, float* z, float* mean, float* scale,
                         int64_t unit);
    void (*norm_backward)(const Norm&, const NormGradient&, float* dx, float* dresidual,
                          double* sums, int64_t unit);

    // One plane; see pool.h.
    void (*pool_forward)(const Pool&, const float* x, float* z, uint8_t* where);
    void (*pool_backward)(const Pool&, const float* dz, const uint8_t* where, float* dx);

    // One plane; see compact.h. `levels`: its two.
    void (*quantise)(const float* x, int64_t plane, uint8_t* codes, float* levels);
    void (*dequantise)(const uint8_t* codes, int64_t plane, const float* levels, float* x);

    // One image, not empty; see compact.h.
    int64_t (*pack_bits)(const float* x, int64_t elements, uint8_t* bits);
    void (*pack_values)(const float* x, int64_t elements, const uint8_t* bits, float* values,
                           const float* end);
    void (*unpack_nonzeros)(const uint8_t* bits, int64_t elements, const float* values, const float* end,
                   float* x);
    int64_t (*count_bits)(const uint8_t* bits, int64_t bytes);

    // to = weight * x, and to += x; see sums.h.
    void (*weigh)(const float* x, double weight, int64_t size, double* to);
    void (*add)(const double* x, int64_t size, double* to);
};

constexpr int guard = 64;

// The best that this processor can run; MEST_FED_KERNELS asks for another: one of plain, avx2, avx512
// and avx512bf16, or of plain and neonbf16 (cmake/variants.cmake lists them).
const Variant& variant();

}  // namespace mest
