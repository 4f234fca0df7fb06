// Inner loops of weighted sums. Products and sums are loops of their own, so that no compiler makes
// one operation, which rounds once, of the two.
#pragma once

#include <cstdint>

namespace mest::MEST_VARIANT {
namespace {

void weigh(const float* __restrict x, double weight, int64_t size, double* __restrict to) {
    for (int64_t i = 0; i < size; ++i) to[i] = weight * static_cast<double>(x[i]);
}

void add(const double* __restrict x, int64_t size, double* __restrict to) {
    for (int64_t i = 0; i < size; ++i) to[i] += x[i];
}

}  // namespace
}  // namespace mest::MEST_VARIANT
