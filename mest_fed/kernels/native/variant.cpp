// The kernels for one instruction set: compiled once for each, with other flags and another name.
#include "variant.h"

#include "backward_input.h"
#include "backward_values.h"
#include "forward.h"

#define MEST_TEXT_OF(name) #name
#define MEST_TEXT(name) MEST_TEXT_OF(name)

namespace mest::MEST_VARIANT {

extern const Kernels variant;
const Kernels variant{MEST_TEXT(MEST_VARIANT), forward, backward_input, backward_values};

}  // namespace mest::MEST_VARIANT
