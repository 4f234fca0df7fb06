#include "program.h"

#include <algorithm>

#include "reader.h"
#include "threads.h"

namespace mest::runtime {
namespace {

constexpr int64_t most_bytes = int64_t{1} << 40, most_operators = 100000, most_buffers = 1000000;
constexpr int most_dims = 8, most_threads = 1024, most_margin = 64;

std::string place(const char* list, size_t at) {
    return std::string(list) + "[" + std::to_string(at) + "]";
}

[[noreturn]] void refuse(const std::string& what, const std::string& allowed) {
    throw std::invalid_argument(refusal(what, allowed));
}

// Numbers of one operator as its line of the table says.
struct Fields {
    std::vector<Tensor> arguments;
    std::vector<int64_t> wholes;
    std::vector<double> reals;
};

Tensor argument_of(const Argument& argument, int64_t number, const std::vector<Buffer>& buffers,
                   const std::string& where) {
    if (number < 0) return {};
    const Buffer& buffer = buffers[number];
    if (buffer.type != argument.type) {
        refuse(where + " is of " + name_of(buffer.type), name_of(argument.type));
    }
    if (buffer.margin > 0 && !argument.planes) {
        refuse(where + " has margin " + std::to_string(buffer.margin), "0");
    }
    return {number, buffer.shape, buffer.margin};
}

Fields fields_of(const Operator& kind, Reader<int64_t>& numbers, Reader<double>& reals,
                 const std::vector<Buffer>& buffers) {
    Fields f;
    const auto last = static_cast<double>(buffers.size()) - 1;
    for (const auto* side : {&kind.inputs, &kind.outputs}) {
        for (const Argument& argument : *side) {
            const int64_t number = numbers.next(argument.name, argument.optional ? -1 : 0, last);
            f.arguments.push_back(argument_of(argument, number, buffers, argument.name));
        }
    }
    for (const Attribute& attribute : kind.wholes) {
        for (int i = 0; i < attribute.length; ++i) {
            f.wholes.push_back(numbers.next(attribute.name, attribute.least, attribute.most));
        }
    }
    for (const Attribute& attribute : kind.reals) {
        f.reals.push_back(reals.next(attribute.name, attribute.least, attribute.most));
    }
    for (size_t i = kind.inputs.size(); i < f.arguments.size(); ++i) {
        for (size_t j = 0; f.arguments[i] && j < i; ++j) {
            if (f.arguments[j].number == f.arguments[i].number) {
                refuse("an output is buffer " + std::to_string(f.arguments[i].number),
                       "one that is no other argument");
            }
        }
    }
    return f;
}

// Its bytes, in which margins count.
int64_t bytes_of_planes(const Buffer& buffer, const std::string& where) {
    const bool whole = buffer.type == float32 && buffer.shape.size() == 4 && buffer.offset >= 0;
    constexpr int64_t largest = (int64_t{1} << 31) - 1;
    const bool small = std::all_of(buffer.shape.begin(), buffer.shape.end(),
                                   [](int64_t size) { return size <= largest; });
    if (!whole || !small) {
        refuse(where + ".margin = " + std::to_string(buffer.margin),
               "0 but for float32 in the arena of 4 dimensions");
    }
    const int64_t bytes = buffer.bytes();
    if (bytes > most_bytes) refuse(where + " is too large", "at most 2**40 bytes");
    return bytes;
}

struct Running {
    std::atomic<bool>& flag;
    explicit Running(std::atomic<bool>& flag_) : flag(flag_) {
        if (flag.exchange(true)) throw std::runtime_error("the program runs already");
    }
    ~Running() { flag = false; }
};

}  // namespace

Program::Program(const mest_description& description, void* arena, int64_t arena_bytes, int threads)
    : threads_(threads), arena_(static_cast<char*>(arena)), arena_bytes_(arena_bytes) {
    if (threads < 1 || threads > most_threads) {
        refuse("threads = " + std::to_string(threads), "1 to " + std::to_string(most_threads));
    }
    if (arena_bytes < 0 || (arena_bytes > 0 && arena == nullptr)) refuse("no arena", "an address");
    if (arena_bytes > 0 && reinterpret_cast<uintptr_t>(arena) % 64 != 0) refuse("the arena's address", "multiples of 64");
    add_buffers(description);
    add_operators(description);
    take_scratch();
}

void Program::add_buffers(const mest_description& d) {
    Reader<int64_t> numbers(d.buffers, d.buffers_length, "buffers");
    while (!numbers.ended()) {
        if (static_cast<int64_t>(buffers_.size()) == most_buffers) {
            refuse("more buffers", "at most " + std::to_string(most_buffers));
        }
        const std::string where = place("buffers", buffers_.size());
        Buffer buffer{};
        buffer.type = static_cast<Type>(numbers.next(where + ".type", 0, types - 1));
        buffer.offset = numbers.next(where + ".offset", -1, static_cast<double>(most_bytes));
        buffer.margin = static_cast<int>(numbers.next(where + ".margin", 0, most_margin));
        const int64_t dims = numbers.next(where + ".dimensions", 0, most_dims);
        int64_t bytes = bytes_of(buffer.type);
        for (int64_t i = 0; i < dims; ++i) {
            const int64_t size = numbers.next(where + ".shape", 1, static_cast<double>(most_bytes));
            if (size > most_bytes / bytes) {
                refuse(where + " is too large", "at most 2**40 bytes");
            }
            bytes *= size;
            buffer.shape.push_back(size);
        }
        if (buffer.margin > 0) bytes = bytes_of_planes(buffer, where);
        char* address = nullptr;
        if (buffer.offset >= 0) {
            const int64_t unit = buffer.margin > 0 ? 64 : bytes_of(buffer.type);
            if (buffer.offset % unit != 0 || buffer.offset > arena_bytes_ - bytes) {
                refuse(where + ".offset = " + std::to_string(buffer.offset),
                       "a multiple of " + std::to_string(unit) + ", so that it ends within the arena's " +
                           std::to_string(arena_bytes_) + " bytes");
            }
            address = arena_ + buffer.offset;
        }
        buffers_.push_back(buffer);
        addresses_.push_back(address);
    }
    used_.resize(buffers_.size());
}

void Program::add_operators(const mest_description& d) {
    Reader<int64_t> numbers(d.operators, d.operators_length, "operators");
    Reader<double> reals(d.reals, d.reals_length, "reals");
    while (!numbers.ended()) {
        if (static_cast<int64_t>(steps_.size()) == most_operators) {
            refuse("more operators", "at most " + std::to_string(most_operators));
        }
        std::string where = place("operators", steps_.size());
        const auto last = static_cast<double>(table().size()) - 1;
        const Operator& kind = table()[numbers.next(where + ".code", 0, last)];
        where += std::string(" (") + kind.name + "): ";
        try {
            const Fields f = fields_of(kind, numbers, reals, buffers_);
            for (const Tensor& tensor : f.arguments) {
                if (!tensor || used_[tensor.number]) continue;
                used_[tensor.number] = true;
                if (addresses_[tensor.number] == nullptr) ++unbound_;
            }
            Builder builder(kind, f.arguments, f.wholes, f.reals, shared_, threads_);
            steps_.push_back(kind.make(builder));
            products_.insert(products_.end(), builder.made().begin(), builder.made().end());
            scratch_floats_ = std::max(scratch_floats_, builder.scratch_floats());
            held_bytes_ += builder.held_bytes();
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(where + error.what());
        } catch (const std::length_error& error) {
            throw std::invalid_argument(where + error.what());
        }
    }
    if (!reals.ended()) refuse("more real attributes", "as many as the operators have");
}

// Before the first run, so that it allocates nothing either.
void Program::take_scratch() const {
    on_each_thread(threads_, [&](int64_t) {
        for (const auto& product : products_) product->take_scratch();
        if (scratch_floats_ > 0) thread_scratch(free_scratch, scratch_floats_);
    });
}

void Program::bind(int64_t number, void* address, int64_t bytes) {
    if (number < 0 || number >= static_cast<int64_t>(buffers_.size())) {
        refuse("buffer = " + std::to_string(number), "0 to " + std::to_string(buffers_.size() - 1));
    }
    const Running running(runs_);
    const Buffer& buffer = buffers_[number];
    const std::string where = place("buffers", number);
    if (buffer.offset >= 0) refuse(where + " lies in the arena", "buffers without an offset");
    const auto place = reinterpret_cast<uintptr_t>(address);
    if (address == nullptr || place % bytes_of(buffer.type) != 0 || bytes != buffer.bytes()) {
        refuse(where + " of " + std::to_string(bytes) + " bytes",
               std::to_string(buffer.bytes()) + " bytes at an address that fits its type");
    }
    if (addresses_[number] == nullptr && used_[number]) --unbound_;
    addresses_[number] = address;
}

void Program::run(int64_t first, int64_t last) {
    if (first < 0 || last < first || last > static_cast<int64_t>(steps_.size())) {
        refuse("operators " + std::to_string(first) + " to " + std::to_string(last),
               "a range within 0 to " + std::to_string(steps_.size()));
    }
    const Running running(runs_);
    if (unbound_ > 0) refuse(std::to_string(unbound_) + " buffers have no address", "none");
    const Run run{addresses_.data(), shared_, threads_};
    for (int64_t i = first; i < last; ++i) steps_[i](run);
}

int64_t Program::workspace_bytes() const {
    const auto held = [](const auto& vector) {
        return static_cast<int64_t>(vector.capacity() * sizeof(vector[0]));
    };
    const ProductMemory& p = shared_.product;
    int64_t total = held(shared_.floats) + held(shared_.doubles) + held(shared_.index.first) +
                    held(shared_.index.columns) + held(p.offsets) + held(p.moved) +
                    held(p.partial) + held(p.back.from) + held(p.back.strips.first) +
                    held(p.back.strips.columns) + held(steps_) + held(buffers_) + held(addresses_) +
                    held_bytes_;
    for (const auto& product : products_) total += product->bytes();
    return total;
}

}  // namespace mest::runtime
