#include "arrays.h"

#include <errno.h>
#include <string.h>

static const int sizes[] = {4, 2, 2, 1, 1, 4, 8}; /* of a value, by type */
enum { types = sizeof(sizes) / sizeof(sizes[0]) };
static const int64_t most_bytes = (int64_t)1 << 40;

static int fail(const array_file* arrays, const char* what, char* error, size_t error_size) {
    snprintf(error, error_size, "%s: %s", arrays->path, what);
    return 1;
}

/* The machine is little-endian: mest_train.c refuses to be compiled elsewhere. */
static int read_words(array_file* arrays, int64_t* words, size_t count) {
    return fread(words, 8, count, arrays->file) == count;
}

/* Reads bytes, and the zeros behind them. */
static int read_padded(array_file* arrays, void* bytes, int64_t count) {
    char zeros[8];
    size_t padding = (size_t)(-count & 7);
    return (count == 0 || fread(bytes, 1, (size_t)count, arrays->file) == (size_t)count) &&
           fread(zeros, 1, padding, arrays->file) == padding;
}

static int write_padded(array_file* arrays, const void* bytes, int64_t count) {
    static const char zeros[8] = {0};
    size_t padding = (size_t)(-count & 7);
    return (count == 0 || fwrite(bytes, 1, (size_t)count, arrays->file) == (size_t)count) &&
           fwrite(zeros, 1, padding, arrays->file) == padding;
}

int arrays_open(array_file* arrays, const char* path, char* error, size_t error_size) {
    char magic[8];
    int64_t words[2];
    arrays->path = path;
    arrays->file = fopen(path, "rb");
    if (arrays->file == NULL) return fail(arrays, strerror(errno), error, error_size);
    if (fread(magic, 1, 8, arrays->file) != 8 || memcmp(magic, "MESTDATA", 8) != 0 ||
        !read_words(arrays, words, 2) || words[0] != 1 || words[1] < 0 || words[1] > 1000000) {
        fclose(arrays->file);
        arrays->file = NULL;
        return fail(arrays, "is no file of arrays of version 1", error, error_size);
    }
    arrays->left = words[1];
    return 0;
}

int arrays_next(array_file* arrays, array_head* head, char* error, size_t error_size) {
    int64_t words[3];
    if (arrays->left < 1) return fail(arrays, "has no more arrays", error, error_size);
    --arrays->left;
    memset(head, 0, sizeof(*head));
    if (!read_words(arrays, words, 3) || words[0] < 0 || words[0] >= types || words[1] < 0 ||
        words[1] > most_dimensions || words[2] < 1 || words[2] > longest_name ||
        !read_words(arrays, head->shape, (size_t)words[1]) ||
        !read_padded(arrays, head->name, words[2]) ||
        memchr(head->name, 0, (size_t)words[2]) != NULL) {
        return fail(arrays, "is damaged", error, error_size);
    }
    head->type = (int)words[0];
    head->dimensions = (int)words[1];
    head->values = 1;
    for (int i = 0; i < head->dimensions; ++i) {
        const int64_t size = head->shape[i];
        if (size < 0 || (size > 0 && head->values > most_bytes / 8 / size)) {
            return fail(arrays, "has an array that is too large", error, error_size);
        }
        head->values *= size;
    }
    head->bytes = head->values * sizes[head->type];
    return 0;
}

int arrays_values(array_file* arrays, const array_head* head, void* values, char* error,
                  size_t error_size) {
    if (read_padded(arrays, values, head->bytes)) return 0;
    return fail(arrays, "ends too early", error, error_size);
}

int arrays_create(array_file* arrays, const char* path, int64_t count, char* error,
                  size_t error_size) {
    const int64_t words[2] = {1, count};
    arrays->path = path;
    arrays->left = count;
    arrays->file = fopen(path, "wb");
    if (arrays->file == NULL) return fail(arrays, strerror(errno), error, error_size);
    if (fwrite("MESTDATA", 1, 8, arrays->file) == 8 && fwrite(words, 8, 2, arrays->file) == 2) {
        return 0;
    }
    return fail(arrays, "cannot be written", error, error_size);
}

int arrays_put(array_file* arrays, const array_head* head, const void* values, char* error,
               size_t error_size) {
    const int64_t words[3] = {head->type, head->dimensions, (int64_t)strlen(head->name)};
    const size_t dimensions = (size_t)head->dimensions;
    if (fwrite(words, 8, 3, arrays->file) == 3 &&
        fwrite(head->shape, 8, dimensions, arrays->file) == dimensions &&
        write_padded(arrays, head->name, words[2]) && write_padded(arrays, values, head->bytes)) {
        return 0;
    }
    return fail(arrays, "cannot be written", error, error_size);
}

int arrays_close(array_file* arrays, char* error, size_t error_size) {
    FILE* file = arrays->file;
    arrays->file = NULL;
    if (file == NULL || fclose(file) == 0) return 0;
    return fail(arrays, "cannot be written", error, error_size);
}
