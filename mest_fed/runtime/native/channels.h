// Channels of a tensor wherever they lie: in C order, or as planes with margins (planes.h). An
// operator that walks over channels takes arguments of both, each with its own margin.
#pragma once

#include <algorithm>
#include <array>

#include "builder.h"
#include "loops.h"
#include "vectors.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// Zeroes a short run.
template <class T>
inline void zero(T* from, const T* to) {
    for (; from + V <= to; from += V) store(from, vec{});
    if (from < to) store_some(from, vec{}, to - from);
}

struct Channels {
    int64_t images = 0, channels = 0, plane = 0;  // plane: elements of a channel
    int64_t lead = 0, pitch = 0, image = 0;       // as in Planes
    int64_t behind = 0;                           // values of the buffer behind the last image

    // The first element of a channel.
    int64_t at(int64_t image_, int64_t channel) const {
        return image_ * image + lead + channel * pitch;
    }

    // Zeroes what is no element before and behind a channel: all of them leave no other value.
    template <class T>
    void clear(T* buffer, int64_t image_, int64_t channel) const {
        if (pitch == plane && lead == 0) return;
        T* first = buffer + at(image_, channel);
        if (channel == 0) zero<T>(first - lead, first);
        const bool last = image_ + 1 == images && channel + 1 == channels;
        zero<T>(first + plane, first + pitch + (last ? behind : 0));
    }
};

// x of at least two dimensions, (images, channels, ...); an absent one lies nowhere.
inline Channels channels_of(const Tensor& x) {
    if (!x) return {};
    const int64_t images = x.shape[0], channels = x.shape[1], plane = product_of(x.shape, 2);
    if (x.margin == 0) return {images, channels, plane, 0, plane, channels * plane, 0};
    const Planes p = x.planes();
    return {images, channels, plane, p.lead(), p.pitch(), p.image(), p.floats() - images * p.image()};
}

// A walk over the elements of K arguments of one shape at once; the last of them is written, and
// its margins are zeroed.
template <int K>
class Elements {
public:
    explicit Elements(const std::array<Tensor, K>& arguments)
        : written_(arguments[K - 1]), narrow_(written_.narrow) {
        const Tensor& first = arguments[0];
        flat_ = std::all_of(arguments.begin(), arguments.end(),
                            [&](const Tensor& it) { return it.margin == first.margin; });
        count_ = first.margin > 0 ? first.planes().floats() : first.count();
        for (int k = 0; k < K && !flat_; ++k) lies_[k] = channels_of(arguments[k]);
    }

    // work(at, count): elements at[k] to at[k] + count of each buffer. Where all lie alike they
    // are taken with their margins, so that zeros must give zero.
    template <class Work>
    void walk(const Run& run, const Work& work) const {
        if (flat_) {
            for_runs(count_, 1, run.threads, [&](int64_t begin, int64_t end) {
                std::array<int64_t, K> at;
                at.fill(begin);
                work(at, end - begin);
            });
            return;
        }
        const Channels& to = lies_[K - 1];
        for_runs(to.images * to.channels, to.plane, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t image = i / to.channels, channel = i % to.channels;
                std::array<int64_t, K> at;
                for (int k = 0; k < K; ++k) at[k] = lies_[k].at(image, channel);
                work(at, to.plane);
                if (narrow_) to.clear(run.at<bf16>(written_), image, channel);
                else to.clear(run.at(written_), image, channel);
            }
        });
    }

private:
    Tensor written_;
    bool narrow_;
    bool flat_;
    int64_t count_;  // floats of each where they lie alike
    std::array<Channels, K> lies_;
};

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
