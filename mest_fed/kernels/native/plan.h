// What is prepared before a call and all its threads read: where each entry and each vector stands.
#pragma once

#include <vector>

#include "index.h"
#include "scratch.h"

namespace mest {

// Output planes as the kernels see them: in the tensor itself, where a vector of positions is a run
// of one plane, else in a buffer of whole vectors, whose lanes outside the plane are zero.
struct Outputs {
    bool direct;
    int64_t channel, image;   // distances in the tensor
    int64_t buffer_channel;   // in the buffer
    int64_t buffer_plane;     // of one stacked row of images in the buffer
    int pitch;                // of a row in the buffer
    std::vector<int64_t> at;  // of each vector of the domain

    int64_t distance() const { return direct ? channel : buffer_channel; }
};

struct Plan {
    Reading reading;
    Scratch scratch;
    Outputs outputs;
    const StripIndex* index;   // of the call
    const int32_t* offsets;    // of each entry, in the scratch
    int rows, strips, taps;
    int in_channels, out_channels, out_height, out_width;
    int64_t batch, sets;  // of images that share a scratch
    bool features;        // planes are 1x1: images stand side by side, one float each
    int collected;        // output channels that the forward pass buffers before it stores them

    int64_t bytes() const;  // of its lists
    int64_t scratch_floats() const { return scratch.channel_floats * in_channels; }
};

// Without entries. `width` is that of the variant's vectors. Throws std::length_error if offsets
// leave 32 bits.
Plan make_plan(const Convolution& p, int rows, const Request& request, int width);

// Sets the entries of the next calls; `offsets` holds theirs.
void set_entries(Plan& plan, const StripIndex& index, std::vector<int32_t>& offsets);

// One unit of work: some images, and a range of strips or of channels.
struct Unit {
    int64_t first;
    int count, vectors;  // images from `first` on, and the vectors of positions that they fill
    int begin, end;
};

// All units of a call: sets of images, cut further where there are fewer sets than threads.
class Units {
public:
    Units(int64_t sets, int threads, int items);
    int64_t count() const { return sets_ * parts_; }
    int64_t set(int64_t unit) const { return unit / parts_; }
    // The same units, cut along other items.
    Units of(int items) const;
    Unit unit(const Plan& plan, int64_t set, int64_t unit) const;

private:
    int64_t sets_, parts_, items_;
};

}  // namespace mest
