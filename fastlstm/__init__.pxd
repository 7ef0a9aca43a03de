# What `cimport fastlstm` gives: core/fastlstm.h and host.h, where everything has its meaning and
# shape, by way of include/fastlstm_api.h, which a module that uses it is compiled with:
# include_dirs=[fastlstm.get_include()]. Such a module calls fl_import() before anything else.


cdef extern from "fastlstm_api.h":
    # ImportError if the installed fastlstm is not one that this module was compiled for.
    int fl_import() except -1

    # What a fastlstm.Model computes with, and the fl_model of it, which lives as long as `held`.
    object fl_hold(object model)
    const fl_model *fl_model_of(object held) except NULL


cdef extern from "fastlstm_api.h" nogil:
    enum:
        FL_ABI, FL_ALIGNMENT

    ctypedef enum fl_error:
        FL_OK, FL_BAD_ARGUMENT, FL_BAD_PROGRAM, FL_BAD_TENSORS, FL_BAD_STATE, FL_TOO_LARGE
        FL_LITTLE_MEMORY, FL_NO_KERNEL, FL_STOPPED, FL_NO_FILE, FL_NO_MEMORY

    ctypedef enum fl_type:
        FL_FLOAT32, FL_FLOAT64, FL_FLOAT16, FL_BFLOAT16, FL_INT8

    ctypedef enum fl_count_of:
        FL_COUNT_INPUTS, FL_COUNT_OUTPUTS, FL_COUNT_PARTS, FL_COUNT_TENSORS, FL_COUNT_STATE
        FL_COUNT_AHEAD

    ctypedef struct fl_program:
        pass

    ctypedef struct fl_model:
        pass

    ctypedef struct fl_stream:
        pass

    ctypedef struct fl_scratch:
        pass

    ctypedef struct fl_team:
        pass

    ctypedef struct fl_row_shape:
        size_t count, tokens
        int held

    ctypedef struct fl_part_shape:
        size_t rows, count
        int is_count

    ctypedef struct fl_tensor_data:
        const void *data
        size_t count
        fl_type type

    ctypedef struct fl_model_config:
        size_t struct_size
        fl_type type
        const char *isa
        int keeps_tensors

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

    ctypedef struct fl_stream_config:
        size_t struct_size, T, B
        int whole
        const fl_threads *threads
        int prepares

    ctypedef void (*fl_gemm)(size_t rows, size_t outputs, size_t inputs, const void *x,
                             size_t x_stride, const void *w, void *y,
                             size_t y_stride) noexcept nogil

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
        void *const *prepared
        const unsigned char *resets

    ctypedef struct fl_loaded:
        const fl_model *model

    int fl_abi()
    const char *fl_error_text(fl_error error)

    fl_error fl_open_size(const void *file, size_t bytes, size_t *memory_bytes, char *message,
                          size_t message_bytes)
    fl_error fl_open(const void *file, size_t bytes, void *memory, size_t memory_bytes,
                     const fl_program **opened, char *message, size_t message_bytes)
    const char *fl_input_name(const fl_program *program, size_t number)
    const char *fl_output_name(const fl_program *program, size_t number)
    const char *fl_part_name(const fl_program *program, size_t number)
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
                           size_t message_bytes)
    const char *fl_model_isa(const fl_model *model)
    const fl_program *fl_model_program(const fl_model *model)
    const char *fl_isa(fl_type type, size_t number)

    fl_error fl_stream_size(const fl_model *model, const fl_stream_config *config, size_t *bytes)
    fl_error fl_stream_init(const fl_model *model, const fl_stream_config *config, void *memory,
                            size_t memory_bytes, fl_stream **made)
    fl_error fl_step(fl_stream *stream, const void *x, void *y)
    fl_error fl_stream_prepare(fl_stream *stream)
    fl_error fl_stream_run(fl_stream *stream, size_t T, const fl_rows *inputs,
                           const fl_rows *outputs, size_t *rows)
    fl_error fl_stream_flush(fl_stream *stream, const fl_rows *outputs, size_t *rows)
    fl_error fl_stream_count(fl_stream *stream, size_t T, int ending, size_t *rows)
    fl_error fl_stream_reset(fl_stream *stream, const fl_rows *inputs)
    size_t fl_stream_state_size(const fl_stream *stream)
    fl_error fl_stream_get_state(const fl_stream *stream, void *to, size_t bytes)
    fl_error fl_stream_set_state(fl_stream *stream, const void *given, size_t bytes)

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
    fl_error fl_begin(const fl_model *model, fl_call *call)
    fl_error fl_run(const fl_model *model, fl_call *call)
    size_t fl_prepared_size(const fl_model *model)
    fl_error fl_prepare(const fl_model *model, fl_call *call)
    void fl_drop(void *prepared)
    fl_error fl_flush(const fl_model *model, fl_call *call)
    fl_error fl_count_rows(const fl_model *model, fl_call *call, int ending)

    fl_team *fl_team_new(size_t size)
    void fl_team_free(fl_team *team)

    fl_error fl_load(const char *path, const fl_model_config *config, fl_loaded *made,
                     char *message, size_t message_bytes)
    fl_error fl_load_bytes(const void *file, size_t bytes, const fl_model_config *config,
                           fl_loaded *made, char *message, size_t message_bytes)
    void fl_unload(fl_loaded *loaded)
    fl_error fl_stream_new(const fl_model *model, const fl_stream_config *config, fl_stream **made)
    void fl_stream_free(fl_stream *stream)
    fl_threads fl_team_threads(fl_team *team, size_t size)
