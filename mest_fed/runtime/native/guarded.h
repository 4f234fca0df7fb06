// What every function of the C interface runs in: no exception leaves it.
#pragma once

#include <cstdio>
#include <exception>
#include <new>

namespace mest::runtime {

inline void tell(char* error, size_t size, const char* text) {
    if (error != nullptr && size > 0) std::snprintf(error, size, "%s", text);
}

// work() -> 0; what it throws -> 1 and its text
template <class Work>
int guarded(char* error, size_t size, const Work& work) noexcept {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        tell(error, size, "there is no memory left");
    } catch (const std::exception& caught) {
        tell(error, size, caught.what());
    } catch (...) {
        tell(error, size, "an unknown error");
    }
    return 1;
}

// work()'s result; what it throws -> other
template <class Result, class Work>
Result or_else(Result other, const Work& work) noexcept {
    try {
        return work();
    } catch (...) {
        return other;
    }
}

}  // namespace mest::runtime
