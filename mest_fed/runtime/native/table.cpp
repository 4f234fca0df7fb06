#include "table.h"

#include <cstring>
#include <iterator>

#include "variant.h"

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

namespace tables {

extern const Table MEST_VARIANTS;  // declares each; the last is plain

// Of the kernels' instruction set (MEST_FED_KERNELS, else the best).
std::vector<Operator> chosen() {
    const Table all[] = {MEST_VARIANTS};
    const Table* table = all;
    while (table + 1 < std::end(all) && std::strcmp(table->name, variant().name) != 0) ++table;
    return table->operators();
}

}  // namespace tables

const std::vector<Operator>& table() {
    static const std::vector<Operator> all = tables::chosen();
    return all;
}

}  // namespace mest::runtime
