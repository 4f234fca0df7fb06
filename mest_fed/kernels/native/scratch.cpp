#include "scratch.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace mest {
namespace {

int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
int residue(int a, int b) { return a - floor_div(a, b) * b; }

void place_rows(Scratch& s, const Reading& r) {
    for (int phase = 0; phase < r.step_height; ++phase) {
        int least = 0, most = 0;
        bool used = false;
        for (int start : r.row_start) {
            const int at = floor_div(start, r.step_height);
            if (start - at * r.step_height != phase) continue;
            least = used ? std::min(least, at) : at;
            most = used ? std::max(most, at) : at;
            used = true;
        }
        if (!used) continue;
        s.phases.push_back({least * r.step_height + phase, most - least + r.domain_height, s.rows});
        s.rows += s.phases.back().rows;
    }
}

int row_of(const Scratch& s, const Reading& r, int start) {
    for (const Phase& phase : s.phases) {
        const int ahead = start - phase.start;
        if (ahead >= 0 && ahead % r.step_height == 0 &&
            ahead / r.step_height <= phase.rows - r.domain_height) {
            return phase.base + ahead / r.step_height;
        }
    }
    return 0;
}

Copy make_copy(int start, const Reading& r, int piece) {
    Copy copy{};
    copy.start = start;
    const int last = r.domain_width - piece, step = r.step_width;
    copy.odd = residue(start, step) == 1;
    copy.back = floor_div(copy.odd - start, step);
    for (int lane = 0; lane < widest; ++lane) {
        const int a = start + step * lane, b = a + step * last;
        copy.first[lane] = a >= 0 && a < r.source_width ? -1 : 0;
        copy.last[lane] = b >= 0 && b < r.source_width ? -1 : 0;
        const int c = lane + copy.back, d = c + last;
        copy.back_first[lane] = c >= 0 && c < r.domain_width ? -1 : 0;
        copy.back_last[lane] = d >= 0 && d < r.domain_width ? -1 : 0;
    }
    return copy;
}

// Only the first and the last piece of a row may stick out of the source.
int piece_of(const Reading& r, int width) {
    const int step = r.step_width;
    if (step > 2) return 0;
    const auto [least, most] = std::minmax_element(r.column_start.begin(), r.column_start.end());
    const int out = std::max(-*least, *most + step * r.domain_width - r.source_width);
    for (int piece : {16, 8, 4}) {
        if (piece <= width && r.domain_width % piece == 0 && out <= step * piece) return piece;
    }
    return 0;
}

}  // namespace

Scratch arrange(const Reading& r, const Request& request, int64_t batch, int width) {
    constexpr int64_t farthest = std::numeric_limits<int32_t>::max();
    constexpr int64_t large = 160 * 1024;  // floats: what a second-level cache surely holds
    Scratch s{};
    const bool narrow = r.domain_width < width;
    const bool ragged = !request.overlap && r.domain_width % width != 0;
    s.padded = request.plane == Plane::padded && !narrow && !ragged && r.step_width == 1;
    s.piece = piece_of(r, width);
    s.side_by_side = narrow ? static_cast<int>(std::min<int64_t>(width / r.domain_width, batch)) : 1;
    place_rows(s, r);
    std::vector<int> starts = r.column_start;
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    const int row = s.padded ? r.domain_width + starts.back() - starts.front() : r.domain_width;
    s.pitch = s.padded ? row : (row + width - 1) / width * width;
    if (s.padded) starts.resize(1);
    const int64_t copy_floats = int64_t{s.rows} * s.pitch;
    // Before anything is multiplied further: 64 bits do not hold every product either.
    const auto copies = static_cast<int64_t>(starts.size());
    const int64_t positions = int64_t{r.domain_height} * r.domain_width;
    if (copy_floats > farthest / copies / request.channels || positions > farthest) {
        throw std::length_error("one image takes more scratch memory than 32-bit offsets reach");
    }
    for (int start : starts) s.copies.push_back(make_copy(start, r, std::max(1, s.piece)));
    s.image_floats = copy_floats * copies;
    for (int at = 0; at == 0 || at < r.domain_width; at += width) {
        s.column.push_back(request.overlap ? std::max(0, std::min(at, r.domain_width - width)) : at);
    }
    s.vectors = r.domain_height * static_cast<int>(s.column.size());
    s.stacked = 1;
    while (s.vectors * s.stacked < request.vectors && s.images() < batch &&
           s.image_floats * request.channels * (s.stacked + 1) <= large) {
        ++s.stacked;
    }
    s.channel_floats = s.image_floats * s.stacked;
    for (size_t t = 0; t < r.row_start.size(); ++t) {
        const int start = r.column_start[t];
        const auto copy = std::lower_bound(starts.begin(), starts.end(), start) - starts.begin();
        const int64_t across = s.padded ? start - starts.front() : copy * copy_floats;
        s.tap_offset.push_back(
            static_cast<int32_t>(across + int64_t{row_of(s, r, r.row_start[t])} * s.pitch));
    }
    for (int q = 0; q < s.stacked; ++q) {
        for (int i = 0; i < r.domain_height; ++i) {
            for (int column : s.column) {
                s.from.push_back(static_cast<int32_t>(q * s.image_floats + i * s.pitch + column));
            }
        }
    }
    return s;
}

}  // namespace mest
