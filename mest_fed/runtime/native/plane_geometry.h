// Where the taps of a convolution stand on planes in place. Output planes are as large as input
// planes; with a stride, as large as the input's phases (every second row and column), on which the
// taps stand as they do with a stride of one.
#pragma once

#include <vector>

#include "plane.h"
#include "planes.h"

namespace mest {

// A kernel with an odd number of rows and columns and half of it as padding: output planes have the
// size of the input over the stride, rounded up.
struct PlaneWindow {
    int kernel_height, kernel_width, stride_height, stride_width;

    int taps() const { return kernel_height * kernel_width; }
};

// Which phase a tap reads, and where, from the position: rows below, columns to the right.
struct PlaneTap {
    int phase, rows, shift;
};

struct PlaneGeometry {
    // Throws std::invalid_argument for what planes in place cannot do.
    // `bytes`: of a value of the planes.
    PlaneGeometry(const PlaneWindow& window, const Planes& x, const Planes& y, int bytes);

    Planes x, y;
    Planes taken;  // what taps stand on: x itself, or the phases of so many images at once as share a walk
    std::vector<PlanePhase> phases;  // of each channel; none where taps stand on x itself
    std::vector<PlaneTap> taps;

    int phase_count() const { return phases.empty() ? 1 : static_cast<int>(phases.size()); }
    // Floats from a position to where a tap stands, within its channel.
    int64_t displacement(const PlaneTap& tap) const {
        return int64_t{tap.rows} * y.width + tap.shift;
    }
};

// Lanes that stay within their row under a shift, of all lines of a plane.
std::vector<LineMask> line_masks(const Planes& planes, int shift);

}  // namespace mest
