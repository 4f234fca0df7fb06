// Compact storage for what autograd keeps between forward and backward: 8-bit codes with one scale
// a plane, or the floats that are not zero with a bit for every element.
#pragma once

#include <cstdint>

namespace mest {

// x of shape (planes, plane). A code c of a plane stands for low + c * step.
//
// step is (high - low) / 255, rounded up to 16 significant bits: times a code of 8 bits it is exact,
// so that fused and separate multiply-adds give the same bits. It is at least 2^-110 unless high =
// low. A plane with NaN or infinity, or for which low + 255 step or 255 step overflow, has NaN levels.
struct Quantised {
    int64_t planes, plane;
};

// levels: low and step of each plane.
void quantise(const Quantised& of, const float* x, uint8_t* codes, float* levels, int threads);
void dequantise(const Quantised& of, const uint8_t* codes, const float* levels, float* x,
                int threads);

// x of shape (images, elements). Element i of an image is not zero if bit i % 8 of byte i / 8 of the
// image's bits says so; starts[i] is the place of image i's first value among all values.
struct Bitmap {
    int64_t images, elements;
    int64_t bytes() const { return (elements + 7) / 8; }  // of an image's bits
};

// Both halves of packing: the values have room for starts[images] floats. -0.0 is zero.
void pack_bits(const Bitmap& of, const float* x, uint8_t* bits, int64_t* starts, int threads);
void pack_values(const Bitmap& of, const float* x, const uint8_t* bits, const int64_t* starts,
                    float* values, int threads);

// What packing gave, from wherever it came.
struct Packed {
    const uint8_t* bits;
    const float* values;
    const int64_t* starts;
    int64_t count;  // of the values
};

// x: the images [first, last). Throws std::invalid_argument if the parts of `from` that those images
// need do not fit each other; nothing outside them is read.
void unpack_nonzeros(const Bitmap& of, const Packed& from, int64_t first, int64_t last, float* x,
            int threads);

}  // namespace mest
