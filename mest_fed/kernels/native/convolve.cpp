// Shares the work of a product among threads, image set by image set. The same bits come out
// whatever the number of threads: a unit's result does not depend on who computes it, and the sums
// over images are taken in fixed chunks.
#include "convolve.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "threads.h"
#include "variant.h"

namespace mest {
namespace {

enum { source_buffer, output_buffer, target_buffer };  // of thread_scratch

// The calling thread's scratch memory, zeroed at its first use in a call: margins hold zeros.
class Scratches {
public:
    Scratches(const Plan& plan, int output_channels, int which = source_buffer)
        : which_(which),
          source_(plan.scratch_floats()),
          output_(plan.outputs.direct ? 0 : output_channels * plan.outputs.buffer_channel) {
        static std::atomic<int64_t> calls{0};
        call_ = ++calls;
    }

    struct Pair {
        float *source, *output;
    };

    Pair here() const {
        thread_local int64_t zeroed_for[target_buffer + 1] = {};
        float* source = thread_scratch(which_, source_ + 2 * guard) + guard;
        float* output = thread_scratch(output_buffer, output_);
        if (zeroed_for[which_] != call_) {
            std::memset(source, 0, source_ * sizeof(float));
            if (output_ > 0) std::memset(output, 0, output_ * sizeof(float));
            zeroed_for[which_] = call_;
        }
        return {source, output};
    }

private:
    int which_;
    int64_t source_, output_, call_;
};

// With a stride of 1 the way back is a convolution too: of the turned kernel. Single rows take it:
// it costs one load a multiply-add, where spreading would cost a load and a store.
bool gathers(const Convolution& p, const StripIndex& index) {
    return index.rows == 1 && p.stride_height == 1 && p.stride_width == 1 &&
           p.dilation_height * (p.kernel_height - 1) >= p.padding_height &&
           p.dilation_width * (p.kernel_width - 1) >= p.padding_width;
}

void gather_input(const Convolution& p, const StripIndex& index, const float* values,
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

void spread_input(const Convolution& p, const StripIndex& index, const float* values,
                  const float* dy, float* dx, Call call) {
    const Variant& v = variant();
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, v.walk_vectors, false}, v.width);
    const Units units(plan.sets, call.threads, p.in_channels);
    Scratches scratches(plan, p.out_channels);
    parallel_for(units.count(), call.threads, [&](int64_t i) {
        const auto [source, output] = scratches.here();
        const Unit unit = units.unit(plan, units.set(i), i);
        v.backward_input(plan, values, dy, dx, unit, source, output);
    });
}

// Sums over the batch in chunks of sets, whose number threads do not change: each chunk has a sum
// of its own, and they are added in order. work(set, units, unit, sum) adds what a set gives. The
// total itself is the first chunk's sum.
template <class Work>
void sum_in_chunks(const Plan& plan, float* total, Call call, const Work& work) {
    constexpr int64_t most_chunks = 8;
    const int64_t numbers = static_cast<int64_t>(plan.offsets.size()) * plan.rows;
    const int64_t chunks = std::min(plan.sets, most_chunks);
    const int64_t wave = std::min<int64_t>(chunks, call.threads);
    std::vector<float> partial(chunks > 1 ? wave * numbers : 0);
    std::fill(total, total + numbers, 0.0f);
    for (int64_t done = 0; done < chunks; done += wave) {
        const int64_t now = std::min(wave, chunks - done);
        const Units units(now, call.threads, plan.strips);
        std::fill(partial.begin(), partial.end(), 0.0f);
        parallel_for(units.count(), call.threads, [&](int64_t i) {
            const int64_t chunk = done + units.set(i), next = chunk + 1;
            float* sum = chunk == 0 ? total : partial.data() + units.set(i) * numbers;
            for (int64_t set = chunk * plan.sets / chunks; set < next * plan.sets / chunks; ++set) {
                work(set, units, i, sum);
            }
        });
        for (int64_t c = done == 0 ? 1 : 0; c < now; ++c) {
            const float* part = partial.data() + c * numbers;
            for (int64_t i = 0; i < numbers; ++i) total[i] += part[i];
        }
    }
}

}  // namespace

void forward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
             const float* bias, float* y, Call call) {
    const Variant& v = variant();
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, v.walk_vectors, true}, v.width);
    const Units units(plan.sets, call.threads, plan.strips);
    Scratches scratches(plan, plan.collected);
    parallel_for(units.count(), call.threads, [&](int64_t i) {
        const auto [source, output] = scratches.here();
        const Unit unit = units.unit(plan, units.set(i), i);
        v.forward(plan, values, x, bias, y, unit, source, output);
    });
}

void backward_input(const Convolution& p, const StripIndex& index, const float* values,
                    const float* dy, float* dx, Call call) {
    (gathers(p, index) ? gather_input : spread_input)(p, index, values, dy, dx, call);
}

void backward_values(const Convolution& p, const StripIndex& index, const float* x, const float* dy,
                     float* gradient, Call call) {
    const Variant& v = variant();
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, v.dot_vectors, false}, v.width);
    const Scratches scratches(plan, p.out_channels);
    sum_in_chunks(plan, gradient, call, [&](int64_t set, const Units& units, int64_t i, float* sum) {
        const auto [source, output] = scratches.here();
        v.backward_values(plan, x, dy, sum, units.unit(plan, set, i), source, output);
    });
}

void backward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
              const float* dy, float* dx, float* gradient, Call call) {
    if (gathers(p, index)) {
        backward_input(p, index, values, dy, dx, call);
        return backward_values(p, index, x, dy, gradient, call);
    }
    const Variant& v = variant();
    const Plan plan = make_plan(p, index, {call.plane, p.in_channels, v.dot_vectors, false}, v.width);
    const Scratches scratches(plan, p.out_channels), targets(plan, 0, target_buffer);
    sum_in_chunks(plan, gradient, call, [&](int64_t set, const Units& units, int64_t i, float* sum) {
        const auto [source, output] = scratches.here();
        v.backward_values(plan, x, dy, sum, units.unit(plan, set, i), source, output);
        const Unit channels = units.of(p.in_channels).unit(plan, set, i);
        v.backward_input(plan, values, dy, dx, channels, targets.here().source, output);
    });
}

}  // namespace mest
