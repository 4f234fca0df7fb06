// Scaled dot product attention (Vaswani et al. 2017). A unit is one head of one example.
#include <cmath>

#include "blocks.h"
#include "builder.h"
#include "functions.h"
#include "loops.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

struct Heads {
    int64_t examples, length, source, features, heads;
    bool causal;

    int64_t width() const { return features / heads; }
    // Positions that position l sees.
    int64_t seen(int64_t l) const { return causal ? std::min(l + 1, source) : source; }
    int64_t query(int64_t unit, int64_t l) const {
        return (unit / heads * length + l) * features + unit % heads * width();
    }
    int64_t key(int64_t unit, int64_t s) const {
        return (unit / heads * source + s) * features + unit % heads * width();
    }
    int64_t weight(int64_t unit, int64_t l) const { return (unit * length + l) * source; }
    float factor() const { return 1 / std::sqrt(static_cast<float>(width())); }
};

Heads heads_of(const Builder& b) {
    const Shape q = b.dims("q", 3).shape, k = b.dims("k", 3).shape;
    const int64_t heads = b.whole("heads");
    b.require(q[2] % heads == 0, "heads = " + std::to_string(heads),
              "a divisor of " + std::to_string(q[2]));
    for (const char* name : {"y", "dy", "dq"}) b.expect(name, q);
    for (const char* name : {"k", "v", "dk", "dv"}) b.expect(name, {q[0], k[1], q[2]});
    b.expect("weights", {q[0], heads, q[1], k[1]});
    return {q[0], q[1], k[1], q[2], heads, b.whole("causal") != 0};
}

template <class Work>
void for_heads(const Heads& h, const Run& run, const Work& work) {
    parallel_for(h.examples * h.heads, run.threads, work);
}

constexpr int64_t block = 32;  // queries whose weights are in use at once

// work(first, count, positions that the last of them sees) for blocks of queries
template <class Work>
void for_blocks(const Heads& h, const Work& work) {
    for (int64_t first = 0; first < h.length; first += block) {
        const int64_t count = std::min(block, h.length - first);
        work(first, count, h.seen(first + count - 1));
    }
}

// (width, source) from a head's rows of keys or values: products then run along positions.
void turn(const Heads& h, const float* rows, float* columns) {
    for (int64_t s = 0; s < h.source; ++s) {
        for (int64_t i = 0; i < h.width(); ++i) columns[i * h.source + s] = rows[s * h.features + i];
    }
}

void clear(const Heads& h, float* rows) {
    for (int64_t s = 0; s < h.source; ++s) std::fill_n(rows + s * h.features, h.width(), 0.0f);
}

// Of factor * row; zeros after what is seen.
void softmax(float* row, float factor, int64_t seen, int64_t count) {
    const float most = largest_of(seen, [=](int64_t i) { return row[i]; });
    MEST_EACH_ALONE
    for (int64_t i = 0; i < seen; ++i) row[i] = exp_of((row[i] - most) * factor);
    const auto share = static_cast<float>(1 / sum_of(seen, [=](int64_t i) { return row[i]; }));
    MEST_EACH_ALONE
    for (int64_t i = 0; i < seen; ++i) row[i] *= share;
    std::fill(row + seen, row + count, 0.0f);
}

Step forward(Builder& b) {
    const Heads h = heads_of(b);
    const Tensor q = b["q"], k = b["k"], v = b["v"], y = b["y"], weights = b["weights"];
    b.scratch(h.source * h.width());
    return [=](const Run& run) {
        for_heads(h, run, [&](int64_t unit) {
            float* turned = thread_scratch(free_scratch, h.source * h.width());
            turn(h, run.at(k) + h.key(unit, 0), turned);
            for_blocks(h, [&](int64_t l, int64_t count, int64_t seen) {
                float* rows = run.at(weights) + h.weight(unit, l);
                product({run.at(q) + h.query(unit, l), h.features, 1}, {turned, h.source}, count,
                        seen, h.width(), rows, h.source);
                for (int64_t i = 0; i < count; ++i) {
                    softmax(rows + i * h.source, h.factor(), h.seen(l + i), h.source);
                }
                product({rows, h.source, 1}, {run.at(v) + h.key(unit, 0), h.features}, count,
                        h.width(), seen, run.at(y) + h.query(unit, l), h.features);
            });
        });
    };
}

// The slopes of a block's weights become those of its logits.
void softmax_gradient(const Heads& h, const float* weights, float* slopes, int64_t first,
                      int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float* row = weights + i * h.source;
        float* slope = slopes + i * h.source;
        const int64_t seen = h.seen(first + i), all = h.seen(first + count - 1);
        const auto mean = static_cast<float>(
            sum_of(seen, [=](int64_t s) { return slope[s] * row[s]; }));
        const float factor = h.factor();
        MEST_EACH_ALONE
        for (int64_t s = 0; s < seen; ++s) slope[s] = row[s] * (slope[s] - mean) * factor;
        std::fill(slope + seen, slope + all, 0.0f);
    }
}

Step gradient(Builder& b) {
    const Heads h = heads_of(b);
    const Tensor q = b["q"], k = b["k"], v = b["v"], weights = b["weights"], dy = b["dy"];
    const Tensor dq = b["dq"], dk = b["dk"], dv = b["dv"];
    const int64_t room = h.source * (h.width() + block);
    b.scratch(room);
    return [=](const Run& run) {
        for_heads(h, run, [&](int64_t unit) {
            float* turned = thread_scratch(free_scratch, room);
            float* slopes = turned + h.source * h.width();
            float *to_k = run.at(dk) + h.key(unit, 0), *to_v = run.at(dv) + h.key(unit, 0);
            turn(h, run.at(v) + h.key(unit, 0), turned);
            clear(h, to_k);
            clear(h, to_v);
            for_blocks(h, [&](int64_t l, int64_t count, int64_t seen) {
                const int64_t place = h.query(unit, l);
                const Right up{run.at(dy) + place, h.features}, query{run.at(q) + place, h.features};
                const float* rows = run.at(weights) + h.weight(unit, l);
                product({up.at, h.features, 1}, {turned, h.source}, count, seen, h.width(), slopes,
                        h.source);
                product({rows, 1, h.source}, up, seen, h.width(), count, to_v, h.features, true);
                softmax_gradient(h, rows, slopes, l, count);
                product({slopes, h.source, 1}, {run.at(k) + h.key(unit, 0), h.features}, count,
                        h.width(), seen, run.at(dq) + place, h.features);
                product({slopes, 1, h.source}, query, seen, h.width(), count, to_k, h.features, true);
            });
        });
    };
}

}  // namespace

std::vector<Operator> attention() {
    const std::vector<Attribute> how{{"heads", 1}, {"causal", 0, 1}};
    return {
        {"attention", {{"q"}, {"k"}, {"v"}}, {{"y"}, {"weights"}}, how, {}, forward},
        {"attention_gradient", {{"q"}, {"k"}, {"v"}, {"weights"}, {"dy"}}, {{"dq"}, {"dk"}, {"dv"}},
         how, {}, gradient},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
