// Products of few rows by a matrix that many calls share: it is laid out once, in panels of some columns
// whose rows lie one behind the other.
#pragma once

#include "blocks.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

constexpr int64_t panel = 2 * simd::V;  // columns

struct Panels {
    int64_t depth, columns;  // of the matrix: (depth, columns)

    int64_t count() const { return (columns + panel - 1) / panel; }
    int64_t floats() const { return count() * panel * depth; }

    // `number(k, column)` of the matrix; zeros past the last column.
    template <class Number>
    void lay_out(float* to, int threads, const Number& number) const {
        for_runs(count(), panel * depth, threads, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p) {
                float* place = to + p * panel * depth;
                for (int64_t k = 0; k < depth; ++k, place += panel) {
                    for (int64_t j = 0; j < panel; ++j) {
                        const int64_t column = p * panel + j;
                        place[j] = column < columns ? number(k, column) : 0;
                    }
                }
            }
        });
    }

    // to (rows, pitch()) = from (rows, depth) times the matrix; columns past the last are zeros.
    int64_t pitch() const { return count() * panel; }

    void multiply(const float* laid, const float* from, int64_t rows, float* to, int threads) const {
        for_runs(count(), rows * depth, threads, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p) {
                const Right right{laid + p * panel * depth, panel};
                float* place = to + p * panel;
                int64_t row = 0;
                const auto some = [&](auto taken) {
                    constexpr int R = decltype(taken)::value;
                    for (; row + R <= rows; row += R) {
                        block_product<R, 2, simd::V>({from + row * depth, depth, 1}, right, depth,
                                                     place + row * pitch(), pitch(), false);
                    }
                };
                some(std::integral_constant<int, simd::many_registers ? 8 : 4>());
                some(std::integral_constant<int, 4>());
                some(std::integral_constant<int, 2>());
                some(std::integral_constant<int, 1>());
            }
        });
    }
};

}  // namespace
}  // namespace mest::runtime::MEST_VARIANT
