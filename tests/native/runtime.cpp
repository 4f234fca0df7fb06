// The native runtime without Python: a step of a small network through the C interface, which must
// learn, give the same bits for any number of threads, and allocate nothing; and descriptions that
// were spoilt, which must be refused or run without a fault.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "functions.h"
#include "mest_runtime.h"
#include "threads.h"
#include "variant.h"

namespace {

std::atomic<int64_t> allocations{0};

}  // namespace

// All memory but that of mest::thread_scratch, which is counted by itself, is taken by these.
__attribute__((noinline)) void* operator new(size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

namespace {

int failures = 0;

void check(bool right, const std::string& what) {
    if (!right && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

struct Buffer {
    int64_t type, role, offset;
    std::vector<int64_t> shape;
};

constexpr int64_t bytes_of_type[] = {4, 2, 2, 1, 1, 4, 8};

// Of a buffer that a description may have; -1 where that is no size.
int64_t bytes_of(const Buffer& buffer) {
    if (buffer.type < 0 || buffer.type > 6) return -1;
    int64_t bytes = bytes_of_type[buffer.type];
    for (int64_t size : buffer.shape) {
        if (size < 1 || size > (int64_t{1} << 24) / bytes) return -1;
        bytes *= size;
    }
    return bytes;
}

int code_of(const std::string& name) {
    mest_operator found;
    for (int code = 0; mest_operator_at(code, &found) != 0; ++code) {
        if (name == found.name) return code;
    }
    throw std::logic_error("no operator " + name);
}

struct Description {
    std::vector<Buffer> buffers;
    std::vector<int64_t> operators;
    std::vector<double> reals;
    int64_t arena = 0, group_operators = 0;

    int64_t add(int type, std::vector<int64_t> shape, bool in_arena = true, int role = mest_alike) {
        buffers.push_back({type, role, in_arena ? arena : -1, shape});
        if (in_arena) arena += (bytes_of(buffers.back()) + 63) / 64 * 64;
        return static_cast<int64_t>(buffers.size()) - 1;
    }
    void apply(const std::string& name, const std::vector<int64_t>& numbers,
               const std::vector<double>& others = {}) {
        operators.push_back(code_of(name));
        operators.insert(operators.end(), numbers.begin(), numbers.end());
        reals.insert(reals.end(), others.begin(), others.end());
    }
    std::vector<int64_t> flat_buffers() const {
        std::vector<int64_t> flat;
        for (const Buffer& buffer : buffers) {
            flat.insert(flat.end(), {buffer.type, buffer.role, buffer.offset,
                                     static_cast<int64_t>(buffer.shape.size())});
            flat.insert(flat.end(), buffer.shape.begin(), buffer.shape.end());
        }
        return flat;
    }
    mest_description flat(const std::vector<int64_t>& flat_buffers_) const {
        return {flat_buffers_.data(), static_cast<int64_t>(flat_buffers_.size()),
                operators.data(), static_cast<int64_t>(operators.size()),
                reals.data(), static_cast<int64_t>(reals.size()), group_operators};
    }
};

constexpr int floats = 0, bytes = 4, ints = 5, longs = 6;
// Examples of a group; so many groups that chunks have one or two.
constexpr int64_t batch = 5, classes = 3, most_groups = 11;

// What a step is given and keeps, by number of its buffer.
struct Network {
    Description d;
    int64_t x, slots, values, momentum, w, gamma, beta, head, rates, share, targets, loss, logits;
    int64_t operators = 0;
};

Network network() {
    Network n;
    Description& d = n.d;
    const auto apply = [&](const char* name, std::vector<int64_t> numbers,
                           std::vector<double> reals = {}) {
        d.apply(name, numbers, reals);
        ++n.operators;
    };
    n.x = d.add(floats, {batch, 2, 9, 7}, false, mest_rows);
    n.targets = d.add(longs, {batch}, false, mest_rows);
    n.logits = d.add(floats, {batch, classes}, false, mest_rows);
    n.loss = d.add(floats, {}, false, mest_sum);
    n.rates = d.add(floats, {1}, false);
    n.share = d.add(floats, {1}, false);
    n.slots = d.add(ints, {20}, false);
    n.values = d.add(floats, {20, 4}, false);
    n.momentum = d.add(floats, {20, 4}, false);
    n.w = d.add(floats, {8, 4, 3, 3}, false);
    n.gamma = d.add(floats, {8}, false);
    n.beta = d.add(floats, {8}, false);
    n.head = d.add(floats, {classes, 8}, false);
    const int64_t h = d.add(floats, {batch, 8, 9, 7}), y = d.add(floats, {batch, 8, 9, 7});
    const int64_t mean = d.add(floats, {batch, 2}), scale = d.add(floats, {batch, 2});
    const int64_t z = d.add(floats, {batch, 8, 5, 4}), small = d.add(floats, {batch, 8, 2, 2});
    const int64_t where = d.add(bytes, {batch, 8, 2, 2}), features = d.add(floats, {batch, 8});
    const int64_t p = d.add(floats, {batch, classes}), loss = d.add(floats, {});
    apply("sparse_conv2d", {n.x, n.values, n.slots, -1, h, 1, 1, 1, 1, 8, 2, 3, 3, 4});
    apply("group_norm", {h, n.gamma, n.beta, -1, y, mean, scale, 2, 1}, {1e-5});
    apply("conv2d", {y, n.w, -1, z, 2, 2, 1, 1, 2});
    apply("max_pool2d", {z, small, where, 2, 2, 2, 2, 0, 0, 0});
    apply("global_average_pool", {small, features});
    apply("linear", {features, n.head, -1, n.logits});
    apply("cross_entropy", {n.logits, n.targets, n.share, loss, p});
    apply("accumulate", {loss, n.loss});
    const int64_t dlogits = d.add(floats, {batch, classes}), dhead = d.add(floats, {classes, 8});
    const int64_t dfeatures = d.add(floats, {batch, 8}), dsmall = d.add(floats, {batch, 8, 2, 2});
    const int64_t dz = d.add(floats, {batch, 8, 5, 4}), dw = d.add(floats, {8, 4, 3, 3});
    const int64_t dy = d.add(floats, {batch, 8, 9, 7}), dh = d.add(floats, {batch, 8, 9, 7});
    const int64_t dgamma = d.add(floats, {8}), dbeta = d.add(floats, {8});
    const int64_t dvalues = d.add(floats, {20, 4});
    apply("cross_entropy_gradient", {p, n.targets, n.share, dlogits});
    apply("linear_weight_gradient", {features, dlogits, dhead});
    apply("linear_input_gradient", {n.head, dlogits, dfeatures});
    apply("global_average_pool_gradient", {dfeatures, dsmall});
    apply("max_pool2d_gradient", {where, dsmall, dz, 2, 2, 2, 2, 0, 0, 0});
    apply("conv2d_weight_gradient", {y, dz, dw, 2, 2, 1, 1, 2});
    apply("conv2d_input_gradient", {n.w, dz, dy, 2, 2, 1, 1, 2});
    apply("group_norm_gradient", {h, y, mean, scale, n.gamma, dy, dh, dgamma, dbeta, -1, 2, 1});
    apply("sparse_conv2d_values_gradient", {n.x, n.slots, dh, dvalues, 1, 1, 1, 1, 8, 2, 3, 3, 4});
    const auto added = [&](int64_t gradient) {
        const int64_t whole = d.add(floats, d.buffers[gradient].shape, false, mest_sum);
        apply("accumulate", {gradient, whole});
        return whole;
    };
    const int64_t of_values = added(dvalues), of_w = added(dw), of_head = added(dhead);
    d.group_operators = n.operators;
    apply("sgd", {of_values, n.rates, n.values, n.momentum, 0}, {1e-4, 0.9});
    apply("sgd", {of_w, n.rates, n.w, -1, 0}, {0, 0});
    apply("sgd", {of_head, n.rates, n.head, -1, 0}, {0, 0});
    return n;
}

// A program with memory of its own, each piece as large as the description says and no larger.
class Machine {
public:
    Machine(const Description& d, int threads, int lanes = 1, int64_t groups = 1) : description_(d) {
        const std::vector<int64_t> buffers = d.flat_buffers();
        const size_t size = static_cast<size_t>(d.arena) * std::max(1, lanes);
        arena_ = std::aligned_alloc(64, size);
        std::memset(arena_, 255, size);
        const mest_description flat = d.flat(buffers);
        if (mest_create(&flat, arena_, d.arena, lanes, threads, &program_, error, sizeof error) != 0) {
            return;
        }
        for (size_t i = 0; i < d.buffers.size(); ++i) {
            int64_t size = d.buffers[i].offset < 0 ? bytes_of(d.buffers[i]) : -1;
            if (d.buffers[i].role == mest_rows) size *= groups;
            void* memory = size < 0 ? nullptr : std::calloc(1, size);
            memory_.push_back(memory);
            if (memory != nullptr) mest_bind(program_, i, memory, size, error, sizeof error);
        }
    }
    Machine(const Machine&) = delete;
    ~Machine() {
        mest_destroy(program_);
        for (void* memory : memory_) std::free(memory);
        std::free(arena_);
    }

    bool made() const { return program_ != nullptr; }
    bool run(int64_t first, int64_t last) {
        return mest_run(program_, first, last, error, sizeof error) == 0;
    }
    bool step(int64_t groups) { return mest_step(program_, groups, error, sizeof error) == 0; }
    // As a step of two programs, of which each has some of the groups.
    bool parts(int64_t first, int64_t second, int64_t last) {
        return mest_groups(program_, first, 0, error, sizeof error) == 0 &&
               mest_groups(program_, second, first * batch, error, sizeof error) == 0 &&
               run(description_.group_operators, last);
    }
    template <class T = float>
    T* at(int64_t number) const {
        const int64_t offset = description_.buffers[number].offset;
        void* place = offset < 0 ? memory_[number] : static_cast<char*>(arena_) + offset;
        return static_cast<T*>(place);
    }

    char error[300] = "";

private:
    Description description_;
    void* arena_;
    mest_program* program_ = nullptr;
    std::vector<void*> memory_;
};

void fill(Machine& machine, const Network& n, int64_t groups = 1) {
    std::mt19937 random(1);
    for (int64_t number : {n.x, n.values, n.w, n.head}) {
        const int64_t count = bytes_of(n.d.buffers[number]) / 4 * (number == n.x ? groups : 1);
        for (int64_t i = 0; i < count; ++i) {
            machine.at(number)[i] = static_cast<float>(random() % 2001) / 1000.0f - 1;
        }
    }
    std::fill_n(machine.at(n.gamma), 8, 1.0f);
    for (int i = 0; i < 20; ++i) machine.at<int32_t>(n.slots)[i] = i + i / 2;
    for (int i = 0; i < batch * groups; ++i) machine.at<int64_t>(n.targets)[i] = i % classes;
    *machine.at(n.rates) = 0.05f;
    *machine.at(n.share) = 1.0f / static_cast<float>(batch * groups);
}

// Lanes of 0 and 1: threads within operators; more: groups at once.
void test_steps(int64_t groups) {
    const Network n = network();
    std::vector<float> values;
    const std::vector<std::pair<int, int>> cases =
        groups == 1 ? std::vector<std::pair<int, int>>{{1, 0}, {2, 0}, {3, 3}, {4, 1}}
                    : std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {2, 2}, {3, 3}, {4, 4}, {2, 9}};
    for (const auto& [threads, lanes] : cases) {
        Machine machine(n.d, threads, lanes, groups);
        check(machine.made(), std::string("the network is made: ") + machine.error);
        if (!machine.made()) return;
        fill(machine, n, groups);
        const int64_t before = allocations, scratch = mest::scratch_bytes();
        float first = 0;
        for (int step = 0; step < 20; ++step) {
            if (!machine.step(groups)) return check(false, machine.error);
            if (step == 0) first = *machine.at(n.loss);
        }
        const int64_t taken = allocations - before;
        check(taken == 0, std::to_string(taken) + " allocations in runs");
        check(mest::scratch_bytes() == scratch, "scratch memory was taken in a run");
        const float last = *machine.at(n.loss);
        check(last < first / 2, "loss " + std::to_string(first) + " -> " + std::to_string(last));
        const std::vector<float> now(machine.at(n.values), machine.at(n.values) + 80);
        if (values.empty()) values = now;
        check(now == values, "other bits with " + std::to_string(threads) + " threads, " +
                                 std::to_string(lanes) + " lanes");
        check(!machine.step(0) && !machine.step(groups + 1), "groups without memory");
    }
}

// What two calls of mest_groups add up is what one does, but for rounding: here all groups are alike.
void test_parts_of_a_batch() {
    const Network n = network();
    Machine whole(n.d, 2, 2, 4), parts(n.d, 2, 2, 4), none(n.d, 2, 0, 4);
    for (Machine* machine : {&whole, &parts}) {
        fill(*machine, n, 4);
        const int64_t floats_ = bytes_of(n.d.buffers[n.x]) / 4;
        for (int64_t i = floats_; i < 4 * floats_; ++i) machine->at(n.x)[i] = machine->at(n.x)[i - floats_];
        for (int64_t i = batch; i < 4 * batch; ++i) {
            machine->at<int64_t>(n.targets)[i] = machine->at<int64_t>(n.targets)[i - batch];
        }
    }
    check(whole.step(4) && parts.parts(1, 3, n.operators), "parts run");
    check(std::abs(*whole.at(n.loss) - *parts.at(n.loss)) < 1e-5f, "the loss of parts");
    for (int i = 0; i < 80; ++i) {
        check(std::abs(whole.at(n.values)[i] - parts.at(n.values)[i]) < 1e-6f, "a value of parts");
    }
    fill(none, n, 4);
    check(!none.step(2) && !none.parts(1, 1, n.operators) && none.step(1), "one group alone");
}

// The counting itself.
void test_that_allocations_are_counted() {
    const int64_t before = allocations;
    operator delete(operator new(4));
    const int64_t counted = allocations - before;
    check(counted == 1, "an allocation is counted");
}

// A description of which some numbers are others.
Description spoilt(const Network& n, std::mt19937_64& random) {
    constexpr int64_t odd[] = {-2, -1, 0, 1, 2, 3, 5, 7, 8, 9, 16, 63, 64, 255, 1 << 20,
                               int64_t{1} << 31, int64_t{1} << 40, INT64_MAX, INT64_MIN};
    Description d = n.d;
    const auto other = [&] { return odd[random() % (sizeof odd / sizeof odd[0])]; };
    for (int changes = 1 + static_cast<int>(random() % 2); changes > 0; --changes) {
        Buffer& buffer = d.buffers[random() % d.buffers.size()];
        int64_t& number = d.operators[random() % d.operators.size()];
        switch (random() % 7) {
            case 0: buffer.type = other(); break;
            case 1: buffer.offset = random() % 2 ? other() : static_cast<int64_t>(random() % d.arena); break;
            case 2: if (!buffer.shape.empty()) buffer.shape[random() % buffer.shape.size()] = other(); break;
            case 3: d.reals[random() % d.reals.size()] = random() % 2 ? std::nan("") : 1e30; break;
            case 4: number = other(); break;
            case 5:
                if (random() % 2) buffer.role = static_cast<int64_t>(random() % 4);
                else d.group_operators = static_cast<int64_t>(random() % 40) - 2;
                break;
            default: number += random() % 2 ? 1 : -1;
        }
    }
    if (random() % 8 == 0) d.operators.resize(random() % d.operators.size());
    return d;
}

void test_spoilt_descriptions() {
    const Network n = network();
    std::mt19937_64 random(1);
    int refused = 0, ran = 0;
    for (int i = 0; i < 10000; ++i) {
        const Description d = spoilt(n, random);
        Machine machine(d, 1 + i % 2, i % 3, 1 + i % 2);
        if (!machine.made()) {
            ++refused;
            check(machine.error[0] != '\0', "a refusal has a text");
        } else {
            const int64_t slots = d.buffers[n.slots].offset < 0 ? bytes_of(d.buffers[n.slots]) / 4 : 0;
            for (int64_t k = 0; k < slots; ++k) machine.at<int32_t>(n.slots)[k] = static_cast<int>(k);
            ran += machine.run(0, n.operators) && machine.step(1 + i % 2) ? 1 : 0;
        }
    }
    check(refused > 5000 && ran > 300, std::to_string(refused) + " refused, " + std::to_string(ran) + " ran");
}

void test_numbers_that_are_missing() {
    char error[100] = "";
    mest_program* program = nullptr;
    const Network n = network();
    const std::vector<int64_t> buffers = n.d.flat_buffers();
    for (size_t length = 1; length < buffers.size(); ++length) {
        const std::vector<int64_t> cut(buffers.begin(), buffers.begin() + static_cast<int64_t>(length));
        const mest_description flat = n.d.flat(cut);
        check(mest_create(&flat, nullptr, 0, 1, 1, &program, error, sizeof error) != 0, "cut buffers");
    }
    const mest_description none{nullptr, 5, nullptr, 0, nullptr, 0, 0};
    check(mest_create(&none, nullptr, 0, 1, 1, &program, error, 5) != 0, "no numbers");
    check(std::strlen(error) == 4, "an error keeps to its length");
}

// Relative errors against double, as functions.h states them.
void test_functions() {
    using mest::runtime::exp_of;
    using mest::runtime::normal_of;
    using mest::runtime::tanh_of;
    double error = 0, below = 0, tail = 0;
    for (int i = -870000; i <= 887000; ++i) {
        const float x = static_cast<float>(i) * 1e-4f;
        const double exact = std::exp(double{x});
        error = std::max(error, std::abs(exp_of(x) / exact - 1));
    }
    check(error < 1e-7, "exp_of, by " + std::to_string(error * 1e7) + "e-7");
    for (int i = -120000; i <= 120000; ++i) {
        const float x = static_cast<float>(i) * 1e-4f;
        const double exact = 0.5 * std::erfc(-x / std::sqrt(2.0)), found = normal_of(x).below;
        below = std::max(below, std::abs(found - exact));
        if (x > -5) tail = std::max(tail, std::abs(found / exact - 1));
    }
    check(below < 2.5e-7, "normal_of, by " + std::to_string(below * 1e7) + "e-7");
    check(tail < 1e-6, "normal_of's tail, by " + std::to_string(tail * 1e6) + "e-6");
    double bounded = 0;
    for (int i = -100000; i <= 100000; ++i) {
        const float x = static_cast<float>(i) * 1e-4f;
        if (i != 0) bounded = std::max(bounded, std::abs(tanh_of(x) / std::tanh(double{x}) - 1));
    }
    check(bounded < 3e-7, "tanh_of, by " + std::to_string(bounded * 1e7) + "e-7");
    const float infinity = INFINITY;
    check(tanh_of(infinity) == 1 && tanh_of(-infinity) == -1 && tanh_of(0) == 0, "tanh's ends");
    check(exp_of(0) == 1 && exp_of(infinity) == infinity && exp_of(89) == infinity, "exp upwards");
    check(exp_of(-infinity) == 0 && exp_of(-105) == 0 && exp_of(-100) > 0, "exp downwards");
    check(std::isnan(exp_of(NAN)) && std::isnan(normal_of(NAN).below), "NaNs stay");
    check(normal_of(infinity).below == 1 && normal_of(-infinity).below == 0, "all and none of it");
}

}  // namespace

int main() {
    try {
        std::printf("%s\n", mest::variant().name);
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
        return 77;
    }
    test_that_allocations_are_counted();
    test_functions();
    for (int64_t groups : {int64_t{1}, int64_t{3}, most_groups}) test_steps(groups);
    test_parts_of_a_batch();
    test_numbers_that_are_missing();
    test_spoilt_descriptions();
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
