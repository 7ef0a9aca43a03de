# What Cython needs to know of kernels/fastlstm.h and team.h, where every field has its meaning and
# shape.

from libc.stdint cimport int64_t, uint32_t


cdef extern from "kernels/fastlstm.h":
    ctypedef struct fl_team:
        pass

    fl_team *fl_team_new(size_t size)
    void fl_team_free(fl_team *team)

    ctypedef enum fl_kind:
        FL_LOOKUP, FL_LINEAR, FL_ACTIVATION, FL_LSTM, FL_GRU, FL_RNN

    ctypedef enum fl_function:
        FL_IDENTITY, FL_RELU, FL_TANH, FL_SIGMOID, FL_SOFTMAX, FL_LOG_SOFTMAX

    ctypedef struct fl_panels:
        const void *weights
        const void *bias
        size_t stride, panels, groups

    ctypedef struct fl_cell:
        fl_panels gates, projection
        const void *bias_n
        const void *table
        size_t input_rows, hidden_size, h_size, h_offset, c_offset, y_offset

    ctypedef struct fl_layer:
        fl_kind kind
        fl_function function
        size_t input_size, output_size
        const void *table
        fl_panels linear
        int directions
        fl_cell cell[2]

    ctypedef struct fl_model:
        const fl_layer *layers
        size_t n_layers, state_size
        int takes_tokens

    ctypedef struct fl_plan:
        size_t bytes

    ctypedef void (*fl_gemm)(size_t rows, size_t outputs, size_t inputs, const void *x,
                             size_t x_stride, const void *w, void *y,
                             size_t y_stride) noexcept nogil

    ctypedef struct fl_call:
        size_t T, B
        const void *x
        ptrdiff_t x_t, x_b
        const int64_t *tokens
        void *y
        ptrdiff_t y_t, y_b
        void *const *state
        const fl_plan *plan
        void *scratch
        fl_gemm gemm
        const char *ran

    ctypedef struct fl_kernel:
        const char *name
        size_t lanes, real_size
        uint32_t needs
        size_t gemm_rows

    const fl_kernel *const fl_kernels[]
    uint32_t fl_cpu_features()
    const fl_kernel *fl_find(const char *name, size_t real_size)
    int fl_plan_run(const fl_model *model, const fl_kernel *kernel, size_t T, size_t B,
                    size_t threads, fl_plan *plan)
    void fl_run(const fl_kernel *kernel, const fl_model *model, fl_call *call,
                fl_team *team) nogil
