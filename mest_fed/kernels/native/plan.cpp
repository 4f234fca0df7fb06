#include "plan.h"

#include <algorithm>

namespace mest {
namespace {

Reading reading_of(const Convolution& p) {
    Reading r{p.height, p.width, p.out_height, p.out_width, p.stride_height, p.stride_width, {}, {}};
    for (int i = 0; i < p.kernel_height; ++i) {
        for (int j = 0; j < p.kernel_width; ++j) {
            r.row_start.push_back(i * p.dilation_height - p.padding_height);
            r.column_start.push_back(j * p.dilation_width - p.padding_width);
        }
    }
    return r;
}

Outputs outputs_of(const Convolution& p, const Scratch& s, bool overlap, int width) {
    Outputs o{};
    o.direct = p.out_width >= width && (overlap || p.out_width % width == 0);
    o.channel = int64_t{p.out_height} * p.out_width;
    o.image = o.channel * p.out_channels;
    o.pitch = o.direct ? p.out_width : static_cast<int>(s.column.size()) * width;
    o.buffer_plane = int64_t{p.out_height} * o.pitch;
    o.buffer_channel = o.buffer_plane * s.stacked;
    for (int q = 0; q < s.stacked; ++q) {
        const int64_t image = q * (o.direct ? o.image : o.buffer_plane);
        for (int i = 0; i < p.out_height; ++i) {
            for (int column : s.column) o.at.push_back(image + i * o.pitch + column);
        }
    }
    return o;
}

}  // namespace

Plan make_plan(const Convolution& p, int rows, const Request& request, int width) {
    Plan plan{};
    plan.reading = reading_of(p);
    plan.scratch = arrange(plan.reading, request, p.batch, width);
    plan.outputs = outputs_of(p, plan.scratch, request.overlap, width);
    plan.rows = rows, plan.strips = (p.out_channels - 1) / rows + 1;
    plan.taps = p.taps();
    plan.in_channels = p.in_channels, plan.out_channels = p.out_channels;
    plan.out_height = p.out_height, plan.out_width = p.out_width;
    plan.batch = p.batch;
    plan.features = p.taps() == 1 && p.height == 1 && p.width == 1 && p.out_height == 1 && p.out_width == 1;
    constexpr int walked_at_once = 4;
    plan.collected = plan.features ? width + walked_at_once - 1 : walked_at_once;
    plan.sets = (p.batch + plan.scratch.images() - 1) / plan.scratch.images();
    return plan;
}

int64_t Plan::bytes() const {
    return static_cast<int64_t>(outputs.at.capacity() * sizeof outputs.at[0] +
                                scratch.from.capacity() * sizeof scratch.from[0] +
                                scratch.copies.capacity() * sizeof scratch.copies[0]);
}

void set_entries(Plan& plan, const StripIndex& index, std::vector<int32_t>& offsets) {
    const auto channel = static_cast<int32_t>(plan.scratch.channel_floats);
    const std::vector<int32_t>& tap = plan.scratch.tap_offset;
    const int32_t* columns = index.columns.data();
    offsets.resize(index.columns.size());
    if (plan.taps == 1) {
        for (size_t e = 0; e < offsets.size(); ++e) offsets[e] = columns[e] * channel + tap[0];
    } else {
        for (size_t e = 0; e < offsets.size(); ++e) {
            const int32_t c = columns[e] / plan.taps;
            offsets[e] = c * channel + tap[columns[e] - c * plan.taps];
        }
    }
    plan.index = &index;
    plan.offsets = offsets.data();
}

Units::Units(int64_t sets, int threads, int items)
    : sets_(sets),
      parts_(std::clamp<int64_t>(threads / std::max<int64_t>(1, sets), 1, std::max(1, items))),
      items_(items) {}

Units Units::of(int items) const {
    Units other = *this;
    other.items_ = items;
    return other;
}

Unit Units::unit(const Plan& plan, int64_t set, int64_t unit) const {
    const Scratch& s = plan.scratch;
    const int64_t first = set * s.images(), part = unit % parts_;
    const int count = static_cast<int>(std::min<int64_t>(s.images(), plan.batch - first));
    return {first, count, s.vectors * ((count + s.side_by_side - 1) / s.side_by_side),
            static_cast<int>(part * items_ / parts_), static_cast<int>((part + 1) * items_ / parts_)};
}

}  // namespace mest
