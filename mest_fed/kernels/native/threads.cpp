#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace mest {
namespace {

// A second OpenMP runtime beside torch's would fight with it for the cores (its idle threads spin
// for a while), so its team is borrowed through the entry point that GCC's compiler calls.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// A forked child has none of its parent's threads, but its OpenMP runtime waits for them.
std::atomic<bool> forked{false};

GompParallel gomp_parallel() {
    static const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    if (watched != 0 || forked) return nullptr;
    static const auto found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

struct Team {
    Team(const std::function<void(int64_t)>& work_, int64_t units_)
        : work(work_), units(units_) {}

    const std::function<void(int64_t)>& work;
    const int64_t units;
    std::atomic<int64_t> next{0};
    std::mutex lock;
    std::exception_ptr failure;

    void run() {
        try {
            for (int64_t unit = next++; unit < units; unit = next++) work(unit);
        } catch (...) {
            next = units;
            const std::lock_guard<std::mutex> guard(lock);
            failure = std::current_exception();
        }
    }
};

void run_member(void* team) { static_cast<Team*>(team)->run(); }

struct Buffer {
    float* data = nullptr;
    int64_t floats = 0;
    ~Buffer() { release(); }
    void release();
};

std::atomic<int64_t> held{0};

thread_local Buffer buffers[4];

void Buffer::release() {
    std::free(data);
    held -= floats * static_cast<int64_t>(sizeof(float));
    data = nullptr;
    floats = 0;
}

}  // namespace

void parallel_for(int64_t units, int threads, const std::function<void(int64_t)>& work) {
    threads = static_cast<int>(std::min<int64_t>(threads, units));
    Team team(work, units);
    if (threads <= 1) {
        team.run();
    } else if (gomp_parallel() != nullptr) {
        gomp_parallel()(run_member, &team, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> others;
        try {
            for (int i = 1; i < threads; ++i) others.emplace_back(run_member, &team);
        } catch (const std::system_error&) {
            // The system gives no more threads: those that there are do all the work.
        }
        team.run();
        for (std::thread& other : others) other.join();
    }
    if (team.failure) std::rethrow_exception(team.failure);
}

float* thread_scratch(int which, int64_t floats) {
    Buffer& buffer = buffers[which];
    if (buffer.floats < floats) {
        buffer.release();
        const int64_t lines = (floats + 15) / 16;
        buffer.data = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(lines) * 64));
        if (buffer.data == nullptr) throw std::bad_alloc();
        buffer.floats = lines * 16;
        held += buffer.floats * static_cast<int64_t>(sizeof(float));
    }
    return buffer.data;
}

int64_t scratch_bytes() { return held; }

int64_t thread_scratch_bytes() {
    int64_t floats = 0;
    for (const Buffer& buffer : buffers) floats += buffer.floats;
    return floats * static_cast<int64_t>(sizeof(float));
}

void release_thread_scratch() {
    for (Buffer& buffer : buffers) buffer.release();
}

}  // namespace mest
