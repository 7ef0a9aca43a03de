# What Cython needs to know of core/fastlstm.h, model.h, team.h and host.h, where every field has its
# meaning and shape.

from libc.stdint cimport int64_t, uint64_t


cdef extern from "core/fastlstm.h":
    ctypedef enum fl_error:
        FL_OK, FL_BAD_ARGUMENT, FL_BAD_PROGRAM, FL_BAD_TENSORS, FL_BAD_STATE, FL_TOO_LARGE
        FL_LITTLE_MEMORY, FL_NO_KERNEL, FL_STOPPED

    ctypedef enum fl_type:
        FL_FLOAT32, FL_FLOAT64

    ctypedef enum fl_count_of:
        FL_COUNT_INPUTS, FL_COUNT_OUTPUTS, FL_COUNT_PARTS, FL_COUNT_TENSORS, FL_COUNT_STATE
        FL_COUNT_AHEAD

    ctypedef struct fl_program:
        pass

    ctypedef struct fl_model:
        pass

    ctypedef struct fl_row_shape:
        size_t count, tokens
        int held

    ctypedef struct fl_tensor_data:
        const void *data
        size_t count
        fl_type type
        const void *scales

    ctypedef struct fl_model_config:
        size_t struct_size
        fl_type type
        const char *isa
        int keeps_tensors

    ctypedef struct fl_part_shape:
        size_t rows, count
        int is_count

    ctypedef struct fl_rows:
        void *data
        ptrdiff_t t, b

    ctypedef struct fl_threads:
        void *team
        size_t (*take)(void *team, size_t wanted, int is_long) noexcept nogil
        void (*run)(void *team, size_t ranks,
                    void (*work)(void *job, size_t rank, size_t ranks) noexcept nogil,
                    void *job) noexcept nogil
        void (*barrier)(void *team, size_t rank, size_t ranks) noexcept nogil
        void (*leave)(void *team, size_t rank) noexcept nogil
        size_t size

    ctypedef void (*fl_gemm)(size_t rows, size_t outputs, size_t inputs, const void *x,
                             size_t x_stride, const void *w, void *y,
                             size_t y_stride) noexcept nogil

    ctypedef struct fl_scratch:
        pass

    ctypedef struct fl_call:
        size_t struct_size, T, B
        const fl_rows *inputs
        const fl_rows *outputs
        void *const *states
        const size_t *lengths
        int whole
        fl_scratch *scratch
        const fl_threads *threads
        fl_gemm gemm
        int (*stop)(void *who) noexcept nogil
        void *who
        size_t turn, steps_done
        size_t *rows

    const char *fl_error_text(fl_error error)
    fl_error fl_program_size(const void *program, size_t bytes, size_t *memory_bytes)
    fl_error fl_program_init(const void *program, size_t bytes, void *memory, size_t memory_bytes,
                             const fl_program **made, char *message, size_t message_bytes)
    size_t fl_count(const fl_program *program, fl_count_of what)
    fl_row_shape fl_input_shape(const fl_program *program, size_t number)
    fl_row_shape fl_output_shape(const fl_program *program, size_t number)
    size_t fl_vocabulary(char *text, size_t bytes)
    fl_error fl_model_size(const fl_program *program, const fl_model_config *config, size_t *bytes,
                           char *message, size_t message_bytes)
    fl_error fl_model_init(const fl_program *program, const fl_model_config *config,
                           const fl_tensor_data *tensors, size_t tensor_count, void *memory,
                           size_t memory_bytes, const fl_model **made, char *message,
                           size_t message_bytes) nogil
    const char *fl_model_isa(const fl_model *model)
    const char *fl_isa(fl_type type, size_t number)
    size_t fl_state_size(const fl_model *model)
    fl_part_shape fl_state_part(const fl_program *program, size_t part)
    fl_error fl_state_read(const fl_model *model, const void *state, size_t part, void *to,
                           size_t to_bytes)
    fl_error fl_state_write(const fl_model *model, void *state, size_t part, const void *given,
                            size_t given_bytes)
    fl_error fl_scratch_size(const fl_model *model, size_t T, size_t B, size_t threads,
                             size_t *bytes)
    fl_error fl_scratch_init(const fl_model *model, size_t T, size_t B, size_t threads,
                             void *memory, size_t memory_bytes, fl_scratch **made)
    fl_error fl_begin(const fl_model *model, fl_call *call) nogil
    fl_error fl_run(const fl_model *model, fl_call *call) nogil
    fl_error fl_flush(const fl_model *model, fl_call *call) nogil
    fl_error fl_count_rows(const fl_model *model, fl_call *call, int ending) nogil


cdef extern from "core/model.h":
    ctypedef struct fl_kernel:
        const char *name
        size_t lanes, real_size
    const fl_kernel *const *fl_kernels
    const fl_kernel *fl_find(const char *name, size_t real_size)


cdef extern from "core/team.h":
    ctypedef struct fl_team:
        pass

    int fl_watch_forks()
    uint64_t fl_generation() nogil
    fl_team *fl_team_new(size_t size)
    void fl_team_free(fl_team *team)


cdef extern from "core/host.h":
    fl_threads fl_team_threads(fl_team *team, size_t size)
