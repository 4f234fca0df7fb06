// Functions of a number in plain arithmetic without branches, so that a loop over them becomes one of
// vectors. Coefficients: Remez fits of our own. Errors are the largest found against double.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace mest::runtime {

// 2**power for powers in [-126, 127], given as the bits of a whole number.
inline float power_of_two(uint32_t power) {
    const uint32_t bits = (power + 127) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// e**x: within 1e-7 of it, relative, where that is a normal number; below, as subnormal numbers go.
// Infinity above 88.73, zero below -104; a NaN stays one.
inline float exp_of(float x) {
    x = x > 89 ? 89 : x < -104 ? -104 : x;
    // x = n ln 2 + r: the sum with 1.5 * 2**23 has n in its last bits.
    constexpr float round = 12582912;
    const float sum = x * 1.44269504f + round;
    const float n = sum - round;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float y = 0.001381454f;
    for (float c : {0.008368745f, 0.04166839f, 0.16666521f, 0.49999994f, 1.0f, 1.0f}) y = y * r + c;
    uint32_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    const uint32_t whole = bits - 0x4B400000u;  // of `round`
    // In two halves, since 2**n itself may be no normal number.
    const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
    return y * power_of_two(half) * power_of_two(whole - half);
}

inline float sigmoid_of(float x) { return 1 / (1 + exp_of(-x)); }

// Near zero by a polynomial (Cephes, Moshier 1992), where the other form would lose digits.
inline float tanh_of(float x) {
    const float square = x * x;
    float p = -5.70498872745e-3f;
    for (float c : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) {
        p = p * square + c;
    }
    const float near = x + x * square * p, far = 1 - 2 / (exp_of(2 * x) + 1);
    return square < 0.390625f ? near : far;
}

// A number's share of the standard normal distribution: what lies below it.
struct Normal {
    float below, density;
};

// Below: within 2.5e-7, and within 1e-6 relative down to -5. The tail is the density times a polynomial
// of 1 / (1 + 0.4 z) (the form of Hastings 1955).
inline Normal normal_of(float x) {
    const float z = (x < 0 ? -x : x) * 0.70710678f;
    const float exponential = exp_of(-0.5f * x * x);
    const float t = 1 / (1 + 0.4f * z);
    float tail = 0.042118486f;
    for (float c : {-0.1445513f, 0.09278265f, 0.07784519f, 0.08678541f, 0.19038366f, 0.20266102f,
                    0.22633432f, 0.22564062f, 0.0f}) {
        tail = tail * t + c;
    }
    tail *= 0.5f * exponential;
    return {x < 0 ? tail : 1 - tail, 0.39894228f * exponential};
}

}  // namespace mest::runtime
