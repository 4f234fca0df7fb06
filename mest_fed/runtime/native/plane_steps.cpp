// Images are shared among threads in sets that do not depend on how many threads there are.
#include "plane_steps.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "threads.h"

namespace mest::runtime {
namespace {

// Sums over the batch are taken in chunks of sets, whose number threads do not change.
constexpr int64_t most_chunks = 8;

// What a step keeps from one run to the next: lists of the granules that it saw last.
class PlaneStep {
public:
    PlaneStep(Builder& b, Way way, const PlaneConvolution& c)
        : c_(c),
          product_(way, window(b, c), c.rows, c.x.planes(), c.y.planes(), c.y.narrow) {
        b.scratch(product_.scratch_floats());
        if (c.slots) {
            reserve(b);
        } else {
            product_.set_dense();
        }
        b.floats(product_.packed_words(c.slots.count()));
        b.holds(product_.bytes() + static_cast<int64_t>(slots_.capacity() * sizeof(int32_t)));
    }

    // Lays the entries out anew where they have changed.
    const PlaneProduct& product(const Run& run) {
        if (!c_.slots || (run.again && known_)) return product_;
        const int32_t* slots = run.at<int32_t>(c_.slots);
        int64_t active = c_.slots.count();
        while (active > 0 && slots[active - 1] < 0) --active;  // capacity that is not in use
        const auto size = static_cast<size_t>(active) * sizeof(int32_t);
        if (known_ && static_cast<int64_t>(slots_.size()) == active &&
            (active == 0 || std::memcmp(slots_.data(), slots, size) == 0)) {
            return product_;
        }
        known_ = false;
        strips_into(run.shared.index, {slots, active, c_.rows, nullptr, 1, c_.rows}, c_.p);
        product_.set(run.shared.index);
        slots_.assign(slots, slots + active);
        known_ = true;
        return product_;
    }

    // The values of the weight, as the product takes them.
    PlaneValues values(const Run& run) const {
        // Words of the shared memory, which nothing else of the step uses.
        return product_.pack(run.at(c_.values), reinterpret_cast<uint32_t*>(run.shared.floats.data()));
    }

    // work(images) for all images, in sets.
    template <class Work>
    void for_images(const Run& run, const Work& work) const {
        const int64_t images = c_.p.batch, set = product_.set_images();
        parallel_for((images + set - 1) / set, run.threads, [&](int64_t i) {
            work(PlaneImages{i * set, std::min(images, (i + 1) * set), scratch()});
        });
    }

    // Memory for sums that are taken apart.
    int64_t numbers() const { return c_.values.count(); }
    int64_t chunks() const {
        const int64_t set = product_.set_images();
        return std::min((c_.p.batch + set - 1) / set, most_chunks);
    }

    // work(images, sum): each chunk adds to a sum of its own, and the sums are added in order; `add`:
    // to what the total holds.
    template <class Work>
    void sum_in_chunks(const Run& run, float* total, bool add, const Work& work) const {
        const int64_t count = numbers(), set = product_.set_images(), parts = chunks();
        const int64_t sets = (c_.p.batch + set - 1) / set;
        const int64_t wave = std::min<int64_t>(parts, run.threads);
        float* partial = run.shared.floats.data();
        if (!add) std::fill(total, total + count, 0.0f);
        for (int64_t done = 0; done < parts; done += wave) {
            const int64_t now = std::min(wave, parts - done);
            if (parts > 1) std::fill(partial, partial + now * count, 0.0f);
            parallel_for(now, run.threads, [&](int64_t i) {
                const int64_t chunk = done + i, begin = chunk * sets / parts * set;
                const int64_t end = std::min(c_.p.batch, (chunk + 1) * sets / parts * set);
                work(PlaneImages{begin, end, scratch()}, parts > 1 ? partial + i * count : total);
            });
            for (int64_t part = 0; parts > 1 && part < now; ++part) {
                const float* some = partial + part * count;
                for (int64_t i = 0; i < count; ++i) total[i] += some[i];
            }
        }
    }

private:
    float* scratch() const { return thread_scratch(free_scratch, product_.scratch_floats()); }

    void reserve(Builder& b) {
        const int64_t entries = c_.slots.count();
        b.require(c_.values.count() <= std::numeric_limits<int32_t>::max(),
                  "values of shape " + text_of(c_.values.shape), "up to 2**31 - 1 values");
        product_.reserve(entries);
        slots_.reserve(entries);
        b.index(entries, (c_.p.out_channels - 1) / c_.rows + 1);
    }

    static PlaneWindow window(const Builder& b, const PlaneConvolution& c) {
        const Convolution& p = c.p;
        b.require(2 * p.padding_height + 1 == p.kernel_height &&
                      2 * p.padding_width + 1 == p.kernel_width,
                  "padding of planes with margins", "half of the kernel");
        return {p.kernel_height, p.kernel_width, p.stride_height, p.stride_width};
    }

    PlaneConvolution c_;
    PlaneProduct product_;
    std::vector<int32_t> slots_;
    bool known_ = false;
};

template <class T>
Step forward_of(Builder& b, const PlaneConvolution& c) {
    const auto step = std::make_shared<PlaneStep>(b, Way::forward, c);
    return [=](const Run& run) {
        const PlaneProduct& product = step->product(run);
        const PlaneValues values = step->values(run);
        step->for_images(run, [&](const PlaneImages& images) {
            product.forward(values, run.at<T>(c.x), run.at(c.bias), run.at<T>(c.y), images);
        });
    };
}

template <class T>
Step input_gradient_of(Builder& b, const PlaneConvolution& c) {
    const auto step = std::make_shared<PlaneStep>(b, Way::input, c);
    const bool add = b.adds();
    return [=](const Run& run) {
        const PlaneProduct& product = step->product(run);
        const PlaneValues values = step->values(run);
        step->for_images(run, [&](const PlaneImages& images) {
            product.input(values, run.at<T>(c.y), run.at(c.x), add, images);
        });
    };
}

template <class T>
Step values_gradient_of(Builder& b, const PlaneConvolution& c) {
    const auto step = std::make_shared<PlaneStep>(b, Way::values, c);
    const int64_t parts = step->chunks();
    const bool add = b.adds();
    if (parts > 1) b.floats_each(step->numbers(), parts);
    return [=](const Run& run) {
        const PlaneProduct& product = step->product(run);
        const auto work = [&](const PlaneImages& images, float* sum) {
            product.values(run.at<T>(c.x), run.at<T>(c.y), sum, images);
        };
        step->sum_in_chunks(run, run.at(c.values), add, work);
    };
}

}  // namespace

Step planes_forward(Builder& b, const PlaneConvolution& c) {
    return c.y.narrow ? forward_of<bf16>(b, c) : forward_of<float>(b, c);
}

Step planes_input_gradient(Builder& b, const PlaneConvolution& c) {
    return c.y.narrow ? input_gradient_of<bf16>(b, c) : input_gradient_of<float>(b, c);
}

Step planes_values_gradient(Builder& b, const PlaneConvolution& c) {
    return c.y.narrow ? values_gradient_of<bf16>(b, c) : values_gradient_of<float>(b, c);
}

}  // namespace mest::runtime
