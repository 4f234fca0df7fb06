/* Files of named arrays: weights, and examples. mest_fed/runtime/flat.py says how they are made:
 *
 *   8 bytes "MESTDATA", a word for the version (1), a word for the number of arrays; then of each
 *   array: words for its type (as mest_type_name numbers them), its dimensions D, the bytes of its
 *   name, and D sizes; its name; its values in C order. Name and values are each followed by zeros up
 *   to a multiple of 8 bytes. Words are of 64 bits, and everything is little-endian. */
#ifndef MEST_ARRAYS_H
#define MEST_ARRAYS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { most_dimensions = 8, longest_name = 800 };

typedef struct {
    char name[longest_name + 1];
    int type, dimensions;
    int64_t shape[most_dimensions];
    int64_t values, bytes;
} array_head;

typedef struct {
    FILE* file;
    const char* path;
    int64_t left; /* arrays; of a file that is written: those to come */
} array_file;

/* All return 0, or 1 and one line in `error`. */
int arrays_open(array_file* arrays, const char* path, char* error, size_t error_size);
/* Reads what the next array is. Its values come next: arrays_values, into `bytes` of memory. */
int arrays_next(array_file* arrays, array_head* head, char* error, size_t error_size);
int arrays_values(array_file* arrays, const array_head* head, void* values, char* error,
                  size_t error_size);

int arrays_create(array_file* arrays, const char* path, int64_t count, char* error,
                  size_t error_size);
int arrays_put(array_file* arrays, const array_head* head, const void* values, char* error,
               size_t error_size);
/* Of a file that was written: fails if anything did not reach it. */
int arrays_close(array_file* arrays, char* error, size_t error_size);

#endif
