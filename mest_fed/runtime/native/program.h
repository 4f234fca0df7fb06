// A program with memory: steps over buffers, made of flat numbers that are checked once.
#pragma once

#include <atomic>

#include "builder.h"
#include "mest_runtime.h"

namespace mest::runtime {

class Program {
public:
    // Throws std::invalid_argument, or std::length_error or std::bad_alloc for what is too large.
    Program(const mest_description& description, void* arena, int64_t arena_bytes, int lanes,
            int threads);

    void bind(int64_t buffer, void* address, int64_t bytes);
    void run(int64_t first, int64_t last);
    void groups(int64_t count, int64_t before);
    void step(int64_t count);
    int64_t workspace_bytes() const;

private:
    // What runs operators in turn: addresses of its own, and the operators' steps, which are made
    // for a number of threads. `shared` is another's where the two never run at once.
    struct Lane {
        int threads;
        std::vector<void*> addresses;
        std::vector<Step> steps;
        std::vector<std::shared_ptr<Product>> products;
        std::shared_ptr<Shared> shared;
        bool again = false;  // whether it has run a group of this batch
    };

    void add_buffers(const mest_description& description);
    void add_lanes(const mest_description& description, char* arena);
    Lane lane_of(const mest_description& description, int threads, int64_t most, char* arena,
                 std::shared_ptr<Shared> shared);
    void take_scratch() const;

    void check(int64_t groups, int64_t first, int64_t last) const;
    void run(const Lane& lane, int64_t first, int64_t last, int64_t before) const;
    void run_groups(int64_t count, int64_t before);
    void run_chunk(Lane& lane, int64_t from, int64_t until, int64_t before);
    void place_rows(Lane& lane, int64_t group) const;
    // Of the part -1, the total, or of a lane's.
    template <class Work>
    void each_sum(int64_t part, const Work& work);
    void place_sums(Lane& lane, int64_t part);
    void zero_sums(int64_t part);
    void add_part(int64_t part);

    int threads_, lanes_;
    int64_t group_operators_, arena_bytes_;
    std::vector<Buffer> buffers_;
    std::vector<char*> bound_;          // by buffer; null: in the arena, or not yet
    std::vector<int64_t> groups_bound_;  // of rows
    std::vector<bool> used_;            // by an operator
    int64_t unbound_ = 0;               // of those that are used
    std::vector<int64_t> rows_, sums_;  // used buffers of these roles
    int64_t examples_ = 1;              // of a group
    std::vector<Lane> run_;  // first the one for one group, then, if there are several, the lanes
    std::unique_ptr<float[]> parts_;     // sums of chunks, lane by lane
    int64_t part_floats_ = 0, scratch_floats_ = 0, held_bytes_ = 0;  // held: by steps
    std::atomic<bool> runs_{false};
};

}  // namespace mest::runtime
