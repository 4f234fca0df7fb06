// What all three kernels prepare: the reading, the scratch, and each entry's offset in it.
#pragma once

#include <cstring>

#include "index.h"
#include "scratch.h"
#include "threads.h"

namespace mest::MEST_VARIANT {

enum { source_buffer, target_buffer };  // of thread_scratch

inline Reading reading_of(const Convolution& p) {
    Reading r{p.height, p.width, p.out_height, p.out_width, p.stride_height, p.stride_width, {}, {}};
    for (int i = 0; i < p.kernel_height; ++i) {
        for (int j = 0; j < p.kernel_width; ++j) {
            r.row_start.push_back(i * p.dilation_height - p.padding_height);
            r.column_start.push_back(j * p.dilation_width - p.padding_width);
        }
    }
    return r;
}

struct Plan {
    Reading reading;
    Scratch scratch;
    std::vector<int32_t> offsets;  // of each entry
    int rows, strips;
    int64_t sets;  // of images that share a scratch

    int64_t floats() const { return scratch.channel_floats * channels; }
    int channels;
};

inline Plan make_plan(const Convolution& p, const StripIndex& index, const Wish& wish) {
    Plan plan{reading_of(p), {}, {}, index.rows, static_cast<int>(index.first.size()) - 1, 0,
              p.in_channels};
    plan.scratch = arrange(plan.reading, wish, p.batch);
    plan.sets = (p.batch + plan.scratch.images() - 1) / plan.scratch.images();
    std::vector<int32_t> place;
    for (int c = 0; c < p.in_channels; ++c) {
        const auto channel = static_cast<int32_t>(c * plan.scratch.channel_floats);
        for (int32_t tap : plan.scratch.tap_offset) place.push_back(channel + tap);
    }
    for (int32_t column : index.columns) plan.offsets.push_back(place[column]);
    return plan;
}

// The images of one set, and the vectors of positions that they fill.
struct ImageSet {
    int64_t first;
    int count, vectors;
};

inline ImageSet image_set(const Scratch& s, int64_t set, int64_t batch) {
    const int64_t first = set * s.images();
    const int count = static_cast<int>(std::min<int64_t>(s.images(), batch - first));
    return {first, count, s.vectors * ((count + s.side_by_side - 1) / s.side_by_side)};
}

// Units of work: sets of images, cut further into parts where there are fewer sets than threads.
class Units {
public:
    Units(int64_t sets, int threads, int items)
        : items_(items),
          parts_(std::clamp<int64_t>(threads / std::max<int64_t>(1, sets), 1, std::max(1, items))),
          count(sets * parts_) {}
    int64_t set(int64_t unit) const { return unit / parts_; }
    int begin(int64_t unit) const { return static_cast<int>(unit % parts_ * items_ / parts_); }
    int end(int64_t unit) const { return static_cast<int>((unit % parts_ + 1) * items_ / parts_); }

private:
    int64_t items_, parts_;

public:
    const int64_t count;
};

// This thread's scratch, zeroed at its first use in a call, so that margins hold zeros.
class Zeroed {
public:
    Zeroed(int which, int64_t floats, int threads)
        : which_(which), floats_(floats), ready_(threads, 0) {}
    float* of(int thread) {
        float* scratch = thread_scratch(which_, floats_);
        if (!ready_[thread]) std::memset(scratch, 0, floats_ * sizeof(float));
        ready_[thread] = 1;
        return scratch;
    }

private:
    int which_;
    int64_t floats_;
    std::vector<char> ready_;
};

// Rows that one walk takes of `left` rows of a strip. More than four would not share more: four
// multiply-adds a load keep the arithmetic units busy.
inline int walked_rows(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// Cuts [0, count) into runs of nearly equal size, at most `most` long: work(first, size).
template <class Work>
void for_tiles(int count, int most, const Work& work) {
    const int tiles = (count + most - 1) / most;
    for (int i = 0, first = 0; i < tiles; ++i) {
        const int size = count / tiles + (i < count % tiles ? 1 : 0);
        work(first, size);
        first += size;
    }
}

// work(strip, row, rows) for the rows of strips [begin, end), cut into what one walk takes.
template <class Work>
void for_rows(const Plan& plan, int begin, int end, int out_channels, const Work& work) {
    for (int strip = begin; strip < end; ++strip) {
        const int until = std::min(plan.rows, out_channels - strip * plan.rows);
        for (int row = 0, taken; row < until; row += taken) {
            taken = walked_rows(until - row);
            work(strip, row, taken);
        }
    }
}

}  // namespace mest::MEST_VARIANT
