// Shares pooling among threads: a run of planes is a unit.
#include "pool.h"

#include <algorithm>

#include "threads.h"
#include "variant.h"

namespace mest {
namespace {

template <class Work>
void for_planes(const Pool& pool, int threads, const Work& work) {
    constexpr int64_t worth = 16384;  // floats that are worth a thread's while
    const int64_t run = std::max<int64_t>(1, worth / pool.size());
    parallel_for((pool.planes + run - 1) / run, threads, [&](int64_t unit) {
        const int64_t end = std::min(pool.planes, (unit + 1) * run);
        for (int64_t plane = unit * run; plane < end; ++plane) work(plane);
    });
}

}  // namespace

void relu_pool_forward(const Pool& pool, const float* x, float* z, uint8_t* where, int threads) {
    const Variant& v = variant();
    for_planes(pool, threads, [&](int64_t plane) {
        uint8_t* codes = where == nullptr ? nullptr : where + plane * pool.out_size();
        v.pool_forward(pool, x + plane * pool.size(), z + plane * pool.out_size(), codes);
    });
}

void relu_pool_backward(const Pool& pool, const float* dz, const uint8_t* where, float* dx,
                        int threads) {
    const Variant& v = variant();
    for_planes(pool, threads, [&](int64_t plane) {
        const int64_t out = plane * pool.out_size();
        v.pool_backward(pool, dz + out, where + out, dx + plane * pool.size());
    });
}

}  // namespace mest
