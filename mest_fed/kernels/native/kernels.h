// Stand-in: what the native core offers.
#pragma once
#include <cstddef>

namespace mest {
// The name of the variant that runs on this machine.
const char* variant_name();
// Sum of n floats, by the chosen variant.
float sum(const float* values, std::size_t n);
// How many threads the machine runs at once; at least 1.
int thread_count();
}  // namespace mest
