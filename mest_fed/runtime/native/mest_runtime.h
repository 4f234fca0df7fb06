/* The native runtime of programs, for C: a training step as operators over numbered buffers.
 *
 * A program is made of flat numbers, which are all checked once; its buffers lie in an arena of the
 * caller's, or where mest_bind says. A run allocates nothing, and gives the same bits for any number
 * of threads. A function that can fail returns 0, or another number and one line of text in `error`
 * (may be null; at most `error_size` bytes, the end included).
 *
 * A program is written for a group of examples. A batch is taken group by group: its inputs and
 * outputs are arrays of all groups, one behind the other, and what is a sum is added up over them.
 * Groups that run at once have lanes: an arena, working memory and sums each. */
#ifndef MEST_RUNTIME_H
#define MEST_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface, as semantic versioning has it: a program that was written for a version
 * compiles and runs with all of the same major number that are not older. */
#define MEST_RUNTIME_VERSION_MAJOR 2
#define MEST_RUNTIME_VERSION_MINOR 1
#define MEST_RUNTIME_VERSION_PATCH 0
/* One number, by which versions are compared: 2.1.0 is 2001000. */
#define MEST_RUNTIME_VERSION                                               \
    (MEST_RUNTIME_VERSION_MAJOR * 1000000 + MEST_RUNTIME_VERSION_MINOR * 1000 + \
     MEST_RUNTIME_VERSION_PATCH)

/* MEST_RUNTIME_VERSION of the library that is linked. */
int mest_runtime_version(void);

typedef struct mest_program mest_program;

/* How a buffer is to the groups of a batch. `rows`: the array that is bound holds a part for each
 * group; the first dimension of all is a group's examples. `sum`: zero at first, and operators add;
 * of float32, and bound. */
enum { mest_alike = 0, mest_rows = 1, mest_sum = 2 };

/* `buffers`, one after the other: type (its place in mest_type_name), one of the above, offset in the
 *     arena in bytes (-1: bound by address), margin (planes.h; 0: C order), number of dimensions,
 *     dimensions.
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
    int64_t group_operators; /* the first so many run once a group, the others once a batch */
} mest_description;

/* One line of the table of operators. Names end with a null pointer. */
typedef struct {
    const char* name;
    int inputs, outputs, attributes;
} mest_operator;

enum { mest_attribute_whole = 0, mest_attribute_real = 1 };

/* One argument or attribute of an operator: inputs first, then outputs, then attributes. `kind` is
 * the type of an argument, else one of the above; `planes` 1 if its buffer may have a margin, 2 if it may
 * then be of bfloat16 together with all such arguments of the operator, 3 if without them;
 * `length` the numbers of an attribute. */
typedef struct {
    const char* name;
    int kind, optional, planes, length;
} mest_detail;

/* Null past the last type; zero past the last operator or detail, else 1. */
const char* mest_type_name(int type);
int mest_operator_at(int code, mest_operator* found);
int mest_detail_at(int code, int place, mest_detail* found);

/* `arena`: aligned to 64 bytes, alive as long as the program; `arena_bytes` for each lane, one behind
 *     the other, a multiple of 64 if there are several.
 * `lanes`: groups that run at once; 0: a batch is one group, and there is one arena. Where a batch
 *     is one group, or there is one lane, threads share the work of each operator. */
int mest_create(const mest_description* description, void* arena, int64_t arena_bytes, int lanes,
                int threads, mest_program** made, char* error, size_t error_size);
/* Gives a buffer without an offset its address, which must be aligned to its type. `bytes` of a
 * buffer of rows are those of one group or a multiple. */
int mest_bind(mest_program* program, int64_t buffer, void* address, int64_t bytes, char* error,
              size_t error_size);
/* Has a program keep the sums of groups that run at once where another of the same step does, which has
 * as many lanes or more. The two must not run at once. */
int mest_share_sums(mest_program* program, const mest_program* other, char* error,
                    size_t error_size);
/* Runs a whole step over so many groups: sums start from zero. */
int mest_step(mest_program* program, int64_t groups, char* error, size_t error_size);
/* Runs the operators of groups alone. `before`: examples of the batch that other programs of the same
 * step had before, whose sums these are added to; 0: sums start from zero. */
int mest_groups(mest_program* program, int64_t groups, int64_t before, char* error,
                size_t error_size);
/* Runs the operators [first, last) over the first group. */
int mest_run(mest_program* program, int64_t first, int64_t last, char* error, size_t error_size);
/* Bytes that the program itself holds beside arena and bound buffers: plans and working memory. */
int64_t mest_workspace_bytes(const mest_program* program);
void mest_destroy(mest_program* program);

#ifdef __cplusplus
}
#endif

#endif
