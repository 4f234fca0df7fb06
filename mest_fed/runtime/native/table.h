// The table of operators: names, arguments and attributes of each, and what makes a step of it. An
// operator's code is its place, the same for every instruction set. Nothing else lists operators.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace mest::runtime {

enum Type : int { float32, bfloat16, float16, int8, uint8, int32, int64, types };

const char* name_of(Type type);
int bytes_of(Type type);

struct Argument {
    const char* name;
    Type type = float32;
    bool optional = false;
    // Whether its buffer may have a margin, and then be of bfloat16: together with all other such
    // arguments of the operator, or as it likes.
    enum Layouts : int { c_order, planes, bf16_planes, any_planes } layouts = c_order;
};

inline Argument on_planes(const char* name, bool optional = false) {
    return {name, float32, optional, Argument::planes};
}

inline Argument on_bf16_planes(const char* name, bool optional = false) {
    return {name, float32, optional, Argument::bf16_planes};
}

struct Attribute {
    const char* name;
    double least = 0, most = 2147483647;
    int length = 1;
};

class Builder;
struct Run;
using Step = std::function<void(const Run&)>;

struct Operator {
    const char* name;
    std::vector<Argument> inputs, outputs;
    std::vector<Attribute> wholes, reals;
    Step (*make)(Builder&);
    bool adds = false;  // to what outputs hold that are gradients of weights, or else of inputs
};

const std::vector<Operator>& table();

// A file of operators, NAME.cpp, defines `std::vector<Operator> NAME()` in the namespace below, and
// CMakeLists.txt names it (MEST_PARTS). It is compiled once for each instruction set.
using Part = std::vector<Operator>();

// What parts.cpp makes of them, once for each instruction set.
struct Table {
    const char* name;
    Part* operators;
};

}  // namespace mest::runtime
