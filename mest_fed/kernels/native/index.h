// From slots to the lists that the kernels walk. Built anew in each call: a few cycles a granule. What
// is built `into` a list takes no memory where the list has room.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "problem.h"

namespace mest {

// Rows of strips: entry e of strip s, first[s] <= e < first[s + 1], stands at columns[e] and has
// the values [e * rows, (e + 1) * rows).
struct StripIndex {
    int rows;
    std::vector<int32_t> first;
    std::vector<int32_t> columns;
};

// Throws std::invalid_argument for a slot that is out of range or out of order.
void strips_into(StripIndex& index, const Granules& granules, const Convolution& problem);
StripIndex strips_of(const Granules& granules, const Convolution& problem);

// The same entries for the way back, where a stride of 1 makes that a convolution too: strips of
// one input channel each, columns of the kernel turned by half a circle. Of single rows only.
// values[from[e]] is the value of entry e.
struct TransposedIndex {
    StripIndex strips;
    std::vector<int32_t> from;
};

void transpose_into(TransposedIndex& index, const StripIndex& strips, const Convolution& problem);

}  // namespace mest
