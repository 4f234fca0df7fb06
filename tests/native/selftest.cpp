// Stand-in: the native core, without Python.
#include <cstdio>
#include <vector>

#include "kernels.h"

int main() {
  const std::vector<float> values(10, 0.5f);
  const bool right = mest::sum(values.data(), values.size()) == 5.0f && mest::thread_count() > 0;
  std::printf("%s: %s\n", mest::variant_name(), right ? "right" : "wrong");
  return right ? 0 : 1;
}
