// Shares normalisation among threads, one channel or group a unit; sums have a fixed order.
#include "norm.h"

#include "threads.h"
#include "variant.h"

namespace mest {

void norm_forward(const Norm& norm, const float* x, float* z, float* mean, float* scale,
                  int threads) {
    const Variant& v = variant();
    parallel_for(norm.units(), threads,
                 [&](int64_t i) { v.norm_forward(norm, x, z, mean, scale, i); });
}

void norm_backward(const Norm& norm, const NormGradient& given, float* dx, float* dresidual,
                   float* dgamma, float* dbeta, double* sums, int threads) {
    const Variant& v = variant();
    parallel_for(norm.units(), threads, [&](int64_t i) {
        v.norm_backward(norm, given, dx, dresidual, sums, i);
    });
    norm_parameters(norm, sums, dgamma, dbeta);
}

void norm_parameters(const Norm& norm, const double* sums, float* dgamma, float* dbeta) {
    for (int c = 0; c < norm.channels; ++c) {
        double gamma = 0, beta = 0;
        for (int64_t image = 0; image < (norm.groups == 0 ? 1 : norm.images); ++image) {
            beta += sums[(image * norm.channels + c) * 2];
            gamma += sums[(image * norm.channels + c) * 2 + 1];
        }
        dgamma[c] = static_cast<float>(gamma);
        dbeta[c] = static_cast<float>(beta);
    }
}

}  // namespace mest
