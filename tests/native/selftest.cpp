// The C++ core without Python: drawn cases against doubles, same bits for any number of threads,
// and what must be refused. MEST_FED_KERNELS chooses the variant (CTest runs one after another).
#include <atomic>
#include <cstdlib>
#include <memory>

#include "checks.h"
#include "compacts.h"
#include "norms.h"
#include "pools.h"
#include "threads.h"
#include "variant.h"

namespace selftest {
namespace {

constexpr int cases = 1000, norm_cases = 300, compact_cases = 400, pool_cases = 300;
constexpr int not_on_this_machine = 77;  // tells CTest that the test was skipped
const float nan = std::numeric_limits<float>::quiet_NaN();

// Scratch memory that an earlier call left behind may hold anything.
void spoil_scratch() {
    constexpr int64_t floats = 1 << 16;
    for (int which : {0, 1, 2}) {
        float* scratch = mest::thread_scratch(which, floats);
        std::fill(scratch, scratch + floats, nan);
    }
}

struct Products {
    std::vector<float> y, dx, gradient;
    std::vector<float> both_dx, both_gradient;  // of the pass that gives both
};

Products run(const Case& c, mest::Call call) {
    const mest::StripIndex index = mest::strips_of(c.granules(), c.p);
    Products got{std::vector<float>(c.out_size(), nan), std::vector<float>(c.in_size(), nan),
                 std::vector<float>(c.values.size(), nan), std::vector<float>(c.in_size(), nan),
                 std::vector<float>(c.values.size(), nan)};
    spoil_scratch();
    mest::forward(c.p, index, c.values.data(), c.x.data(), c.bias_or_null(), got.y.data(), call);
    spoil_scratch();
    mest::backward_input(c.p, index, c.values.data(), c.dy.data(), got.dx.data(), call);
    spoil_scratch();
    mest::backward_values(c.p, index, c.x.data(), c.dy.data(), got.gradient.data(), call);
    spoil_scratch();
    mest::backward(c.p, index, c.values.data(), c.x.data(), c.dy.data(), got.both_dx.data(),
                   got.both_gradient.data(), call);
    return got;
}

void test_products(uint64_t seed) {
    const Case c = draw_case(seed);
    const Expected expected = reference(c);
    std::vector<Products> planes;
    for (mest::Plane plane : {mest::Plane::padded, mest::Plane::shifted}) {
        const std::string name = plane == mest::Plane::padded ? " (padded)" : " (shifted)";
        const Products one = run(c, {plane, 1}), three = run(c, {plane, 3});
        check_near(one.y, expected.y, c.whole, "forward" + name, c);
        check_near(one.dx, expected.dx, c.whole, "backward_input" + name, c);
        check_near(one.gradient, expected.gradient, c.whole, "backward_values" + name, c);
        check_near(one.both_dx, expected.dx, c.whole, "backward, dx" + name, c);
        check_near(one.both_gradient, expected.gradient, c.whole, "backward, values" + name, c);
        check_same_bits(one.y, three.y, "forward, 3 threads" + name, c);
        check_same_bits(one.dx, three.dx, "backward_input, 3 threads" + name, c);
        check_same_bits(one.gradient, three.gradient, "backward_values, 3 threads" + name, c);
        check_same_bits(one.both_dx, three.both_dx, "backward, 3 threads: dx" + name, c);
        check_same_bits(one.both_gradient, three.both_gradient,
                        "backward, 3 threads: values" + name, c);
        planes.push_back(one);
    }
    check_same_bits(planes[0].y, planes[1].y, "forward, both planes", c);
}

// More images than the 8 chunks, more chunks than threads: threads take several turns.
void test_many_turns() {
    Case c = draw_case(1);
    c.whole = true, c.rows = 2, c.width = 2, c.cells.clear(), c.bias.clear();
    c.p = {40, 3, 16, 16, 4, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1};
    Random random(2);
    c.slots = {0, 5, 13, 26, 27, 40, 53};
    c.values = draw_floats(random, 14, true);
    c.x = draw_floats(random, c.in_size(), true);
    c.dy = draw_floats(random, c.out_size(), true);
    const Expected expected = reference(c);
    for (int threads : {1, 2, 3, 5}) {
        const Products got = run(c, {mest::Plane::padded, threads});
        const std::string with = ", " + std::to_string(threads) + " threads";
        check_near(got.y, expected.y, true, "many turns: forward" + with, c);
        check_near(got.dx, expected.dx, true, "many turns: backward_input" + with, c);
        check_near(got.gradient, expected.gradient, true, "many turns: backward_values" + with, c);
        check_near(got.both_dx, expected.dx, true, "many turns: backward, dx" + with, c);
        check_near(got.both_gradient, expected.gradient, true,
                   "many turns: backward, values" + with, c);
    }
}

void test_refusals() {
    Case c = draw_case(1);
    c.p = {1, 2, 4, 4, 5, 2, 2, 3, 3, 1, 1, 0, 0, 1, 1};
    c.rows = 2, c.width = 2, c.variants = 1, c.cells.clear();
    const auto strips = [&](std::vector<int32_t> slots) {
        c.slots = std::move(slots);
        mest::strips_of(c.granules(), c.p);
    };
    using refused = std::invalid_argument;
    strips({0, 17, 18, 53});  // 3 strips of 18 columns
    check_throws<refused>("a slot past the end", [&] { strips({0, 54}); });
    check_throws<refused>("a negative slot", [&] { strips({-1, 3}); });
    check_throws<refused>("a slot twice", [&] { strips({3, 3}); });
    check_throws<refused>("slots out of order", [&] { strips({0, 4, 3}); });
    c.rows = 1, c.width = 2, c.variants = 2, c.cells = {0, 8, 1, 3};
    strips({0, 19});  // 5 x 2 kernels of 2 variants
    check_throws<refused>("a kernel past the end", [&] { strips({20}); });
    check_throws<refused>("a kernel's slot twice", [&] { strips({7, 7}); });
    c.cells[3] = 9;
    check_throws<refused>("a cell past the kernel", [&] { strips({0}); });
    c.cells[3] = -1;
    check_throws<refused>("a negative cell", [&] { strips({0}); });
}

// Everything up to the limits that the binding sets is either computed or refused.
void test_too_large() {
    const auto refused = [](int channels, int dilation) {
        Case c = draw_case(1);
        c.rows = 1, c.width = 1, c.variants = 1, c.cells.clear(), c.slots.clear();
        c.p = {1, channels, 16, 16, 1, 16, 16, 3, 3, 1, 1, dilation, dilation, dilation, dilation};
        const std::string what = "scratch memory for a dilation of " + std::to_string(dilation);
        const mest::Variant& v = mest::variant();
        check_throws<std::length_error>(what, [&] {
            mest::make_plan(c.p, 1, {mest::Plane::padded, channels, 8, true}, v.width);
        });
    };
    refused(1, 1 << 20);
    refused(64, (1 << 28) - 8);  // the floats of 64 channels are a multiple of 2^64
}

// No strip is full, however many rows it might have.
void test_tall_strips() {
    Case c = draw_case(1);
    c.whole = true, c.width = c.rows = std::numeric_limits<int>::max(), c.variants = 1;
    c.p = {2, 3, 5, 20, 4, 5, 20, 3, 3, 1, 1, 1, 1, 1, 1};
    c.cells.clear(), c.slots.clear(), c.values.clear();
    c.bias = {1, 2, 3, 4}, c.x.assign(c.in_size(), 1), c.dy.assign(c.out_size(), 1);
    const Expected expected = reference(c);
    const Products got = run(c, {mest::Plane::padded, 1});
    check_near(got.y, expected.y, true, "tall strips: forward", c);
    check_near(got.dx, expected.dx, true, "tall strips: backward_input", c);
    check_near(got.both_dx, expected.dx, true, "tall strips: backward", c);
}

struct Normalised {
    std::vector<float> z, mean, scale, dx, dresidual, dgamma, dbeta;
};

Normalised run(const NormCase& c, int threads) {
    const mest::Norm norm = c.norm();
    const auto floats = [](int64_t count) { return std::vector<float>(count, nan); };
    Normalised got{floats(c.size()), floats(norm.statistics()), floats(norm.statistics()),
                   floats(c.size()), floats(static_cast<int64_t>(c.residual.size())),
                   floats(c.channels), floats(c.channels)};
    mest::norm_forward(norm, c.x.data(), got.z.data(), got.mean.data(), got.scale.data(), threads);
    std::vector<double> sums(norm.sums());
    mest::norm_backward(norm, {c.dz.data(), c.x.data(), got.z.data(), got.mean.data(),
                               got.scale.data()},
                        got.dx.data(), got.dresidual.empty() ? nullptr : got.dresidual.data(),
                        got.dgamma.data(), got.dbeta.data(), sums.data(), threads);
    return got;
}

void test_norm(uint64_t seed) {
    const NormCase c = draw_norm(seed);
    const Normalised one = run(c, 1), three = run(c, 3);
    const NormExpected expected = norm_reference(c, one.z);
    check_sized(one.z, expected.z, "norm_forward", c);
    check_sized(one.dx, expected.dx, "norm_backward, dx", c);
    check_sized(one.dgamma, expected.dgamma, "norm_backward, dgamma", c);
    check_sized(one.dbeta, expected.dbeta, "norm_backward, dbeta", c);
    for (size_t i = 0; i < one.dresidual.size(); ++i) {
        const float open = c.relu && one.z[i] <= 0 ? 0 : c.dz[i];
        if (one.dresidual[i] != open) return fail("norm_backward, dresidual", c.describe());
    }
    using Floats = std::vector<float> Normalised::*;
    for (Floats of : {&Normalised::z, &Normalised::mean, &Normalised::scale, &Normalised::dx,
                      &Normalised::dresidual, &Normalised::dgamma, &Normalised::dbeta}) {
        const std::vector<float>&a = one.*of, &b = three.*of;
        const bool same = a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
        check(same, "normalisation, 3 threads: other bits", c.describe());
    }
}

Pooled run(const PoolCase& c, int threads) {
    Pooled got{std::vector<float>(c.dz.size(), nan), std::vector<float>(c.x.size(), nan)};
    std::vector<uint8_t> where(c.dz.size(), 255);
    mest::relu_pool_forward(c.pool, c.x.data(), got.z.data(), where.data(), threads);
    mest::relu_pool_backward(c.pool, c.dz.data(), where.data(), got.dx.data(), threads);
    return got;
}

bool same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

void test_pool(uint64_t seed) {
    const PoolCase c = draw_pool(seed);
    const Pooled expected = pool_reference(c), one = run(c, 1), three = run(c, 3);
    check(same_numbers(one.z, expected.z), "relu_pool_forward", c.describe());
    check(same_numbers(one.dx, expected.dx), "relu_pool_backward", c.describe());
    check(same_numbers(three.z, one.z) && same_numbers(three.dx, one.dx), "pooling, 3 threads",
          c.describe());
    std::vector<float> alone(c.dz.size(), nan);
    mest::relu_pool_forward(c.pool, c.x.data(), alone.data(), nullptr, 1);
    check(same_numbers(alone, one.z), "relu_pool_forward without codes", c.describe());
}

void test_threads() {
    for (int threads : {1, 2, 3, 7}) {
        for (int units : {0, 1, 2, 100}) {
            const std::unique_ptr<std::atomic<int>[]> calls(new std::atomic<int>[units + 1]());
            mest::parallel_for(units, threads, [&](int64_t unit) {
                ++calls[unit];
            });
            for (int i = 0; i < units; ++i) check(calls[i] == 1, "each unit is done once");
        }
        check_throws<std::runtime_error>("work that throws", [&] {
            mest::parallel_for(9, threads, [](int64_t unit) {
                if (unit == 5) throw std::runtime_error("unit 5");
            });
        });
    }
}

void test_scratch() {
    const int64_t before = mest::scratch_bytes();
    mest::parallel_for(8, 3, [](int64_t unit) {
        float* scratch = mest::thread_scratch(2, 1000 * (unit + 1) + 1);
        check(reinterpret_cast<uintptr_t>(scratch) % 64 == 0, "scratch memory is aligned");
        std::fill(scratch, scratch + 1000 * (unit + 1) + 1, 1.0f);
    });
    float* first = mest::thread_scratch(3, 100);
    const int64_t with = mest::scratch_bytes();
    check(with >= before + 400, "scratch memory is counted");
    check(mest::thread_scratch(3, 10) == first, "less scratch is the same memory");
    check(mest::scratch_bytes() == with, "and no more of it");
}

int run_all() {
    try {
        std::printf("%s\n", mest::variant().name);
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
        return not_on_this_machine;
    }
    const char* asked = std::getenv("MEST_FED_KERNELS");
    check(asked == nullptr || std::string(asked) == mest::variant().name, "the variant asked for");
    const std::string name = mest::variant().name;
    const bool has_bf16 = name.size() > 4 && name.compare(name.size() - 4, 4, "bf16") == 0;
    check(mest::variant().bf16_products == has_bf16, "products of bfloat16 where the name says so");
    test_threads();
    test_scratch();
    test_refusals();
    test_too_large();
    test_tall_strips();
    test_many_turns();
    test_planes_that_are_no_numbers();
    test_parts_that_do_not_fit();
    for (uint64_t seed = 0; seed < compact_cases; ++seed) test_quantise(seed), test_pack_nonzeros(seed);
    for (uint64_t seed = 0; seed < cases; ++seed) test_products(seed);
    for (uint64_t seed = 0; seed < norm_cases; ++seed) test_norm(seed);
    for (uint64_t seed = 0; seed < pool_cases; ++seed) test_pool(seed);
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace selftest

int main() { return selftest::run_all(); }
