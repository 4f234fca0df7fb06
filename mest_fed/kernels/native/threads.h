// Threads: torch's own OpenMP team where it is loaded, else threads started for the call.
#pragma once

#include <cstdint>
#include <functional>

namespace mest {

// Call work(unit) for each unit in [0, units), on at most `threads` threads. Which thread
// takes which unit is not fixed; results must not depend on it. An exception in work ends the call.
void parallel_for(int64_t units, int threads, const std::function<void(int64_t)>& work);

// Memory of the calling thread, aligned to a cache line, valid until its next call for `which`.
// It only grows, so that a training step does not ask the system for pages again and again.
float* thread_scratch(int which, int64_t floats);

// Bytes that all threads hold for thread_scratch.
int64_t scratch_bytes();

// The same of the calling thread alone.
int64_t thread_scratch_bytes();

// Gives back what the calling thread holds; the next call takes it anew.
void release_thread_scratch();

}  // namespace mest
