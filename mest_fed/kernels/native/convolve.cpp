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

// Single rows take the way back by gathering: it costs one load a multiply-add, where spreading would
// cost a load and a store.
bool gathers(const Convolution& p, int rows) { return rows == 1 && turns(p); }

Plan plan_of(Way way, const Convolution& p, int rows, Plane plane) {
    const Variant& v = variant();
    const int vectors = way == Way::values ? v.dot_vectors : v.walk_vectors;
    return make_plan(p, rows, {plane, p.in_channels, vectors, way == Way::forward}, v.width);
}

void multiply(const Plan& plan, const float* values, const float* x, const float* bias, float* y,
              int threads) {
    const Variant& v = variant();
    const Units units(plan.sets, threads, plan.strips);
    const Scratches scratches(plan, plan.collected);
    parallel_for(units.count(), threads, [&](int64_t i) {
        const auto [source, output] = scratches.here();
        const Unit unit = units.unit(plan, units.set(i), i);
        v.forward(plan, values, x, bias, y, unit, source, output);
    });
}

// Sums over the batch are taken in chunks of sets, whose number threads do not change.
constexpr int64_t most_chunks = 8;

// Each chunk has a sum of its own, and they are added in order. work(set, units, unit, sum) adds
// what a set gives. The total itself is the first chunk's sum.
template <class Work>
void sum_in_chunks(const Plan& plan, float* total, int threads, std::vector<float>& partial,
                   const Work& work) {
    const int64_t numbers = static_cast<int64_t>(plan.index->columns.size()) * plan.rows;
    const int64_t chunks = std::min(plan.sets, most_chunks);
    const int64_t wave = std::min<int64_t>(chunks, threads);
    std::fill(total, total + numbers, 0.0f);
    for (int64_t done = 0; done < chunks; done += wave) {
        const int64_t now = std::min(wave, chunks - done);
        const Units units(now, threads, plan.strips);
        partial.assign(chunks > 1 ? wave * numbers : 0, 0.0f);
        parallel_for(units.count(), threads, [&](int64_t i) {
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

bool turns(const Convolution& p) {
    return p.stride_height == 1 && p.stride_width == 1 &&
           p.dilation_height * (p.kernel_height - 1) >= p.padding_height &&
           p.dilation_width * (p.kernel_width - 1) >= p.padding_width;
}

Convolution turned(const Convolution& p) {
    Convolution t = p;
    t.in_channels = p.out_channels, t.height = p.out_height, t.width = p.out_width;
    t.out_channels = p.in_channels, t.out_height = p.height, t.out_width = p.width;
    t.padding_height = p.dilation_height * (p.kernel_height - 1) - p.padding_height;
    t.padding_width = p.dilation_width * (p.kernel_width - 1) - p.padding_width;
    return t;
}

Product::Product(Way way, const Convolution& p, int rows, Call call)
    : way_(way),
      p_(p),
      call_(call),
      gathers_(way == Way::input && gathers(p, rows)),
      plan_(gathers_ ? plan_of(Way::forward, turned(p), rows, call.plane)
                     : plan_of(way, p, rows, call.plane)) {}

int64_t Product::partial_floats(int64_t entries) const {
    const int64_t chunks = std::min(plan_.sets, most_chunks);
    if (way_ != Way::values || chunks < 2) return 0;
    return std::min<int64_t>(chunks, call_.threads) * entries * plan_.rows;
}

void Product::reserve(ProductMemory& memory, int64_t entries) const {
    memory.offsets.reserve(entries);
    memory.partial.reserve(partial_floats(entries));
    if (!gathers_) return;
    memory.back.strips.first.reserve(p_.in_channels + 2);
    memory.back.strips.columns.reserve(entries);
    memory.back.from.reserve(entries);
    memory.moved.reserve(entries);
}

int Product::collected() const {
    return way_ == Way::forward || gathers_ ? plan_.collected : p_.out_channels;
}

int64_t Product::scratch_floats() const {
    const int64_t buffered = plan_.outputs.direct ? 0 : collected() * plan_.outputs.buffer_channel;
    return plan_.scratch_floats() + buffered;
}

void Product::take_scratch() const { Scratches(plan_, collected()).here(); }

void Product::forward(ProductMemory& memory, const StripIndex& index, const float* values,
                      const float* x, const float* bias, float* y) {
    set_entries(plan_, index, memory.offsets);
    multiply(plan_, values, x, bias, y, call_.threads);
}

void Product::input(ProductMemory& memory, const StripIndex& index, const float* values,
                    const float* dy, float* dx) {
    if (gathers_) {
        transpose_into(memory.back, index, p_);
        memory.moved.clear();
        memory.moved.reserve(memory.back.from.size());
        for (int32_t e : memory.back.from) memory.moved.push_back(values[e]);
        set_entries(plan_, memory.back.strips, memory.offsets);
        return multiply(plan_, memory.moved.data(), dy, nullptr, dx, call_.threads);
    }
    const Variant& v = variant();
    set_entries(plan_, index, memory.offsets);
    const Units units(plan_.sets, call_.threads, p_.in_channels);
    const Scratches scratches(plan_, p_.out_channels);
    parallel_for(units.count(), call_.threads, [&](int64_t i) {
        const auto [source, output] = scratches.here();
        const Unit unit = units.unit(plan_, units.set(i), i);
        v.backward_input(plan_, values, dy, dx, unit, source, output);
    });
}

void Product::values(ProductMemory& memory, const StripIndex& index, const float* x,
                     const float* dy, float* gradient) {
    const Variant& v = variant();
    set_entries(plan_, index, memory.offsets);
    const Scratches scratches(plan_, p_.out_channels);
    sum_in_chunks(plan_, gradient, call_.threads, memory.partial,
                  [&](int64_t set, const Units& units, int64_t i, float* sum) {
        const auto [source, output] = scratches.here();
        v.backward_values(plan_, x, dy, sum, units.unit(plan_, set, i), source, output);
    });
}

void Product::both(ProductMemory& memory, const StripIndex& index, const float* values,
                   const float* x, const float* dy, float* dx, float* gradient) {
    const Variant& v = variant();
    set_entries(plan_, index, memory.offsets);
    const Scratches scratches(plan_, p_.out_channels), targets(plan_, 0, target_buffer);
    sum_in_chunks(plan_, gradient, call_.threads, memory.partial,
                  [&](int64_t set, const Units& units, int64_t i, float* sum) {
        const auto [source, output] = scratches.here();
        v.backward_values(plan_, x, dy, sum, units.unit(plan_, set, i), source, output);
        const Unit channels = units.of(p_.in_channels).unit(plan_, set, i);
        v.backward_input(plan_, values, dy, dx, channels, targets.here().source, output);
    });
}

void forward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
             const float* bias, float* y, Call call) {
    ProductMemory memory;
    Product(Way::forward, p, index.rows, call).forward(memory, index, values, x, bias, y);
}

void backward_input(const Convolution& p, const StripIndex& index, const float* values,
                    const float* dy, float* dx, Call call) {
    ProductMemory memory;
    Product(Way::input, p, index.rows, call).input(memory, index, values, dy, dx);
}

void backward_values(const Convolution& p, const StripIndex& index, const float* x, const float* dy,
                     float* gradient, Call call) {
    ProductMemory memory;
    Product(Way::values, p, index.rows, call).values(memory, index, x, dy, gradient);
}

void backward(const Convolution& p, const StripIndex& index, const float* values, const float* x,
              const float* dy, float* dx, float* gradient, Call call) {
    if (gathers(p, index.rows)) {
        backward_input(p, index, values, dy, dx, call);
        return backward_values(p, index, x, dy, gradient, call);
    }
    ProductMemory memory;
    Product(Way::values, p, index.rows, call).both(memory, index, values, x, dy, dx, gradient);
}

}  // namespace mest
