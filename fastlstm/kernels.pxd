# What Cython needs to know of kernels/fastlstm.h and team.h, where every field has its meaning and
# shape.

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "kernels/fastlstm.h":
    ctypedef struct fl_team:
        pass

    int fl_watch_forks()
    uint64_t fl_generation() nogil
    fl_team *fl_team_new(size_t size)
    void fl_team_free(fl_team *team)

    ctypedef enum fl_kind:
        FL_LOOKUP, FL_LINEAR, FL_ACTIVATION, FL_LSTM, FL_GRU, FL_RNN, FL_SCALE, FL_PRELU
        FL_LAYER_NORM, FL_HALVES, FL_TRANSPOSE, FL_FRAME_CONV, FL_TIME_CONV, FL_POOL, FL_ADD
        FL_CONCAT

    ctypedef enum fl_function:
        FL_IDENTITY, FL_RELU, FL_TANH, FL_SIGMOID, FL_SOFTSIGN, FL_SOFTPLUS, FL_SILU, FL_GELU
        FL_GELU_TANH, FL_AFFINE, FL_ELU, FL_LEAKY_RELU, FL_THRESHOLDED_RELU, FL_HARD_SIGMOID
        FL_SCALED_TANH, FL_HARDTANH, FL_SOFTMAX, FL_LOG_SOFTMAX

    ctypedef enum fl_combination:
        FL_SUM, FL_PRODUCT, FL_AVERAGE, FL_MAGNITUDE, FL_GLU

    ctypedef enum fl_pooling:
        FL_LAST, FL_MEAN, FL_FINAL

    ctypedef enum fl_padding:
        FL_ZEROS, FL_REFLECT, FL_REPLICATE

    ctypedef enum fl_norm:
        FL_NO_NORM, FL_NORM_PRODUCT, FL_NORM_GATE

    ctypedef struct fl_activation:
        fl_function function
        double alpha, beta

    ctypedef struct fl_panels:
        const void *weights
        const void *bias
        const void *scale
        const void *shift
        size_t stride, panels, groups, last_groups

    ctypedef struct fl_variant:
        fl_activation functions[3]
        double clip, cell_clip, eps
        fl_norm norm
        int coupled
        const void *h_bias
        const void *bias
        const void *peepholes[3]
        const void *norm_x[2]
        const void *norm_h[2]
        const void *norm_c[2]
        const void *norm_gate
        fl_panels reset_gates, reset_candidate

    ctypedef struct fl_cell:
        fl_panels gates, projection
        const fl_variant *variant
        fl_activation activation
        const void *bias_n
        const void *table
        size_t input_rows, hidden_size, h_size, h_offset, c_offset, y_offset

    ctypedef struct fl_convolution:
        size_t channels, kernel_size, stride, dilation, groups, out_channels
        int depthwise
        ptrdiff_t padding_left
        fl_padding padding
        size_t width, out_width, reach, first, period, padding_right, x_offset, count_offset
        int has_count

    const int FL_MOST_BUFFERS

    ctypedef struct fl_layer:
        fl_kind kind
        fl_activation activation
        size_t source "from"
        size_t beside, to
        size_t input_size, output_size
        const void *table
        const void *weight
        const void *bias
        fl_panels linear
        double eps
        size_t positions
        fl_combination combination
        fl_pooling pooling
        size_t state_offset
        double count_bound
        int x_first
        fl_convolution convolution
        int directions, reverse
        double clip
        fl_cell cell[2]

    ctypedef struct fl_model:
        const fl_layer *layers
        size_t n_layers, state_size
        int takes_tokens, pools, looks_ahead

    ctypedef struct fl_plan:
        size_t bytes

    ctypedef void (*fl_gemm)(size_t rows, size_t outputs, size_t inputs, const void *x,
                             size_t x_stride, const void *w, void *y,
                             size_t y_stride) noexcept nogil

    ctypedef struct fl_watch:
        int (*ask)(void *who) noexcept nogil
        void *who
        size_t stop

    ctypedef struct fl_call:
        size_t T, B
        const void *x
        ptrdiff_t x_t, x_b
        const int64_t *tokens
        void *y
        ptrdiff_t y_t, y_b
        const size_t *lengths
        int whole
        void *const *state
        const fl_plan *plan
        void *scratch
        fl_gemm gemm
        fl_watch *watch
        void *kept
        size_t done, turn
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
    size_t fl_output_steps(const fl_model *model, const fl_kernel *kernel, size_t T, int whole,
                           const void *state) nogil
    void fl_run(const fl_kernel *kernel, const fl_model *model, fl_call *call,
                fl_team *team) nogil
