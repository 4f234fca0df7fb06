// Chooses the instruction set once, at the first call.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "variant.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mest {

namespace {

#if defined(__x86_64__)
bool runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

bool runs(const std::string& set) {
    if (set == "avx512bf16") return runs_avx512() && __builtin_cpu_supports("avx512bf16");
    if (set == "avx512") return runs_avx512();
    if (set == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return set == "plain";
}
#else
bool runs(const std::string& set) {
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
    if (set == "neonbf16") return (getauxval(AT_HWCAP2) & bf16) != 0;
#endif
    return set == "plain";
}
#endif

}  // namespace

namespace variants {

extern const Variant MEST_VARIANTS;  // declares each, the best first

static const Variant& choose() {
    const char* asked = std::getenv("MEST_FED_KERNELS");
    const std::string name = asked == nullptr ? "" : asked;
    static const Variant all[] = {MEST_VARIANTS};
    for (const Variant& each : all) {
        if ((name.empty() || name == each.name) && runs(each.name)) return each;
    }
    throw std::invalid_argument("MEST_FED_KERNELS = '" + name +
                                "' is not among the kernels of this machine");
}

}  // namespace variants

const Variant& variant() {
    static const Variant& chosen = variants::choose();
    return chosen;
}

}  // namespace mest
