#include "program.h"

#include <algorithm>
#include <tuple>

#include "running.h"
#include "threads.h"

namespace mest::runtime {
namespace {

constexpr int64_t most_bytes = int64_t{1} << 40, most_operators = 100000, most_buffers = 1000000;
constexpr int most_dims = 8, most_threads = 1024, most_margin = 64;
constexpr int64_t most_part_floats = int64_t{1} << 34;  // of all lanes together

std::string place(const char* list, size_t at) {
    return std::string(list) + "[" + std::to_string(at) + "]";
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
    const bool narrow = buffer.type == bfloat16 && buffer.margin > 0 &&
                        argument.layouts >= Argument::bf16_planes;
    if (buffer.type != argument.type && !narrow) {
        refuse(where + " is of " + name_of(buffer.type), name_of(argument.type));
    }
    if (buffer.margin > 0 && argument.layouts == Argument::c_order) {
        refuse(where + " has margin " + std::to_string(buffer.margin), "0");
    }
    return {number, buffer.shape, buffer.margin, narrow};
}

Fields fields_of(const Operator& kind, Reader<int64_t>& numbers, Reader<double>& reals,
                 const std::vector<Buffer>& buffers) {
    Fields f;
    const auto last = static_cast<double>(buffers.size()) - 1;
    bool typed = false, narrow = false;
    for (const auto* side : {&kind.inputs, &kind.outputs}) {
        for (const Argument& argument : *side) {
            const int64_t number = numbers.next(argument.name, argument.optional ? -1 : 0, last);
            f.arguments.push_back(argument_of(argument, number, buffers, argument.name));
            const Tensor& tensor = f.arguments.back();
            if (!tensor || argument.layouts != Argument::bf16_planes) continue;
            if (typed && tensor.narrow != narrow) {
                refuse(std::string(argument.name) + " is of " + name_of(buffers[number].type),
                       name_of(narrow ? bfloat16 : float32) + std::string(" as the others"));
            }
            typed = true;
            narrow = tensor.narrow;
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
    const bool floats = buffer.type == float32 || buffer.type == bfloat16;
    const bool whole = floats && buffer.shape.size() == 4 && buffer.offset >= 0;
    constexpr int64_t largest = (int64_t{1} << 31) - 1;
    const bool small = std::all_of(buffer.shape.begin(), buffer.shape.end(),
                                   [](int64_t size) { return size <= largest; });
    if (!whole || !small) {
        refuse(where + ".margin = " + std::to_string(buffer.margin),
               "0 but for float32 and bfloat16 in the arena of 4 dimensions");
    }
    const int64_t bytes = buffer.bytes();
    if (bytes > most_bytes) refuse(where + " is too large", "at most 2**40 bytes");
    return bytes;
}

}  // namespace

Program::Program(const mest_description& description, void* arena, int64_t arena_bytes, int lanes,
                 int threads)
    : threads_(threads), lanes_(lanes), arena_bytes_(arena_bytes) {
    for (const auto& [name, value, least] : {std::make_tuple("threads", threads, 1),
                                             std::make_tuple("lanes", lanes, 0)}) {
        if (value < least || value > most_threads) {
            refuse(name + (" = " + std::to_string(value)),
                   std::to_string(least) + " to " + std::to_string(most_threads));
        }
    }
    if (arena_bytes < 0 || (arena_bytes > 0 && arena == nullptr)) refuse("no arena", "an address");
    if (arena_bytes > 0 && reinterpret_cast<uintptr_t>(arena) % 64 != 0) {
        refuse("the arena's address", "multiples of 64");
    }
    if (lanes > 1 && arena_bytes % 64 != 0) {
        refuse("an arena of " + std::to_string(arena_bytes) + " bytes a lane", "multiples of 64");
    }
    group_operators_ = description.group_operators;
    add_buffers(description);
    add_lanes(description, static_cast<char*>(arena));
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
        buffer.role = static_cast<Role>(numbers.next(where + ".role", 0, roles - 1));
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
        const int64_t unit = buffer.margin > 0 ? 64 : bytes_of(buffer.type);
        if (buffer.offset >= 0 &&
            (buffer.offset % unit != 0 || buffer.offset > arena_bytes_ - bytes)) {
            refuse(where + ".offset = " + std::to_string(buffer.offset),
                   "a multiple of " + std::to_string(unit) + ", so that it ends within the arena's " +
                       std::to_string(arena_bytes_) + " bytes");
        }
        if (buffer.role == sum && (buffer.offset >= 0 || buffer.type != float32)) {
            refuse(where + " is a sum in the arena or of " + name_of(buffer.type),
                   "a sum that is bound, of float32");
        }
        buffers_.push_back(buffer);
    }
    bound_.resize(buffers_.size());
    groups_bound_.resize(buffers_.size());
    used_.resize(buffers_.size());
}

void Program::add_lanes(const mest_description& d, char* arena) {
    const int lanes = std::max(1, lanes_);
    const auto shared = std::make_shared<Shared>();
    run_.push_back(lane_of(d, threads_, most_operators, arena, shared));
    const auto count = static_cast<int64_t>(run_[0].steps.size());
    if (group_operators_ < 0 || group_operators_ > count) {
        refuse("operators of a group = " + std::to_string(group_operators_),
               "0 to " + std::to_string(count));
    }
    for (int lane = 0; lanes > 1 && lane < lanes; ++lane) {
        run_.push_back(lane_of(d, 1, group_operators_, arena + lane * arena_bytes_,
                               lane == 0 ? shared : std::make_shared<Shared>()));
    }
    for (size_t i = 0; i < buffers_.size(); ++i) {
        const Buffer& buffer = buffers_[i];
        if (!used_[i] || buffer.offset >= 0) continue;
        ++unbound_;
        if (buffer.role == rows) {
            const int64_t examples = buffer.shape.empty() ? 1 : buffer.shape[0];
            if (!rows_.empty() && examples != examples_) {
                refuse(place("buffers", i) + " of " + std::to_string(examples) + " examples",
                       std::to_string(examples_) + " as the others of a group");
            }
            examples_ = examples;
            rows_.push_back(static_cast<int64_t>(i));
        }
        if (buffer.role == sum) {
            sums_.push_back(static_cast<int64_t>(i));
            part_floats_ += (buffer.count() + 15) / 16 * 16;
            if (part_floats_ > most_part_floats / lanes) refuse("sums", "up to 2**36 bytes");
        }
    }
    if (lanes_ > 0) parts_.reset(new float[static_cast<size_t>(lanes * part_floats_)]);
}

Program::Lane Program::lane_of(const mest_description& d, int threads, int64_t most, char* arena,
                               std::shared_ptr<Shared> shared) {
    Lane lane{threads, {}, {}, {}, std::move(shared), false};
    for (const Buffer& buffer : buffers_) {
        lane.addresses.push_back(buffer.offset < 0 ? nullptr : arena + buffer.offset);
    }
    Reader<int64_t> numbers(d.operators, d.operators_length, "operators");
    Reader<double> reals(d.reals, d.reals_length, "reals");
    while (!numbers.ended()) {
        if (static_cast<int64_t>(lane.steps.size()) == most) {
            if (most < most_operators) return lane;
            refuse("more operators", "at most " + std::to_string(most_operators));
        }
        std::string where = place("operators", lane.steps.size());
        const auto last = static_cast<double>(table().size()) - 1;
        const Operator& kind = table()[numbers.next(where + ".code", 0, last)];
        where += std::string(" (") + kind.name + "): ";
        try {
            const Fields f = fields_of(kind, numbers, reals, buffers_);
            for (const Tensor& tensor : f.arguments) {
                if (tensor) used_[tensor.number] = true;
            }
            Builder builder(kind, f.arguments, f.wholes, f.reals, *lane.shared, threads);
            lane.steps.push_back(kind.make(builder));
            lane.products.insert(lane.products.end(), builder.made().begin(), builder.made().end());
            scratch_floats_ = std::max(scratch_floats_, builder.scratch_floats());
            held_bytes_ += builder.held_bytes();
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(where + error.what());
        } catch (const std::length_error& error) {
            throw std::invalid_argument(where + error.what());
        }
    }
    if (!reals.ended()) refuse("more real attributes", "as many as the operators have");
    return lane;
}

// Before the first run, so that it allocates nothing either. All lanes take the same.
void Program::take_scratch() const {
    on_each_thread(threads_, [&](int64_t) {
        for (size_t i = 0; i < std::min<size_t>(2, run_.size()); ++i) {
            for (const auto& product : run_[i].products) product->take_scratch();
        }
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
    const int64_t whole = buffer.bytes();
    const bool fits = buffer.role == rows ? bytes >= whole && bytes % whole == 0 : bytes == whole;
    if (address == nullptr || place % bytes_of(buffer.type) != 0 || !fits) {
        refuse(where + " of " + std::to_string(bytes) + " bytes",
               std::to_string(whole) + " bytes" + (buffer.role == rows ? " or a multiple" : "") +
                   " at an address that fits its type");
    }
    if (bound_[number] == nullptr && used_[number]) --unbound_;
    bound_[number] = static_cast<char*>(address);
    groups_bound_[number] = bytes / whole;
    for (Lane& lane : run_) lane.addresses[number] = address;
}

int64_t Program::workspace_bytes() const {
    const auto held = [](const auto& vector) {
        return static_cast<int64_t>(vector.capacity() * sizeof(vector[0]));
    };
    int64_t total = held(buffers_) + held(bound_) + held(groups_bound_) + held_bytes_;
    if (parts_) total += std::max(1, lanes_) * part_floats_ * static_cast<int64_t>(sizeof(float));
    for (size_t i = 0; i < run_.size(); ++i) {
        const Lane& lane = run_[i];
        total += held(lane.steps) + held(lane.addresses);
        for (const auto& product : lane.products) total += product->bytes();
        if (i == 1) continue;  // shares its memory with the first
        const Shared& s = *lane.shared;
        const ProductMemory& p = s.product;
        total += held(s.floats) + held(s.doubles) + held(s.index.first) + held(s.index.columns) +
                 held(p.offsets) + held(p.moved) + held(p.partial) + held(p.back.from) +
                 held(p.back.strips.first) + held(p.back.strips.columns);
    }
    return total;
}

}  // namespace mest::runtime
