// Programs for the native runtime, described from C++ and given memory of just the size that their
// descriptions say.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "mest_runtime.h"
#include "planes.h"

namespace selftest {

constexpr int floats = 0, bytes = 4, ints = 5, longs = 6;  // places in mest_type_name
constexpr int64_t bytes_of_type[] = {4, 2, 2, 1, 1, 4, 8};

struct Buffer {
    int64_t type, role, offset;
    std::vector<int64_t> shape;
    int64_t margin = 0;
};

// Of a buffer that a description may have; -1 where that is no size.
inline int64_t bytes_of(const Buffer& buffer) {
    if (buffer.type < 0 || buffer.type > 6) return -1;
    int64_t bytes = bytes_of_type[buffer.type];
    for (int64_t size : buffer.shape) {
        if (size < 1 || size > (int64_t{1} << 24) / bytes) return -1;
        bytes *= size;
    }
    if (buffer.margin < 1 || buffer.margin > 64 || buffer.shape.size() != 4) return bytes;
    const auto size = [&](int i) { return static_cast<int>(buffer.shape[i]); };
    const int margin = static_cast<int>(buffer.margin);
    return 4 * mest::Planes{buffer.shape[0], size(1), size(2), size(3), margin}.floats();
}

inline int code_of(const std::string& name) {
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
    int64_t arena = 0, group_operators = 0, count = 0;  // count: of operators

    int64_t bound(int type, std::vector<int64_t> shape, int role = mest_alike) {
        buffers.push_back({type, role, -1, std::move(shape)});
        return static_cast<int64_t>(buffers.size()) - 1;
    }
    int64_t held(int type, std::vector<int64_t> shape, int64_t margin = 0) {
        buffers.push_back({type, mest_alike, arena, std::move(shape), margin});
        arena += (bytes_of(buffers.back()) + 63) / 64 * 64;
        return static_cast<int64_t>(buffers.size()) - 1;
    }
    void apply(const std::string& name, const std::vector<int64_t>& numbers,
               const std::vector<double>& others = {}) {
        operators.push_back(code_of(name));
        operators.insert(operators.end(), numbers.begin(), numbers.end());
        reals.insert(reals.end(), others.begin(), others.end());
        ++count;
    }
    std::vector<int64_t> flat_buffers() const {
        std::vector<int64_t> flat;
        for (const Buffer& buffer : buffers) {
            flat.insert(flat.end(), {buffer.type, buffer.role, buffer.offset, buffer.margin,
                                     static_cast<int64_t>(buffer.shape.size())});
            flat.insert(flat.end(), buffer.shape.begin(), buffer.shape.end());
        }
        return flat;
    }
    // Valid as long as the description and its flat buffers.
    mest_description flat(const std::vector<int64_t>& flat_buffers) const {
        return {flat_buffers.data(), static_cast<int64_t>(flat_buffers.size()),
                operators.data(), static_cast<int64_t>(operators.size()),
                reals.data(), static_cast<int64_t>(reals.size()), group_operators};
    }
};

// A program with memory of its own; what it writes beside its buffers a sanitizer sees.
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
    // Forward and backward of groups; `before`: examples that were added up before.
    bool groups(int64_t count, int64_t before) {
        return mest_groups(program_, count, before, error, sizeof error) == 0;
    }
    bool update() { return run(description_.group_operators, description_.count); }

    template <class T = float>
    T* at(int64_t number) const {
        const int64_t offset = description_.buffers[number].offset;
        void* place = offset < 0 ? memory_[number] : static_cast<char*>(arena_) + offset;
        return static_cast<T*>(place);
    }
    std::vector<float> copy(int64_t number) const {
        return {at(number), at(number) + bytes_of(description_.buffers[number]) / 4};
    }

    char error[300] = "";

private:
    Description description_;
    void* arena_;
    mest_program* program_ = nullptr;
    std::vector<void*> memory_;
};

}  // namespace selftest
