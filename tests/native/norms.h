// Normalisation by its definition, in doubles, with what floats may be off by.
#pragma once

#include "checks.h"
#include "norm.h"

namespace selftest {

struct NormCase {
    uint64_t seed;
    int64_t images, plane;
    int channels, groups;
    bool relu;
    std::vector<float> x, dz, gamma, beta, residual;  // residual: empty for none

    int64_t size() const { return images * channels * plane; }
    mest::Norm norm() const {
        return {images, channels, plane, groups, relu, 1e-5f, gamma.data(), beta.data(),
                residual.empty() ? nullptr : residual.data()};
    }
    int64_t statistic(int64_t i) const {  // that element i belongs to
        const int64_t channel = i / plane % channels;
        if (groups == 0) return channel;
        return i / plane / channels * groups + channel / (channels / groups);
    }
    std::string describe() const {
        std::ostringstream text;
        text << "norm " << seed << ": " << images << "x" << channels << "x" << plane << " groups="
             << groups << (relu ? " relu" : "") << (residual.empty() ? "" : " residual");
        return text.str();
    }
};

inline NormCase draw_norm(uint64_t seed) {
    Random random(seed);
    NormCase c{};
    c.seed = seed, c.images = random.among({1, 2, 3, 5, 33}), c.channels = random.from(1, 40);
    c.plane = random.among({1, 2, 7, 15, 16, 17, 49, 64, 121, random.from(1, 200)});
    if (random.from(0, 9) == 0) c.plane = random.from(900, 1600), c.images = 2;
    if (random.from(0, 1) == 0) c.groups = random.from(1, c.channels);
    while (c.groups > 0 && c.channels % c.groups != 0) --c.groups;
    c.relu = random.from(0, 1) == 0;
    c.x = draw_floats(random, c.size(), false), c.dz = draw_floats(random, c.size(), false);
    const float mean = static_cast<float>(random.among({0, 0, 5}));
    for (float& x : c.x) x += mean;
    c.gamma = draw_floats(random, c.channels, false);
    c.beta = draw_floats(random, c.channels, false);
    if (random.from(0, 1) == 0) c.residual = draw_floats(random, c.size(), false);
    return c;
}

// Values and the sizes of what was added up for them.
struct Sized {
    std::vector<double> value, magnitude;
    explicit Sized(int64_t count) : value(count), magnitude(count) {}
    void add(int64_t i, double term) { value[i] += term, magnitude[i] += std::fabs(term); }
};

struct NormExpected {
    std::vector<double> mean, scale;
    Sized z, dx, dgamma, dbeta;
};

// `open`: where the ReLU let the float result pass; near zero doubles may disagree.
inline NormExpected norm_reference(const NormCase& c, const std::vector<float>& z) {
    const int64_t statistics = c.norm().statistics(), size = c.size();
    NormExpected e{std::vector<double>(statistics), std::vector<double>(statistics),
                   Sized(size), Sized(size), Sized(c.channels), Sized(c.channels)};
    const double count = static_cast<double>(size / statistics);
    for (int64_t i = 0; i < size; ++i) e.mean[c.statistic(i)] += c.x[i] / count;
    std::vector<double> variance(statistics);
    for (int64_t i = 0; i < size; ++i) {
        const double d = c.x[i] - e.mean[c.statistic(i)];
        variance[c.statistic(i)] += d * d / count;
    }
    for (int64_t k = 0; k < statistics; ++k) e.scale[k] = 1 / std::sqrt(variance[k] + 1e-5f);
    Sized level(statistics), slope(statistics);
    const auto normal = [&](int64_t i) {
        return (c.x[i] - e.mean[c.statistic(i)]) * e.scale[c.statistic(i)];
    };
    const auto open = [&](int64_t i) { return c.relu && z[i] <= 0 ? 0.0 : double{c.dz[i]}; };
    for (int64_t i = 0; i < size; ++i) {
        const int64_t k = c.statistic(i), channel = i / c.plane % c.channels;
        e.z.add(i, normal(i) * c.gamma[channel]), e.z.add(i, c.beta[channel]);
        e.z.magnitude[i] += std::fabs(e.mean[k]) * e.scale[k] + 1;
        if (!c.residual.empty()) e.z.add(i, c.residual[i]);
        if (c.relu && e.z.value[i] < 0) e.z.value[i] = 0;
        e.dbeta.add(channel, open(i)), e.dgamma.add(channel, open(i) * normal(i));
        e.dgamma.magnitude[channel] += std::fabs(open(i)) * (1 + std::fabs(e.mean[k]) * e.scale[k]);
        level.add(k, open(i) * c.gamma[channel] / count);
        slope.add(k, open(i) * c.gamma[channel] * normal(i) / count);
    }
    for (int64_t i = 0; i < size; ++i) {
        const int64_t k = c.statistic(i), channel = i / c.plane % c.channels;
        e.dx.add(i, e.scale[k] * open(i) * c.gamma[channel]);
        e.dx.add(i, -e.scale[k] * level.value[k]);
        e.dx.add(i, -e.scale[k] * normal(i) * slope.value[k]);
        const double off = 1 + std::fabs(e.mean[k]) * e.scale[k];
        e.dx.magnitude[i] += e.scale[k] * (level.magnitude[k] + slope.magnitude[k]) *
                             (std::fabs(normal(i)) + 1) * off;
    }
    return e;
}

// Sums of floats are emptied into doubles after 1024 or a plane: lanes add 400 numbers at most.
inline void check_sized(const std::vector<float>& got, const Sized& expected,
                        const std::string& what, const NormCase& c) {
    for (size_t i = 0; i < got.size(); ++i) {
        const double unit = std::numeric_limits<float>::epsilon() / 2;
        const double adds = static_cast<double>(std::min<int64_t>(c.plane / 4, 400)) + 300;
        const double most = adds * unit * expected.magnitude[i] + 1e-30;
        if (std::fabs(got[i] - expected.value[i]) <= most) continue;  // false of NaN
        return fail(what + "[" + std::to_string(i) + "] = " + std::to_string(got[i]) +
                        ", must be " + std::to_string(expected.value[i]), c.describe());
    }
}

}  // namespace selftest
