// dx: strips of several rows spread their gradients over the scratch of x; single rows gather, as
// a forward pass of the transposed weight (one load a multiply-add, where spreading costs a store).
#pragma once

#include "forward.h"
#include "gradients.h"
#include "unpack.h"

namespace mest::MEST_VARIANT {

inline bool gathers(const Convolution& p, const StripIndex& index) {
    return index.rows == 1 && p.stride_height == 1 && p.stride_width == 1 &&
           p.dilation_height * (p.kernel_height - 1) >= p.padding_height &&
           p.dilation_width * (p.kernel_width - 1) >= p.padding_width;
}

inline void gather_input(const Convolution& p, const StripIndex& index, const float* values,
                         const float* dy, float* dx, Call call) {
    Convolution t = p;
    t.in_channels = p.out_channels, t.height = p.out_height, t.width = p.out_width;
    t.out_channels = p.in_channels, t.out_height = p.height, t.out_width = p.width;
    t.padding_height = p.dilation_height * (p.kernel_height - 1) - p.padding_height;
    t.padding_width = p.dilation_width * (p.kernel_width - 1) - p.padding_width;
    const TransposedIndex back = transposed(index, p);
    std::vector<float> moved;
    moved.reserve(back.from.size());
    for (int32_t e : back.from) moved.push_back(values[e]);
    forward(t, back.strips, moved.data(), dy, nullptr, dx, call);
}

// The part of a strip's entries that reads input channels [begin, end).
inline Strip part_of(const StripIndex& index, const Plan& plan, const float* values, int strip,
                     int64_t begin, int64_t end) {
    const auto first = index.columns.begin() + index.first[strip];
    const auto last = index.columns.begin() + index.first[strip + 1];
    const auto from = std::lower_bound(first, last, begin), to = std::lower_bound(from, last, end);
    const int64_t entry = from - index.columns.begin();
    return {&plan.offsets[0] + entry, static_cast<int>(to - from), values + entry * plan.rows,
            plan.rows, nullptr};
}

inline void spread_input(const Convolution& p, const StripIndex& index, const float* values,
                         const float* dy, float* dx, Call call) {
    constexpr int guard = 64;  // floats that masked loads may touch beside the planes
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, most_spread(1), false});
    const Scratch& s = plan.scratch;
    const Gradients g = gradients_of(p, s);
    const Units units(plan.sets, call.threads, p.in_channels);
    Zeroed buffers(target_buffer, p.out_channels * g.channel, call.threads);

    parallel_for(units.count, call.threads, [&](int64_t unit, int thread) {
        const ImageSet set = image_set(s, units.set(unit), p.batch);
        const int begin = units.begin(unit), end = units.end(unit);
        float* scratch = thread_scratch(source_buffer, plan.floats() + 2 * guard) + guard;
        std::memset(scratch + begin * s.channel_floats, 0,
                    (end - begin) * s.channel_floats * sizeof(float));
        const float* from = gradients_for(set, p, dy, g, s, buffers, thread);
        for_tiles(set.vectors, most_spread(walked_rows(plan.rows)), [&](int start, int size) {
            for_rows(plan, 0, plan.strips, p.out_channels, [&](int strip, int row, int taken) {
                Strip list = part_of(index, plan, values, strip, begin * p.taps(), end * p.taps());
                list.values += row;
                const float* gradient = from + (strip * plan.rows + row) * g.channel;
                strip_spread(taken, size)(list, {gradient, &g.at[start], g.channel, scratch,
                                                 &s.from[start]});
            });
        });
        unpack(scratch, dx, p.in_channels, begin, end, set, s, plan.reading);
    });
}

inline void backward_input(const Convolution& p, const StripIndex& index, const float* values,
                           const float* dy, float* dx, Call call) {
    (gathers(p, index) ? gather_input : spread_input)(p, index, values, dy, dx, call);
}

}  // namespace mest::MEST_VARIANT
