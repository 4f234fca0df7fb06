// The native runtime without Python: steps of a small network through the C interface, which must
// learn, give the same bits for any number of threads, and allocate nothing; and descriptions and
// slots that were spoilt, which must be refused or run without a fault.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <new>
#include <thread>

#include "checks.h"
#include "elementary.h"
#include "network.h"
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

namespace selftest {
namespace {

constexpr int not_on_this_machine = 77;  // tells CTest that the test was skipped
constexpr int64_t most_groups = 11;      // so many that chunks have one or two

// The counting itself.
void test_that_allocations_are_counted() {
    const int64_t before = allocations;
    operator delete(operator new(4));
    const int64_t counted = allocations - before;
    check(counted == 1, "an allocation is counted");
}

struct Threads {
    int threads, lanes;  // lanes of 0 and 1: threads within operators; more: groups at once

    std::string text() const {
        return std::to_string(threads) + " threads, " + std::to_string(lanes) + " lanes";
    }
};

// Steps that must learn, and some more with other slots.
void train(Machine& machine, const Network& n, int64_t groups, const std::string& where) {
    float first = 0, last = 0;
    const int64_t before = allocations, scratch = mest::scratch_bytes();
    for (int step = 0; step < 25; ++step) {
        if (step == 20) choose_slots(machine, n, 1);
        if (!machine.step(groups)) return fail(machine.error, where);
        if (step == 0) first = *machine.at(n.loss);
        if (step == 19) last = *machine.at(n.loss);
    }
    const int64_t taken = allocations - before;
    check(taken == 0, std::to_string(taken) + " allocations in steps", where);
    check(mest::scratch_bytes() == scratch, "scratch memory was taken in a step", where);
    check(last < first * 0.6f, "loss " + std::to_string(first) + " -> " + std::to_string(last), where);
}

void test_steps(bool planes, int64_t groups) {
    const Network n = network(planes);
    std::vector<float> values, logits;
    const std::vector<Threads> cases =
        groups == 1 ? std::vector<Threads>{{1, 0}, {2, 0}, {3, 3}, {4, 1}}
                    : std::vector<Threads>{{1, 1}, {2, 1}, {2, 2}, {3, 3}, {4, 4}, {2, 9}};
    for (const Threads& threads : cases) {
        const std::string where = std::string(planes ? "planes, " : "C order, ") +
                                  std::to_string(groups) + " groups, " + threads.text();
        Machine machine(n.d, threads.threads, threads.lanes, groups);
        if (!machine.made()) return fail(machine.error, where);
        fill(machine, n, groups);
        train(machine, n, groups, where);
        const std::vector<float> now = machine.copy(n.values);
        for (int64_t i = active * rows; i < capacity * rows; ++i) {
            check(now[i] == 0, "a value behind the last slot", where);
        }
        const std::vector<float> said(machine.at(n.logits),
                                      machine.at(n.logits) + groups * batch * classes);
        if (values.empty()) values = now, logits = said;
        check(now == values && said == logits, "other bits than with other threads", where);
        check(!machine.step(0) && !machine.step(groups + 1), "groups without memory", where);
    }
}

// What two calls of mest_groups add up is what one does, but for rounding: here all groups are alike.
void test_parts_of_a_batch() {
    const Network n = network(true);
    Machine whole(n.d, 2, 2, 4), parts(n.d, 2, 2, 4), none(n.d, 2, 0, 4);
    const int64_t numbers = bytes_of(n.d.buffers[n.x]) / 4;
    for (Machine* machine : {&whole, &parts, &none}) {
        fill(*machine, n, 4);
        for (int64_t group = 1; group < 4; ++group) {
            std::copy_n(machine->at(n.x), numbers, machine->at(n.x) + group * numbers);
            auto* targets = machine->at<int64_t>(n.targets);
            std::copy_n(targets, batch, targets + group * batch);
        }
    }
    check(whole.step(4), whole.error);
    check(parts.groups(1, 0) && parts.groups(3, batch) && parts.update(), parts.error);
    check(std::abs(*whole.at(n.loss) - *parts.at(n.loss)) < 1e-5f, "the loss of parts");
    for (int64_t i = 0; i < capacity * rows; ++i) {
        check(std::abs(whole.at(n.values)[i] - parts.at(n.values)[i]) < 1e-6f, "a value of parts");
    }
    check(!none.step(2) && !none.groups(1, batch) && none.step(1), "a batch that is one group alone");
}

// Programs share the pool of threads: who finds it taken works alone.
void test_programs_at_once() {
    const Network n = network(true);
    Machine alone(n.d, 1, 1, 3), first(n.d, 2, 2, 3), second(n.d, 3, 3, 3);
    for (Machine* machine : {&alone, &first, &second}) fill(*machine, n, 3);
    const auto steps = [](Machine* machine) {
        for (int step = 0; step < 20; ++step) machine->step(3);
    };
    std::thread other(steps, &second);
    steps(&first);
    other.join();
    steps(&alone);
    for (const Machine* machine : {&first, &second}) {
        check(machine->copy(n.values) == alone.copy(n.values), "other bits beside another program");
    }
}

constexpr int64_t odd[] = {-2, -1, 0, 1, 2, 3, 5, 7, 8, 9, 16, 63, 64, 255, 1 << 20,
                           int64_t{1} << 31, int64_t{1} << 40, INT64_MAX, INT64_MIN};

int64_t odd_number(std::mt19937_64& random) { return odd[random() % (sizeof odd / sizeof odd[0])]; }

void spoil(Description& d, std::mt19937_64& random) {
    Buffer& buffer = d.buffers[random() % d.buffers.size()];
    int64_t& number = d.operators[random() % d.operators.size()];
    const bool coin = random() % 2;
    switch (random() % 9) {
        case 0: buffer.type = odd_number(random); break;
        case 1: buffer.offset = coin ? odd_number(random) : static_cast<int64_t>(random() % d.arena); break;
        case 2: if (!buffer.shape.empty()) buffer.shape[random() % buffer.shape.size()] = odd_number(random); break;
        case 3: d.reals[random() % d.reals.size()] = coin ? std::nan("") : 1e30; break;
        case 4: number = odd_number(random); break;
        case 5: buffer.role = static_cast<int64_t>(random() % 4); break;
        case 6: d.group_operators = coin ? odd_number(random) : static_cast<int64_t>(random() % 30); break;
        case 7: buffer.margin = odd_number(random); break;
        default: number += coin ? 1 : -1;
    }
}

// Groups of a spoilt description may write memory that lanes share: numbers suffer, and no more, but
// ThreadSanitizer would stop there.
#ifdef __SANITIZE_THREAD__
constexpr int most_lanes = 2;
#else
constexpr int most_lanes = 3;
#endif

void test_spoilt_descriptions(bool planes) {
    const Network n = network(planes);
    std::mt19937_64 random(1);
    int refused = 0, ran = 0;
    for (int i = 0; i < 6000; ++i) {
        Description d = n.d;
        for (int changes = 1 + i % 2; changes > 0; --changes) spoil(d, random);
        if (i % 8 == 0) d.operators.resize(random() % d.operators.size());
        Machine machine(d, 1 + i % 2, i % most_lanes, 1 + i % 2);
        if (!machine.made()) {
            ++refused;
            check(machine.error[0] != '\0', "a refusal has a text");
            continue;
        }
        const int64_t slots = d.buffers[n.slots].offset < 0 ? bytes_of(d.buffers[n.slots]) / 4 : 0;
        for (int64_t k = 0; k < slots; ++k) machine.at<int32_t>(n.slots)[k] = static_cast<int>(k);
        ran += machine.run(0, n.d.count) && machine.step(1 + i % 2) ? 1 : 0;
    }
    check(refused > 3000 && ran > 150, std::to_string(refused) + " refused, " + std::to_string(ran) + " ran");
}

// Increasing ones of the weight, then -1 alone.
bool are_slots(const int32_t* slots) {
    int64_t used = capacity;
    while (used > 0 && slots[used - 1] == -1) --used;
    for (int64_t i = 0; i < used; ++i) {
        if (slots[i] < 0 || slots[i] >= all_slots || (i > 0 && slots[i] <= slots[i - 1])) return false;
    }
    return true;
}

void test_spoilt_slots(bool planes) {
    const Network n = network(planes);
    std::mt19937_64 random(2);
    Machine machine(n.d, 2, 2, 3);
    fill(machine, n, 3);
    int right = 0;
    for (int i = 0; i < 1000; ++i) {
        choose_slots(machine, n, i % 3);
        auto* slots = machine.at<int32_t>(n.slots);
        for (int changes = i % 4; changes > 0; --changes) {
            const int32_t next = std::min<int32_t>(slots[random() % capacity], all_slots) + 1;
            const int32_t others[] = {-2, -1, next, 35, 36, INT32_MAX, INT32_MIN};
            slots[random() % capacity] = others[random() % 7];
        }
        const bool wanted = are_slots(slots);
        right += wanted ? 1 : 0;
        const bool taken = machine.step(3);
        std::string where = std::string(planes ? "planes:" : "C order:");
        for (int64_t k = 0; k < capacity; ++k) where += " " + std::to_string(slots[k]);
        check(taken == wanted, wanted ? machine.error : "wrong slots are taken", where);
    }
    check(right > 250 && right < 750, std::to_string(right) + " right of 1000");
}

void test_spoilt_targets() {
    const Network n = network(true);
    Machine machine(n.d, 2, 2, 3);
    fill(machine, n, 3);
    for (int64_t target : odd) {
        machine.at<int64_t>(n.targets)[batch + 1] = target;
        check(machine.step(3) == (target < classes), "target " + std::to_string(target), machine.error);
    }
}

void test_numbers_that_are_missing() {
    char error[100] = "";
    mest_program* program = nullptr;
    const Network n = network(false);
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

void test_all() {
    test_that_allocations_are_counted();
    test_functions();
    test_parts_of_a_batch();
    test_programs_at_once();
    test_numbers_that_are_missing();
    test_spoilt_targets();
    for (bool planes : {false, true}) {
        for (int64_t groups : {int64_t{1}, int64_t{3}, most_groups}) test_steps(planes, groups);
        test_spoilt_slots(planes);
        test_spoilt_descriptions(planes);
    }
}

}  // namespace
}  // namespace selftest

int main() {
    try {
        std::printf("%s\n", mest::variant().name);
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
        return selftest::not_on_this_machine;
    }
    selftest::test_all();
    std::printf("%d failures\n", selftest::failures);
    return selftest::failures == 0 ? 0 : 1;
}
