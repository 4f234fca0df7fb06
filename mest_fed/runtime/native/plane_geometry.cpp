#include "plane_geometry.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace mest {
namespace {

void require(bool holds, const std::string& what, const std::string& allowed) {
    if (!holds) throw std::invalid_argument("planes in place: " + what + "; allowed: " + allowed);
}

int floor_divided(int number, int by) { return (number - (number < 0 ? by - 1 : 0)) / by; }

void check(const PlaneWindow& w, const Planes& x, const Planes& y) {
    const auto fits = [](int kernel, int stride, int from, int to) {
        return kernel % 2 == 1 && kernel <= most_shifts && to == (from + stride - 1) / stride;
    };
    require(fits(w.kernel_height, w.stride_height, x.height, y.height) &&
                fits(w.kernel_width, w.stride_width, x.width, y.width),
            "a kernel of " + std::to_string(w.kernel_height) + " x " +
                std::to_string(w.kernel_width),
            "odd sizes up to " + std::to_string(most_shifts) + " with half of it as padding");
    require(x.margin >= 1 && y.margin >= 1, "no margin", "a margin");
}

// A step of `stride` taken apart: the phase in which source row `at` lies, and its row there.
struct Place {
    int phase, at;
};
Place place_of(int at, int stride) {
    const int row = floor_divided(at, stride);
    return {at - row * stride, row};
}

int phase_of(std::vector<PlanePhase>& phases, const PlanePhase& wanted) {
    const auto same = [&](const PlanePhase& p) {
        return p.row == wanted.row && p.column == wanted.column;
    };
    const auto found = std::find_if(phases.begin(), phases.end(), same);
    if (found != phases.end()) return static_cast<int>(found - phases.begin());
    phases.push_back(wanted);
    return static_cast<int>(phases.size()) - 1;
}

}  // namespace

PlaneGeometry::PlaneGeometry(const PlaneWindow& w, const Planes& x_, const Planes& y_, int bytes)
    : x(x_), y(y_), taken(x_) {
    check(w, x, y);
    const bool strides = w.stride_height > 1 || w.stride_width > 1;
    int reach = 0;
    for (int t = 0; t < w.taps(); ++t) {
        const Place row = place_of(t / w.kernel_width - w.kernel_height / 2, w.stride_height);
        const Place column = place_of(t % w.kernel_width - w.kernel_width / 2, w.stride_width);
        int phase = 0;
        if (strides) {
            phase = phase_of(phases, {x.height, x.width, row.phase, column.phase, w.stride_height,
                                      w.stride_width, y.height, y.width});
        }
        taps.push_back({phase, row.at, column.at});
        reach = std::max({reach, std::abs(row.at), std::abs(column.at)});
    }
    if (strides) {
        const int64_t channels = int64_t{x.channels} * phase_count();
        require(channels <= std::numeric_limits<int32_t>::max(), "too many phases", "fewer");
        taken = {1, static_cast<int>(channels), y.height, y.width, std::max(1, reach)};
    }
    require(std::min(taken.margin, y.margin) >= reach,
            "a margin of " + std::to_string(std::min(taken.margin, y.margin)),
            std::to_string(reach) + " and more");
    require(std::max(taken.image(), y.image()) < std::numeric_limits<int32_t>::max() / 2,
            "a large image", "up to 2**30 floats");
    // Images whose vectors fill a tile, or as many as stay in the second cache.
    constexpr int64_t held = 196608, tile = 6;
    const int64_t lines = taken.lines();
    taken.images = std::min(x.images, std::max({int64_t{1}, held / (taken.image() * bytes),
                                                (tile + lines - 1) / lines}));
}

std::vector<LineMask> line_masks(const Planes& planes, int shift) {
    std::vector<LineMask> masks(planes.lines());
    for (int64_t p = 0; p < planes.plane(); ++p) {
        const int64_t column = p % planes.width + shift;
        if (column >= 0 && column < planes.width) masks[p / 16] |= LineMask(1) << p % 16;
    }
    return masks;
}

}  // namespace mest
