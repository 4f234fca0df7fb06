// The C interface: no exception leaves it.
#include <string>

#include "guarded.h"
#include "program.h"
#include "running.h"
#include "table.h"

using mest::runtime::Argument;
using mest::runtime::Attribute;
using mest::runtime::guarded;
using mest::runtime::Operator;
using mest::runtime::or_else;
using mest::runtime::Program;

struct mest_program {
    Program program;
};

namespace {

// Null, too, where MEST_FED_KERNELS asks for kernels that this machine has not: mest_create says so.
const Operator* operator_at(int code) {
    return or_else<const Operator*>(nullptr, [&] {
        const auto& all = mest::runtime::table();
        return code >= 0 && code < static_cast<int>(all.size()) ? &all[code] : nullptr;
    });
}

void check(const void* given, const char* name) {
    if (given == nullptr) mest::runtime::refuse(std::string(name) + " = null", "an address");
}

}  // namespace

int mest_runtime_version(void) { return MEST_RUNTIME_VERSION; }

const char* mest_type_name(int type) {
    const bool known = type >= 0 && type < mest::runtime::types;
    return known ? mest::runtime::name_of(static_cast<mest::runtime::Type>(type)) : nullptr;
}

int mest_operator_at(int code, mest_operator* found) {
    const Operator* o = operator_at(code);
    if (o == nullptr || found == nullptr) return 0;
    *found = {o->name, static_cast<int>(o->inputs.size()), static_cast<int>(o->outputs.size()),
              static_cast<int>(o->wholes.size() + o->reals.size())};
    return 1;
}

int mest_detail_at(int code, int place, mest_detail* found) {
    const Operator* o = operator_at(code);
    if (o == nullptr || found == nullptr || place < 0) return 0;
    auto at = static_cast<size_t>(place);
    for (const auto* side : {&o->inputs, &o->outputs}) {
        if (at < side->size()) {
            const Argument& argument = (*side)[at];
            *found = {argument.name, argument.type, argument.optional ? 1 : 0, argument.layouts,
                      1};
            return 1;
        }
        at -= side->size();
    }
    for (const auto* list : {&o->wholes, &o->reals}) {
        if (at < list->size()) {
            const int kind = list == &o->wholes ? mest_attribute_whole : mest_attribute_real;
            *found = {(*list)[at].name, kind, 0, 0, (*list)[at].length};
            return 1;
        }
        at -= list->size();
    }
    return 0;
}

int mest_create(const mest_description* description, void* arena, int64_t arena_bytes, int lanes,
                int threads, mest_program** made, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        check(made, "made");
        *made = nullptr;
        check(description, "description");
        *made = new mest_program{{*description, arena, arena_bytes, lanes, threads}};
    });
}

int mest_bind(mest_program* program, int64_t buffer, void* address, int64_t bytes, char* error,
              size_t error_size) {
    return guarded(error, error_size, [&] {
        check(program, "program");
        program->program.bind(buffer, address, bytes);
    });
}

int mest_share_sums(mest_program* program, const mest_program* other, char* error,
                    size_t error_size) {
    return guarded(error, error_size, [&] {
        check(program, "program");
        check(other, "other");
        program->program.share_parts(other->program);
    });
}

int mest_step(mest_program* program, int64_t groups, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        check(program, "program");
        program->program.step(groups);
    });
}

int mest_groups(mest_program* program, int64_t groups, int64_t before, char* error,
                size_t error_size) {
    return guarded(error, error_size, [&] {
        check(program, "program");
        program->program.groups(groups, before);
    });
}

int mest_run(mest_program* program, int64_t first, int64_t last, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        check(program, "program");
        program->program.run(first, last);
    });
}

int64_t mest_workspace_bytes(const mest_program* program) {
    if (program == nullptr) return 0;
    return or_else<int64_t>(0, [&] { return program->program.workspace_bytes(); });
}

void mest_destroy(mest_program* program) { delete program; }
