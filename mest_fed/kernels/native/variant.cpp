// The kernels for one instruction set: compiled once for each, with other flags and another name.
#include "variant.h"

#include "norm_walk.h"
#include "outputs.h"
#include "pack.h"
#include "pool_walk.h"
#include "quantise_walk.h"
#include "pack_walk.h"
#include "sums_walk.h"
#include "unpack.h"
#include "walk.h"

namespace mest::MEST_VARIANT {
namespace {

// Cuts [0, count) into runs of nearly equal size, at most `most` long: work(first, size).
template <class Work>
inline void for_tiles(int count, int most, const Work& work) {
    const int tiles = (count + most - 1) / most;
    for (int i = 0, first = 0; i < tiles; ++i) {
        const int size = count / tiles + (i < count % tiles ? 1 : 0);
        work(first, size);
        first += size;
    }
}

// Rows that one walk takes of `left` rows of a strip. More than four would not share more: four
// multiply-adds a load keep the arithmetic units busy.
inline int walked_rows(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// work(strip, row, rows) for the rows of strips [begin, end), cut into what one walk takes.
template <class Work>
inline void for_rows(const Plan& plan, int begin, int end, const Work& work) {
    for (int strip = begin; strip < end; ++strip) {
        const int left = plan.out_channels - strip * plan.rows;
        const int until = left < plan.rows ? left : plan.rows;
        for (int row = 0, taken; row < until; row += taken) {
            taken = walked_rows(until - row);
            work(strip, row, taken);
        }
    }
}

void forward(const Plan& plan, const float* values, const float* x, const float* bias, float* y,
             const Unit& unit, float* scratch, float* buffer) {
    const Outputs& o = plan.outputs;
    const int32_t* first = plan.index->first.data();
    pack(scratch, x, plan, unit);
    float* image = y + unit.first * o.image;
    const auto walk = [&](int strip, int row, int taken, Tile tile, int size) {
        const Strip list{plan.offsets + first[strip], first[strip + 1] - first[strip],
                         values + int64_t{first[strip]} * plan.rows + row, plan.rows,
                         bias == nullptr ? nullptr : bias + strip * plan.rows + row};
        strip_walk(taken, size)(list, tile);
    };
    const auto tile_at = [&](float* target, int from) {
        return Tile{scratch, plan.scratch.from.data() + from, target, o.at.data() + from,
                    o.distance()};
    };
    if (o.direct) {
        // A tile's sources stay in the first cache while all strips walk over them.
        for_tiles(unit.vectors, most_vectors(walked_rows(plan.rows)), [&](int start, int size) {
            for_rows(plan, unit.begin, unit.end, [&](int strip, int row, int taken) {
                float* target = image + (strip * plan.rows + row) * o.channel;
                walk(strip, row, taken, tile_at(target, start), size);
            });
        });
        return;
    }
    int held = 0, held_from = unit.begin * plan.rows;  // channels in the buffer
    const auto store_held = [&](int next) {
        copy_out(buffer, image + held_from * o.channel, plan, unit, held);
        held_from = next;
        held = 0;
    };
    for_rows(plan, unit.begin, unit.end, [&](int strip, int row, int taken) {
        float* target = buffer + held * o.buffer_channel;
        for_tiles(unit.vectors, most_vectors(taken), [&](int from, int size) {
            walk(strip, row, taken, tile_at(target, from), size);
        });
        held += taken;
        // So many that another walk might not fit.
        if (held + 4 > plan.collected) store_held(strip * plan.rows + row + taken);
    });
    store_held(0);
}

// First of the increasing columns [from, to) that is not below `bound`.
inline int32_t first_from(const int32_t* columns, int32_t from, int32_t to, int64_t bound) {
    while (from < to) {
        const int32_t middle = from + (to - from) / 2;
        if (columns[middle] < bound) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

void backward_input(const Plan& plan, const float* values, const float* dy, float* dx,
                    const Unit& unit, float* scratch, float* buffer) {
    const Outputs& o = plan.outputs;
    const Scratch& s = plan.scratch;
    const int32_t *columns = plan.index->columns.data(), *first = plan.index->first.data();
    const float* gradients = outputs_in(buffer, dy, plan, unit);
    for_tiles(unit.vectors, most_spread(walked_rows(plan.rows)), [&](int start, int size) {
        for_rows(plan, 0, plan.strips, [&](int strip, int row, int taken) {
            // The entries that read this unit's channels.
            int32_t begin = first[strip], end = first[strip + 1];
            if (unit.begin > 0) {
                begin = first_from(columns, begin, end, int64_t{unit.begin} * plan.taps);
            }
            if (unit.end < plan.in_channels) {
                end = first_from(columns, begin, end, int64_t{unit.end} * plan.taps);
            }
            const Strip list{plan.offsets + begin, end - begin,
                             values + int64_t{begin} * plan.rows + row, plan.rows, nullptr};
            const float* gradient = gradients + (strip * plan.rows + row) * o.distance();
            strip_spread(taken, size)(list, {gradient, o.at.data() + start, o.distance(), scratch,
                                             s.from.data() + start});
        });
    });
    unpack(scratch, dx, plan, unit);
}

void backward_values(const Plan& plan, const float* x, const float* dy, float* gradient,
                     const Unit& unit, float* scratch, float* buffer) {
    const Outputs& o = plan.outputs;
    const int32_t* first = plan.index->first.data();
    pack(scratch, x, plan, unit);
    const float* gradients = outputs_in(buffer, dy, plan, unit);
    // Single rows use each pixel once a row: the tile's pixels should stay in the first cache.
    constexpr int tile = 16;
    for_tiles(unit.vectors, plan.rows == 1 ? tile : unit.vectors, [&](int start, int size) {
        for_rows(plan, unit.begin, unit.end, [&](int strip, int row, int taken) {
            const int32_t at = first[strip];
            const Pairs pairs{gradients + (strip * plan.rows + row) * o.distance(),
                              o.at.data() + start, o.distance(), scratch, nullptr,
                              plan.scratch.from.data() + start, size, gradients};
            (taken == 4 ? strip_dots<4> : taken == 2 ? strip_dots<2> : strip_dots<1>)(
                pairs, plan.offsets + at, first[strip + 1] - at,
                gradient + int64_t{at} * plan.rows + row, plan.rows);
        });
    });
}

#define MEST_TEXT_OF(name) #name
#define MEST_TEXT(name) MEST_TEXT_OF(name)

}  // namespace
}  // namespace mest::MEST_VARIANT

namespace mest::variants {

using namespace mest::MEST_VARIANT;

extern const Variant MEST_VARIANT;
const Variant MEST_VARIANT{MEST_TEXT(MEST_VARIANT), V, bf16_products, most_vectors(1), 32, forward,
                           backward_input, backward_values, norm_forward, norm_backward,
                           pool_forward, pool_backward, quantise, dequantise, pack_bits,
                           pack_values, unpack_nonzeros, count_bits, weigh, add};

}  // namespace mest::variants
