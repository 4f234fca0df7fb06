// Planes in place: where the elements of a buffer with margins lie, in values of whatever type. Rows have no side margins; a
// channel is followed by rows of zeros, which are the bottom margin of one channel and the top
// margin of the next.
#pragma once

#include <cstdint>

namespace mest {

struct Planes {
    int64_t images;
    int channels, height, width;
    int margin;  // rows of zeros between channels, at least 1

    static int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

    // Values from one channel to the next.
    int64_t pitch() const { return whole_lines(int64_t{height + margin} * width); }
    // Zeros before the first channel of each image.
    int64_t lead() const { return whole_lines(int64_t{margin} * (width + 1)); }
    // Values from one image to the next.
    int64_t image() const { return lead() + channels * pitch(); }
    // Of the buffer; what lies behind the last image may be read.
    int64_t floats() const { return images * image() + 64; }
    // Floats of the elements of a channel, and vectors of 16 that hold them.
    int64_t plane() const { return int64_t{height} * width; }
    int64_t lines() const { return whole_lines(plane()) / 16; }

    int64_t at(int64_t image_, int channel) const {
        return image_ * image() + lead() + channel * pitch();
    }
};

}  // namespace mest
