// Chooses the instruction set once, at the first call.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "variant.h"

namespace mest {

namespace plain {
extern const Variant table;
}
#ifdef MEST_HAVE_AVX2
namespace avx2 {
extern const Variant table;
}
#endif
#ifdef MEST_HAVE_AVX512
namespace avx512 {
extern const Variant table;
}
#endif

namespace {

const Variant& choose() {
    const char* asked = std::getenv("MEST_FED_KERNELS");
    const auto may = [&](const Variant& k) {
        return asked == nullptr || *asked == '\0' || std::strcmp(asked, k.name) == 0;
    };
#ifdef MEST_HAVE_AVX512
    if (may(avx512::table) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        return avx512::table;
    }
#endif
#ifdef MEST_HAVE_AVX2
    if (may(avx2::table) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return avx2::table;
    }
#endif
    if (may(plain::table)) return plain::table;
    throw std::invalid_argument(std::string("MEST_FED_KERNELS = '") + asked +
                                "' is not among the kernels of this machine");
}

}  // namespace

const Variant& variant() {
    static const Variant& chosen = choose();
    return chosen;
}

}  // namespace mest
