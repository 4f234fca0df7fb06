// Weighted sums of arrays in double precision, in the order of a fixed binary tree: the bits are the
// same wherever they are taken, and those of products and sums that are rounded one by one.
#pragma once

#include <cstdint>

namespace mest {

// sum[i] = sum over k of weights[k] * arrays[k][i]. The tree over the arrays splits at the largest
// power of two below their number.
void weighted_sum(const float* const* arrays, const double* weights, int64_t count, int64_t size,
                  double* sum);

}  // namespace mest
