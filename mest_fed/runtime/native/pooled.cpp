// A convolution of stride 1, ReLU and the maxima of 2x2 windows in one operator: of the outputs only
// the maxima are written down, with where they stood. On the way back each window has one position
// whose gradient is not zero, or none.
#include "hits.h"
#include "pool.h"
#include "pool_walk.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

// The shape between the convolution and its windows.
Tensor outputs_of(const Builder& b, const Shape& x, const Shape& weight) {
    Shape shape{x[0], weight[0]};
    for (int i : {0, 1}) shape.push_back(x[2 + i] + 2 * b.whole("padding", i) - weight[2 + i] + 1);
    return {-1, shape};
}

struct Pooled {
    Flat flat;
    int64_t rows, columns;  // of windows

    Pooled(const Builder& b, const Convolution& p)
        : flat(p, p.out_height / 2 * 2), rows(p.out_height / 2), columns(p.out_width / 2) {
        b.require(rows > 0 && columns > 0, "a plane without a window", "2 pixels a side");
        b.require(Flat::takes(p), "planes", "less than 2**29 floats an image");
        for (const char* name : {"y", "where", "dy"}) {
            b.expect(name, {p.batch, p.out_channels, rows, columns});
        }
        check_bias(b, p);
        b.expect("db", {p.out_channels});
        b.expect("dx", {p.batch, p.in_channels, p.height, p.width});
    }

    int64_t windows() const { return rows * columns; }
    // Of an image.
    int64_t size() const { return flat.p.out_channels * windows(); }

    void forward(const float* out, float* y, uint8_t* where) const {
        const int64_t apart = int64_t{flat.out_vectors()} * V;
        for (int c = 0; c < flat.p.out_channels; ++c) {
            for (int64_t row = 0; row < rows; ++row, y += columns, where += columns) {
                const float* upper = out + c * apart + 2 * row * flat.width;
                const float* lower = upper + flat.width;
                simd::for_runs<V>(columns, [&](auto size, int64_t at) {
                    simd::pool_some<size()>(upper + 2 * at, lower + 2 * at, y + at, where + at);
                });
            }
        }
    }

    // The gradients of an image's outputs; see Flat.
    void backward(const float* dy, const uint8_t* where, float* gradients) const {
        std::memset(gradients, 0, flat.gradient_floats() * sizeof(float));
        float* plane = gradients + flat.lead();
        for (int c = 0; c < flat.p.out_channels; ++c, plane += flat.gradient_apart()) {
            for (int64_t row = 0; row < rows; ++row, dy += columns, where += columns) {
                float* upper = plane + 2 * row * flat.width;
                float* lower = upper + flat.width;
                simd::for_runs<V>(columns, [&](auto size, int64_t at) {
                    simd::spread_some<size()>(dy + at, where + at, upper + 2 * at, lower + 2 * at);
                });
            }
        }
    }

    // One channel's hits; returns how many.
    int hits(const float* dy, const uint8_t* where, int64_t beside, Hit* found) const {
        const auto across = static_cast<int32_t>(beside);
        const auto down = static_cast<int32_t>(flat.width * beside);
        const int32_t places[8] = {0, across, down, down + across};
        int count = 0;
        for (int64_t row = 0; row < rows; ++row, dy += columns, where += columns) {
            auto at = static_cast<int32_t>(2 * row * down);
            for (int64_t i = 0; i < columns; ++i, at += 2 * across) {
                found[count] = {at + places[where[i] & 7], dy[i]};
                count += where[i] < nowhere;
            }
        }
        return count;
    }
};

// A weight's strips and where they read; `column(entry)` is that of the weight.
template <class Column>
Lists lists_of(const Run& run, const std::vector<int32_t>& places, const Convolution& p, int rows,
               const float* values, const float* bias, const Column& column) {
    std::vector<int32_t>& offsets = run.shared.product.offsets;
    const StripIndex& index = run.shared.index;
    offsets.resize(index.first.back());
    for (size_t e = 0; e < offsets.size(); ++e) offsets[e] = places[column(e)];
    return {index.first.data(), offsets.data(), values, bias, rows, p.out_channels};
}

// The same entries by what they read: single rows of each input channel.
template <class Column>
Lists back_lists(const Run& run, const Flat& flat, const Lists& lists, const Column& column) {
    const Convolution& p = flat.p;
    TransposedIndex& back = run.shared.product.back;
    std::vector<int32_t>&first = back.strips.first, &offsets = back.strips.columns;
    std::vector<float>& values = run.shared.product.moved;
    first.assign(p.in_channels + 1, 0);
    const auto for_values = [&](const auto& work) {
        lists.for_rows([&](int channel, int taken, int entry, int count) {
            for (int e = entry; e < entry + count; ++e) {
                for (int r = 0; r < taken; ++r) work(channel + r, e, column(e));
            }
        });
    };
    for_values([&](int, int, int col) { ++first[col / p.taps()]; });
    int32_t total = 0;
    for (int32_t& count : first) total += count, count = total - count;
    offsets.resize(total), values.resize(total);
    for_values([&](int channel, int e, int col) {
        const int32_t at = first[col / p.taps()]++;
        offsets[at] = static_cast<int32_t>(flat.back_place(channel, col % p.taps()));
        values[at] = lists.values[lists.value(e, channel)];
    });
    for (int c = p.in_channels; c > 0; --c) first[c] = first[c - 1];
    first[0] = 0;
    return {first.data(), offsets.data(), values.data(), nullptr, 1, p.in_channels};
}

// A dense weight as strips.
struct DenseLists {
    Pooled pooled;
    Dense d;
    Tensor w, bias;
    std::vector<int32_t> places;

    DenseLists(Builder& b, const Tensor& x)
        : pooled(b, convolution_of(b, x)), d(pooled.flat.p, 1), w(b["w"]), bias(b["b"]),
          places(pooled.flat.columns()) {
        b.require(d.floats() <= largest, "weight of shape " + text_of(w.shape), "fewer numbers");
        b.lists(d.strips(), d.entries());
    }
    static Convolution convolution_of(const Builder& b, const Tensor& x) {
        const Shape weight = b.dims("w", 4).shape;
        return between(b, x, outputs_of(b, x.shape, weight), weight, false);
    }
    int64_t entries() const { return d.entries(); }
    int rows() const { return d.rows; }
    int64_t floats() const { return d.floats(); }  // of the shared memory
    int column(int64_t entry) const { return static_cast<int>(entry % d.columns()); }

    Lists operator()(const Run& run) const {
        std::vector<int32_t>& first = run.shared.index.first;
        first.resize(d.strips() + 1);
        for (int s = 0; s <= d.strips(); ++s) first[s] = s * d.columns();
        float* values = run.shared.floats.data();
        d.lay_out(run.at(w), values, run.threads);
        return lists_of(run, places, d.p, d.rows, values, run.at(bias),
                        [this](int64_t e) { return column(e); });
    }
    // Sums of (entries, rows) become gradients.
    void bring_back(const float* sums, float* dw) const {
        d.for_rows(1, [&](int64_t row, int64_t place) {
            for (int c = 0; c < d.columns(); ++c) {
                dw[row * d.columns() + c] = sums[place + int64_t{c} * d.rows];
            }
        });
    }
};

struct SparseLists {
    Sparse s;
    Pooled pooled;
    Tensor values, bias;
    std::vector<int32_t> places;

    SparseLists(Builder& b, const Tensor& x)
        : s(sparse_of(b, x)), pooled(b, s.p), values(b["values"]), bias(b["b"]),
          places(pooled.flat.columns()) {
        b.lists((s.p.out_channels - 1) / s.rows + 1, s.capacity);
        b.expect("dvalues", values.shape);
    }
    static Sparse sparse_of(const Builder& b, const Tensor& x) {
        Shape weight;
        for (int i = 0; i < 4; ++i) weight.push_back(b.whole("weight_shape", i));
        return sparse(b, x, outputs_of(b, x.shape, weight), "values", false);
    }
    int64_t entries() const { return s.capacity; }
    int rows() const { return s.rows; }
    int64_t floats() const { return 0; }

    Lists operator()(const Run& run) const {
        s.fill(run);
        const std::vector<int32_t>& columns = run.shared.index.columns;
        return lists_of(run, places, s.p, s.rows, run.at(values), run.at(bias),
                        [&](int64_t e) { return columns[e]; });
    }
    void bring_back(const float* sums, float* dvalues) const {
        std::copy(sums, sums + s.capacity * s.rows, dvalues);
    }
};

template <class Weight>
Step forward(Builder& b) {
    const Tensor x = b.dims("x", 4), y = b["y"], where = b["where"];
    const Weight weight(b, x);
    const Pooled pooled = weight.pooled;
    const int64_t source = pooled.flat.source_floats(), all = source + pooled.flat.out_floats();
    b.floats(weight.floats());
    b.scratch(all);
    return [=](const Run& run) {
        const Lists lists = weight(run);
        parallel_for(pooled.flat.p.batch, run.threads, [&](int64_t image) {
            float* scratch = thread_scratch(free_scratch, all);
            float* out = scratch + source;
            walk(lists, pooled.flat.source(run.at(x), image, scratch), pooled.flat.out_vectors(),
                 out);
            const int64_t at = image * pooled.size();
            pooled.forward(out, run.at(y) + at, run.at<uint8_t>(where) + at);
        });
    };
}

// The sum of gradients, those of windows without a maximum above zero left out.
float open_sum(const float* dy, const uint8_t* where, int64_t count) {
    simd::vec sum{};
    int64_t i = 0;
    for (; i + V <= count; i += V) {
        simd::Codes<V>::narrow codes;
        std::memcpy(&codes, where + i, V);
        const auto wide = __builtin_convertvector(codes, simd::Codes<V>::wide);
        sum += wide < nowhere ? simd::load(dy + i) : simd::vec{};
    }
    float total = simd::sum_of(sum);
    for (; i < count; ++i) total += where[i] < nowhere ? dy[i] : 0.0f;
    return total;
}

void add_bias(const Pooled& pooled, const float* dy, const uint8_t* where, float* sums) {
    for (int c = 0; c < pooled.flat.p.out_channels; ++c) {
        sums[c] += open_sum(dy, where, pooled.windows());
        dy += pooled.windows(), where += pooled.windows();
    }
}

// By whole planes of gradients, most of which are zero: vectors are of positions.
template <class Weight, class Column>
Step flat_gradient(Builder& b, const Weight& weight, const Tensor& dweight, Column column) {
    const Tensor x = b["x"], where = b["where"], dy = b["dy"], db = b["db"], dx = b["dx"];
    const Pooled pooled = weight.pooled;
    const Flat flat = pooled.flat;
    const int channels = flat.p.out_channels;
    const int64_t of_weight = weight.entries() * weight.rows(), numbers = of_weight + channels;
    const int64_t total = weight.floats(), partial = total + numbers;
    const int64_t source = flat.source_floats(), gradients = source + flat.gradient_floats();
    const int64_t all = gradients + (dx ? flat.back_floats() : 0);
    b.floats(partial + partial_sums(flat.p.batch, numbers, b.threads()));
    if (dx) b.back_lists(flat.p.in_channels + 1, of_weight);
    b.scratch(all);
    return [=](const Run& run) {
        const Lists lists = weight(run);
        const Lists back = dx ? back_lists(run, flat, lists, column(weight, run)) : Lists{};
        float* floats = run.shared.floats.data();
        const auto of_image = [&](int64_t image, float* sums) {
            float* scratch = thread_scratch(free_scratch, all);
            float *own = scratch + source, *made = scratch + gradients;
            const float* up = run.at(dy) + image * pooled.size();
            const uint8_t* codes = run.at<uint8_t>(where) + image * pooled.size();
            pooled.backward(up, codes, own);
            dots(lists, flat.source(run.at(x), image, scratch), flat.out_vectors(),
                 own + flat.lead(), flat.gradient_apart(), sums);
            add_bias(pooled, up, codes, sums + of_weight);
            if (!dx) return;
            walk(back, own, flat.back_vectors(), made);
            flat.back_out(made, run.at(dx), image);
        };
        sum_images(flat.p.batch, numbers, floats + total, floats + partial, run.threads, of_image);
        weight.bring_back(floats + total, run.at(dweight));
        if (db) std::copy_n(floats + total + of_weight, channels, run.at(db));
    };
}

// By the one position of each window: vectors are of input channels.
Step hit_gradient(Builder& b, const DenseLists& weight) {
    const Tensor x = b["x"], where = b["where"], dy = b["dy"], db = b["db"], dx = b["dx"];
    const Tensor w = b["w"], dw = b["dw"];
    const Pooled pooled = weight.pooled;
    const Flat flat = pooled.flat;
    const Beside beside{flat};
    const int channels = flat.p.out_channels;
    const int64_t of_weight = channels * beside.weights(), numbers = of_weight + channels;
    const int64_t total = of_weight, partial = total + numbers;
    const int64_t source = flat.source_floats(), back = source + beside.floats();
    const int64_t list = back + (dx ? beside.floats() : 0), all = list + 2 * pooled.windows() + 2;
    b.floats(partial + partial_sums(flat.p.batch, numbers, b.threads()));
    b.scratch(all);
    return [=](const Run& run) {
        float* floats = run.shared.floats.data();
        beside.lay_out(run.at(w), floats);
        const auto of_image = [&](int64_t image, float* sums) {
            float* scratch = thread_scratch(free_scratch, all);
            float *read = scratch + source, *written = scratch + back;
            auto* found = reinterpret_cast<Hit*>(scratch + list);
            beside.from_planes(flat.source(run.at(x), image, scratch), read);
            if (dx) std::memset(written, 0, beside.floats() * sizeof(float));
            for (int c = 0; c < channels; ++c) {
                const int64_t at = image * pooled.size() + c * pooled.windows();
                const int count = pooled.hits(run.at(dy) + at, run.at<uint8_t>(where) + at,
                                              beside.beside(), found);
                const int64_t own = c * beside.weights();
                beside.gather(found, count, read, sums + own);
                if (dx) beside.scatter(found, count, floats + own, written);
            }
            add_bias(pooled, run.at(dy) + image * pooled.size(),
                     run.at<uint8_t>(where) + image * pooled.size(), sums + of_weight);
            if (dx) beside.to_planes(written, run.at(dx), image);
        };
        sum_images(flat.p.batch, numbers, floats + total, floats + partial, run.threads, of_image);
        beside.bring_back(floats + total, run.at(dw));
        if (db) std::copy_n(floats + total + of_weight, channels, run.at(db));
    };
}

// Where vectors of channels are hardly a quarter full, a quarter of the positions is no gain.
Step dense_gradient(Builder& b) {
    const DenseLists weight(b, b.dims("x", 4));
    b.expect("dw", weight.w.shape);
    const Beside beside{weight.pooled.flat};
    const bool fits = beside.floats() <= largest && weight.d.p.out_channels * beside.weights() <= largest;
    if (fits && beside.beside() <= 4 * weight.d.p.in_channels) return hit_gradient(b, weight);
    return flat_gradient(b, weight, b["dw"], [](const DenseLists& of, const Run&) {
        return [&of](int64_t e) { return of.column(e); };
    });
}

Step sparse_gradient(Builder& b) {
    const SparseLists weight(b, b.dims("x", 4));
    return flat_gradient(b, weight, b["dvalues"], [](const SparseLists&, const Run& run) {
        return [&run](int64_t e) { return run.shared.index.columns[e]; };
    });
}

}  // namespace

std::vector<Operator> pooled() {
    const Attribute stride{"stride", 1, 1, 2}, padding{"padding", 0, largest, 2};
    const Attribute groups{"groups", 1, 1}, rows{"rows", 1, largest};
    const Attribute shape{"weight_shape", 1, largest, 4};
    const std::vector<Attribute> dense{stride, padding, groups}, sparse{stride, padding, shape, rows};
    const Argument b{"b", float32, true}, db{"db", float32, true}, dx{"dx", float32, true};
    const Argument slots{"slots", int32}, where{"where", uint8};
    return {
        {"conv2d_relu_pool", {{"x"}, {"w"}, b}, {{"y"}, where}, dense, {}, forward<DenseLists>},
        {"conv2d_relu_pool_gradient", {{"x"}, {"w"}, where, {"dy"}}, {{"dw"}, db, dx}, dense, {},
         dense_gradient},
        {"sparse_conv2d_relu_pool", {{"x"}, {"values"}, slots, b}, {{"y"}, where}, sparse, {},
         forward<SparseLists>},
        {"sparse_conv2d_relu_pool_gradient", {{"x"}, {"values"}, slots, where, {"dy"}},
         {{"dvalues"}, db, dx}, sparse, {}, sparse_gradient},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
