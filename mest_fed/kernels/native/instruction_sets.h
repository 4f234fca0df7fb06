// Which of the instruction sets of cmake/variants.cmake this processor runs.
#pragma once

#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mest {

#if defined(__x86_64__)
inline bool runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

inline bool runs(const std::string& set) {
    if (set == "avx512bf16") return runs_avx512() && __builtin_cpu_supports("avx512bf16");
    if (set == "avx512") return runs_avx512();
    if (set == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return set == "plain";
}
#else
inline bool runs(const std::string& set) {
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
    if (set == "neonbf16") return (getauxval(AT_HWCAP2) & bf16) != 0;
#endif
    return set == "plain";
}
#endif

}  // namespace mest
