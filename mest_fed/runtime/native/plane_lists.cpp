#include "plane_lists.h"

#include <algorithm>
#include <stdexcept>

namespace mest {
namespace {

PlaneView view_of(const Planes& planes) { return {planes.image(), planes.pitch(), planes.channels}; }

int32_t place_in(std::vector<int32_t>& numbers, int32_t number) {
    const auto found = std::find(numbers.begin(), numbers.end(), number);
    const auto place = static_cast<int32_t>(found - numbers.begin());
    if (found == numbers.end()) numbers.push_back(number);
    return place;
}

// Whether the masks of any run of images repeat after two vectors.
bool alternates(const std::vector<LineMask>& masks, int64_t lines) {
    for (size_t mask = 0; mask < masks.size(); mask += lines) {
        for (int64_t i = 0; i < lines; ++i) {
            const int64_t like = lines % 2 == 0 ? i % 2 : 0;
            if (masks[mask + i] != masks[mask + like]) return false;
        }
    }
    return true;
}

}  // namespace

PlaneLists::PlaneLists(PlaneWay way, const PlaneGeometry& g, int rows, int width) : way_(way) {
    const bool gathers = way == PlaneWay::gather;
    task_.own = view_of(gathers ? g.taken : g.y);
    task_.other = view_of(gathers ? g.y : g.taken);
    task_.plane = static_cast<int>(g.y.plane());
    task_.lines = static_cast<int>(g.y.lines());
    task_.rows = gathers ? 1 : rows;
    task_.strips = (task_.own.channels - 1) / task_.rows + 1;
    task_.row_values = 1;
    add_groups(g, width);
    add_columns(g);
    first_.assign(int64_t{task_.strips} * task_.groups + 2, 0);
}

// Entries of one shift share their masks. Spreading adds to whole vectors of positions: where a row
// is no whole number of vectors, the gradients must be moved by rows, too.
void PlaneLists::add_groups(const PlaneGeometry& g, int width) {
    const bool back = way_ == PlaneWay::spread || way_ == PlaneWay::gather;
    const bool whole_rows = g.y.width % width == 0;
    std::vector<int32_t> shifts, kinds;
    for (const PlaneTap& tap : g.taps) {
        const bool by_rows = way_ == PlaneWay::spread && !whole_rows;
        const int32_t group = place_in(kinds, tap.shift + (by_rows ? tap.rows * 2 * most_shifts : 0));
        const int32_t mask = place_in(shifts, back ? -tap.shift : tap.shift);
        if (mask * g.y.lines() == static_cast<int64_t>(masks_.size())) {
            const std::vector<LineMask> some = line_masks(g.y, shifts.back());
            masks_.insert(masks_.end(), some.begin(), some.end());
        }
        if (group == static_cast<int32_t>(mask_of_.size())) {
            mask_of_.push_back(mask);
            moved_.push_back(static_cast<int32_t>(by_rows ? -g.displacement(tap) : -tap.shift));
        }
        group_of_tap_.push_back(group);
        if (whole_rows) task_.ahead = std::max(task_.ahead, tap.rows * g.y.width);
    }
    inside_ = line_masks(g.y, 0);
    task_.groups = static_cast<int>(mask_of_.size());
    task_.alternate = width == 16 && alternates(masks_, task_.lines) && alternates(inside_, task_.lines);
}

void PlaneLists::add_columns(const PlaneGeometry& g) {
    const auto taps = static_cast<int>(g.taps.size());
    columns_.reserve(int64_t{g.x.channels} * taps);
    for (int channel = 0; channel < g.x.channels; ++channel) {
        for (int t = 0; t < taps; ++t) {
            const PlaneTap& tap = g.taps[t];
            const int taken = channel * g.phase_count() + tap.phase;
            int64_t offset = taken * g.taken.pitch() + g.displacement(tap);
            if (way_ == PlaneWay::gather) offset = -g.displacement(tap);
            if (way_ == PlaneWay::spread) offset += moved_[group_of_tap_[t]];
            const int group = group_of_tap_[t];
            const LineMask* masks = masks_.data() + int64_t{mask_of_[group]} * task_.lines;
            PlaneEntry entry{static_cast<int32_t>(offset), 0, masks[0], masks[task_.lines > 1]};
            if (!task_.alternate) entry.even = static_cast<LineMask>(mask_of_[group]);
            columns_.push_back({entry, group, taken});
        }
    }
}

void PlaneLists::reserve(int64_t entries) { entries_.reserve(entries); }

void PlaneLists::set(const StripIndex& index) {
    task_.shared = false;
    entries_.resize(index.columns.size());
    (way_ == PlaneWay::gather) ? turn(index) : place(index);
}

// Each strip's entries by their groups.
void PlaneLists::place(const StripIndex& index) {
    const int groups = task_.groups;
    int32_t* first = first_.data();
    for (int strip = 0; strip < task_.strips; ++strip, first += groups) {
        const int32_t begin = index.first[strip], end = index.first[strip + 1];
        std::vector<int32_t>::const_iterator columns = index.columns.begin();
        for (int g = 0; g < groups; ++g) first[g + 1] = 0;
        first[0] = begin;
        for (int32_t e = begin; e < end; ++e) {
            const int group = columns_[columns[e]].group;
            if (group + 1 < groups) ++first[group + 1];
        }
        for (int g = 1; g < groups; ++g) first[g] += first[g - 1];
        // Where the next entry of a group goes; then where the next group begins.
        for (int32_t e = begin; e < end; ++e) {
            const Column& column = columns_[columns[e]];
            PlaneEntry& entry = entries_[first[column.group]++];
            entry = column.entry;
            entry.value = e * index.rows;
        }
        for (int g = groups - 1; g > 0; --g) first[g] = first[g - 1];
        first[0] = begin;
        first[groups] = end;
    }
}

// The same entries by the channel in which they stand: strips of single rows alone.
void PlaneLists::turn(const StripIndex& index) {
    const int groups = task_.groups;
    std::fill(first_.begin(), first_.end(), 0);
    for (const int32_t column : index.columns) {
        const Column& c = columns_[column];
        ++first_[int64_t{c.channel} * groups + c.group + 2];
    }
    for (size_t i = 2; i < first_.size(); ++i) first_[i] += first_[i - 1];
    for (size_t strip = 0; strip + 1 < index.first.size(); ++strip) {
        const auto base = static_cast<int32_t>(strip * task_.other.pitch);
        for (int32_t e = index.first[strip]; e < index.first[strip + 1]; ++e) {
            const Column& c = columns_[index.columns[e]];
            PlaneEntry& entry = entries_[first_[int64_t{c.channel} * groups + c.group + 1]++];
            entry = c.entry;
            entry.offset += base;
            entry.value = e;
        }
    }
}

void PlaneLists::set_dense() {
    if (way_ == PlaneWay::gather) throw std::logic_error("dense strips have several rows");
    StripIndex all;
    all.rows = 1;  // values of a column are a column apart
    all.first = {0, static_cast<int32_t>(columns_.size())};
    for (size_t c = 0; c < columns_.size(); ++c) all.columns.push_back(static_cast<int32_t>(c));
    const int strips = task_.strips;
    task_.strips = 1;
    set(all);
    task_.strips = strips;
    task_.shared = true;
    task_.row_values = static_cast<int64_t>(columns_.size());
    task_.strip_values = task_.row_values * task_.rows;
}

PlaneTask PlaneLists::task() const {
    PlaneTask task = task_;
    task.entries = entries_.data();
    task.first = first_.data();
    task.mask_of = mask_of_.data();
    task.moved = moved_.data();
    task.masks = masks_.data();
    task.inside = inside_.data();
    return task;
}

int64_t PlaneLists::bytes() const {
    const auto held = [](const auto& vector) {
        return static_cast<int64_t>(vector.capacity() * sizeof(vector[0]));
    };
    return held(columns_) + held(group_of_tap_) + held(mask_of_) + held(moved_) + held(masks_) +
           held(inside_) + held(entries_) + held(first_);
}

}  // namespace mest
