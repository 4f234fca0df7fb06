// Counts failures and says where they are; the program goes on to the next case.
#pragma once

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "reference.h"

namespace selftest {

inline int failures = 0;

inline void fail(const std::string& what, const std::string& where) {
    if (++failures <= 20) std::printf("FAILED %s\n  %s\n", what.c_str(), where.c_str());
}

inline void check(bool right, const std::string& what, const std::string& where = "") {
    if (!right) fail(what, where);
}

template <class Error, class Work>
void check_throws(const std::string& what, const Work& work) {
    try {
        work();
    } catch (const Error&) {
        return;
    } catch (const std::exception& other) {
        return fail(what + " throws another error", other.what());
    }
    fail(what + " throws nothing", "");
}

inline void check_near(const std::vector<float>& got, const std::vector<Sum>& expected, bool whole,
                       const std::string& product, const Case& c) {
    for (size_t i = 0; i < expected.size(); ++i) {
        const double off = std::fabs(got[i] - expected[i].value);
        if (off <= (whole ? 0 : expected[i].tolerance())) continue;  // false of NaN
        return fail(product + "[" + std::to_string(i) + "] = " + std::to_string(got[i]) +
                        ", must be " + std::to_string(expected[i].value),
                    describe(c));
    }
}

inline void check_same_bits(const std::vector<float>& a, const std::vector<float>& b,
                            const std::string& what, const Case& c) {
    if (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return;
    fail(what + ": other bits", describe(c));
}

}  // namespace selftest
