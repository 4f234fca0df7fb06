// Stand-in: chooses a variant on the machine.
#include "kernels.h"

namespace mest {

using Sum = float (*)(const float*, std::size_t);

namespace plain { float sum(const float*, std::size_t); }
#ifdef MEST_HAVE_AVX2
namespace avx2 { float sum(const float*, std::size_t); }
#endif
#ifdef MEST_HAVE_AVX512
namespace avx512 { float sum(const float*, std::size_t); }
#endif

namespace {
struct Choice {
  const char* name;
  Sum sum;
};

Choice choose() {
#ifdef MEST_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return {"avx512", avx512::sum};
#endif
#ifdef MEST_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", avx2::sum};
#endif
  return {"plain", plain::sum};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}
}  // namespace

const char* variant_name() { return choice().name; }
float sum(const float* values, std::size_t n) { return choice().sum(values, n); }

}  // namespace mest
