// A program with memory: steps over buffers, made of flat numbers that are checked once.
#pragma once

#include <atomic>

#include "builder.h"
#include "mest_runtime.h"

namespace mest::runtime {

class Program {
public:
    // Throws std::invalid_argument, or std::length_error or std::bad_alloc for what is too large.
    Program(const mest_description& description, void* arena, int64_t arena_bytes, int threads);

    void bind(int64_t buffer, void* address, int64_t bytes);
    void run(int64_t first, int64_t last);
    int64_t workspace_bytes() const;

private:
    void add_buffers(const mest_description& description);
    void add_operators(const mest_description& description);
    void take_scratch() const;

    int threads_;
    char* arena_;
    int64_t arena_bytes_;
    std::vector<Buffer> buffers_;
    std::vector<void*> addresses_;
    std::vector<bool> used_;  // by an operator
    int64_t unbound_ = 0;     // of those that are used
    std::vector<Step> steps_;
    std::vector<std::shared_ptr<Product>> products_;
    int64_t scratch_floats_ = 0, held_bytes_ = 0;  // of steps
    Shared shared_;
    std::atomic<bool> runs_{false};
};

}  // namespace mest::runtime
