/* Programs as files, for C: a training step that was written by `mest_fed.runtime.flat`
 * (`mest-fed program MODEL --export FOLDER`), with all that is needed to run it.
 *
 * The file is little-endian words of 64 bits, and text:
 *
 *   word   what
 *   0      "MESTPROG"
 *   1      version of the format: 1
 *   2      check: FNV-1a, 64 bits, of all bytes from word 3 on
 *   3      bytes of the arena of a lane
 *   4      operators of a group: the first so many run once a group
 *   5      examples of a group
 *   6      1 if a batch may be several groups, else 0
 *   7-11   numbers of buffers: input, targets, rates, share, loss
 *   12     kinds of operators, K
 *   13     buffers, B
 *   14-16  words of buffers, words of operators, reals
 *   17     bytes of text, a multiple of 8
 *   18     ... K times 4 words: inputs, outputs, whole attributes, real attributes of a kind
 *          ... words of buffers; of each: type, use, offset in the arena or -1, margin, dimensions D,
 *              D sizes
 *          ... words of operators; of each: its kind, its buffers (-1: absent), whole attributes
 *          ... reals, of 64 bits
 *          ... text: names that end with a zero byte, K of kinds, then B of buffers; zeros to the end
 *
 * A type is its place in mest_type_name; a use is one of mest_use. Kinds have names, so that a file
 * outlives the order of the table of operators. */
#ifndef MEST_PROGRAM_FILE_H
#define MEST_PROGRAM_FILE_H

#include "mest_runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MEST_PROGRAM_FILE_VERSION 1

typedef struct mest_program_file mest_program_file;

/* What a buffer is to a step. Temporary ones lie in the arena; the caller binds all others. */
enum mest_use {
    mest_input = 0,     /* rows: examples, or their targets */
    mest_setting = 1,   /* a number of the step */
    mest_parameter = 2, /* trained, or fixed, weights */
    mest_state = 3,     /* slots of masks; what the optimizer keeps */
    mest_output = 4,    /* rows */
    mest_total = 5,     /* added up over the groups of a batch */
    mest_temporary = 6
};

/* A step as a whole. A step is run so: write the examples and targets of a batch into what `input` and
 * `targets` are bound to, the learning rate into all values of `rates`, and 1 / (targets that count)
 * into those of `share`; mest_step; read the mean loss from `loss`. */
typedef struct {
    int64_t arena_bytes, group_examples, buffers;
    int64_t input, targets, rates, share, loss; /* numbers of buffers */
    int takes_groups;
} mest_step_facts;

/* `bytes` and `values` of rows are those of one group. Name and shape live as long as the file. */
typedef struct {
    const char* name;
    int type, use, dimensions;
    const int64_t* shape;
    int64_t values, bytes;
} mest_buffer;

/* Reads a program from memory, which may go afterwards. Everything is checked, but for what
 * mest_create checks: whether operators fit their buffers. */
int mest_program_file_read(const void* data, int64_t length, mest_program_file** made, char* error,
                           size_t error_size);
/* Lives as long as the file; null for null. */
const mest_description* mest_program_file_description(const mest_program_file* file);
const mest_step_facts* mest_program_file_facts(const mest_program_file* file);
/* Zero where there is no such buffer, else 1. */
int mest_program_file_buffer(const mest_program_file* file, int64_t number, mest_buffer* found);
void mest_program_file_close(mest_program_file* file);

#ifdef __cplusplus
}
#endif

#endif
