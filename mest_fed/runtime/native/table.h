// The table of operators: names, arguments and attributes of each, and what makes a step of it. An
// operator's code is its place. Nothing else lists operators.
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
};

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
};

const std::vector<Operator>& table();

// The parts of the table.
std::vector<Operator> products();
std::vector<Operator> norms();
std::vector<Operator> elementwise();
std::vector<Operator> pools();
std::vector<Operator> tokens();
std::vector<Operator> attention();
std::vector<Operator> loss_and_updates();
std::vector<Operator> activations();
std::vector<Operator> channels();
std::vector<Operator> recurrent();
std::vector<Operator> losses();

}  // namespace mest::runtime
