/* driver_words.h - the files of the drivers: 64-bit words, and bytes filled up to words; and memory
 * of exactly the size that is asked for.
 */
#ifndef DRIVER_WORDS_H
#define DRIVER_WORDS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <malloc.h>
#define free _aligned_free /* of what take() made, and nothing else is freed */
#endif

typedef struct {
    const char *at, *end;
} reader;

static inline void give_up(const char *why) {
    fprintf(stderr, "program_driver: %s\n", why);
    exit(2);
}

static inline const void *read_bytes(reader *from, size_t bytes) {
    const char *at = from->at;
    const size_t whole = (bytes + 7) / 8 * 8;
    if (whole < bytes || (size_t)(from->end - at) < whole) give_up("the request ends too early");
    from->at += whole;
    return at;
}

static inline int64_t read_word(reader *from) {
    int64_t word;
    memcpy(&word, read_bytes(from, sizeof word), sizeof word);
    return word;
}

static inline size_t read_size(reader *from) {
    const int64_t word = read_word(from);
    if (word < 0) give_up("a size of the request is negative");
    return (size_t)word;
}

static inline void write_bytes(FILE *to, const void *bytes, size_t size) {
    const char zeros[8] = {0};
    if (size && fwrite(bytes, 1, size, to) != size) give_up("the answer cannot be written");
    if (size % 8) fwrite(zeros, 1, 8 - size % 8, to);
}

static inline void write_word(FILE *to, int64_t word) { write_bytes(to, &word, sizeof word); }

/* Memory of exactly this many bytes, aligned, with nothing in it that a test could rely on. */
static inline void *take(size_t bytes) {
    void *made = NULL;
#if defined(_WIN32)
    made = _aligned_malloc(bytes ? bytes : 1, 64);
#else
    if (posix_memalign(&made, 64, bytes ? bytes : 1)) made = NULL;
#endif
    if (!made) give_up("no memory");
    memset(made, 0xa5, bytes);
    return made;
}

static inline void *copy_of(const void *from, size_t bytes) {
    void *made = take(bytes);
    if (bytes) memcpy(made, from, bytes);
    return made;
}

static inline char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) give_up("a file cannot be read");
    const long size = ftell(file);
    char *all = take((size_t)size);
    rewind(file);
    if (fread(all, 1, (size_t)size, file) != (size_t)size) give_up("a file cannot be read");
    fclose(file);
    *bytes = (size_t)size;
    return all;
}

#endif
