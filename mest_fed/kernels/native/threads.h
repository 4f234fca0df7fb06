// Threads: torch's own OpenMP team where it is loaded, else a pool of our own.
#pragma once

#include <cstdint>

namespace mest {

// Call work(unit) for each unit in [0, units), on at most `threads` threads. Which thread
// takes which unit is not fixed; results must not depend on it. An exception in work ends the call.
// Nothing is allocated, but threads at their first use.
template <class Function>
void parallel_for(int64_t units, int threads, const Function& work);

// Call work(0) once on each thread that parallel_for takes for so many.
template <class Function>
void on_each_thread(int threads, const Function& work);

// Memory of the calling thread, aligned to a cache line, valid until its next call for `which`.
// It only grows, so that a training step does not ask the system for pages again and again.
float* thread_scratch(int which, int64_t floats);

// Bytes that all threads hold for thread_scratch.
int64_t scratch_bytes();

// The same of the calling thread alone.
int64_t thread_scratch_bytes();

// Gives back what the calling thread holds; the next call takes it anew.
void release_thread_scratch();

// What the two above stand on: a function and what it is called with first.
struct Work {
    void (*call)(const void* function, int64_t unit);
    const void* function;
};

template <class Function>
Work work_of(const Function& function) {
    return {[](const void* f, int64_t unit) { (*static_cast<const Function*>(f))(unit); }, &function};
}

void run_units(int64_t units, int threads, Work work);
void run_each(int threads, Work work);

template <class Function>
void parallel_for(int64_t units, int threads, const Function& work) {
    run_units(units, threads, work_of(work));
}

template <class Function>
void on_each_thread(int threads, const Function& work) {
    run_each(threads, work_of(work));
}

}  // namespace mest
