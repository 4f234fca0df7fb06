// Reads flat numbers, none of which is trusted.
#pragma once

#include <stdexcept>
#include <string>

namespace mest::runtime {

inline std::string refusal(const std::string& what, const std::string& allowed) {
    return what + "; allowed: " + allowed;
}

template <class Number>
class Reader {
public:
    Reader(const Number* numbers, int64_t length, const char* name)
        : at_(numbers), left_(length), name_(name) {
        if (length < 0 || (length > 0 && numbers == nullptr)) {
            throw std::invalid_argument(refusal(name_ + ": no numbers", "some"));
        }
    }

    bool ended() const { return left_ == 0; }

    // The next number, which must be within [least, most].
    Number next(const std::string& what, double least, double most) {
        if (left_ == 0) throw std::invalid_argument(what + " is missing");
        const Number number = *at_++;
        --left_;
        if (number >= least && number <= most) return number;  // not so of a NaN
        throw std::invalid_argument(refusal(what + " = " + text_of(number),
                                            text_of(least) + " to " + text_of(most)));
    }

private:
    template <class Any>
    static std::string text_of(Any number) {
        const auto whole = static_cast<long long>(
            number >= -9e15 && number <= 9e15 ? number : Any{0});
        return static_cast<Any>(whole) == number ? std::to_string(whole) : std::to_string(number);
    }

    const Number* at_;
    int64_t left_;
    std::string name_;
};

}  // namespace mest::runtime
