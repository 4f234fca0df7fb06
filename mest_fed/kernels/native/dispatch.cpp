// Chooses the instruction set once, at the first call.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "instruction_sets.h"
#include "variant.h"

namespace mest {

namespace variants {

extern const Variant MEST_VARIANTS;  // declares each, the best first

static const Variant& choose() {
    const char* asked = std::getenv("MEST_FED_KERNELS");
    const std::string name = asked == nullptr ? "" : asked;
    static const Variant all[] = {MEST_VARIANTS};
    for (const Variant& each : all) {
        if ((name.empty() || name == each.name) && runs(each.name)) return each;
    }
    throw std::invalid_argument("MEST_FED_KERNELS = '" + name +
                                "' is not among the kernels of this machine");
}

}  // namespace variants

const Variant& variant() {
    static const Variant& chosen = variants::choose();
    return chosen;
}

}  // namespace mest
