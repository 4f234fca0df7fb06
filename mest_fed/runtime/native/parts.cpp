// The table of operators for one instruction set: compiled once for each, as the operators are.
#include "table.h"

namespace mest::runtime {
namespace MEST_VARIANT {

Part MEST_PARTS;  // declares each

namespace {

std::vector<Operator> operators() {
    std::vector<Operator> all;
    for (Part* part : {MEST_PARTS}) {
        for (Operator& one : part()) all.push_back(std::move(one));
    }
    return all;
}

}  // namespace
}  // namespace MEST_VARIANT

#define MEST_TEXT_OF(name) #name
#define MEST_TEXT(name) MEST_TEXT_OF(name)

namespace tables {

extern const Table MEST_VARIANT;
const Table MEST_VARIANT{MEST_TEXT(MEST_VARIANT), runtime::MEST_VARIANT::operators};

}  // namespace tables
}  // namespace mest::runtime
