// Products on planes in place for one instruction set: compiled once for each, as variant.cpp is.
#include "plane_dots.h"
#include "plane_phases.h"
#include "plane_spread.h"
#include "plane_walk.h"

namespace mest::MEST_VARIANT {

extern const PlaneKernels plane_table;
const PlaneKernels plane_table{V,           plane_forward, plane_spread_back, plane_value_gradient,
                               plane_split, plane_join,    plane_clear};

}  // namespace mest::MEST_VARIANT
