// Output gradients as the backward kernels read them: one vector for each vector of the domain.
#pragma once

#include "plan.h"

namespace mest::MEST_VARIANT {

struct Gradients {
    bool direct;              // as they lie in the tensor; else packed, lanes outside are zero
    std::vector<int64_t> at;  // of each vector
    int64_t channel, plane;   // distances in floats: where they are read, in the tensor
};

inline Gradients gradients_of(const Convolution& p, const Scratch& s) {
    const int64_t plane = int64_t{p.out_height} * p.out_width;
    Gradients g{p.out_width % V == 0, {}, 0, plane};
    g.channel = g.direct ? plane : int64_t{s.vectors} * s.stacked * V;
    for (int q = 0; q < s.stacked; ++q) {
        for (int v = 0; v < s.vectors; ++v) {
            g.at.push_back(g.direct ? q * p.out_channels * plane + v * V : (q * s.vectors + v) * V);
        }
    }
    return g;
}

inline void pack_gradients(float* to, const Convolution& p, const float* dy, const Gradients& g,
                           const Scratch& s, const ImageSet& set) {
    const int64_t row_floats = static_cast<int64_t>(s.column.size()) * V;
    if (set.count < s.images()) std::memset(to, 0, p.out_channels * g.channel * sizeof(float));
    for (int image = 0; image < set.count; ++image) {
        float* place = to + int64_t{image / s.side_by_side} * s.vectors * V +
                       image % s.side_by_side * p.out_width;
        const float* row = dy + (set.first + image) * p.out_channels * g.plane;
        for (int c = 0; c < p.out_channels; ++c) {
            float* vector = place + c * g.channel;
            for (int i = 0; i < p.out_height; ++i, row += p.out_width, vector += row_floats) {
                int j = 0;
                for (; j + 4 <= p.out_width; j += 4) store<4>(vector + j, load<4>(row + j));
                for (; j < p.out_width; ++j) vector[j] = row[j];
            }
        }
    }
}

// The gradients of one set: the tensor's own, or packed into this thread's buffer.
inline const float* gradients_for(const ImageSet& set, const Convolution& p, const float* dy,
                                  const Gradients& g, const Scratch& s, Zeroed& buffers, int thread) {
    if (g.direct) return dy + set.first * p.out_channels * g.plane;
    float* packed = buffers.of(thread);
    pack_gradients(packed, p, dy, g, s, set);
    return packed;
}

}  // namespace mest::MEST_VARIANT
