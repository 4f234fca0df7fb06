/* Trains a program from files: C11, the C library and the runtime alone.
 *
 *   mest_train PROGRAM WEIGHTS EXAMPLES EPOCHS LEARNING_RATE BATCH TRAINED
 *
 * PROGRAM and WEIGHTS are what `mest-fed program MODEL --export FOLDER` writes; arrays.h says how the
 * others are made. README.md goes through it. */
#include <errno.h>
#include <math.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arrays.h"
#include "mest_program_file.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files are read as they are: little-endian machines alone"
#endif

enum { error_size = 512, line = 64 };
/* No file makes this program take more than that. */
static const int64_t most_bytes = (int64_t)1 << 30;

static char error[error_size];

typedef struct {
    mest_program_file* file;
    const mest_step_facts* facts;
    mest_program* program;
    void* arena;
    void** memory;   /* of each buffer that is bound; null: temporary, or examples */
    int64_t held;    /* their bytes */
    char *input, *targets;
    int64_t examples;
} training;

static int fail(const char* what) {
    snprintf(error, error_size, "%s", what);
    return 1;
}

/* An error of a file: which one it is. */
static int fail_of(const char* path, const char* what) {
    snprintf(error, error_size, "%.300s: %s", path, what);
    return 1;
}

/* The error that a function of the runtime gave is of a file. */
static int is_of(const char* path) {
    char what[error_size / 3];
    snprintf(what, sizeof(what), "%.160s", error);
    return fail_of(path, what);
}

static void* take(int64_t bytes) {
    const size_t whole = (size_t)((bytes + line - 1) / line * line);
    void* memory = aligned_alloc(line, whole > 0 ? whole : line);
    if (memory != NULL) memset(memory, 0, whole > 0 ? whole : line);
    return memory;
}

static mest_buffer buffer_of(const training* t, int64_t number) {
    mest_buffer found = {0};
    mest_program_file_buffer(t->file, number, &found);
    return found;
}

static int read_program(training* t, const char* path) {
    FILE* file = fopen(path, "rb");
    void* data = NULL;
    long length = -1;
    int failed = 1;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) length = ftell(file);
    if (length > 0 && length < most_bytes) data = malloc((size_t)length);
    if (data != NULL && fseek(file, 0, SEEK_SET) == 0 &&
        fread(data, 1, (size_t)length, file) == (size_t)length) {
        failed = mest_program_file_read(data, length, &t->file, error, error_size);
        if (failed) is_of(path);
    } else {
        fail_of(path, file == NULL ? strerror(errno) : "cannot be read, is empty, or too large");
    }
    free(data);
    if (file != NULL) fclose(file);
    t->facts = mest_program_file_facts(t->file);
    return failed;
}

/* Makes the program, with memory of its own for all that is no example. */
static int make_program(training* t, const char* path, int64_t groups) {
    const mest_step_facts* f = t->facts;
    if (f->arena_bytes > most_bytes) return fail_of(path, "the arena is too large");
    t->arena = take(f->arena_bytes);
    t->memory = calloc((size_t)f->buffers, sizeof(void*));
    if (t->arena == NULL || t->memory == NULL) return fail("there is no memory left");
    if (mest_create(mest_program_file_description(t->file), t->arena, f->arena_bytes,
                    f->takes_groups, 1, &t->program, error, error_size)) {
        return is_of(path);
    }
    for (int64_t i = 0; i < f->buffers; ++i) {
        const mest_buffer b = buffer_of(t, i);
        if (b.use == mest_temporary || i == f->input || i == f->targets) continue;
        const int64_t times = b.use == mest_input || b.use == mest_output ? groups : 1;
        if (b.bytes > (most_bytes - t->held) / times) return fail_of(path, "the buffers are too large");
        t->held += b.bytes * times;
        t->memory[i] = take(b.bytes * times);
        if (t->memory[i] == NULL) return fail("there is no memory left");
        if (mest_bind(t->program, i, t->memory[i], b.bytes * times, error, error_size)) {
            return is_of(path);
        }
    }
    return 0;
}

/* Parameters and states have names; what the file does not have stays zero. */
static int read_weights(training* t, const char* path) {
    array_file arrays;
    array_head head;
    if (arrays_open(&arrays, path, error, error_size)) return 1;
    while (arrays.left > 0) {
        int64_t number = -1;
        if (arrays_next(&arrays, &head, error, error_size)) return 1;
        for (int64_t i = 0; i < t->facts->buffers && number < 0; ++i) {
            const mest_buffer b = buffer_of(t, i);
            const int kept = b.use == mest_parameter || b.use == mest_state;
            if (kept && strcmp(b.name, head.name) == 0) number = i;
        }
        if (number < 0) {
            snprintf(error, error_size, "%s: %.200s is no parameter or state", path, head.name);
            return 1;
        }
        const mest_buffer b = buffer_of(t, number);
        const size_t dims = (size_t)b.dimensions * sizeof(int64_t);
        if (b.type != head.type || b.dimensions != head.dimensions ||
            (dims > 0 && memcmp(b.shape, head.shape, dims) != 0)) {
            snprintf(error, error_size, "%s: %.200s has another type or shape", path, head.name);
            return 1;
        }
        if (arrays_values(&arrays, &head, t->memory[number], error, error_size)) return 1;
    }
    return arrays_close(&arrays, error, error_size);
}

static int read_rows(training* t, array_file* arrays, const char* name, int64_t number,
                     char** rows) {
    array_head head;
    const mest_buffer b = buffer_of(t, number);
    const int64_t each = b.values / t->facts->group_examples;
    if (arrays_next(arrays, &head, error, error_size)) return 1;
    const int64_t count = head.dimensions > 0 ? head.shape[0] : 0;
    if (strcmp(head.name, name) != 0 || head.type != b.type || head.values != count * each) {
        snprintf(error, error_size, "%s: allowed: %s, %lld %s values for each example",
                 arrays->path, name, (long long)each, mest_type_name(b.type));
        return 1;
    }
    if (head.bytes > most_bytes) return fail_of(arrays->path, "there are too many examples");
    if (t->examples >= 0 && count != t->examples) {
        snprintf(error, error_size, "%.300s: %lld targets; allowed: %lld, as many as examples",
                 arrays->path, (long long)count, (long long)t->examples);
        return 1;
    }
    t->examples = count;
    *rows = take(head.bytes);
    if (*rows == NULL) return fail("there is no memory left");
    return arrays_values(arrays, &head, *rows, error, error_size);
}

static int read_examples(training* t, const char* path) {
    array_file arrays;
    t->examples = -1;
    if (arrays_open(&arrays, path, error, error_size)) return 1;
    if (read_rows(t, &arrays, "input", t->facts->input, &t->input) ||
        read_rows(t, &arrays, "targets", t->facts->targets, &t->targets)) {
        return 1;
    }
    return arrays_close(&arrays, error, error_size);
}

static void fill(const training* t, int64_t number, float value) {
    float* at = t->memory[number];
    for (int64_t i = 0; i < buffer_of(t, number).values; ++i) at[i] = value;
}

/* Of class numbers, those that are negative do not count. */
static int64_t counted(const char* targets, const mest_buffer* b, int64_t groups,
                       int64_t group_examples) {
    int64_t found = 0, value;
    if (strcmp(mest_type_name(b->type), "int64") != 0) return groups * group_examples;
    for (int64_t i = 0; i < groups * b->values; ++i) {
        memcpy(&value, targets + 8 * i, 8);
        found += value >= 0;
    }
    return found;
}

static int train_batch(training* t, int64_t from, int64_t groups, double* loss, int64_t* count) {
    const mest_step_facts* f = t->facts;
    const mest_buffer x = buffer_of(t, f->input), y = buffer_of(t, f->targets);
    char* input = t->input + from * (x.bytes / f->group_examples);
    char* targets = t->targets + from * (y.bytes / f->group_examples);
    if (mest_bind(t->program, f->input, input, groups * x.bytes, error, error_size) ||
        mest_bind(t->program, f->targets, targets, groups * y.bytes, error, error_size)) {
        return 1;
    }
    *count = counted(targets, &y, groups, f->group_examples);
    fill(t, f->share, (float)(1.0 / (double)(*count > 0 ? *count : 1)));
    if (mest_step(t->program, groups, error, error_size)) return 1;
    *loss = *(const float*)t->memory[f->loss];
    return 0;
}

static int train_epoch(training* t, int64_t batch, double* mean) {
    const int64_t size = t->facts->group_examples;
    double total = 0;
    int64_t all = 0;
    for (int64_t from = 0; from + size <= t->examples; from += batch) {
        const int64_t left = (t->examples - from) / size, whole = batch / size;
        double loss;
        int64_t count;
        if (train_batch(t, from, left < whole ? left : whole, &loss, &count)) return 1;
        total += loss * (double)count;
        all += count;
    }
    *mean = all > 0 ? total / (double)all : 0;
    return isfinite(*mean) ? 0 : fail("the loss is not finite: a smaller learning rate, please");
}

static int write_weights(const training* t, const char* path) {
    array_file arrays;
    int64_t count = 0;
    for (int64_t i = 0; i < t->facts->buffers; ++i) {
        const int use = buffer_of(t, i).use;
        count += use == mest_parameter || use == mest_state;
    }
    if (arrays_create(&arrays, path, count, error, error_size)) return 1;
    for (int64_t i = 0; i < t->facts->buffers; ++i) {
        const mest_buffer b = buffer_of(t, i);
        array_head head = {.type = b.type, .dimensions = b.dimensions, .bytes = b.bytes};
        if (b.use != mest_parameter && b.use != mest_state) continue;
        snprintf(head.name, sizeof(head.name), "%s", b.name);
        memcpy(head.shape, b.shape, (size_t)b.dimensions * sizeof(int64_t));
        if (arrays_put(&arrays, &head, t->memory[i], error, error_size)) return 1;
    }
    return arrays_close(&arrays, error, error_size);
}

/* Finds out before hours of training whether the result can be written; leaves what is there. */
static int check_writable(const char* path) {
    FILE* there = fopen(path, "rb");
    FILE* file = fopen(path, "ab");
    const int why = errno;
    if (there != NULL) fclose(there);
    if (file == NULL) {
        snprintf(error, error_size, "%.300s: cannot be written: %s", path, strerror(why));
        return 1;
    }
    fclose(file);
    if (there == NULL) remove(path);
    return 0;
}

/* What all of the process took at most, as Linux counts it. */
static void print_peak(void) {
    char text[128];
    FILE* file = fopen("/proc/self/status", "r");
    long long peak;
    while (file != NULL && fgets(text, sizeof(text), file) != NULL) {
        if (sscanf(text, "VmHWM: %lld kB", &peak) == 1) {
            printf("peak of the process: %lld kB (measured, VmHWM)\n", peak);
        }
    }
    if (file != NULL) fclose(file);
}

static void release(training* t) {
    mest_destroy(t->program);
    for (int64_t i = 0; t->memory != NULL && i < t->facts->buffers; ++i) free(t->memory[i]);
    mest_program_file_close(t->file);
    free(t->memory);
    free(t->arena);
    free(t->input);
    free(t->targets);
}

static int whole_number(const char* text, const char* name, int64_t* number) {
    char* end = NULL;
    errno = 0;
    const long long found = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || found < 1 || found > 1000000000) {
        snprintf(error, error_size, "%s = %.100s; allowed: 1 to 10^9", name, text);
        return 1;
    }
    *number = found;
    return 0;
}

static int run(training* t, char** given) {
    int64_t epochs, batch;
    char* end = NULL;
    const double rate = strtod(given[4], &end);
    if (whole_number(given[3], "EPOCHS", &epochs) || whole_number(given[5], "BATCH", &batch)) return 1;
    if (end == given[4] || *end != '\0' || !(rate > 0) || !(rate <= 1e6)) {
        snprintf(error, error_size, "LEARNING_RATE = %.100s; allowed: above 0, to 10^6", given[4]);
        return 1;
    }
    if (check_writable(given[6])) return 1;
    printf("reading the program %s, weights %s and examples %s\n", given[0], given[1], given[2]);
    fflush(stdout);
    if (read_program(t, given[0])) return 1;
    const int64_t group = t->facts->group_examples;
    if (batch % group != 0 || (!t->facts->takes_groups && batch != group)) {
        snprintf(error, error_size, "BATCH = %lld; allowed: %s%lld, the program's examples",
                 (long long)batch, t->facts->takes_groups ? "a multiple of " : "", (long long)group);
        return 1;
    }
    if (make_program(t, given[0], batch / group) || read_weights(t, given[1]) || read_examples(t, given[2])) {
        return 1;
    }
    fill(t, t->facts->rates, (float)rate);
    printf("arena: %lld bytes; other buffers: %lld; plans and working memory: %lld\n",
           (long long)t->facts->arena_bytes, (long long)t->held,
           (long long)mest_workspace_bytes(t->program));
    printf("examples: %lld; left out, being no whole group of %lld: %lld\n", (long long)t->examples,
           (long long)group, (long long)(t->examples % group));
    for (int64_t epoch = 1; epoch <= epochs; ++epoch) {
        double loss;
        if (train_epoch(t, batch, &loss)) return 1;
        printf("epoch %lld: loss %.6f\n", (long long)epoch, loss);
        fflush(stdout);
    }
    print_peak();
    if (write_weights(t, given[6])) return 1;
    printf("trained weights: %s\n", given[6]);
    return 0;
}

int main(int count, char** arguments) {
    training t = {0};
    int failed = 1;
    if (mest_runtime_version() / 1000000 != MEST_RUNTIME_VERSION_MAJOR ||
        mest_runtime_version() < MEST_RUNTIME_VERSION) {
        fail("the runtime that is linked is another version than its header");
    } else if (count != 8) {
        fail("usage: mest_train PROGRAM WEIGHTS EXAMPLES EPOCHS LEARNING_RATE BATCH TRAINED");
    } else {
        failed = run(&t, arguments + 1);
    }
    if (failed) fprintf(stderr, "error: %s\n", error);
    release(&t);
    return failed ? 2 : 0;
}
