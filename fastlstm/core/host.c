/* host.c - models from files, memory from malloc, a team as calls take it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <malloc.h>
#endif

#include "host.h"

/* Bytes at a multiple of FL_ALIGNMENT, never none. */
static void *take_memory(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * FL_ALIGNMENT) return NULL;
    const size_t whole = (bytes / FL_ALIGNMENT + 1) * FL_ALIGNMENT;
#if defined(_WIN32)
    return _aligned_malloc(whole, FL_ALIGNMENT);
#else
    return aligned_alloc(FL_ALIGNMENT, whole);
#endif
}

static void free_memory(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

static fl_error fail(fl_error error, char *message, size_t message_bytes, const char *text) {
    if (message && message_bytes) snprintf(message, message_bytes, "%s", text);
    return error;
}

static const char NO_MEMORY[] = "there is no memory for the model";

fl_error fl_load_bytes(const void *file, size_t bytes, const fl_model_config *config,
                       fl_loaded *made, char *message, size_t message_bytes) {
    const fl_program *program;
    size_t size;
    if (!made) return FL_BAD_ARGUMENT;
    memset(made, 0, sizeof *made);
    fl_error error = fl_open_size(file, bytes, &size, message, message_bytes);
    if (error) return error;
    made->program_memory = take_memory(size);
    if (!made->program_memory) return fail(FL_NO_MEMORY, message, message_bytes, NO_MEMORY);
    error = fl_open(file, bytes, made->program_memory, size, &program, message, message_bytes);
    if (!error) error = fl_model_size(program, config, &size, message, message_bytes);
    if (!error) {
        made->model_memory = take_memory(size);
        error = made->model_memory
                    ? fl_model_init(program, config, NULL, 0, made->model_memory, size,
                                    &made->model, message, message_bytes)
                    : fail(FL_NO_MEMORY, message, message_bytes, NO_MEMORY);
    }
    if (error) fl_unload(made);
    return error;
}

/* All of a file, or NULL. */
static void *read_file(FILE *file, size_t *bytes) {
    long end;
    if (fseek(file, 0, SEEK_END) || (end = ftell(file)) < 0 || fseek(file, 0, SEEK_SET)) return NULL;
    void *made = take_memory((size_t)end);
    *bytes = (size_t)end;
    if (made && fread(made, 1, (size_t)end, file) == (size_t)end) return made;
    free_memory(made);
    return NULL;
}

fl_error fl_load(const char *path, const fl_model_config *config, fl_loaded *made, char *message,
                 size_t message_bytes) {
    size_t bytes;
    if (!made) return FL_BAD_ARGUMENT;
    memset(made, 0, sizeof *made);
    if (!path) return fail(FL_BAD_ARGUMENT, message, message_bytes, "no path is given");
    FILE *file = fopen(path, "rb");
    void *read = file ? read_file(file, &bytes) : NULL;
    if (file) fclose(file);
    if (!read) return fail(FL_NO_FILE, message, message_bytes, "the file cannot be read");
    const fl_error error = fl_load_bytes(read, bytes, config, made, message, message_bytes);
    if (!error && config->keeps_tensors) made->file = read;
    else free_memory(read);
    return error;
}

void fl_unload(fl_loaded *loaded) {
    if (!loaded) return;
    free_memory(loaded->model_memory);
    free_memory(loaded->program_memory);
    free_memory(loaded->file);
    memset(loaded, 0, sizeof *loaded);
}

fl_error fl_stream_new(const fl_model *model, const fl_stream_config *config, fl_stream **made) {
    size_t size;
    if (!made) return FL_BAD_ARGUMENT;
    *made = NULL;
    fl_error error = fl_stream_size(model, config, &size);
    if (error) return error;
    void *memory = take_memory(size);
    if (!memory) return FL_NO_MEMORY;
    error = fl_stream_init(model, config, memory, size, made);
    if (error) free_memory(memory);
    return error;
}

/* A stream lies where its memory begins. */
void fl_stream_free(fl_stream *stream) { free_memory(stream); }

/* ---- Threads ---- */

static size_t take_team(void *team, size_t wanted, int is_long) {
    return fl_team_take(team, wanted, is_long);
}

static void run_team(void *team, size_t ranks, void (*work)(void *, size_t, size_t), void *job) {
    fl_team_run(team, ranks, work, job);
}

static void meet_team(void *team, size_t rank, size_t ranks) { fl_team_barrier(team, rank, ranks); }

static void leave_team(void *team, size_t rank) { fl_team_leave(team, rank); }

fl_threads fl_team_threads(fl_team *team, size_t size) {
    const fl_threads made = {team, take_team, run_team, meet_team, leave_team, size};
    return made;
}
