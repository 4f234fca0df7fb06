// What the parts of a program that is made and that runs share.
#pragma once

#include <atomic>

#include "reader.h"

namespace mest::runtime {

[[noreturn]] inline void refuse(const std::string& what, const std::string& allowed) {
    throw std::invalid_argument(refusal(what, allowed));
}

// While it lives no other call enters the program.
struct Running {
    std::atomic<bool>& flag;
    explicit Running(std::atomic<bool>& flag_) : flag(flag_) {
        if (flag.exchange(true)) throw std::runtime_error("the program runs already");
    }
    ~Running() { flag = false; }
};

}  // namespace mest::runtime
