/* The native runtime of programs, for C: a training step as operators over numbered buffers.
 *
 * A program is made of flat numbers, which are all checked once; its buffers lie in an arena of the
 * caller's, or where mest_bind says. A run allocates nothing, and gives the same bits for any number
 * of threads. A function that can fail returns 0, or another number and one line of text in `error`
 * (may be null; at most `error_size` bytes, the end included). */
#ifndef MEST_RUNTIME_H
#define MEST_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MEST_RUNTIME_VERSION 1

typedef struct mest_program mest_program;

/* `buffers`, one after the other: type (its place in mest_type_name), offset in the arena in bytes
 *     (-1: bound by address), margin (planes.h; 0: C order), number of dimensions, dimensions.
 * `operators`, one after the other: code (its place in mest_operator_at), the buffers of its inputs
 *     and outputs (-1: absent), its whole-number attributes.
 * `reals`: the operators' other attributes, one after the other. */
typedef struct {
    const int64_t* buffers;
    int64_t buffers_length;
    const int64_t* operators;
    int64_t operators_length;
    const double* reals;
    int64_t reals_length;
} mest_description;

/* One line of the table of operators. Names end with a null pointer. */
typedef struct {
    const char* name;
    int inputs, outputs, attributes;
} mest_operator;

enum { mest_attribute_whole = 0, mest_attribute_real = 1 };

/* One argument or attribute of an operator: inputs first, then outputs, then attributes. `kind` is
 * the type of an argument, else one of the above; `planes` whether its buffer may have a margin;
 * `length` the numbers of an attribute. */
typedef struct {
    const char* name;
    int kind, optional, planes, length;
} mest_detail;

/* Null past the last type; zero past the last operator or detail, else 1. */
const char* mest_type_name(int type);
int mest_operator_at(int code, mest_operator* found);
int mest_detail_at(int code, int place, mest_detail* found);

/* `arena`: aligned to 64 bytes, alive as long as the program. */
int mest_create(const mest_description* description, void* arena, int64_t arena_bytes, int threads,
                mest_program** made, char* error, size_t error_size);
/* Gives a buffer without an offset its address, which must be aligned to its type. */
int mest_bind(mest_program* program, int64_t buffer, void* address, int64_t bytes, char* error,
              size_t error_size);
/* Runs the operators [first, last). */
int mest_run(mest_program* program, int64_t first, int64_t last, char* error, size_t error_size);
/* Bytes that the program itself holds beside arena and bound buffers: plans and working memory. */
int64_t mest_workspace_bytes(const mest_program* program);
void mest_destroy(mest_program* program);

#ifdef __cplusplus
}
#endif

#endif
