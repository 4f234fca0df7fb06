// The loops of normalisation over runs of planes.
#pragma once

#include <cstring>

#include "norm.h"
#include "simd.h"

namespace mest::MEST_VARIANT {
namespace {

// The first `count` floats, zero in the lanes after them.
inline vec load_some(const float* p, int64_t count) {
    if (count == V) return load(p);
    float lanes[V] = {};
    std::memcpy(lanes, p, count * sizeof(float));
    return load(lanes);
}

inline void store_some(float* p, vec v, int64_t count) {
    if (count == V) return store(p, v);
    float lanes[V];
    store(lanes, v);
    std::memcpy(p, lanes, count * sizeof(float));
}

inline vec zero_after(vec v, int64_t count) {
    if (count == V) return v;
    for (int i = static_cast<int>(count); i < V; ++i) v[i] = 0.0f;
    return v;
}

// work(offset, count) over a plane: whole vectors, then what is left.
template <class Work>
inline void for_vectors(int64_t plane, const Work& work) {
    int64_t i = 0;
    for (; i + V <= plane; i += V) work(i, V);
    if (i < plane) work(i, plane - i);
}

// Asks for what the next image's plane holds at the same place: a channel's planes lie too far
// apart for the processor to foresee.
template <bool Write = false>
inline void ahead(const Norm& n, const float* p) {
    __builtin_prefetch(p + n.channels * n.plane, Write, 3);
}

// The planes of one unit, and which statistic each channel's planes belong to.
struct Planes {
    int64_t first_image, images;
    int first_channel, channels;
    int64_t first_statistic;
    bool each;  // a statistic for each channel, else one for all

    int statistics() const { return each ? channels : 1; }
    int statistic(int channel) const { return each ? channel - first_channel : 0; }
    double count(int64_t plane) const {
        return static_cast<double>(images * (each ? 1 : channels) * plane);
    }
};

inline Planes planes_of(const Norm& n, int64_t unit) {
    if (n.groups == 0) {
        const int first = static_cast<int>(unit) * n.block();
        const int left = n.channels - first;
        return {0, n.images, first, left < n.block() ? left : n.block(), first, true};
    }
    const int size = n.channels / n.groups;
    return {unit / n.groups, 1, static_cast<int>(unit % n.groups) * size, size, unit, false};
}

// work(first float of the plane, channel)
template <class Work>
inline void for_planes(const Norm& n, const Planes& p, const Work& work) {
    for (int64_t image = p.first_image; image < p.first_image + p.images; ++image) {
        for (int c = p.first_channel; c < p.first_channel + p.channels; ++c) {
            work((image * n.channels + c) * n.plane, c);
        }
    }
}

// Two running sums: in lanes, and now and then in double.
struct Sums {
    vec lanes[2] = {};
    double total[2] = {};
    int64_t waiting = 0;

    void add(vec a, vec b, int64_t floats) {
        lanes[0] += a, lanes[1] += b;
        waiting += floats;
        if (waiting >= 1024) flush();
    }
    void flush() {
        for (int i = 0; i < 2; ++i) total[i] += sum_of(lanes[i]), lanes[i] = vec{};
        waiting = 0;
    }
};

// Sums are taken of differences from a first plane's mean: no cancellation where the mean is large
// beside the deviation (Chan, Golub and LeVeque 1983).
void norm_forward(const Norm& n, const float* x, float* z, float* mean, float* scale,
                  int64_t unit) {
    const Planes planes = planes_of(n, unit);
    float shift[Norm::most_block];
    Sums sums[Norm::most_block];
    for (int k = 0; k < planes.statistics(); ++k) {
        const int64_t first = planes.first_image * n.channels + planes.first_channel + k;
        vec total{};
        for_vectors(n.plane, [&](int64_t i, int64_t some) {
            total += load_some(x + first * n.plane + i, some);
        });
        shift[k] = sum_of(total) / static_cast<float>(n.plane);
    }
    for_planes(n, planes, [&](int64_t at, int c) {
        const int k = planes.statistic(c);
        vec s{}, q{};
        for_vectors(n.plane, [&](int64_t i, int64_t some) {
            ahead(n, x + at + i);
            const vec d = zero_after(load_some(x + at + i, some) - shift[k], some);
            s += d;
            q += d * d;
        });
        sums[k].add(s, q, n.plane);
    });
    for (int k = 0; k < planes.statistics(); ++k) {
        sums[k].flush();
        const double offset = sums[k].total[0] / planes.count(n.plane);
        const double variance = sums[k].total[1] / planes.count(n.plane) - offset * offset;
        const double spread = (variance > 0 ? variance : 0 * variance) + n.epsilon;
        mean[planes.first_statistic + k] = static_cast<float>(shift[k] + offset);
        scale[planes.first_statistic + k] = static_cast<float>(1.0 / __builtin_sqrt(spread));
    }
    for_planes(n, planes, [&](int64_t at, int c) {
        const int64_t k = planes.first_statistic + planes.statistic(c);
        const float factor = n.gamma[c] * scale[k], constant = n.beta[c] - mean[k] * factor;
        for_vectors(n.plane, [&](int64_t i, int64_t some) {
            ahead<true>(n, z + at + i);
            if (n.residual != nullptr) ahead(n, n.residual + at + i);
            vec y = load_some(x + at + i, some) * factor + constant;
            if (n.residual != nullptr) y += load_some(n.residual + at + i, some);
            if (n.relu) y = y < 0.0f ? vec{} : y;
            store_some(z + at + i, y, some);
        });
    });
}

// The gradient before the ReLU.
inline vec open_gradient(const Norm& n, const NormGradient& g, int64_t at, int64_t some,
                         float factor, float constant) {
    const vec dz = load_some(g.dz + at, some);
    if (!n.relu) return dz;
    const vec y = n.residual == nullptr ? load_some(g.x + at, some) * factor + constant
                                        : load_some(g.z + at, some);
    return y <= 0.0f ? vec{} : dz;
}

// channel_sums, two of each (image, channel): of the gradients, and of gradient times (x - mean)
// / deviation; batch norm's stand at the first image.
void norm_backward(const Norm& n, const NormGradient& g, float* dx, float* dresidual,
                   double* channel_sums, int64_t unit) {
    const Planes planes = planes_of(n, unit);
    Sums sums[Norm::most_block];
    double all[Norm::most_block] = {}, along[Norm::most_block] = {};
    const auto close = [&](Sums& sum, int64_t at, int c) {
        sum.flush();
        double* to = channel_sums + at / n.plane * 2;
        const int k = planes.statistic(c);
        to[0] = sum.total[0];
        to[1] = sum.total[1] * g.scale[planes.first_statistic + k];
        all[k] += to[0] * n.gamma[c];
        along[k] += to[1] * n.gamma[c];
        sum = Sums{};
    };
    for_planes(n, planes, [&](int64_t at, int c) {
        const int64_t k = planes.first_statistic + planes.statistic(c);
        const float mean = g.mean[k], factor = n.gamma[c] * g.scale[k];
        const float constant = n.beta[c] - mean * factor;
        vec s{}, q{};
        for_vectors(n.plane, [&](int64_t i, int64_t some) {
            ahead(n, g.x + at + i);
            ahead(n, g.dz + at + i);
            if (n.residual != nullptr) ahead(n, g.z + at + i);
            const vec open = zero_after(open_gradient(n, g, at + i, some, factor, constant), some);
            s += open;
            q += open * (load_some(g.x + at + i, some) - mean);
        });
        Sums& sum = sums[planes.statistic(c)];
        sum.add(s, q, n.plane);
        if (!planes.each) close(sum, at, c);
    });
    float level[Norm::most_block], slope[Norm::most_block];
    for (int k = 0; k < planes.statistics(); ++k) {
        const int c = planes.first_channel + k;
        if (planes.each) close(sums[k], c * n.plane, c);
        const double scale = g.scale[planes.first_statistic + k];
        level[k] = static_cast<float>(all[k] / planes.count(n.plane) * scale);
        slope[k] = static_cast<float>(along[k] / planes.count(n.plane) * scale * scale);
    }
    for_planes(n, planes, [&](int64_t at, int c) {
        const int within = planes.statistic(c);
        const int64_t k = planes.first_statistic + within;
        const float mean = g.mean[k], factor = n.gamma[c] * g.scale[k];
        const float constant = n.beta[c] - mean * factor;
        for_vectors(n.plane, [&](int64_t i, int64_t some) {
            ahead<true>(n, dx + at + i);
            if (dresidual != nullptr) ahead<true>(n, dresidual + at + i);
            const vec open = open_gradient(n, g, at + i, some, factor, constant);
            const vec centred = load_some(g.x + at + i, some) - mean;
            const vec gradient = open * factor - (level[within] + centred * slope[within]);
            store_some(dx + at + i, gradient, some);
            if (dresidual != nullptr) store_some(dresidual + at + i, open, some);
        });
    });
}

}  // namespace
}  // namespace mest::MEST_VARIANT
