// Stand-in: compiled once per instruction set, each in a namespace of its own.
#include <cstddef>

namespace mest::MEST_VARIANT {

float sum(const float* values, std::size_t n) {
  float total = 0.0f;
  for (std::size_t i = 0; i < n; ++i) total += values[i];
  return total;
}

}  // namespace mest::MEST_VARIANT
