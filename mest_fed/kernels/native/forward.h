// y = weight * x, image set by image set: pack the sources, walk the strips, store the results.
#pragma once

#include "pack.h"
#include "plan.h"
#include "walk.h"

namespace mest::MEST_VARIANT {

// Where results go: straight to the planes of y where a vector is one run of them, else by way of
// a buffer of one row a vector.
struct Target {
    bool direct;
    int64_t image, channel;      // distances in y
    int pitch;                   // of a row in the buffer
    int64_t plane;               // of one image, in y or in the buffer
    std::vector<int64_t> to;     // of each vector
};

inline Target target_of(const Convolution& p, const Scratch& s) {
    const int64_t channel = int64_t{p.out_height} * p.out_width;
    Target t{p.out_width >= V, p.out_channels * channel, channel, std::max(p.out_width, V), 0, {}};
    t.plane = t.direct ? t.image : int64_t{p.out_height} * t.pitch;
    for (int q = 0; q < s.stacked; ++q) {
        for (int i = 0; i < p.out_height; ++i) {
            for (int column : s.column) t.to.push_back(q * t.plane + i * t.pitch + column);
        }
    }
    return t;
}

// Buffered results of some channels; y is that of the first image and channel.
inline void copy_out(const float* buffer, float* y, const Convolution& p, const Target& t,
                     const Scratch& s, int channels, int images) {
    for (int image = 0; image < images; ++image) {
        for (int c = 0; c < channels; ++c) {
            const float* from = buffer + (c * s.stacked + image / s.side_by_side) * t.plane +
                                image % s.side_by_side * p.out_width;
            float* to = y + image * t.image + c * t.channel;
            for (int i = 0; i < p.out_height; ++i, from += t.pitch, to += p.out_width) {
                int j = 0;
                for (; j + 4 <= p.out_width; j += 4) store<4>(to + j, load<4>(from + j));
                for (; j < p.out_width; ++j) to[j] = from[j];
            }
        }
    }
}

inline void forward(const Convolution& p, const StripIndex& index, const float* values,
                    const float* x, const float* bias, float* y, Call call) {
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, most_vectors(1), true});
    const Scratch& s = plan.scratch;
    const Target t = target_of(p, s);
    const Source source = source_of(x, p.batch, p.in_channels, p.height, p.width);
    const Units units(plan.sets, call.threads, plan.strips);
    Zeroed scratches(source_buffer, plan.floats(), call.threads);

    parallel_for(units.count, call.threads, [&](int64_t unit, int thread) {
        const ImageSet set = image_set(s, units.set(unit), p.batch);
        float* scratch = scratches.of(thread);
        pack(scratch, source, set.first, set.count, s, plan.reading);
        const int64_t channel = t.direct ? t.channel : t.plane * s.stacked;
        float* buffer = t.direct ? nullptr : thread_scratch(target_buffer, 4 * channel);
        float* image = y + set.first * t.image;
        const auto walk = [&](int strip, int row, int taken, int from, int size) {
            const int at = strip * plan.rows + row, first = index.first[strip];
            const Strip list{&plan.offsets[0] + first, index.first[strip + 1] - first,
                             values + int64_t{first} * plan.rows + row, plan.rows,
                             bias == nullptr ? nullptr : bias + at};
            float* target = t.direct ? image + at * t.channel : buffer;
            strip_walk(taken, size)(list, {scratch, &s.from[from], target, &t.to[from], channel});
        };
        if (t.direct) {
            // A tile's sources stay in the first cache while all strips walk over them.
            for_tiles(set.vectors, most_vectors(walked_rows(plan.rows)), [&](int start, int size) {
                for_rows(plan, units.begin(unit), units.end(unit), p.out_channels,
                         [&](int strip, int row, int taken) { walk(strip, row, taken, start, size); });
            });
        } else {
            for_rows(plan, units.begin(unit), units.end(unit), p.out_channels,
                     [&](int strip, int row, int taken) {
                for_tiles(set.vectors, most_vectors(taken), [&](int from, int size) {
                    walk(strip, row, taken, from, size);
                });
                copy_out(buffer, image + (strip * plan.rows + row) * t.channel, p, t, s, taken,
                         set.count);
            });
        }
    });
}

}  // namespace mest::MEST_VARIANT
