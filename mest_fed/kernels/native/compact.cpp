// Shares compact storage among threads, and refuses what would be read out of bounds.
#include "compact.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "threads.h"
#include "variant.h"

namespace mest {
namespace {

// work(i) for i in [first, last), each of `size` floats: some make a unit worth a thread's while.
template <class Work>
void for_runs(int64_t first, int64_t last, int64_t size, int threads, const Work& work) {
    constexpr int64_t worth = 16384;
    const int64_t run = std::max<int64_t>(1, worth / size);
    parallel_for((last - first + run - 1) / run, threads, [&](int64_t unit) {
        const int64_t begin = first + unit * run;
        for (int64_t i = begin; i < std::min(begin + run, last); ++i) work(i);
    });
}

void check_image(const Bitmap& of, const Packed& from, int64_t image) {
    const int64_t begin = from.starts[image], end = from.starts[image + 1];
    const uint8_t* bits = from.bits + image * of.bytes();
    if (begin < 0 || end < begin || end > from.count) {
        throw std::invalid_argument("starts of image " + std::to_string(image) +
                                    " must rise, from 0 to the number of values");
    }
    const int spare = static_cast<int>(of.bytes() * 8 - of.elements);
    if (bits[of.bytes() - 1] >> (8 - spare) != 0) {
        throw std::invalid_argument("bits of image " + std::to_string(image) +
                                    " go on after its last element");
    }
    if (variant().count_bits(bits, of.bytes()) != end - begin) {
        throw std::invalid_argument("bits of image " + std::to_string(image) +
                                    " must be as many as starts say");
    }
}

}  // namespace

void quantise(const Quantised& of, const float* x, uint8_t* codes, float* levels, int threads) {
    if (of.plane == 0) {
        std::fill(levels, levels + of.planes * 2, 0.0f);
        return;
    }
    const Variant& v = variant();
    for_runs(0, of.planes, of.plane, threads, [&](int64_t i) {
        v.quantise(x + i * of.plane, of.plane, codes + i * of.plane, levels + i * 2);
    });
}

void dequantise(const Quantised& of, const uint8_t* codes, const float* levels, float* x,
                int threads) {
    if (of.plane == 0) return;
    const Variant& v = variant();
    for_runs(0, of.planes, of.plane, threads, [&](int64_t i) {
        v.dequantise(codes + i * of.plane, of.plane, levels + i * 2, x + i * of.plane);
    });
}

void pack_bits(const Bitmap& of, const float* x, uint8_t* bits, int64_t* starts, int threads) {
    std::fill(starts, starts + of.images + 1, int64_t{0});
    if (of.elements == 0) return;
    const Variant& v = variant();
    for_runs(0, of.images, of.elements, threads, [&](int64_t i) {
        starts[i + 1] = v.pack_bits(x + i * of.elements, of.elements, bits + i * of.bytes());
    });
    for (int64_t i = 0; i < of.images; ++i) starts[i + 1] += starts[i];
}

void pack_values(const Bitmap& of, const float* x, const uint8_t* bits, const int64_t* starts,
                    float* values, int threads) {
    if (of.elements == 0) return;
    const Variant& v = variant();
    for_runs(0, of.images, of.elements, threads, [&](int64_t i) {
        v.pack_values(x + i * of.elements, of.elements, bits + i * of.bytes(),
                         values + starts[i], values + starts[i + 1]);
    });
}

void unpack_nonzeros(const Bitmap& of, const Packed& from, int64_t first, int64_t last, float* x,
            int threads) {
    if (from.starts[0] != 0 || from.starts[of.images] != from.count) {
        throw std::invalid_argument("starts must rise, from 0 to the number of values");
    }
    if (of.elements == 0) return;
    const Variant& v = variant();
    for_runs(first, last, of.elements, threads, [&](int64_t i) {
        check_image(of, from, i);
        v.unpack_nonzeros(from.bits + i * of.bytes(), of.elements, from.values + from.starts[i],
                 from.values + from.count, x + (i - first) * of.elements);
    });
}

}  // namespace mest
