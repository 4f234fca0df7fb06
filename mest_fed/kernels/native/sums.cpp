// Takes a tile of all arrays at a time: partial sums stay in the first cache.
#include "sums.h"

#include <algorithm>
#include <vector>

#include "variant.h"

namespace mest {

namespace {

constexpr int64_t tile = 512;

// The tree over `count` arrays; uses one tile of `spare` for each of its levels.
void tree(const Variant& v, const float* const* arrays, const double* weights, int64_t count,
          int64_t from, int64_t size, double* sum, double* spare) {
    if (count == 1) {
        v.weigh(arrays[0] + from, weights[0], size, sum);
        return;
    }
    int64_t left = 1;
    while (2 * left < count) left *= 2;
    tree(v, arrays, weights, left, from, size, sum, spare + tile);
    tree(v, arrays + left, weights + left, count - left, from, size, spare, spare + tile);
    v.add(spare, size, sum);
}

}  // namespace

void weighted_sum(const float* const* arrays, const double* weights, int64_t count, int64_t size,
                  double* sum) {
    const Variant& v = variant();
    int64_t levels = 0;
    while ((int64_t{1} << levels) < count) ++levels;
    std::vector<double> spare((levels + 1) * tile);
    for (int64_t from = 0; from < size; from += tile) {
        tree(v, arrays, weights, count, from, std::min(tile, size - from), sum + from,
             spare.data());
    }
}

}  // namespace mest
