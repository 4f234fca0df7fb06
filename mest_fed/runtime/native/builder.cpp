#include "builder.h"

#include <algorithm>
#include <stdexcept>

namespace mest::runtime {

int64_t product_of(const Shape& shape, size_t from, size_t until) {
    int64_t count = 1;
    for (size_t i = from; i < std::min(until, shape.size()); ++i) count *= shape[i];
    return count;
}

std::string text_of(const Shape& shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

Planes planes_of(const Shape& shape, int margin) {
    return {shape[0], static_cast<int>(shape[1]), static_cast<int>(shape[2]),
            static_cast<int>(shape[3]), margin};
}

int64_t Buffer::bytes() const {
    return (margin > 0 ? planes_of(shape, margin).floats() : count()) * bytes_of(type);
}

Builder::Builder(const Operator& kind, std::vector<Tensor> arguments, std::vector<int64_t> wholes,
                 std::vector<double> reals, Shared& shared, int threads)
    : kind_(kind),
      arguments_(std::move(arguments)),
      wholes_(std::move(wholes)),
      reals_(std::move(reals)),
      shared_(shared),
      threads_(threads) {}

Tensor Builder::operator[](const std::string& name) const {
    size_t place = 0;
    for (const auto* side : {&kind_.inputs, &kind_.outputs}) {
        for (const Argument& argument : *side) {
            if (name == argument.name) return arguments_[place];
            ++place;
        }
    }
    return {};
}

int64_t Builder::whole(const std::string& name, int place) const {
    for (const Attribute& attribute : kind_.wholes) {
        if (name == attribute.name) return wholes_[place];
        place += attribute.length;
    }
    throw std::logic_error("no attribute " + name);
}

double Builder::real(const std::string& name) const {
    for (size_t i = 0; i < kind_.reals.size(); ++i) {
        if (name == kind_.reals[i].name) return reals_[i];
    }
    throw std::logic_error("no attribute " + name);
}

void Builder::require(bool holds, const std::string& what, const std::string& allowed) const {
    if (!holds) throw std::invalid_argument(what + "; allowed: " + allowed);
}

void Builder::expect(const std::string& name, const Shape& shape) const {
    const Tensor tensor = (*this)[name];
    require(!tensor || tensor.shape == shape, name + " has shape " + text_of(tensor.shape),
            text_of(shape));
}

Tensor Builder::dims(const std::string& name, int count) const {
    const Tensor tensor = (*this)[name];
    const auto wanted = static_cast<size_t>(std::abs(count));
    const size_t had = tensor.shape.size();
    require(tensor && (had == wanted || (count < 0 && had > wanted)),
            name + " has shape " + text_of(tensor.shape),
            std::to_string(wanted) + (count < 0 ? " dimensions or more" : " dimensions"));
    return tensor;
}

// A description may speak of buffers that nobody has: what is taken for it has a limit.
void Builder::check_memory(int64_t count, int64_t size) const {
    constexpr int64_t most = int64_t{1} << 31;
    require(count <= most / size, "working memory", "up to 2**31 bytes");
}

void Builder::floats(int64_t count) {
    check_memory(count, sizeof(float));
    if (static_cast<int64_t>(shared_.floats.size()) < count) shared_.floats.resize(count);
}

void Builder::doubles(int64_t count) {
    check_memory(count, sizeof(double));
    if (static_cast<int64_t>(shared_.doubles.size()) < count) shared_.doubles.resize(count);
}

void Builder::floats_each(int64_t count, int64_t parts) {
    check_memory(count, sizeof(float));
    floats(count * std::min<int64_t>(parts, threads_));
}

void Builder::index(int64_t entries, int64_t strips) {
    shared_.index.first.reserve(strips + 1);
    shared_.index.columns.reserve(entries);
}

void Builder::scratch(int64_t floats) {
    check_memory(floats, sizeof(float));
    scratch_ = std::max(scratch_, floats);
}

void Builder::lists(int64_t strips, int64_t entries) {
    check_memory(entries, sizeof(int32_t));
    shared_.index.first.reserve(strips + 1);
    shared_.index.columns.reserve(entries);
    shared_.product.offsets.reserve(entries);
}

void Builder::back_lists(int64_t strips, int64_t entries) {
    check_memory(entries, sizeof(float));
    shared_.product.back.strips.first.reserve(strips + 1);
    shared_.product.back.strips.columns.reserve(entries);
    shared_.product.moved.reserve(entries);
}

std::shared_ptr<Product> Builder::product(Way way, const Convolution& p, int rows,
                                          int64_t entries) {
    const auto made = std::make_shared<Product>(way, p, rows, Call{Plane::padded, threads_});
    check_memory(made->scratch_floats(), sizeof(float));
    check_memory(made->partial_floats(entries), sizeof(float));
    made->reserve(shared_.product, entries);
    index(entries, (p.out_channels - 1) / rows + 1);
    made_.push_back(made);
    return made;
}

}  // namespace mest::runtime
