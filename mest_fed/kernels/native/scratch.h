// How source planes lie in scratch memory, so that every tap is one contiguous load a vector.
//
// The *domain* is the grid of positions that a kernel computes. Tap t reads, for position (i, j),
// the source pixel (row_start[t] + step_h * i, column_start[t] + step_w * j), zero outside.
// A channel's scratch is [stacked image][copy][row][pitch]: one copy for each distinct
// column_start (Plane::shifted), or a single copy with margins (Plane::padded). Rows that a stride
// takes apart are stored phase by phase. Planes narrower than a vector lie side by side in one row,
// an image each, and several images are stacked where one gives too few vectors to work on.
#pragma once

#include <vector>

#include "problem.h"

namespace mest {

constexpr int widest = 16;  // floats of any variant's vector

struct Reading {
    int source_height, source_width;
    int domain_height, domain_width;
    int step_height, step_width;
    std::vector<int> row_start, column_start;  // of each tap
};

struct Phase {
    int start, rows, base;  // source row of the first, how many, where in the scratch
};

struct Copy {
    int start;  // source column of the first position
    // On the way back, source column step * i + odd is position i + back.
    int back;
    bool odd;
    // Lanes of a row's first and last piece that lie inside: of the source, and on the way back.
    alignas(64) int32_t first[widest], last[widest], back_first[widest], back_last[widest];
};

struct Scratch {
    bool padded;
    int piece;  // width of the pieces in which rows are copied, 0: one float after another
    int side_by_side, stacked;
    int pitch, rows;
    int64_t image_floats, channel_floats;
    std::vector<Phase> phases;
    std::vector<Copy> copies;
    std::vector<int32_t> tap_offset;  // of each tap, in floats
    std::vector<int32_t> from;        // of each vector of the domain, all stacked images
    std::vector<int32_t> column;      // domain column of each vector of one row
    int vectors;                      // of one stacked image

    int images() const { return side_by_side * stacked; }
};

// What a kernel wants of its scratch.
struct Request {
    Plane plane;
    int channels;
    int vectors;   // images are stacked until one walk has that many, or scratch is large
    bool overlap;  // the last vector of a row may repeat lanes of the one before
};

// `width` is that of the variant's vectors.
Scratch arrange(const Reading& r, const Request& request, int64_t batch, int width);

}  // namespace mest
