// The three products of a convolution on planes in place, image by image: nothing is packed, and
// each product is single-threaded over the images that it is given. An image's results do not depend
// on which images stand beside it.
#pragma once

#include "convolve.h"
#include "plane_lists.h"

namespace mest {

// Images [begin, end) of the planes, and memory of scratch_floats() for them.
struct PlaneImages {
    int64_t begin, end;
    float* scratch;
};

class PlaneProduct {
public:
    // Throws std::invalid_argument for what planes in place cannot do. `rows`: of a strip. `narrow`: x,
    // y and dy are of bfloat16; dx and all values are of floats.
    PlaneProduct(Way way, const PlaneWindow& window, int rows, const Planes& x, const Planes& y,
                 bool narrow = false);

    void reserve(int64_t entries);
    // Before the first product, and whenever the active granules have changed.
    void set(const StripIndex& index) { lists_.set(index); }
    // The same for a dense weight (out, in, kernel height, kernel width), whose values products then
    // take as they lie.
    void set_dense() { lists_.set_dense(); }

    int64_t scratch_floats() const;
    // Images that are best worked on together: sums of values' gradients are the same bits where
    // images are cut at multiples of this.
    int64_t set_images() const { return geometry_.taken.images; }
    int64_t bytes() const { return static_cast<int64_t>(sizeof *this) + lists_.bytes(); }

    // Whether values are taken in pairs, and the words that `pack` writes for so many entries.
    bool packs() const;
    int64_t packed_words(int64_t entries) const;
    // Values as products take them, for all images that follow.
    PlaneValues pack(const float* values, uint32_t* words) const;

    // y from x; bias (out) may be null. T: float, or bf16 if narrow.
    template <class T>
    void forward(const PlaneValues& values, const T* x, const float* bias, T* y,
                 PlaneImages images) const;
    // dx from dy; `add`: to what dx holds.
    template <class T>
    void input(const PlaneValues& values, const T* dy, float* dx, bool add,
               PlaneImages images) const;
    // Adds the sum over the images to the gradient of the values.
    template <class T>
    void values(const T* x, const T* dy, float* gradient, PlaneImages images) const;

private:
    // The first plane that taps stand on: of x itself, or of its phases in the scratch.
    template <class T>
    const T* split(const T* x, float* scratch, int64_t images) const;
    void join(const float* phases, float* dx, bool add, int64_t images) const;
    template <class T>
    void clear(const Planes& planes, T* buffer, int64_t first, int64_t images) const;
    template <class Work>
    void for_sets(const PlaneImages& images, const Work& work) const;

    PlaneGeometry geometry_;
    PlaneWay way_;
    bool narrow_;
    PlaneLists lists_;
    const PlaneKernels& kernels_;
};

}  // namespace mest
