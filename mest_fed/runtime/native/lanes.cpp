// A batch, group by group. Groups are cut into chunks, whose number threads do not change; a chunk's
// groups run one after the other and add to sums of its own, which are added in order at the end. So
// the same bits come out for any number of threads.
#include <algorithm>

#include "loops.h"
#include "program.h"
#include "running.h"

namespace mest::runtime {
namespace {

constexpr int64_t most_chunks = 8;

}  // namespace

void Program::check(int64_t groups, int64_t first, int64_t last) const {
    const auto count = static_cast<int64_t>(run_[0].steps.size());
    if (first < 0 || last < first || last > count) {
        refuse("operators " + std::to_string(first) + " to " + std::to_string(last),
               "a range within 0 to " + std::to_string(count));
    }
    if (unbound_ > 0) refuse(std::to_string(unbound_) + " buffers have no address", "none");
    if (groups < 1 || (lanes_ == 0 && groups > 1)) {
        refuse(std::to_string(groups) + " groups", lanes_ == 0 ? "1" : "1 or more");
    }
    for (int64_t number : rows_) {
        if (groups_bound_[number] < groups) {
            refuse(std::to_string(groups) + " groups",
                   "up to " + std::to_string(groups_bound_[number]) + ", for which buffers[" +
                       std::to_string(number) + "] has memory");
        }
    }
}

void Program::run(int64_t first, int64_t last) {
    const Running running(runs_);
    check(1, first, last);
    run_[0].again = false;
    place_rows(run_[0], 0);
    place_sums(run_[0], -1);
    run(run_[0], first, last, 0);
}

void Program::groups(int64_t count, int64_t before) {
    const Running running(runs_);
    run_groups(count, before);
}

void Program::step(int64_t count) {
    const Running running(runs_);
    run_groups(count, 0);
    place_rows(run_[0], 0);
    place_sums(run_[0], -1);
    run(run_[0], group_operators_, static_cast<int64_t>(run_[0].steps.size()), 0);
}

void Program::run(const Lane& lane, int64_t first, int64_t last, int64_t before) const {
    const Run run{lane.addresses.data(), *lane.shared, lane.threads, examples_, before, lane.again};
    for (int64_t i = first; i < last; ++i) lane.steps[i](run);
}

void Program::run_groups(int64_t count, int64_t before) {
    check(count, 0, group_operators_);
    if (before < 0 || (lanes_ == 0 && before > 0)) {
        refuse(std::to_string(before) + " examples before", lanes_ == 0 ? "0" : "0 or more");
    }
    for (Lane& lane : run_) lane.again = false;
    if (before == 0) zero_sums(-1);
    // The first chunk of all adds to the total itself.
    const int64_t chunks = std::min(count, most_chunks), alone = before == 0 ? 1 : 0;
    for (int64_t done = 0, now; done < chunks; done += now) {
        now = std::min<int64_t>(std::max(1, lanes_), chunks - done);
        parallel_for(now, threads_, [&](int64_t i) {
            Lane& lane = run_[now > 1 ? i + 1 : 0];
            const int64_t chunk = done + i, part = chunk < alone ? -1 : i;
            if (part >= 0) zero_sums(part);
            place_sums(lane, part);
            run_chunk(lane, chunk * count / chunks, (chunk + 1) * count / chunks, before);
        });
        for (int64_t i = done == 0 ? alone : 0; i < now; ++i) add_part(i);
    }
}

void Program::run_chunk(Lane& lane, int64_t from, int64_t until, int64_t before) {
    for (int64_t group = from; group < until; ++group) {
        place_rows(lane, group);
        run(lane, 0, group_operators_, before + group * examples_);
        lane.again = true;
    }
}

void Program::place_rows(Lane& lane, int64_t group) const {
    for (int64_t number : rows_) {
        lane.addresses[number] = bound_[number] + group * buffers_[number].bytes();
    }
}

// for each sum: work(its number, the part's address)
template <class Work>
void Program::each_sum(int64_t part, const Work& work) {
    float* at = parts_.get() + std::max<int64_t>(part, 0) * part_floats_;
    for (int64_t number : sums_) {
        work(number, part < 0 ? reinterpret_cast<float*>(bound_[number]) : at);
        at += (buffers_[number].count() + 15) / 16 * 16;
    }
}

void Program::place_sums(Lane& lane, int64_t part) {
    each_sum(part, [&](int64_t number, float* at) { lane.addresses[number] = at; });
}

void Program::zero_sums(int64_t part) {
    each_sum(part, [&](int64_t number, float* at) { std::fill_n(at, buffers_[number].count(), 0.0f); });
}

void Program::add_part(int64_t part) {
    each_sum(part, [&](int64_t number, const float* from) {
        auto* to = reinterpret_cast<float*>(bound_[number]);
        for_runs(buffers_[number].count(), 1, threads_, [=](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) to[i] += from[i];
        });
    });
}

}  // namespace mest::runtime
