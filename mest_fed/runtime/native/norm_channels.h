// The loops of group and batch norm over channels that lie as planes, or some of them in C order.
#pragma once

#include "channels.h"
#include "norm.h"
#include "vectors.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// What a unit of norm.h covers: channels of an image's group, or a run of channels of all images.
struct Cover {
    int64_t first_image, images;
    int first_channel, channels;
    int64_t first_statistic;
    bool each;  // a statistic for each channel, else one for all

    Cover(const Norm& n, int64_t unit) {
        if (n.groups == 0) {
            const int first = static_cast<int>(unit) * n.block();
            *this = {0, n.images, first, std::min(n.channels - first, n.block()), first, true};
        } else {
            const int size = n.channels / n.groups, group = static_cast<int>(unit % n.groups);
            *this = {unit / n.groups, 1, group * size, size, unit, false};
        }
    }
    int statistics() const { return each ? channels : 1; }
    int statistic(int64_t channel) const {
        return each ? static_cast<int>(channel) - first_channel : 0;
    }
    double count(int64_t plane) const {
        return static_cast<double>(images * (each ? 1 : channels) * plane);
    }
    // work(image, channel)
    template <class Work>
    void walk(const Work& work) const {
        for (int64_t image = first_image; image < first_image + images; ++image) {
            for (int c = first_channel; c < first_channel + channels; ++c) work(image, c);
        }
    }

private:
    Cover(int64_t image, int64_t images_, int channel, int channels_, int64_t statistic, bool each_)
        : first_image(image), images(images_), first_channel(channel), channels(channels_),
          first_statistic(statistic), each(each_) {}
};

// A buffer of T, and where its channels lie.
template <class T>
struct Lies {
    Channels channels;
    T* buffer;

    T* at(int64_t image, int64_t channel) const {
        return buffer == nullptr ? nullptr : buffer + channels.at(image, channel);
    }
    // Asks for the next image's channel: the processor cannot foresee such a leap.
    template <bool Write = false>
    void ahead(const T* p) const {
        __builtin_prefetch(p + channels.image, Write);
    }
    void clear(int64_t image, int64_t channel) const {
        channels.clear(buffer, image, channel);
    }
};

// T: of planes; all is computed in floats.
template <class T>
struct ForwardNorm {
    Norm norm;
    Lies<T> x, residual, y;
    float *mean, *scale;
};

// A number near the mean: of differences from it sums lose nothing where the mean is large beside
// the deviation (Chan, Golub and LeVeque 1983).
template <class T>
inline float near_mean(const T* x, int64_t plane) {
    const int64_t count = std::min<int64_t>(plane, 128);
    vec total{};
    for_vectors(count, [&](int64_t i, auto some, int) { total += load_some(x + i, some); });
    return simd::sum_of(total) / static_cast<float>(count);
}

// Running sums of a unit's statistics, two of each: in lanes, and now and then in double; or of each
// channel of an image `alone`. Without Each there is one statistic.
template <bool Each, class Take>
class Running {
public:
    // take(place, first sum, second sum)
    Running(bool alone, int64_t plane, const Take& take)
        : alone_(alone), plane_(plane), pairs_(take) {}

    // `k`: of the unit's statistics.
    void add(int k, int64_t place, vec first, vec second) {
        if (alone_) return pairs_.add(place, first, second);
        lanes_[k][0] += first, lanes_[k][1] += second;
        places_[k] = place;
        held_[k] += plane_;
        if (held_[k] >= 4096) move(k);
    }
    void flush() {
        for (int k = 0; k < most; ++k) {
            if (held_[k] > 0) move(k);
        }
        pairs_.flush();
    }

private:
    void move(int k) {
        pairs_.add(places_[k], lanes_[k][0], lanes_[k][1]);
        lanes_[k][0] = lanes_[k][1] = vec{};
        held_[k] = 0;
    }

    static constexpr int most = Each ? Norm::most_block : 1;

    bool alone_;
    int64_t plane_;
    Pairs<Take> pairs_;
    vec lanes_[most][2] = {};
    int64_t places_[most] = {}, held_[most] = {};
};

template <bool Each, class Take>
Running<Each, Take> running(bool alone, int64_t plane, const Take& take) {
    return {alone, plane, take};
}

// Means, and 1 / sqrt(variance + epsilon), of the statistics of a unit.
template <bool Each, class T>
void find_moments(const ForwardNorm<T>& f, const Cover& cover) {
    const int64_t plane = f.norm.plane;
    float shift[Norm::most_block];
    double total[Norm::most_block][2] = {};
    for (int k = 0; k < cover.statistics(); ++k) {
        shift[k] = near_mean(f.x.at(cover.first_image, cover.first_channel + k), plane);
    }
    auto sums = running<Each>(false, plane, [&](int64_t k, double sum, double square) {
        total[k][0] += sum;
        total[k][1] += square;
    });
    cover.walk([&](int64_t image, int c) {
        const int k = cover.statistic(c);
        const T* x = f.x.at(image, c);
        const float from = shift[k];
        vec s[4] = {}, q[4] = {};
        for_vectors(plane, [&, x, from](int64_t i, auto some, int turn) {
            if (Each) f.x.ahead(x + i);
            const vec d = only_some(load_some(x + i, some) - from, some);
            s[turn] += d;
            q[turn] += d * d;
        });
        sums.add(k, k, sum4(s), sum4(q));
    });
    sums.flush();
    for (int k = 0; k < cover.statistics(); ++k) {
        const double offset = total[k][0] / cover.count(plane);
        const double variance = total[k][1] / cover.count(plane) - offset * offset;
        const double spread = (variance > 0 ? variance : 0 * variance) + f.norm.epsilon;
        f.mean[cover.first_statistic + k] = static_cast<float>(shift[k] + offset);
        f.scale[cover.first_statistic + k] = static_cast<float>(1 / std::sqrt(spread));
    }
}

template <bool Each, bool Relu, bool Residual, class T>
void normalise(const ForwardNorm<T>& f, const Cover& cover) {
    const Norm& n = f.norm;
    cover.walk([&](int64_t image, int c) {
        const int64_t k = cover.first_statistic + cover.statistic(c);
        const float factor = n.gamma[c] * f.scale[k], constant = n.beta[c] - f.mean[k] * factor;
        const T *x = f.x.at(image, c), *residual = f.residual.at(image, c);
        T* y = f.y.at(image, c);
        for_vectors(n.plane, [=, &f](int64_t i, auto some, int) {
            vec z = load_some(x + i, some) * factor + constant;
            if (Residual) z += load_some(residual + i, some);
            if (Relu) z = z < 0.0f ? vec{} : z;
            if (Each) f.y.template ahead<true>(y + i);
            store_some(y + i, z, some);
        });
        f.y.clear(image, c);
    });
}

template <bool Each, class T>
void normalise_unit(const ForwardNorm<T>& f, const Cover& cover) {
    if (f.residual.buffer != nullptr) {
        (f.norm.relu ? normalise<Each, true, true, T> : normalise<Each, false, true, T>)(f, cover);
    } else {
        (f.norm.relu ? normalise<Each, true, false, T> : normalise<Each, false, false, T>)(f, cover);
    }
}

// y by means and scales that are known.
template <class T>
inline void apply_unit(const ForwardNorm<T>& f, int64_t unit) {
    const Cover cover(f.norm, unit);
    (cover.each ? normalise_unit<true, T> : normalise_unit<false, T>)(f, cover);
}

template <class T>
inline void forward_unit(const ForwardNorm<T>& f, int64_t unit) {
    const Cover cover(f.norm, unit);
    (cover.each ? find_moments<true, T> : find_moments<false, T>)(f, cover);
    apply_unit(f, unit);
}

// What comes from above, which may be in two parts.
template <bool More, class Some>
inline vec above(const float* dy, const float* more, Some some) {
    return More ? load_some(dy, some) + load_some(more, some) : load_some(dy, some);
}

// Before the ReLU, whose output says where it was open.
template <bool Relu, class T, class Some>
inline vec open_gradient(vec d, const T* y, Some some) {
    return Relu ? (load_some(y, some) <= 0.0f ? vec{} : d) : d;
}

template <class T>
struct BackwardNorm {
    Norm norm;
    Lies<T> x, y;
    Lies<float> dy, more;  // more is added to dy
    Lies<T> dx;
    Lies<float> dresidual;
    const float *mean, *scale;
    double* sums;  // two of each (image, channel): of batch norm at the first image
};

// Sums of a unit: of the gradients before the ReLU, and of them times the normalised input, each
// times gamma.
struct GradientSums {
    double level[Norm::most_block] = {}, slope[Norm::most_block] = {};
};

// The gradient before the ReLU, which is dresidual: it is written down where that is wanted.
template <bool Each, bool Relu, bool More, class T>
GradientSums sum_gradients(const BackwardNorm<T>& g, const Cover& cover) {
    const Norm& n = g.norm;
    GradientSums sums;
    cover.walk([&](int64_t image, int c) {
        if (!Each || image == 0) std::fill_n(g.sums + (image * n.channels + c) * 2, 2, 0.0);
    });
    auto sums_of = running<Each>(!Each, n.plane, [&](int64_t place, double level, double slope) {
        const int c = static_cast<int>(place % n.channels), k = cover.statistic(c);
        const double scaled = slope * g.scale[cover.first_statistic + k];
        double* to = g.sums + (Each ? c : place) * 2;
        to[0] += level, to[1] += scaled;
        sums.level[k] += level * n.gamma[c], sums.slope[k] += scaled * n.gamma[c];
    });
    cover.walk([&](int64_t image, int c) {
        const float mean = g.mean[cover.first_statistic + cover.statistic(c)];
        const T *x = g.x.at(image, c), *y = g.y.at(image, c);
        const float *dy = g.dy.at(image, c), *more = g.more.at(image, c);
        float* dresidual = g.dresidual.at(image, c);
        vec s[4] = {}, q[4] = {};
        for_vectors(n.plane, [&, x, y, dy, more, dresidual](int64_t i, auto some, int turn) {
            if (Each) {
                g.x.ahead(x + i), g.dy.ahead(dy + i);
                if (Relu) g.y.ahead(y + i);
            }
            // Zero past the end.
            const vec open = open_gradient<Relu>(above<More>(dy + i, more + i, some), y + i, some);
            if (dresidual != nullptr) store_some(dresidual + i, open, some);
            s[turn] += open;
            q[turn] += open * (load_some(x + i, some) - mean);
        });
        sums_of.add(cover.statistic(c), image * n.channels + c, sum4(s), sum4(q));
        if (dresidual != nullptr) g.dresidual.clear(image, c);
    });
    sums_of.flush();
    return sums;
}

// dx = open * factor - level - (x - mean) * slope
template <bool Each, bool Relu, bool More, class T>
void spread_gradient(const BackwardNorm<T>& g, const Cover& cover, const GradientSums& sums) {
    const Norm& n = g.norm;
    const double count = cover.count(n.plane);
    cover.walk([&](int64_t image, int c) {
        const int k = cover.statistic(c);
        const float mean = g.mean[cover.first_statistic + k];
        const float scale = g.scale[cover.first_statistic + k], factor = n.gamma[c] * scale;
        const auto level = static_cast<float>(sums.level[k] / count * scale);
        const auto slope = static_cast<float>(sums.slope[k] / count * scale * scale);
        const T *x = g.x.at(image, c), *y = g.y.at(image, c);
        const float *dy = g.dy.at(image, c), *more = g.more.at(image, c);
        T* dx = g.dx.at(image, c);
        for_vectors(n.plane, [=, &g](int64_t i, auto some, int) {
            if (Each) g.dx.template ahead<true>(dx + i);
            const vec open = open_gradient<Relu>(above<More>(dy + i, more + i, some), y + i, some);
            const vec centred = load_some(x + i, some) - mean;
            store_some(dx + i, open * factor - (centred * slope + level), some);
        });
        g.dx.clear(image, c);
    });
}

template <bool Each, bool Relu, bool More, class T>
void backward(const BackwardNorm<T>& g, const Cover& cover) {
    const GradientSums sums = sum_gradients<Each, Relu, More>(g, cover);
    if (g.dresidual.buffer == nullptr) return spread_gradient<Each, Relu, More>(g, cover, sums);
    BackwardNorm<T> found = g;
    found.dy = g.dresidual;
    spread_gradient<Each, false, false>(found, cover, sums);
}

template <class T>
using Backward = void (*)(const BackwardNorm<T>&, const Cover&);

template <bool Each, class T>
Backward<T> backward_of(bool relu, bool more) {
    constexpr Backward<T> all[] = {
        backward<Each, false, false, T>, backward<Each, false, true, T>,
        backward<Each, true, false, T>, backward<Each, true, true, T>};
    return all[relu * 2 + more];
}

template <class T>
inline void backward_unit(const BackwardNorm<T>& g, int64_t unit) {
    const Cover cover(g.norm, unit);
    const auto of = cover.each ? backward_of<true, T> : backward_of<false, T>;
    of(g.norm.relu, g.more.buffer != nullptr)(g, cover);
}

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
