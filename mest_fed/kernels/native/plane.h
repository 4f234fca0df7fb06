// Products of a convolution on planes in place: what is prepared for the inner loops, and what they
// offer. A position is an element's number in its plane, row by row. A tap stands away from the
// position by whole rows, which need no test since rows of zeros lie between planes, and by a
// *shift* of columns, under which a mask says which lanes stay within their row.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace mest {

// Positions of a line of 16 under one shift: bit l is that of lane l. Lanes past the plane's end have
// no bit.
using LineMask = uint16_t;

// An entry of a strip: where its tap stands in the other planes, and where its values are, in floats;
// and the masks of even and odd lines, if masks alternate, else the number of its mask in `even`.
struct PlaneEntry {
    int32_t offset, value;
    LineMask even, odd;
};

// Planes without what lies before the first of an image.
struct PlaneView {
    int64_t image, pitch;  // distances, in floats
    int channels;
};

constexpr int most_shifts = 7;  // of a kernel's columns

// A product's lists. `own` are the planes of strips' rows, `other` those where entries stand.
struct PlaneTask {
    PlaneView own, other;
    int plane, lines;       // elements of a plane, and lines of 16 that hold them
    int rows, strips;       // rows of a strip; the last one may have fewer
    int groups;             // of a strip's entries: one shift each (spreading may part them further)
    const PlaneEntry* entries;
    const int32_t* first;   // entries of group g of strip s: from first[s * groups + g] to the next
    bool shared;            // all strips have the entries of the first
    int64_t strip_values;   // from a strip's values to the next one's, where shared
    int64_t row_values;     // from a row's values to the next one's
    const int32_t* mask_of; // of each group: which of the masks
    const int32_t* moved;   // of each group, spreading: where its gradients are read, in floats
    const LineMask* masks;  // (masks, lines)
    const LineMask* inside; // (lines): all lanes of the plane
    bool alternate;         // masks of lines repeat after two, and a vector is a line
    int ahead;              // floats past a position to which spreading writes
};

// A product's values: as they are, and, where products are of pairs of bfloat16, packed for that.
struct PlaneValues {
    const float* each;
    const uint32_t* pairs;
};

// The same over planes of bfloat16, of which those that are spread or gathered to are of floats. All
// is computed in floats; values are rounded where products are of pairs.
struct NarrowPlaneKernels {
    bool pairs;
    // How walks, and spreads, want their values: pairs of entries of a strip, and pairs of its rows.
    void (*pack_entries)(const PlaneTask&, const float* values, uint32_t* pairs);
    void (*pack_rows)(const PlaneTask&, const float* values, uint32_t* pairs);
    void (*walk)(const PlaneTask&, const PlaneValues&, const bf16* other, const float* bias,
                 bf16* own, int64_t images);
    void (*gather)(const PlaneTask&, const float* values, const bf16* other, const float* bias,
                   float* own, int64_t images, bool add);
    void (*spread)(const PlaneTask&, const PlaneValues&, const bf16* own, float* other,
                   int64_t images, bool add);
    void (*dots)(const PlaneTask&, const bf16* own, const bf16* other, float* gradient,
                 int64_t images);
    void (*split)(const struct PlanePhase&, const bf16* plane, bf16* phase);
    void (*clear)(const PlaneView&, int plane, int64_t lead, bf16* first, int64_t images);
};

// One instruction set's loops, over `images` images. Writers leave zeros between planes.
struct PlaneKernels {
    int width;  // floats of a vector
    // own = bias + sum over entries of values * other; `bias` may be null; or added to what own holds
    void (*walk)(const PlaneTask&, const float* values, const float* other, const float* bias,
                 float* own, int64_t images, bool add);
    // other (+)= values * own, entry by entry
    void (*spread)(const PlaneTask&, const float* values, const float* own, float* other,
                   int64_t images, bool add);
    // gradient += sum over positions of own * other
    void (*dots)(const PlaneTask&, const float* own, const float* other, float* gradient,
                 int64_t images);
    // A phase of a plane. May write up to a vector past it: phases are split in the order in which
    // they lie, and what is between them is cleared after that.
    void (*split)(const struct PlanePhase&, const float* plane, float* phase);
    // A plane from its phases, which lie `pitch` apart; elements of no phase are zero. May write what
    // is behind the plane, up to a row, if it does not add.
    void (*join)(const struct PlanePhase* phases, int count, const float* first, int64_t pitch,
                 float* plane, bool add);
    // Zeros before, between and behind the planes of images; `lead` floats before the first plane.
    void (*clear)(const PlaneView&, int plane, int64_t lead, float* first, int64_t images);
    NarrowPlaneKernels narrow;
};

// A phase of planes of height x width: every step-th element from (row, column) on, as planes of
// (rows, columns).
struct PlanePhase {
    int height, width, row, column, step_height, step_width, rows, columns;
};

}  // namespace mest
