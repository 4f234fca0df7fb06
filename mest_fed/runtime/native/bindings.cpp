// The Python face, over the C interface. mest_fed/runtime/native.py flattens programs and checks arrays.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "mest_runtime.h"
#include "threads.h"
#include "variant.h"

namespace nb = nanobind;

namespace {

constexpr size_t error_size = 512;

// call(error): 0, or anything else and a text.
template <class Call>
void checked(const Call& call) {
    char error[error_size] = "";
    if (call(error) != 0) throw std::invalid_argument(error);
}

class Program {
public:
    Program(const std::vector<int64_t>& buffers, const std::vector<int64_t>& operators,
            const std::vector<double>& reals, int64_t group_operators, int64_t arena,
            int64_t arena_bytes, int lanes, int threads) {
        const mest_description description{
            buffers.data(),   static_cast<int64_t>(buffers.size()),
            operators.data(), static_cast<int64_t>(operators.size()),
            reals.data(),     static_cast<int64_t>(reals.size()),
            group_operators};
        checked([&](char* error) {
            return mest_create(&description, reinterpret_cast<void*>(arena), arena_bytes, lanes,
                               threads, &program_, error, error_size);
        });
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;
    ~Program() { mest_destroy(program_); }

    void bind(int64_t buffer, int64_t address, int64_t bytes) {
        checked([&](char* error) {
            return mest_bind(program_, buffer, reinterpret_cast<void*>(address), bytes, error,
                             error_size);
        });
    }
    void run(int64_t first, int64_t last) {
        checked([&](char* error) { return mest_run(program_, first, last, error, error_size); });
    }
    void groups(int64_t groups, int64_t before) {
        checked([&](char* error) { return mest_groups(program_, groups, before, error, error_size); });
    }
    void share_sums(const Program& other) {
        checked([&](char* error) {
            return mest_share_sums(program_, other.program_, error, error_size);
        });
    }
    int64_t workspace_bytes() const { return mest_workspace_bytes(program_); }

private:
    mest_program* program_ = nullptr;
};

// name, kind, optional, planes, length
using Detail = std::tuple<std::string, int, bool, int, int>;
// name, inputs, outputs, attributes
using Line = std::tuple<std::string, std::vector<Detail>, std::vector<Detail>, std::vector<Detail>>;

std::vector<Line> operators() {
    std::vector<Line> lines;
    mest_operator o;
    for (int code = 0; mest_operator_at(code, &o) != 0; ++code) {
        int place = 0;
        const auto take = [&](int count) {
            std::vector<Detail> details;
            mest_detail d;
            for (; count > 0 && mest_detail_at(code, place, &d) != 0; ++place, --count) {
                details.emplace_back(d.name, d.kind, d.optional != 0, d.planes, d.length);
            }
            return details;
        };
        auto inputs = take(o.inputs), outputs = take(o.outputs), attributes = take(o.attributes);
        lines.emplace_back(o.name, std::move(inputs), std::move(outputs), std::move(attributes));
    }
    return lines;
}

std::vector<std::string> types() {
    std::vector<std::string> names;
    while (const char* name = mest_type_name(static_cast<int>(names.size()))) names.push_back(name);
    return names;
}

}  // namespace

NB_MODULE(_native, m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    m.def("variant", [] { return mest::variant().name; });
    m.def("operators", &operators);
    m.def("types", &types);
    m.def("thread_scratch_bytes", &mest::thread_scratch_bytes);
    m.def("release_thread_scratch", &mest::release_thread_scratch);
    nb::class_<Program>(m, "Program")
        .def(nb::init<const std::vector<int64_t>&, const std::vector<int64_t>&,
                      const std::vector<double>&, int64_t, int64_t, int64_t, int, int>())
        .def("bind", &Program::bind)
        .def("run", &Program::run, unlocked)
        .def("groups", &Program::groups, unlocked)
        .def("share_sums", &Program::share_sums)
        .def("workspace_bytes", &Program::workspace_bytes);
}
