// Elementary functions of the runtime (functions.h): errors against double, as that file states them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "checks.h"
#include "functions.h"

namespace selftest {

// The largest of error(x) for numbers from `first` to `last`, both over 10000.
template <class Error>
double largest_error(int first, int last, const Error& error) {
    double largest = 0;
    for (int i = first; i <= last; ++i) {
        largest = std::max(largest, error(static_cast<float>(i) * 1e-4f));
    }
    return largest;
}

inline void check_error(double error, double bound, const std::string& what) {
    check(error < bound, what + ", by " + std::to_string(error * 1e7) + "e-7");
}

inline void test_functions() {
    using mest::runtime::exp_of;
    using mest::runtime::normal_of;
    using mest::runtime::tanh_of;
    const auto below = [](float x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
    check_error(largest_error(-870000, 887000,
                              [](float x) { return std::abs(exp_of(x) / std::exp(double{x}) - 1); }),
                1e-7, "exp_of");
    check_error(largest_error(-120000, 120000,
                              [&](float x) { return std::abs(normal_of(x).below - below(x)); }),
                2.5e-7, "normal_of");
    check_error(largest_error(-49999, 120000,
                              [&](float x) { return std::abs(normal_of(x).below / below(x) - 1); }),
                1e-6, "normal_of's tail");
    check_error(largest_error(-100000, 100000,
                              [](float x) {
                                  const double exact = std::tanh(double{x});
                                  return x == 0 ? 0 : std::abs(tanh_of(x) / exact - 1);
                              }),
                3e-7, "tanh_of");
    const float infinity = INFINITY;
    check(tanh_of(infinity) == 1 && tanh_of(-infinity) == -1 && tanh_of(0) == 0, "tanh's ends");
    check(exp_of(0) == 1 && exp_of(infinity) == infinity && exp_of(89) == infinity, "exp upwards");
    check(exp_of(-infinity) == 0 && exp_of(-105) == 0 && exp_of(-100) > 0, "exp downwards");
    check(std::isnan(exp_of(NAN)) && std::isnan(normal_of(NAN).below), "NaNs stay");
    check(normal_of(infinity).below == 1 && normal_of(-infinity).below == 0, "all and none of it");
}

}  // namespace selftest
