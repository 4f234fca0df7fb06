#include "table.h"

namespace mest::runtime {
namespace {

struct Named {
    const char* name;
    int bytes;
};

constexpr Named named[types] = {{"float32", 4}, {"bfloat16", 2}, {"float16", 2}, {"int8", 1},
                                {"uint8", 1},   {"int32", 4},    {"int64", 8}};

}  // namespace

const char* name_of(Type type) { return named[type].name; }
int bytes_of(Type type) { return named[type].bytes; }

const std::vector<Operator>& table() {
    static const std::vector<Operator> all = [] {
        std::vector<Operator> found;
        for (auto* part : {products, norms, elementwise, pools, tokens, attention, loss_and_updates,
                           activations, channels, recurrent, losses}) {
            for (Operator& one : part()) found.push_back(std::move(one));
        }
        return found;
    }();
    return all;
}

}  // namespace mest::runtime
