// From the active granules to the lists that products on planes walk: entries of a strip, grouped by
// their masks.
#pragma once

#include "index.h"
#include "plane_geometry.h"

namespace mest {

// What a list is for. `gather` is the way back of single rows: strips of one input channel each.
enum class PlaneWay { walk, spread, gather, dots };

class PlaneLists {
public:
    // `width`: floats of a vector.
    PlaneLists(PlaneWay way, const PlaneGeometry& geometry, int rows, int width);

    void reserve(int64_t entries);
    // Allocates nothing for as many entries as were reserved.
    void set(const StripIndex& index);
    // All entries, values in the order of a dense weight (out, in, kernel height, kernel width).
    void set_dense();

    // Of the entries that were set.
    PlaneTask task() const;
    int64_t bytes() const;

private:
    struct Column {
        PlaneEntry entry;  // gathering: its offset is from the strip's own channel
        int32_t group;
        int32_t channel;   // gathering: in which the entry stands
    };

    void add_groups(const PlaneGeometry& geometry, int width);
    void add_columns(const PlaneGeometry& geometry);
    void place(const StripIndex& index);
    void turn(const StripIndex& index);

    PlaneWay way_;
    PlaneTask task_{};
    std::vector<Column> columns_;
    std::vector<int32_t> group_of_tap_, mask_of_, moved_;
    std::vector<LineMask> masks_, inside_;
    std::vector<PlaneEntry> entries_;
    std::vector<int32_t> first_;
};

}  // namespace mest
