// Products on planes in place for one instruction set: compiled once for each, as variant.cpp is.
#include "plane_dots.h"
#include "plane_pairs.h"
#include "plane_phases.h"
#include "plane_spread.h"
#include "plane_walk.h"

namespace mest::MEST_VARIANT {

extern const PlaneKernels plane_table;
const PlaneKernels plane_table{V,
                               plane_forward<float, float>,
                               plane_spread_back<float>,
                               plane_value_gradient<float>,
                               plane_split<float>,
                               plane_join,
                               plane_clear<float>,
                               {paired, pack_entries, pack_rows, narrow_forward,
                                plane_forward<bf16, float>, narrow_spread,
                                plane_value_gradient<bf16>, plane_split<bf16>, plane_clear<bf16>}};

}  // namespace mest::MEST_VARIANT
