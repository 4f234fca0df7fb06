// Pooling by its definition, window by window, as torch takes it.
#pragma once

#include <cmath>

#include "checks.h"
#include "pool.h"

namespace selftest {

struct PoolCase {
    uint64_t seed;
    mest::Pool pool;
    std::vector<float> x, dz;

    std::string describe() const {
        std::ostringstream text;
        text << "pool " << seed << ": " << pool.planes << "x" << pool.height << "x" << pool.width;
        return text.str();
    }
};

inline PoolCase draw_pool(uint64_t seed) {
    Random random(seed);
    PoolCase c{};
    c.seed = seed;
    c.pool = {random.among({1, 2, 3, 70}), random.from(2, 40), random.from(2, 70)};
    const bool whole = random.from(0, 1) == 0;  // small integers: many ties
    c.x = draw_floats(random, c.pool.planes * c.pool.size(), whole);
    c.dz = draw_floats(random, c.pool.planes * c.pool.out_size(), false);
    if (random.from(0, 3) == 0) {
        for (float& x : c.x) x = random.from(0, 9) == 0 ? std::nanf("") : x;
    }
    return c;
}

struct Pooled {
    std::vector<float> z, dx;
};

inline Pooled pool_reference(const PoolCase& c) {
    const mest::Pool& p = c.pool;
    Pooled e{std::vector<float>(c.dz.size()), std::vector<float>(c.x.size())};
    for (int64_t window = 0; window < static_cast<int64_t>(c.dz.size()); ++window) {
        const int64_t plane = window / p.out_size(), rest = window % p.out_size();
        const int64_t row = rest / p.out_width(), column = rest % p.out_width();
        const int64_t corner = plane * p.size() + 2 * row * p.width + 2 * column;
        int64_t best = corner;
        for (int64_t at : {corner + 1, corner + p.width, corner + p.width + 1}) {
            if (c.x[at] > c.x[best] || std::isnan(c.x[at])) best = at;
        }
        const bool open = !(c.x[best] <= 0);
        e.z[window] = open ? c.x[best] : 0.0f;
        if (open) e.dx[best] = c.dz[window];
    }
    return e;
}

}  // namespace selftest
