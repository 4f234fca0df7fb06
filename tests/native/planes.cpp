// Products on planes in place against sums in double precision, for many shapes: what they give, that
// they leave zeros between planes, and that images do not depend on their neighbours.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "plane_product.h"
#include "variant.h"

namespace {

using mest::Planes;
using Numbers = std::vector<double>;

int failures = 0;

struct Case {
    int images, in, height, width, out, kernel_height, kernel_width, stride_height, stride_width;
    int margin_x, margin_y, rows;
    double density;
    bool dense, bias, add;

    mest::PlaneWindow window() const {
        return {kernel_height, kernel_width, stride_height, stride_width};
    }
    Planes x() const { return {images, in, height, width, margin_x}; }
    Planes y() const {
        return {images, out, (height + stride_height - 1) / stride_height,
                (width + stride_width - 1) / stride_width, margin_y};
    }
    std::string text() const {
        char line[256];
        std::snprintf(line, sizeof line,
                      "images %d, %d x %d x %d -> %d, kernel %d x %d, stride %d x %d, margins %d %d, "
                      "rows %d, density %g%s%s%s",
                      images, in, height, width, out, kernel_height, kernel_width, stride_height,
                      stride_width, margin_x, margin_y, rows, density, dense ? ", dense" : "",
                      bias ? ", bias" : "", add ? ", add" : "");
        return line;
    }
};

void check(bool right, const std::string& what, const Case& c) {
    if (!right && ++failures <= 20) std::printf("FAILED %s\n  %s\n", what.c_str(), c.text().c_str());
}

// A buffer of planes: elements are drawn; what an operator writes holds rubbish between planes.
std::vector<float> drawn(const Planes& planes, std::mt19937& random, bool rubbish) {
    std::normal_distribution<float> normal;
    std::vector<float> memory(planes.floats(), 0.0f);
    if (rubbish) {
        for (float& number : memory) number = normal(random);
    }
    for (int64_t image = 0; image < planes.images; ++image) {
        for (int c = 0; c < planes.channels; ++c) {
            for (int64_t p = 0; p < planes.plane(); ++p) {
                memory[planes.at(image, c) + p] = normal(random);
            }
        }
    }
    // Past the last image is nobody's: it may hold anything.
    for (int64_t i = planes.images * planes.image(); i < planes.floats(); ++i) memory[i] = NAN;
    return memory;
}

bool clean(const std::vector<float>& memory, const Planes& planes) {
    std::vector<bool> element(planes.floats(), false);
    for (int64_t image = 0; image < planes.images; ++image) {
        for (int c = 0; c < planes.channels; ++c) {
            const int64_t at = planes.at(image, c);
            for (int64_t p = 0; p < planes.plane(); ++p) element[at + p] = true;
        }
    }
    for (int64_t i = 0; i < planes.floats(); ++i) {
        if (!element[i] && memory[i] != 0) return false;
    }
    return true;
}

// work(row, column of the weight, element of y, element of x): each multiply-add of the convolution.
template <class Work>
void for_products(const Case& c, int row, int column, const Work& work) {
    const Planes x = c.x(), y = c.y();
    const int taps = c.kernel_height * c.kernel_width;
    const int channel = column / taps, tap = column % taps;
    const int down = tap / c.kernel_width - c.kernel_height / 2;
    const int right = tap % c.kernel_width - c.kernel_width / 2;
    for (int64_t image = 0; image < c.images; ++image) {
        for (int i = 0; i < y.height; ++i) {
            for (int j = 0; j < y.width; ++j) {
                const int from = i * c.stride_height + down, at = j * c.stride_width + right;
                if (from < 0 || from >= c.height || at < 0 || at >= c.width) continue;
                work(y.at(image, row) + i * y.width + j, x.at(image, channel) + from * x.width + at);
            }
        }
    }
}

struct Weight {
    mest::StripIndex index;
    std::vector<float> values;
    int64_t columns;
    bool dense;

    Weight(const Case& c, std::mt19937& random) : dense(c.dense) {
        columns = int64_t{c.in} * c.kernel_height * c.kernel_width;
        std::uniform_real_distribution<double> uniform;
        std::normal_distribution<float> normal;
        index.rows = c.rows;
        for (int strip = 0; strip * c.rows < c.out; ++strip) {
            index.first.push_back(static_cast<int32_t>(index.columns.size()));
            for (int column = 0; column < columns; ++column) {
                if (dense || uniform(random) < c.density) index.columns.push_back(column);
            }
        }
        index.first.push_back(static_cast<int32_t>(index.columns.size()));
        values.resize(dense ? c.out * columns : index.columns.size() * c.rows);
        for (float& value : values) value = normal(random);
    }

    // work(row, column, place of the value)
    template <class Work>
    void for_values(const Case& c, const Work& work) const {
        for (size_t strip = 0; strip + 1 < index.first.size(); ++strip) {
            for (int32_t e = index.first[strip]; e < index.first[strip + 1]; ++e) {
                for (int r = 0; r < c.rows; ++r) {
                    const int row = static_cast<int>(strip) * c.rows + r;
                    if (row >= c.out) continue;
                    const int column = index.columns[e];
                    work(row, column, dense ? row * columns + column : int64_t{e} * c.rows + r);
                }
            }
        }
    }
};

void check_near(const std::vector<float>& got, const Numbers& wanted, const Numbers& sizes,
                const std::string& what, const Case& c) {
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (std::fabs(got[i] - wanted[i]) <= 1e-5 * sizes[i] + 1e-30) continue;  // false of NaN
        return check(false, what + "[" + std::to_string(i) + "] = " + std::to_string(got[i]) +
                                ", must be " + std::to_string(wanted[i]), c);
    }
}

class Products {
public:
    Products(const Case& c, std::mt19937& random)
        : c_(c), weight_(c, random), x_(drawn(c.x(), random, false)),
          dy_(drawn(c.y(), random, false)), random_(random) {}

    void forward() {
        std::vector<float> y = drawn(c_.y(), random_, true), bias(c_.out);
        for (float& b : bias) b = std::normal_distribution<float>()(random_);
        Numbers sum(y.size(), 0), size(y.size(), 1);
        const Planes planes = c_.y();
        for (int64_t image = 0; c_.bias && image < c_.images; ++image) {
            for (int c = 0; c < c_.out; ++c) {
                for (int64_t p = 0; p < planes.plane(); ++p) sum[planes.at(image, c) + p] = bias[c];
            }
        }
        weight_.for_values(c_, [&](int row, int column, int64_t at) {
            for_products(c_, row, column, [&](int64_t to, int64_t from) {
                add(sum, size, to, double{weight_.values[at]} * x_[from]);
            });
        });
        const mest::PlaneProduct product = made(mest::Way::forward);
        run(product, [&](mest::PlaneImages images) {
            product.forward(product.pack(weight_.values.data(), nullptr), x_.data(),
                            c_.bias ? bias.data() : nullptr, y.data(), images);
        });
        judge(y, sum, size, planes, "y");
    }

    void input() {
        std::vector<float> dx = drawn(c_.x(), random_, !c_.add);
        Numbers sum(dx.size(), 0), size(dx.size(), 1);
        if (c_.add) sum.assign(dx.begin(), dx.end());
        weight_.for_values(c_, [&](int row, int column, int64_t at) {
            for_products(c_, row, column, [&](int64_t from, int64_t to) {
                add(sum, size, to, double{weight_.values[at]} * dy_[from]);
            });
        });
        const mest::PlaneProduct product = made(mest::Way::input);
        run(product, [&](mest::PlaneImages images) {
            product.input(product.pack(weight_.values.data(), nullptr), dy_.data(), dx.data(),
                          c_.add, images);
        });
        judge(dx, sum, size, c_.x(), "dx");
    }

    void values() {
        std::vector<float> gradient(weight_.values.size(), 1.0f);  // is added to
        Numbers sum(gradient.size(), 1), size(gradient.size(), 1);
        weight_.for_values(c_, [&](int row, int column, int64_t at) {
            for_products(c_, row, column, [&](int64_t own, int64_t other) {
                add(sum, size, at, double{dy_[own]} * x_[other]);
            });
        });
        const mest::PlaneProduct product = made(mest::Way::values);
        run(product, [&](mest::PlaneImages images) {
            product.values(x_.data(), dy_.data(), gradient.data(), images);
        });
        check_near(gradient, sum, size, "dvalues", c_);
    }

private:
    static void add(Numbers& sum, Numbers& size, int64_t at, double term) {
        sum[at] += term;
        size[at] += std::fabs(term);
    }

    mest::PlaneProduct made(mest::Way way) const {
        mest::PlaneProduct product(way, c_.window(), c_.rows, c_.x(), c_.y());
        product.reserve(static_cast<int64_t>(weight_.index.columns.size()));
        if (c_.dense) {
            product.set_dense();
        } else {
            product.set(weight_.index);
        }
        return product;
    }

    // In two calls, where there are images for two.
    template <class Work>
    void run(const mest::PlaneProduct& product, const Work& work) {
        std::vector<float> scratch(product.scratch_floats() + 16, NAN);
        float* aligned = scratch.data();
        const int64_t half = c_.images / 2;
        if (half > 0) work({0, half, aligned});
        work({half, c_.images, aligned});
    }

    void judge(const std::vector<float>& got, Numbers& sum, Numbers& size, const Planes& planes,
               const std::string& what) {
        for (size_t i = planes.images * planes.image(); i < sum.size(); ++i) sum[i] = 0;
        check(clean(got, planes), what + ": no zeros between planes", c_);
        check_near(got, sum, size, what, c_);
    }

    const Case& c_;
    Weight weight_;
    std::vector<float> x_, dy_;
    std::mt19937& random_;
};

template <class Number>
Number one_of(std::mt19937& random, std::initializer_list<Number> numbers) {
    return numbers.begin()[random() % numbers.size()];
}

Case drawn_case(std::mt19937& random) {
    const auto up_to = [&](int most) { return static_cast<int>(random() % most) + 1; };
    Case c{};
    c.images = up_to(5);
    c.in = up_to(6);
    c.out = up_to(11);
    c.height = one_of(random, {1, 2, 4, 7, 8, 9, 16});
    c.width = one_of(random, {1, 2, 3, 4, 5, 7, 8, 14, 16, 17, 24, 32, 33, 48});
    c.kernel_height = one_of(random, {1, 3, 3, 3, 5, 7});
    c.kernel_width = one_of(random, {1, 3, 3, 3, 5, 7});
    c.stride_height = one_of(random, {1, 1, 2, 3});
    c.stride_width = one_of(random, {1, 1, c.stride_height, 2});
    const int margin = std::max({1, c.kernel_height / 2, c.kernel_width / 2});
    c.margin_x = margin + random() % 2;
    c.margin_y = margin + random() % 2;
    c.dense = random() % 4 == 0;
    c.rows = c.dense ? 4 : one_of(random, {1, 2, 4, 4, 3, 8});
    c.density = one_of(random, {0.0, 0.1, 0.4, 1.0});
    c.bias = random() % 2;
    c.add = random() % 2;
    return c;
}

}  // namespace

int main() {
    try {
        mest::variant();
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        return 77;
    }
    std::mt19937 random(5);
    for (int i = 0; i < 400; ++i) {
        const Case c = drawn_case(random);
        Products products(c, random);
        products.forward();
        products.input();
        products.values();
    }
    std::printf("%s: %d failures\n", mest::variant().name, failures);
    return failures == 0 ? 0 : 1;
}
