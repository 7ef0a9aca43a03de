# What the engine's own Cython needs of the core beside the public functions of __init__.pxd: parts
# of core/model.h, source.h and system.h, where every field has its meaning.

from libc.stdint cimport uint64_t

from fastlstm cimport fl_error, fl_model, fl_model_config, fl_program, fl_tensor_data


cdef extern from "core/model.h":
    ctypedef struct fl_kernel:
        const char *name
        size_t lanes, real_size
        void (*run)()
    const fl_kernel *const *fl_kernels
    const fl_kernel *fl_find(const char *name, size_t real_size)


cdef extern from "core/source.h":
    const fl_kernel *fl_target(const char *isa)
    const char *fl_target_name(size_t number)
    fl_error fl_model_size_for(const fl_kernel *foreign, const fl_program *program,
                               const fl_model_config *config, size_t *bytes, char *message,
                               size_t message_bytes)
    fl_error fl_model_init_for(const fl_kernel *foreign, const fl_program *program,
                               const fl_model_config *config, const fl_tensor_data *tensors,
                               size_t tensor_count, void *memory, size_t memory_bytes,
                               const fl_model **made, char *message, size_t message_bytes) nogil
    size_t fl_source(const fl_model *model, char *text, size_t bytes)
    size_t fl_source_scratch(const fl_model *model)
    size_t fl_source_rows(const fl_model *model, size_t output, int ending)


cdef extern from "core/system.h":
    int fl_watch_forks()
    uint64_t fl_generation() nogil
