// Between output planes and the buffer of whole vectors that stands for them; see plan.h.
#pragma once

#include <cstring>

#include "plan.h"
#include "simd.h"
#include "transpose.h"

namespace mest::MEST_VARIANT {
namespace {

inline void copy_run(float* to, const float* from, int count) {
    int j = 0;
    if (V >= 8) {
        for (; j + 8 <= count; j += 8) store<V >= 8 ? 8 : 4>(to + j, load<V >= 8 ? 8 : 4>(from + j));
    }
    for (; j + 4 <= count; j += 4) store<4>(to + j, load<4>(from + j));
    for (; j < count; ++j) to[j] = from[j];
}

inline int64_t place_of(int image, const Plan& plan) {
    const int across = plan.scratch.side_by_side;
    return image / across * plan.outputs.buffer_plane + image % across * plan.out_width;
}

// Some channels of the buffer to the tensor; y is that of the unit's first image and channel.
inline void copy_out(const float* buffer, float* y, const Plan& plan, const Unit& unit,
                     int channels) {
    const Outputs& o = plan.outputs;
    if (plan.features) {
        out_of_lanes(buffer, o.buffer_channel, y, o.image, channels, unit.count);
        return;
    }
    for (int image = 0; image < unit.count; ++image) {
        for (int c = 0; c < channels; ++c) {
            const float* from = buffer + c * o.buffer_channel + place_of(image, plan);
            float* to = y + image * o.image + c * o.channel;
            for (int i = 0; i < plan.out_height; ++i, from += o.pitch, to += plan.out_width) {
                copy_run(to, from, plan.out_width);
            }
        }
    }
}

// All channels of the unit's images: as they lie in the tensor, or in the buffer.
inline const float* outputs_in(float* buffer, const float* y, const Plan& plan, const Unit& unit) {
    const Outputs& o = plan.outputs;
    const float* from = y + unit.first * o.image;
    if (o.direct) return from;
    if (unit.count < plan.scratch.images()) {
        std::memset(buffer, 0, plan.out_channels * o.buffer_channel * sizeof(float));
    }
    if (plan.features) {
        into_lanes(from, o.image, buffer, o.buffer_channel, unit.count, plan.out_channels);
        return buffer;
    }
    for (int image = 0; image < unit.count; ++image) {
        for (int c = 0; c < plan.out_channels; ++c) {
            float* to = buffer + c * o.buffer_channel + place_of(image, plan);
            for (int i = 0; i < plan.out_height; ++i, from += plan.out_width, to += o.pitch) {
                copy_run(to, from, plan.out_width);
            }
        }
    }
    return buffer;
}

}  // namespace
}  // namespace mest::MEST_VARIANT
