// mest_spoil PROGRAM TIMES SEED: spoils a program's file over and over. Each is refused by one line, or
// is a program that runs or is refused, too, without a fault.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "mest_program_file.h"

namespace {

using Bytes = std::vector<char>;

constexpr int64_t most_memory = 1 << 26;  // of a program that is run here
char error[512];

void write_word(Bytes& file, size_t word, uint64_t value) {
    std::memcpy(file.data() + 8 * word, &value, 8);
}

void mend_check(Bytes& file) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 24; i < file.size(); ++i) {
        hash = (hash ^ static_cast<unsigned char>(file[i])) * 0x100000001b3u;
    }
    write_word(file, 2, hash);
}

// Words from all over the file, and often those of its header.
Bytes spoilt(Bytes file, std::mt19937_64& draw) {
    const auto below = [&](uint64_t most) { return draw() % most; };
    const uint64_t how = below(8);
    if (how == 0) {
        file.resize(below(file.size()) / (below(2) ? 8 : 1) * (below(2) ? 8 : 1));
    } else if (how == 1) {
        file.insert(file.end(), 8 * (1 + below(4)), static_cast<char>(below(256)));
    }
    const size_t words = file.size() / 8;
    for (uint64_t i = 0, count = 1 + below(3); words > 3 && i < count; ++i) {
        const size_t word = 3 + (below(4) ? below(words - 3) : below(std::min<size_t>(15, words - 3)));
        uint64_t held;
        std::memcpy(&held, file.data() + 8 * word, 8);
        const uint64_t values[] = {0, 1, ~uint64_t{0}, held + 1, held - 1, held * 2, uint64_t{1} << 40,
                                   uint64_t{1} << 63, below(64), held ^ uint64_t{1} << below(64)};
        write_word(file, word, values[below(std::size(values))]);
    }
    if (file.size() > 24 && below(8)) mend_check(file);
    return file;
}

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Freed>;

Memory take(int64_t bytes) {
    const auto whole = static_cast<size_t>((bytes + 127) / 64 * 64);
    Memory memory(std::aligned_alloc(64, whole));
    std::memset(memory.get(), 0, whole);
    return memory;
}

enum Outcome { unread, too_large, refused, ran, outcomes };

int step(mest_program* program, const mest_program_file* file) {
    const mest_step_facts& f = *mest_program_file_facts(file);
    std::vector<Memory> memory;
    for (int64_t i = 0; i < f.buffers; ++i) {
        mest_buffer b;
        if (mest_program_file_buffer(file, i, &b) == 0) std::abort();
        if (b.use == mest_temporary) continue;
        memory.push_back(take(b.bytes));
        if (std::strcmp(mest_type_name(b.type), "int32") == 0) {  // slots increase
            const auto slots = static_cast<int32_t*>(memory.back().get());
            std::iota(slots, slots + b.values, 0);
        }
        if (mest_bind(program, i, memory.back().get(), b.bytes, error, sizeof error)) return 1;
    }
    return mest_step(program, 1, error, sizeof error);
}

Outcome attempt(const mest_program_file* file) {
    const mest_step_facts& f = *mest_program_file_facts(file);
    int64_t taken = f.arena_bytes;
    for (int64_t i = 0; i < f.buffers && taken <= most_memory; ++i) {
        mest_buffer b;
        if (mest_program_file_buffer(file, i, &b) != 0 && b.use != mest_temporary) taken += b.bytes;
    }
    if (taken > most_memory) return too_large;
    const Memory arena = take(f.arena_bytes);
    mest_program* program = nullptr;
    int failed = mest_create(mest_program_file_description(file), arena.get(), f.arena_bytes,
                             f.takes_groups, 1, &program, error, sizeof error);
    if (!failed) failed = step(program, file);
    mest_destroy(program);
    return failed ? refused : ran;
}

Outcome attempt(const Bytes& bytes) {
    // memory of its own size, so that a sanitizer sees what is read behind its end
    const std::unique_ptr<char[]> data(new char[bytes.size()]);
    std::memcpy(data.get(), bytes.data(), bytes.size());
    mest_program_file* file = nullptr;
    error[0] = '\0';
    const int failed = mest_program_file_read(data.get(), static_cast<int64_t>(bytes.size()), &file,
                                              error, sizeof error);
    const Outcome outcome = failed ? unread : attempt(file);
    mest_program_file_close(file);
    return outcome;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return 2;
    std::ifstream stream(arguments[1], std::ios::binary);
    const Bytes file{std::istreambuf_iterator<char>(stream), {}};
    if (attempt(file) != ran) {
        std::fprintf(stderr, "the file itself: %s\n", error);
        return 1;
    }
    std::mt19937_64 draw(std::strtoull(arguments[3], nullptr, 10));
    long found[outcomes] = {0};
    for (long i = 0; i < std::atol(arguments[2]); ++i) {
        const Outcome outcome = attempt(spoilt(file, draw));
        ++found[outcome];
        if (outcome != ran && outcome != too_large && error[0] == '\0') {
            std::fprintf(stderr, "refused without a word\n");
            return 1;
        }
    }
    std::printf("unread %ld, too large %ld, refused %ld, ran %ld\n", found[unread], found[too_large],
                found[refused], found[ran]);
    return 0;
}
