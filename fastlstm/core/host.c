/* host.c - models from files, memory from malloc. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "system.h"

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
    made->program_memory = fl_memory_take(size);
    if (!made->program_memory) return fail(FL_NO_MEMORY, message, message_bytes, NO_MEMORY);
    error = fl_open(file, bytes, made->program_memory, size, &program, message, message_bytes);
    if (!error) error = fl_model_size(program, config, &size, message, message_bytes);
    if (!error) {
        made->model_memory = fl_memory_take(size);
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
    void *made = fl_memory_take((size_t)end);
    *bytes = (size_t)end;
    if (made && fread(made, 1, (size_t)end, file) == (size_t)end) return made;
    fl_memory_free(made);
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
    else fl_memory_free(read);
    return error;
}

void fl_unload(fl_loaded *loaded) {
    if (!loaded) return;
    fl_memory_free(loaded->model_memory);
    fl_memory_free(loaded->program_memory);
    fl_memory_free(loaded->file);
    memset(loaded, 0, sizeof *loaded);
}

fl_error fl_stream_new(const fl_model *model, const fl_stream_config *config, fl_stream **made) {
    size_t size;
    if (!made) return FL_BAD_ARGUMENT;
    *made = NULL;
    fl_error error = fl_stream_size(model, config, &size);
    if (error) return error;
    void *memory = fl_memory_take(size);
    if (!memory) return FL_NO_MEMORY;
    error = fl_stream_init(model, config, memory, size, made);
    if (error) fl_memory_free(memory);
    return error;
}

/* A stream lies where its memory begins. */
void fl_stream_free(fl_stream *stream) { fl_memory_free(stream); }
