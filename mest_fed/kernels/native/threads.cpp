#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace mest {
namespace {

// A second OpenMP runtime beside torch's would fight with it for the cores (its idle threads spin
// for a while), so its team is borrowed through the entry point that GCC's compiler calls.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// A forked child has none of its parent's threads, but its OpenMP runtime waits for them.
std::atomic<bool> forked{false};

struct Team {
    Team(Work work_, int64_t units_, bool each_) : work(work_), units(units_), each(each_) {}

    const Work work;
    const int64_t units;
    const bool each;  // every member does one unit, the first
    std::atomic<int64_t> next{0};
    std::mutex lock;
    std::exception_ptr failure;

    void run() {
        try {
            if (each) return work.call(work.function, 0);
            for (int64_t unit = next++; unit < units; unit = next++) work.call(work.function, unit);
        } catch (...) {
            next = units;
            const std::lock_guard<std::mutex> guard(lock);
            failure = std::current_exception();
        }
    }
};

void run_member(void* team) { static_cast<Team*>(team)->run(); }

// Threads that sleep between calls. They are never ended: a call may come while the process exits.
class Pool {
public:
    // Has `members` threads, the caller among them, run the team: fewer where the system gives no
    // more, or the pool is at another thread's work.
    void run(Team& team, int members) {
        thread_local bool within = false;
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (within || !turn.try_lock()) return team.run();
        within = true;
        call(team, members - 1);
        team.run();
        std::unique_lock<std::mutex> guard(lock_);
        done_.wait(guard, [&] { return running_ == 0; });
        within = false;
    }

private:
    void call(Team& team, int others) {
        const std::lock_guard<std::mutex> guard(lock_);
        try {
            for (; threads_ < others; ++threads_) {
                std::thread(&Pool::serve, this, threads_, calls_).detach();
            }
        } catch (const std::system_error&) {
        }
        team_ = &team;
        wanted_ = running_ = std::min(others, threads_);
        ++calls_;
        wake_.notify_all();
    }

    void serve(int number, int64_t seen) {
        std::unique_lock<std::mutex> guard(lock_);
        for (;;) {
            wake_.wait(guard, [&] { return calls_ != seen; });
            seen = calls_;
            if (number >= wanted_) continue;
            Team& team = *team_;
            guard.unlock();
            team.run();
            guard.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_, lock_;
    std::condition_variable wake_, done_;
    Team* team_ = nullptr;
    int threads_ = 0, wanted_ = 0, running_ = 0;
    int64_t calls_ = 0;
};

std::atomic<Pool*> pool_of_process{nullptr};

Pool& pool() {
    Pool* now = pool_of_process;
    if (now != nullptr) return *now;
    Pool* made = new Pool;
    if (pool_of_process.compare_exchange_strong(now, made)) return *made;
    delete made;
    return *now;
}

bool watch_forks() {
    static const int watched = pthread_atfork(nullptr, nullptr, [] {
        forked = true;
        pool_of_process = nullptr;
    });
    return watched == 0;
}

GompParallel gomp_parallel() {
    if (!watch_forks() || forked) return nullptr;
    static const auto found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

void run_team(Team& team, int threads) {
    if (threads <= 1) {
        team.run();
    } else if (const GompParallel gomp = gomp_parallel()) {
        gomp(run_member, &team, static_cast<unsigned>(threads), 0);
    } else {
        pool().run(team, threads);
    }
    if (team.failure) std::rethrow_exception(team.failure);
}

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

void run_units(int64_t units, int threads, Work work) {
    Team team(work, units, false);
    run_team(team, static_cast<int>(std::min<int64_t>(threads, units)));
}

void run_each(int threads, Work work) {
    Team team(work, threads, true);
    run_team(team, threads);
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
