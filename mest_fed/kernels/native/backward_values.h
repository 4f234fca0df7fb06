// Gradients of the live values alone: dot products of output gradients and shifted inputs.
#pragma once

#include "gradients.h"
#include "pack.h"
#include "walk.h"

namespace mest::MEST_VARIANT {

// Gradients of some rows of a strip's entries, as many entries at once as registers hold.
template <int R>
void strip_dots(Pairs pairs, const int32_t* offsets, int count, float* result, int stride) {
    constexpr int most = most_pairs / R;
    using Dots = void (*)(const Pairs&, float*, int);
    static constexpr Dots fewer[] = {dot_pairs<R, 1>, dot_pairs<R, (most > 2 ? 2 : 1)>,
                                     dot_pairs<R, (most > 4 ? 4 : 1)>};
    int e = 0;
    for (; e + most <= count; e += most) {
        pairs.offsets = offsets + e;
        dot_pairs<R, most>(pairs, result + int64_t{e} * stride, stride);
    }
    while (e < count) {
        const int power = count - e >= 4 && most > 4 ? 2 : count - e >= 2 && most > 2 ? 1 : 0;
        pairs.offsets = offsets + e;
        fewer[power](pairs, result + int64_t{e} * stride, stride);
        e += 1 << power;
    }
}

inline void backward_values(const Convolution& p, const StripIndex& index, const float* x,
                            const float* dy, float* gradient, Call call) {
    constexpr int64_t chunks_at_most = 8;  // fixed: threads must not change the order of sums
    constexpr int enough_vectors = 32;     // to make the final sum over lanes cheap
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, enough_vectors, false});
    const Scratch& s = plan.scratch;
    const Gradients g = gradients_of(p, s);
    const Source source = source_of(x, p.batch, p.in_channels, p.height, p.width);
    Zeroed scratches(source_buffer, plan.floats(), call.threads);
    Zeroed buffers(target_buffer, p.out_channels * g.channel, call.threads);

    const auto add_set = [&](int64_t at, int begin, int end, float* result, int thread) {
        const ImageSet set = image_set(s, at, p.batch);
        float* scratch = scratches.of(thread);
        pack(scratch, source, set.first, set.count, s, plan.reading);
        const float* from = gradients_for(set, p, dy, g, s, buffers, thread);
        for_rows(plan, begin, end, p.out_channels, [&](int strip, int row, int taken) {
            const int32_t first = index.first[strip];
            const Pairs pairs{from + (strip * plan.rows + row) * g.channel, g.at.data(), g.channel,
                              scratch, nullptr, s.from.data(), set.vectors};
            (taken == 4 ? strip_dots<4> : taken == 2 ? strip_dots<2> : strip_dots<1>)(
                pairs, plan.offsets.data() + first, index.first[strip + 1] - first,
                result + int64_t{first} * plan.rows + row, plan.rows);
        });
    };
    const int64_t numbers = static_cast<int64_t>(index.columns.size()) * plan.rows;
    const int64_t chunks = std::min(plan.sets, chunks_at_most);
    const int64_t wave = std::min<int64_t>(chunks, std::max(1, call.threads));
    std::vector<float> partial(wave * numbers);
    std::fill(gradient, gradient + numbers, 0.0f);
    for (int64_t done = 0; done < chunks; done += wave) {
        const int64_t now = std::min(wave, chunks - done);
        const Units units(now, call.threads, plan.strips);
        std::fill(partial.begin(), partial.end(), 0.0f);
        parallel_for(units.count, call.threads, [&](int64_t unit, int thread) {
            const int64_t chunk = done + units.set(unit), next = chunk + 1;
            float* result = partial.data() + units.set(unit) * numbers;
            for (int64_t set = chunk * plan.sets / chunks; set < next * plan.sets / chunks; ++set) {
                add_set(set, units.begin(unit), units.end(unit), result, thread);
            }
        });
        for (int64_t c = 0; c < now; ++c) {
            const float* part = partial.data() + c * numbers;
            for (int64_t i = 0; i < numbers; ++i) gradient[i] += part[i];
        }
    }
}

}  // namespace mest::MEST_VARIANT
