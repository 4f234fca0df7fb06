// The Python face: addresses and sizes, checked by the callers (native_*.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <vector>

#include "compact.h"
#include "convolve.h"
#include "norm.h"
#include "pool.h"
#include "sums.h"
#include "threads.h"
#include "variant.h"

namespace nb = nanobind;

namespace {

using Numbers = std::array<int64_t, 15>;

mest::Convolution convolution(const Numbers& n) {
    for (size_t i = 0; i < n.size(); ++i) {
        const bool may_be_zero = i == 11 || i == 12;  // padding
        if (n[i] < (may_be_zero ? 0 : 1) || n[i] > std::numeric_limits<int32_t>::max() / 4) {
            throw std::invalid_argument("convolution sizes out of range");
        }
    }
    const auto at = [&](int i) { return static_cast<int>(n[i]); };
    return {n[0],  at(1), at(2), at(3),  at(4),  at(5),  at(6), at(7),
            at(8), at(9), at(10), at(11), at(12), at(13), at(14)};
}

// slots, active granules, rows of a strip, cells, variants, cells of a variant
using Weight = std::array<int64_t, 6>;

mest::StripIndex index_of(const Weight& w, const mest::Convolution& problem) {
    for (int i : {2, 4, 5}) {
        if (w[i] < 1 || w[i] > std::numeric_limits<int32_t>::max()) {
            throw std::invalid_argument("rows or cells out of range");
        }
    }
    const mest::Granules granules{reinterpret_cast<const int32_t*>(w[0]), w[1],
                                  static_cast<int>(w[2]), reinterpret_cast<const int32_t*>(w[3]),
                                  static_cast<int>(w[4]), static_cast<int>(w[5])};
    return mest::strips_of(granules, problem);
}

mest::Call call(int plane, int threads) {
    return {plane == 0 ? mest::Plane::padded : mest::Plane::shifted, threads < 1 ? 1 : threads};
}

const float* in(int64_t address) { return reinterpret_cast<const float*>(address); }
float* out(int64_t address) { return reinterpret_cast<float*>(address); }

void forward(const Numbers& numbers, const Weight& weight, int64_t values, int64_t x, int64_t bias,
             int64_t y, int plane, int threads) {
    const mest::Convolution p = convolution(numbers);
    mest::forward(p, index_of(weight, p), in(values), in(x), in(bias), out(y),
                  call(plane, threads));
}

void backward_input(const Numbers& numbers, const Weight& weight, int64_t values, int64_t dy,
                    int64_t dx, int plane, int threads) {
    const mest::Convolution p = convolution(numbers);
    mest::backward_input(p, index_of(weight, p), in(values), in(dy), out(dx),
                         call(plane, threads));
}

void backward_values(const Numbers& numbers, const Weight& weight, int64_t x, int64_t dy,
                     int64_t gradient, int plane, int threads) {
    const mest::Convolution p = convolution(numbers);
    mest::backward_values(p, index_of(weight, p), in(x), in(dy), out(gradient),
                          call(plane, threads));
}

// images, channels, plane, groups, relu
using NormSizes = std::array<int64_t, 5>;
using Addresses = std::array<int64_t, 8>;

mest::Norm norm(const NormSizes& n, float epsilon, int64_t gamma, int64_t beta, int64_t residual) {
    return {n[0], static_cast<int>(n[1]), n[2], static_cast<int>(n[3]), n[4] != 0, epsilon,
            in(gamma), in(beta), in(residual)};
}

// gamma, beta, residual, x, z, mean, scale
void norm_forward(const NormSizes& sizes, float epsilon, const Addresses& a, int threads) {
    mest::norm_forward(norm(sizes, epsilon, a[0], a[1], a[2]), in(a[3]), out(a[4]), out(a[5]),
                       out(a[6]), threads);
}

// the same, then: dz; and dx, dresidual, dgamma, dbeta
void norm_backward(const NormSizes& sizes, const Addresses& a, const std::array<int64_t, 4>& to,
                   int threads) {
    const mest::Norm given = norm(sizes, 0.0f, a[0], a[1], a[2]);
    std::vector<double> sums(given.sums());
    mest::norm_backward(given, {in(a[7]), in(a[3]), in(a[4]), in(a[5]), in(a[6])}, out(to[0]),
                        out(to[1]), out(to[2]), out(to[3]), sums.data(), threads);
}

// values, x, dy; dx, gradient
void backward(const Numbers& numbers, const Weight& weight, const std::array<int64_t, 3>& given,
              const std::array<int64_t, 2>& to, int plane, int threads) {
    const mest::Convolution p = convolution(numbers);
    mest::backward(p, index_of(weight, p), in(given[0]), in(given[1]), in(given[2]), out(to[0]),
                   out(to[1]), call(plane, threads));
}

const uint8_t* bytes_in(int64_t address) { return reinterpret_cast<const uint8_t*>(address); }
uint8_t* bytes_out(int64_t address) { return reinterpret_cast<uint8_t*>(address); }

// planes, height, width
using PoolSizes = std::array<int64_t, 3>;

void relu_pool_forward(const PoolSizes& n, int64_t x, int64_t z, int64_t where, int threads) {
    mest::relu_pool_forward({n[0], n[1], n[2]}, in(x), out(z), bytes_out(where), threads);
}

void relu_pool_backward(const PoolSizes& n, int64_t dz, int64_t where, int64_t dx, int threads) {
    mest::relu_pool_backward({n[0], n[1], n[2]}, in(dz), bytes_in(where), out(dx), threads);
}

// planes, plane
using PlaneSizes = std::array<int64_t, 2>;

void quantise(const PlaneSizes& n, int64_t x, int64_t codes, int64_t levels, int threads) {
    mest::quantise({n[0], n[1]}, in(x), bytes_out(codes), out(levels), threads);
}

void dequantise(const PlaneSizes& n, int64_t codes, int64_t levels, int64_t x, int threads) {
    mest::dequantise({n[0], n[1]}, bytes_in(codes), in(levels), out(x), threads);
}

// images, elements
using ImageSizes = std::array<int64_t, 2>;

void pack_bits(const ImageSizes& n, int64_t x, int64_t bits, int64_t starts, int threads) {
    mest::pack_bits({n[0], n[1]}, in(x), bytes_out(bits), reinterpret_cast<int64_t*>(starts),
                       threads);
}

// x, bits, starts
void pack_values(const ImageSizes& n, const std::array<int64_t, 3>& given, int64_t values,
                    int threads) {
    mest::pack_values({n[0], n[1]}, in(given[0]), bytes_in(given[1]),
                         reinterpret_cast<const int64_t*>(given[2]), out(values), threads);
}

// bits, values, starts, number of values; the first image and the one after the last
void unpack_nonzeros(const ImageSizes& n, const std::array<int64_t, 4>& from,
            const std::array<int64_t, 2>& images, int64_t x, int threads) {
    mest::unpack_nonzeros({n[0], n[1]},
                 {bytes_in(from[0]), in(from[1]), reinterpret_cast<const int64_t*>(from[2]),
                  from[3]},
                 images[0], images[1], out(x), threads);
}

// arrays and weights: one of each
void weighted_sum(const std::vector<int64_t>& arrays, const std::vector<double>& weights,
                  int64_t size, int64_t sum) {
    std::vector<const float*> given(arrays.size());
    std::transform(arrays.begin(), arrays.end(), given.begin(), in);
    mest::weighted_sum(given.data(), weights.data(), static_cast<int64_t>(given.size()), size,
                       reinterpret_cast<double*>(sum));
}

}  // namespace

NB_MODULE(_native, m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    m.def("variant", [] { return mest::variant().name; });
    m.def("scratch_bytes", &mest::scratch_bytes);
    m.def("thread_scratch_bytes", &mest::thread_scratch_bytes);
    m.def("release_thread_scratch", &mest::release_thread_scratch);
    m.def("forward", &forward, unlocked);
    m.def("backward_input", &backward_input, unlocked);
    m.def("backward_values", &backward_values, unlocked);
    m.def("backward", &backward, unlocked);
    m.def("norm_forward", &norm_forward, unlocked);
    m.def("norm_backward", &norm_backward, unlocked);
    m.def("relu_pool_forward", &relu_pool_forward, unlocked);
    m.def("relu_pool_backward", &relu_pool_backward, unlocked);
    m.def("quantise", &quantise, unlocked);
    m.def("dequantise", &dequantise, unlocked);
    m.def("pack_bits", &pack_bits, unlocked);
    m.def("pack_values", &pack_values, unlocked);
    m.def("unpack_nonzeros", &unpack_nonzeros, unlocked);
    m.def("weighted_sum", &weighted_sum, unlocked);
}
