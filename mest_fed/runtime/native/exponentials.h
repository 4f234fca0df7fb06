// Exponential functions that the compiler can compute by vectors. Errors are some units in the last
// place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mest::runtime::MEST_VARIANT {

// exp(x) = 2^n exp(r), |r| <= log(2) / 2, with the polynomial of Cephes (Moshier 1992). Below -87 and
// above 88 it is that of the bound.
inline float exponential(float x) {
    constexpr float whole = 12582912;  // 1.5 * 2^23: what is added to it is rounded
    x = x < -87 ? -87.0f : x;
    x = x > 88 ? 88.0f : x;
    const float shifted = x * 1.44269504f + whole, n = shifted - whole;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                       5.0000001201e-1f}) {
        p = p * r + next;
    }
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000u + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1) * power;
}

inline float logistic(float x) { return 1 / (1 + exponential(-x)); }

// Near zero by a polynomial of Cephes, where 1 - 2 / (exp(2 x) + 1) would lose digits.
inline float hyperbolic_tangent(float x) {
    const float square = x * x;
    float p = -5.70498872745e-3f;
    for (float next : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                       -3.33332819422e-1f}) {
        p = p * square + next;
    }
    const float near = x + x * square * p, far = 1 - 2 / (exponential(2 * x) + 1);
    return std::fabs(x) < 0.625f ? near : far;
}

}  // namespace mest::runtime::MEST_VARIANT
