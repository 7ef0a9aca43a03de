/* host.h - what a program that has an operating system may want beside the core: models from files,
 * memory from malloc, a team of threads for calls.
 */
#ifndef FL_HOST_H
#define FL_HOST_H

#include "fastlstm.h"
#include "team.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A model and the memory that is its own. */
typedef struct {
    const fl_model *model;
    void *file, *program_memory, *model_memory;
} fl_loaded;

/* Read a file that `fastlstm export` wrote, and make its model. message (message_bytes,), or NULL:
 * what is wrong. Where there is an error, `made` is all NULL. */
fl_error fl_load(const char *path, const fl_model_config *config, fl_loaded *made, char *message,
                 size_t message_bytes);

/* Likewise of a file in memory, such as the array that `fastlstm export` wrote. */
fl_error fl_load_bytes(const void *file, size_t bytes, const fl_model_config *config,
                       fl_loaded *made, char *message, size_t message_bytes);

/* Give its memory back, once no stream of it is left. What is all NULL is allowed. */
void fl_unload(fl_loaded *loaded);

/* A stream in memory of its own, which fl_stream_free gives back; NULL is allowed there. */
fl_error fl_stream_new(const fl_model *model, const fl_stream_config *config, fl_stream **made);
void fl_stream_free(fl_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
