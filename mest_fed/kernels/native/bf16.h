// Numbers of bfloat16: the upper half of a float's bits. They are stored so and computed as floats.
#pragma once

#include <cstdint>

namespace mest {

struct bf16 {
    uint16_t bits;
};

}  // namespace mest
