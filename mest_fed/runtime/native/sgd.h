// SGD with momentum (Sutskever et al. 2013, as torch has it), of floats and of vectors of them.
#pragma once

#include "builder.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

struct Sgd {
    float decay, inertia;
    bool nesterov;

    explicit Sgd(const Builder& b)
        : decay(static_cast<float>(b.real("weight_decay"))),
          inertia(static_cast<float>(b.real("momentum"))),
          nesterov(b.whole("nesterov") != 0) {}

    // Takes a step; `momentum` may be null.
    template <class Number>
    void step(const Number& gradient, float rate, Number& parameter, Number* momentum) const {
        Number step = gradient + decay * parameter;
        if (momentum != nullptr) {
            *momentum = inertia * *momentum + step;
            step = nesterov ? step + inertia * *momentum : *momentum;
        }
        parameter -= rate * step;
    }
};

inline std::vector<Attribute> sgd_reals() { return {{"weight_decay", 0, 1e6}, {"momentum", 0, 1}}; }

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
