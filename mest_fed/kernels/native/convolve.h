// The three products of a sparse convolution.
#pragma once

#include "index.h"
#include "plan.h"

namespace mest {

enum class Way { forward, input, values };

// What products write down while they compute. It grows where a call needs more: a call that needs
// no more than one before it, or than was reserved, allocates nothing.
struct ProductMemory {
    std::vector<int32_t> offsets;
    TransposedIndex back;
    std::vector<float> moved, partial;
};

// With a stride of 1 the way back is a convolution too: of the kernel turned by half a circle, from
// dy to dx. Whether that is so, and that convolution.
bool turns(const Convolution& p);
Convolution turned(const Convolution& p);

// One product, planned once for strips of `rows` rows. A call lays out the entries that it is given.
class Product {
public:
    Product(Way way, const Convolution& p, int rows, Call call);

    // Makes room for calls of so many entries.
    void reserve(ProductMemory& memory, int64_t entries) const;

    // Memory that the plan itself holds.
    int64_t bytes() const { return static_cast<int64_t>(sizeof *this) + plan_.bytes(); }

    // What a call takes of each thread's scratch, and for sums over the batch.
    int64_t scratch_floats() const;
    int64_t partial_floats(int64_t entries) const;

    // Has the calling thread take the scratch memory that it will use.
    void take_scratch() const;

    // y (batch, out, oh, ow) from x (batch, in, h, w); bias (out) may be null.
    void forward(ProductMemory& memory, const StripIndex& index, const float* values,
                 const float* x, const float* bias, float* y);

    // dx from dy.
    void input(ProductMemory& memory, const StripIndex& index, const float* values,
               const float* dy, float* dx);

    // Gradients of the active values alone, (entries, rows), from x and dy.
    void values(ProductMemory& memory, const StripIndex& index, const float* x, const float* dy,
                float* gradient);

    // That of x and that of the values, reading dy once; of a Product made for values.
    void both(ProductMemory& memory, const StripIndex& index, const float* values, const float* x,
              const float* dy, float* dx, float* gradient);

private:
    int collected() const;  // channels that a thread buffers

    Way way_;
    Convolution p_;
    Call call_;
    bool gathers_;
    Plan plan_;
};

// Each for one call.
void forward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
             const float* bias, float* y, Call call);
void backward_input(const Convolution& p, const StripIndex& index, const float* values,
                    const float* dy, float* dx, Call call);
void backward_values(const Convolution& p, const StripIndex& index, const float* x, const float* dy,
                     float* gradient, Call call);
void backward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
              const float* dy, float* dx, float* gradient, Call call);

}  // namespace mest
