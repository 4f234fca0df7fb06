// What an operator's step is made from, and what it is run with.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "convolve.h"
#include "planes.h"
#include "table.h"

namespace mest::runtime {

using Shape = std::vector<int64_t>;

int64_t product_of(const Shape& shape, size_t from = 0, size_t until = SIZE_MAX);
std::string text_of(const Shape& shape);
Planes planes_of(const Shape& shape, int margin);

// How a buffer is to the groups of a batch: alike to all, one group of a larger array, or added up.
enum Role : int { alike, rows, sum, roles };

struct Buffer {
    Type type;
    Role role;
    int64_t offset;  // in the arena; -1: bound
    Shape shape;
    int margin = 0;  // rows of zeros between channels; 0: C order

    int64_t count() const { return product_of(shape); }
    int64_t bytes() const;
};

// Memory that the steps of a program use in turn. Each step says how much when it is made.
struct Shared {
    StripIndex index;
    ProductMemory product;
    std::vector<float> floats;
    std::vector<double> doubles;
};

// An argument: a buffer's number, its shape and its margin, and whether it is of bfloat16.
struct Tensor {
    int64_t number = -1;
    Shape shape;
    int margin = 0;
    bool narrow = false;

    explicit operator bool() const { return number >= 0; }
    int64_t count() const { return product_of(shape); }
    // Where its elements lie, if it has a margin.
    Planes planes() const { return planes_of(shape, margin); }
};

struct Run {
    void* const* addresses;
    Shared& shared;
    int threads;
    int64_t examples = 1, before = 0;  // of a group, and of the groups before this one
    bool again = false;  // the same steps ran since parameters and states may have changed

    // How many of a group's `count` numbers the groups before this one had.
    int64_t earlier(int64_t count) const { return count / examples * before; }

    // Null for an absent argument.
    template <class T = float>
    T* at(const Tensor& tensor) const {
        return tensor ? static_cast<T*>(addresses[tensor.number]) : nullptr;
    }
};

// One operator of a description, whose argument types and attribute ranges are right. What is
// required of shapes throws std::invalid_argument where it does not hold.
class Builder {
public:
    Builder(const Operator& kind, std::vector<Tensor> arguments, std::vector<int64_t> wholes,
            std::vector<double> reals, Shared& shared, int threads);

    Tensor operator[](const std::string& name) const;
    // Attributes; the place counts within the attribute.
    int64_t whole(const std::string& name, int place = 0) const;
    double real(const std::string& name) const;

    void require(bool holds, const std::string& what, const std::string& allowed) const;
    // An absent argument has every shape.
    void expect(const std::string& name, const Shape& shape) const;
    // The argument, if it has so many dimensions; negative: at least so many.
    Tensor dims(const std::string& name, int count) const;

    // Room in the shared memory.
    void floats(int64_t count);
    void doubles(int64_t count);
    // The same for `parts` of so many each, of which each thread works on one at a time.
    void floats_each(int64_t count, int64_t parts);
    // Room in the shared index.
    void index(int64_t entries, int64_t strips);
    // Room in a thread's scratch (free_scratch).
    void scratch(int64_t floats);
    // Room for the lists of a weight, and for those of its transpose.
    void lists(int64_t strips, int64_t entries);
    void back_lists(int64_t strips, int64_t entries);
    std::shared_ptr<Product> product(Way way, const Convolution& p, int rows, int64_t entries);

    // Counts memory that the step holds itself.
    void holds(int64_t bytes) { held_bytes_ += bytes; }

    int threads() const { return threads_; }
    bool adds() const { return kind_.adds; }
    const std::vector<std::shared_ptr<Product>>& made() const { return made_; }
    int64_t held_bytes() const { return held_bytes_; }
    int64_t scratch_floats() const { return scratch_; }

private:
    void check_memory(int64_t count, int64_t size) const;

    const Operator& kind_;
    std::vector<Tensor> arguments_;
    std::vector<int64_t> wholes_;
    std::vector<double> reals_;
    Shared& shared_;
    int threads_;
    std::vector<std::shared_ptr<Product>> made_;
    int64_t scratch_ = 0, held_bytes_ = 0;
};

constexpr int free_scratch = 3;  // of thread_scratch: what products leave alone

}  // namespace mest::runtime
