// Scaled dot product attention (Vaswani et al. 2017). A unit is one head of one example.
#include <cmath>
#include <functional>

#include "builder.h"
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

float dot(const float* a, const float* b, int64_t count) {
    return static_cast<float>(sum_of(count, [=](int64_t i) { return a[i] * b[i]; }));
}

void add(float* to, float factor, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

void softmax(float* row, int64_t count) {
    const float most = *std::max_element(row, row + count);
    for (int64_t i = 0; i < count; ++i) row[i] = std::exp(row[i] - most);
    const double total = sum_of(count, [=](int64_t i) { return row[i]; });
    for (int64_t i = 0; i < count; ++i) row[i] = static_cast<float>(row[i] / total);
}

Step forward(Builder& b) {
    const Heads h = heads_of(b);
    const Tensor q = b["q"], k = b["k"], v = b["v"], y = b["y"], weights = b["weights"];
    return [=](const Run& run) {
        for_heads(h, run, [&](int64_t unit) {
            for (int64_t l = 0; l < h.length; ++l) {
                const float* query = run.at(q) + h.query(unit, l);
                float *row = run.at(weights) + h.weight(unit, l), *to = run.at(y) + h.query(unit, l);
                for (int64_t s = 0; s < h.seen(l); ++s) {
                    row[s] = dot(query, run.at(k) + h.key(unit, s), h.width()) * h.factor();
                }
                softmax(row, h.seen(l));
                std::fill(row + h.seen(l), row + h.source, 0.0f);
                std::fill(to, to + h.width(), 0.0f);
                for (int64_t s = 0; s < h.seen(l); ++s) {
                    add(to, row[s], run.at(v) + h.key(unit, s), h.width());
                }
            }
        });
    };
}

Step gradient(Builder& b) {
    const Heads h = heads_of(b);
    const Tensor q = b["q"], k = b["k"], v = b["v"], weights = b["weights"], dy = b["dy"];
    const Tensor dq = b["dq"], dk = b["dk"], dv = b["dv"];
    b.scratch(h.source);
    return [=](const Run& run) {
        for_heads(h, run, [&](int64_t unit) {
            float* slope = thread_scratch(free_scratch, h.source);
            for (int64_t s = 0; s < h.source; ++s) {
                for (const Tensor& to : {std::cref(dk), std::cref(dv)}) {
                    std::fill_n(run.at(to) + h.key(unit, s), h.width(), 0.0f);
                }
            }
            for (int64_t l = 0; l < h.length; ++l) {
                const float *row = run.at(weights) + h.weight(unit, l);
                const float *up = run.at(dy) + h.query(unit, l), *query = run.at(q) + h.query(unit, l);
                float* to = run.at(dq) + h.query(unit, l);
                for (int64_t s = 0; s < h.seen(l); ++s) {
                    slope[s] = dot(up, run.at(v) + h.key(unit, s), h.width());
                }
                const float mean = dot(slope, row, h.seen(l));
                std::fill(to, to + h.width(), 0.0f);
                for (int64_t s = 0; s < h.seen(l); ++s) {
                    const float logit = row[s] * (slope[s] - mean) * h.factor();
                    add(to, logit, run.at(k) + h.key(unit, s), h.width());
                    add(run.at(dk) + h.key(unit, s), logit, query, h.width());
                    add(run.at(dv) + h.key(unit, s), row[s], up, h.width());
                }
            }
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
