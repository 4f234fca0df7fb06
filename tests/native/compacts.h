// Compact storage by its definition: 8-bit codes in doubles, packing element by element.
#pragma once

#include <functional>
#include <limits>

#include "checks.h"
#include "compact.h"

namespace selftest {

struct CompactCase {
    uint64_t seed;
    int64_t images, elements;  // or planes, and their elements
    std::vector<float> x;
    std::string describe() const {
        return "compact " + std::to_string(seed) + ": " + std::to_string(images) + "x" +
               std::to_string(elements);
    }
};

inline CompactCase draw_compact(uint64_t seed) {
    Random random(seed);
    CompactCase c{};
    c.seed = seed, c.images = random.among({0, 1, 2, 3, 5, 40});
    c.elements = random.among({0, 1, 7, 8, 9, 15, 16, 17, 49, 63, 64, 65, 200, 1024});
    if (random.from(0, 9) == 0) c.elements = random.from(1, 20000);
    c.x = draw_floats(random, c.images * c.elements, false);
    const double share = random.among({0, 1, 5, 9, 10}) / 10.0;
    const float size = std::ldexp(1.0f, random.among({0, 0, 0, -30, -90, -130, 40, 110}));
    const float offset = static_cast<float>(random.among({0, 0, 1, -1000})) * size;
    for (float& x : c.x) x = (random.share() < share ? 0.0f : x) * size + offset;
    return c;
}

struct Codes {
    std::vector<uint8_t> codes;
    std::vector<float> levels, x;
};

inline Codes quantised(const CompactCase& c, int threads) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    Codes got{std::vector<uint8_t>(c.x.size(), 255), std::vector<float>(c.images * 2, nan),
              std::vector<float>(c.x.size(), nan)};
    const mest::Quantised of{c.images, c.elements};
    mest::quantise(of, c.x.data(), got.codes.data(), got.levels.data(), threads);
    mest::dequantise(of, got.codes.data(), got.levels.data(), got.x.data(), threads);
    return got;
}

inline bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline void check_plane(const CompactCase& c, const Codes& got, int64_t plane) {
    const float *x = c.x.data() + plane * c.elements, *back = got.x.data() + plane * c.elements;
    const double low = *std::min_element(x, x + c.elements);
    const double high = *std::max_element(x, x + c.elements);
    const double step = got.levels[plane * 2 + 1], ideal = (high - low) / 255;
    const bool right = high == low ? step == 0
                                   : step >= ideal * (1 - 1e-6) &&
                                         step <= std::max(ideal * 1.0001, 0x1p-110);
    if (!right || got.levels[plane * 2] != low) return fail("levels", c.describe());
    const double rounding = 0x1p-24 * std::max(std::fabs(low), std::fabs(high)) + 0x1p-149;
    for (int64_t i = 0; i < c.elements; ++i) {
        const double most = x[i] == low ? 0 : step * 0.5001 + rounding;
        if (!(std::fabs(double{back[i]} - x[i]) <= most)) return fail("dequantise", c.describe());
    }
}

// Of finite numbers well inside a float's range.
inline void test_quantise(uint64_t seed) {
    const CompactCase c = draw_compact(seed);
    const Codes one = quantised(c, 1), three = quantised(c, 3);
    check(one.codes == three.codes && same_floats(one.levels, three.levels) &&
              same_floats(one.x, three.x),
          "quantise, 3 threads: other bits", c.describe());
    for (int64_t plane = 0; c.elements > 0 && plane < c.images; ++plane) check_plane(c, one, plane);
}

// A plane that cannot be stored comes back as NaN, its neighbours as they were.
inline void test_planes_that_are_no_numbers() {
    const float inf = std::numeric_limits<float>::infinity(), largest = 3.4e38f;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (int64_t elements : {1, 7, 16, 17, 64, 1000}) {
        for (float bad : {inf, -inf, nan, largest, -largest}) {
            for (int64_t at : {int64_t{0}, elements / 2, elements - 1}) {
                CompactCase c{0, 3, elements, std::vector<float>(3 * elements, 1.5f)};
                c.x[elements + at] = bad;
                const Codes got = quantised(c, 1);
                const bool whole = elements == 1 && std::isfinite(bad);
                for (int64_t i = 0; i < 3 * elements; ++i) {
                    const bool middle = i / elements == 1;
                    const float x = got.x[i];
                    const bool right = !middle || whole       ? x == c.x[i]
                                       : std::isfinite(bad) ? std::fabs(x - c.x[i]) < 1e36f
                                                              : std::isnan(x);
                    check(right, "a plane with " + std::to_string(bad), c.describe());
                }
            }
        }
        CompactCase wide{0, 1, elements, std::vector<float>(elements, -largest)};
        wide.x.back() = elements == 1 ? -largest : largest;
        check(std::isnan(quantised(wide, 1).x[0]) == (elements > 1), "a plane wider than floats");
    }
}

struct Parts {
    std::vector<uint8_t> bits;
    std::vector<int64_t> starts;
    std::vector<float> values;
};

inline Parts packed(const CompactCase& c, int threads) {
    const mest::Bitmap of{c.images, c.elements};
    Parts got{std::vector<uint8_t>(c.images * of.bytes(), 255),
              std::vector<int64_t>(c.images + 1, -1), {}};
    mest::pack_bits(of, c.x.data(), got.bits.data(), got.starts.data(), threads);
    got.values.resize(got.starts.back());
    got.values.shrink_to_fit();
    mest::pack_values(of, c.x.data(), got.bits.data(), got.starts.data(), got.values.data(),
                         threads);
    return got;
}

// Exactly as long as it must be, so that AddressSanitizer sees any step beyond.
inline std::vector<float> expanded(const CompactCase& c, const Parts& parts, int64_t first,
                                   int64_t last, int threads) {
    std::vector<float> x((last - first) * c.elements, std::numeric_limits<float>::quiet_NaN());
    mest::unpack_nonzeros({c.images, c.elements},
                 {parts.bits.data(), parts.values.data(), parts.starts.data(),
                  static_cast<int64_t>(parts.values.size())},
                 first, last, x.data(), threads);
    return x;
}

inline void test_pack_nonzeros(uint64_t seed) {
    CompactCase c = draw_compact(seed);
    Random random(seed + 1);
    for (int i = 0; i < 3 && !c.x.empty(); ++i) {  // zeros stay: -0.0 apart
        float& x = c.x[random.bits() % c.x.size()];
        x = i == 0 ? std::numeric_limits<float>::quiet_NaN() : i == 1 ? 0x1p-149f : -0.0f;
    }
    const Parts one = packed(c, 1), three = packed(c, 3);
    check(one.bits == three.bits && one.starts == three.starts &&
              same_floats(one.values, three.values),
          "pack_nonzeros, 3 threads: other bits", c.describe());
    Parts expected{std::vector<uint8_t>(one.bits.size()), {0}, {}};
    for (int64_t i = 0; i < c.images * c.elements; ++i) {
        const int64_t image = i / c.elements, at = i % c.elements;
        if (c.x[i] == 0) continue;
        expected.bits[image * ((c.elements + 7) / 8) + at / 8] |= 1 << at % 8;
        expected.values.push_back(c.x[i]);
        expected.starts.resize(image + 2, -1), expected.starts[image + 1] = expected.values.size();
    }
    check(one.bits == expected.bits && same_floats(one.values, expected.values), "pack_nonzeros",
          c.describe());
    for (float& x : c.x) x = x == 0 ? 0.0f : x;
    check(same_floats(expanded(c, one, 0, c.images, 3), c.x), "unpack_nonzeros", c.describe());
    const int64_t first = random.from(0, static_cast<int>(c.images));
    const int64_t last = random.from(static_cast<int>(first), static_cast<int>(c.images));
    const std::vector<float> some(c.x.begin() + first * c.elements,
                                  c.x.begin() + last * c.elements);
    check(same_floats(expanded(c, one, first, last, 1), some), "unpack_nonzeros some", c.describe());
}

// What lies is refused before anything is read where it says.
inline void test_parts_that_do_not_fit() {
    Random random(3);
    const CompactCase c{3, 4, 13, draw_floats(random, 4 * 13, true)};
    const Parts good = packed(c, 1);
    check(same_floats(expanded(c, good, 0, 4, 1), c.x), "parts that fit");
    const auto refused = [&](const std::string& what, const std::function<void(Parts&)>& spoil) {
        for (int threads : {1, 3}) {
            Parts bad = good;
            spoil(bad);
            check_throws<std::invalid_argument>(what, [&] { expanded(c, bad, 0, 4, threads); });
        }
    };
    const int64_t huge = std::numeric_limits<int64_t>::max();
    refused("a value too few", [](Parts& p) { p.values.pop_back(), p.values.shrink_to_fit(); });
    refused("a value too many", [](Parts& p) { p.values.push_back(0); });
    refused("no values", [](Parts& p) { p.values.clear(), p.values.shrink_to_fit(); });
    refused("starts from 1", [](Parts& p) { ++p.starts[0]; });
    refused("a start before the values", [](Parts& p) { p.starts[2] = -1; });
    refused("a start far before them", [=](Parts& p) { p.starts[2] = -huge - 1; });
    refused("a start behind the values", [=](Parts& p) { p.starts[2] = huge; });
    refused("starts that fall", [](Parts& p) { std::swap(p.starts[1], p.starts[2]); });
    refused("starts moved", [](Parts& p) { ++p.starts[2]; });
    refused("a bit more", [](Parts& p) { p.bits[0] = p.bits[0] == 255 ? 0 : 255; });
    refused("spare bits", [](Parts& p) { p.bits[1] ^= 1 << 5; });
    refused("spare bits that count as starts say", [](Parts& p) {
        const int lowest = p.bits[1] & -p.bits[1];
        p.bits[1] ^= lowest | 1 << 7;
    });
}

}  // namespace selftest
