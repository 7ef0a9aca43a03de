/* fastlstm.h - structs, the kernel table and prototypes of the C core.
 *
 * Plain C11: no Python, no BLAS symbol, no printing, no abort, and no allocation but that of a team.
 * Weights and states are owned by the caller; a call reads `fl_model`, advances the states it is
 * given and uses scratch memory whose size fl_plan_run() tells beforehand.
 *
 * Dimension letters in the shape comments:
 *   T time, B batch, I input, H hidden, O output of one direction (H, or the projection's size),
 *   G gates, L lanes of one vector, P panels, V tokens known, R = rows of a chunk = steps * B.
 * `real` is the type the model was packed for: float, or double where fl_kernel.real_size is 8.
 * All sizes, strides and offsets count elements, not bytes, unless a name says bytes.
 */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stddef.h>
#include <stdint.h>

#include "team.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    FL_LOOKUP,
    FL_LINEAR,
    FL_ACTIVATION,
    FL_LSTM,
    FL_GRU,
    FL_RNN,
    FL_SCALE,        /* y = x * weight + bias */
    FL_PRELU,        /* y = max(x, 0) + weight * min(x, 0) */
    FL_LAYER_NORM,
    FL_HALVES,       /* the two halves of every position's channels, combined */
    FL_TRANSPOSE,    /* (channels, positions) -> (positions, channels) */
    FL_FRAME_CONV,   /* a convolution within each step's frame */
    FL_TIME_CONV,    /* a convolution over time */
    FL_POOL,
    FL_ADD,          /* y = beside + x */
    FL_CONCAT        /* y = [beside, x], or [x, beside] if x_first */
} fl_kind;

typedef enum {
    FL_IDENTITY,
    FL_RELU,
    FL_TANH,
    FL_SIGMOID,
    FL_SOFTSIGN,
    FL_SOFTPLUS,
    FL_SILU,
    FL_GELU,
    FL_GELU_TANH,
    FL_AFFINE,
    FL_ELU,
    FL_LEAKY_RELU,
    FL_THRESHOLDED_RELU,
    FL_HARD_SIGMOID,
    FL_SCALED_TANH,
    FL_HARDTANH,
    FL_SOFTMAX,      /* the last two are functions of a whole row */
    FL_LOG_SOFTMAX
} fl_function;

typedef enum { FL_SUM, FL_PRODUCT, FL_AVERAGE, FL_MAGNITUDE, FL_GLU } fl_combination;
typedef enum { FL_LAST, FL_MEAN, FL_FINAL } fl_pooling;
typedef enum { FL_ZEROS, FL_REFLECT, FL_REPLICATE } fl_padding;
typedef enum { FL_NO_NORM, FL_NORM_PRODUCT, FL_NORM_GATE } fl_norm;

/* A function and its parameters, 0 where it has none. */
typedef struct {
    fl_function function;
    double alpha, beta;
} fl_activation;

/* A matrix packed in panels: panel p holds outputs [p * G * L, (p + 1) * G * L), zero padded. Of a
 * matrix that is not a cell's the last panel may hold fewer vectors, none of them padding only. */
typedef struct {
    const void *weights;  /* real (P, K, G, L), 64-byte aligned; panels lie `stride` apart */
    const void *bias;     /* real (P, G, L) */
    const void *scale;    /* real (P, G, L), of the sum of bias and products, or NULL, */
    const void *shift;    /* and what is then added, likewise */
    size_t stride;        /* K * G * L */
    size_t panels;        /* P */
    size_t groups;        /* G: 4 for LSTM, 3 for GRU, else 1 to 4 vectors of outputs a panel */
    size_t last_groups;   /* those of the last panel */
} fl_panels;

/* What makes a cell another than PyTorch's: spec.LSTM and spec.GRU say what each part means. Such
 * a cell computes the products of x and of h apart and reads them again from memory. Vectors are in
 * the order of panels, real (P, G, L) or (P, L), or NULL where the cell has no such part. */
typedef struct {
    fl_activation functions[3];  /* LSTM: of gates, candidate, c; GRU: of gates, candidate */
    double clip, cell_clip;      /* 0: none */
    fl_norm norm;
    double eps;
    int coupled;                 /* LSTM without gate f: G is 3, in the order i g o */
    const void *h_bias;          /* (P, G, L) what the product of h starts from */
    const void *bias;            /* (P, G, L) added to the sum of both, or normalised, products */
    const void *peepholes[3];    /* (P, L) of i, f, o */
    const void *norm_x[2];       /* (P, G, L) weight and bias, FL_NORM_PRODUCT */
    const void *norm_h[2];       /* (P, G, L), likewise */
    const void *norm_c[2];       /* (P, L) */
    const void *norm_gate;       /* (P, G, L) weight, FL_NORM_GATE */
    fl_panels reset_gates;       /* GRU that resets before: K = H of r and z, and of n; the */
    fl_panels reset_candidate;   /* cell's own panels then have the rows of x only */
} fl_variant;

/* One direction of one layer of a recurrent stack. */
typedef struct {
    fl_panels gates;        /* K = input_rows + O: rows of the input first, then of h */
    fl_panels projection;   /* K = H, LSTM proj_size only; weights NULL if there is none */
    const fl_variant *variant;  /* NULL for PyTorch's cell */
    fl_activation activation;   /* RNN */
    const void *bias_n;     /* real (P, L), plain GRU only: the bias inside r * (W_hn h + b_hn) */
    const void *table;      /* real (V, P, G, L): the input product of each token, or NULL */
    size_t input_rows;      /* I, or 0 if there is a table */
    size_t hidden_size;     /* H */
    size_t h_size;          /* O */
    size_t h_offset;        /* of h (O) within a stream's state */
    size_t c_offset;        /* of c (H) within a stream's state, LSTM only */
    size_t y_offset;        /* of this direction's O columns within the layer's output row */
} fl_cell;

/* A convolution. Its input is positions of `channels` numbers each: a frame's, or the steps. Its
 * matrix is that of one group of channels; those of the other groups follow, weights and vectors. */
typedef struct {
    size_t channels, kernel_size, stride, dilation, groups;
    size_t out_channels;
    int depthwise;            /* as many groups as channels and outputs: weight (kernel_size, C) */
    ptrdiff_t padding_left;   /* less than 0 where the first taps touch padding only */
    fl_padding padding;
    size_t width, out_width;  /* FL_FRAME_CONV: positions of a frame, and of its output */
    size_t reach;             /* FL_TIME_CONV: dilation * (kernel_size - 1) */
    size_t first, period;     /* spec.Conv1d */
    size_t padding_right;     /* not 0: the convolution looks ahead and has no state */
    size_t x_offset;          /* of the last inputs (reach, C) within a stream's state */
    size_t count_offset;      /* of the number of steps read, if has_count */
    int has_count;
} fl_convolution;

/* Where the rows that a layer reads and writes are; from FL_BUFFERS on, in a buffer. */
enum { FL_INPUT, FL_OUTPUT, FL_BUFFERS, FL_MOST_BUFFERS = 8 };

typedef struct {
    fl_kind kind;
    fl_activation activation;  /* FL_ACTIVATION, and after linear and convolution */
    size_t from, beside, to;   /* of rows; beside: FL_ADD and FL_CONCAT */
    size_t input_size;      /* I; number of tokens V for a layer that takes tokens */
    size_t output_size;     /* width of an output row */
    const void *table;      /* FL_LOOKUP: real (V, output_size) */
    const void *weight;     /* real (I,): FL_SCALE, FL_PRELU, FL_LAYER_NORM; depthwise (K, C) */
    const void *bias;       /* real (I,): FL_SCALE, FL_LAYER_NORM; or NULL; depthwise (C,) */
    fl_panels linear;       /* FL_LINEAR: K = I; of a group: K = kernel_size * C / groups */
    double eps;             /* FL_LAYER_NORM */
    size_t positions;       /* FL_HALVES, FL_TRANSPOSE: of input_size / positions channels */
    fl_combination combination;  /* FL_HALVES */
    fl_pooling pooling;     /* FL_POOL */
    size_t state_offset;    /* FL_POOL, mean: of mean (I,), what rounding took from it (I,), and */
    double count_bound;     /* the number of its rows, two digits below this, the lower one first */
    int x_first;            /* FL_CONCAT */
    fl_convolution convolution;
    int directions;         /* recurrent kinds: 1, or 2 with cell[1] running backwards in time */
    int reverse;            /* the one direction there is runs backwards */
    double clip;            /* FL_RNN: of the input of its function; 0: none */
    fl_cell cell[2];
} fl_layer;

typedef struct {
    const fl_layer *layers;  /* (n_layers,) */
    size_t n_layers;
    size_t state_size;       /* elements of one stream's state, all layers */
    int takes_tokens;        /* the input is int64 tokens instead of real features */
    int pools;               /* one of the layers is a pool */
    int looks_ahead;         /* a whole sequence must be there before its first output */
} fl_model;

/* Outputs of a convolution that are computed together. */
enum { FL_POSITIONS = 24 };

/* How a run is cut into pieces, and where its scratch memory goes. Buffers are shared by the ranks
 * of a call, byte offsets into the scratch; then comes each rank's own, with offsets into that. */
typedef struct {
    size_t chunk;         /* steps that pass through all layers before the next ones start */
    size_t gate_steps;    /* steps of one part: whose input projections are made together */
    size_t buffer[FL_MOST_BUFFERS];  /* outputs of the layers before the last */
    size_t gates;         /* input projections, (2, gate_steps * B, P, G, L) */
    size_t hidden;        /* h before its projection, (B, H) */
    size_t variant;       /* what a variant of a cell reads again, see variants_template.h */
    size_t own, own_bytes;  /* of the first rank, and from one rank to the next */
    size_t x_rows, y_rows, beside_rows, tokens;  /* (chunk * B,) pointers and int64 */
    size_t cell_rows;     /* (3, max(B, FL_POSITIONS)) structs of six pointers */
    size_t patches;       /* (FL_POSITIONS, K) inputs of a convolution */
    size_t left;          /* (4, B) steps each row still has, has pooled, has next, has written */
    size_t bytes;         /* total */
} fl_cut;

/* How a run goes on one thread, and how on a team. */
typedef struct {
    fl_cut alone;
    fl_cut shared;   /* of all rows, or of the most rows one rank has; unused if ranks is 1 */
    size_t ranks;    /* threads that the work is worth */
    int by_rows;     /* each rank runs rows of its own, else its panels of all rows */
    int is_long;     /* the work takes longer than waking a thread */
    size_t bytes;    /* of scratch memory for either way */
} fl_plan;

/* y (rows, outputs) += x (rows, inputs) w (inputs, outputs), all row-major; rows of x and y lie
 * `x_stride` and `y_stride` apart, those of w follow each other. A BLAS behind one signature. */
typedef void (*fl_gemm)(size_t rows, size_t outputs, size_t inputs, const void *x, size_t x_stride,
                        const void *w, void *y, size_t y_stride);

/* What may stop a call before its end. The thread that made the call asks now and then; all ranks
 * heed the answer. `work` has a cache line of its own: who asks writes it at every step, and the
 * others read `stop` as often. */
typedef struct {
    int (*ask)(void *who);    /* not 0: stop. Runs in the caller's floating-point mode */
    void *who;                /* what it is asked with */
    size_t stop;              /* atomic; 0, or 1 + the step with which the chunk given up began */
    char apart[128];
    size_t work;              /* multiply-adds, about, since it was asked */
    size_t at;                /* 1 + the step with which the chunk of the rank that asks began */
    uint64_t mode;            /* the caller's floating-point mode */
} fl_watch;

typedef struct {
    size_t T, B;
    const void *x;            /* real (T, B, I) with unit stride along I; NULL for token models */
    ptrdiff_t x_t, x_b;       /* strides of x, or of tokens */
    const int64_t *tokens;    /* (T, B), each already checked to lie in [0, V) */
    void *y;                  /* real (T', B, O); must not overlap x or any state */
    ptrdiff_t y_t, y_b;
    const size_t *lengths;    /* (B,) steps of each row, none of more than T; NULL: all have T */
    int whole;                /* the sequence ends with this call: a pool gives one row, now */
    void *const *state;       /* (B,) pointers to real (state_size,), all distinct */
    const fl_plan *plan;      /* made by fl_plan_run for at least this T and exactly this B */
    void *scratch;            /* plan->bytes, 64-byte aligned */
    fl_gemm gemm;             /* for input projections of many rows; NULL: the kernel's own loops */
    fl_watch *watch;          /* NULL: nothing stops this call; else `ask` and `who` are set */
    void *kept;               /* real (B, state_size), of a call with `watch` that is not whole: */
                              /* the states as the chunk began that runs now */
    size_t done;              /* written by fl_run: T, or the steps made before the call stopped */
    size_t turn;              /* steps run before; counted on by the run */
    const char *ran;          /* written by the kernel that ran: its own name */
    const fl_cut *cut;        /* set by fl_run: the plan's, */
    fl_team *team;            /* who shares the work, unless ranks is 1, */
    size_t rank, ranks;       /* which part of the panels this is, */
    size_t member, members;   /* and of the team: who has rows of its own has all their panels */
    int asks;                 /* whether this is the rank that asks `watch` */
} fl_call;

typedef struct {
    const char *name;
    size_t lanes;             /* L, what the weights must be packed for */
    size_t real_size;         /* 4 or 8 */
    uint32_t needs;           /* FL_CPU_ bits */
    size_t gemm_rows;         /* rows from which a BLAS projects faster than the kernel; 0: never */
    void (*run)(const fl_model *model, fl_call *call);  /* for fl_run */
} fl_kernel;

/* Instruction sets, best first, the plain kernels for float and double last; ends with NULL. */
extern const fl_kernel *const fl_kernels[];

enum { FL_CPU_AVX2 = 1, FL_CPU_AVX512 = 2, FL_CPU_NEON = 4 };

/* The FL_CPU_ bits that processor and operating system support, each checked (CPUID, XGETBV). */
uint32_t fl_cpu_features(void);

/* The kernel of this name for reals of this size if this processor can run it, else NULL. */
const fl_kernel *fl_find(const char *name, size_t real_size);

/* Fill `plan` for a run of T steps of B streams on up to `threads` threads; 0, or -1 if a size
 * overflows. */
int fl_plan_run(const fl_model *model, const fl_kernel *kernel, size_t T, size_t B, size_t threads,
                fl_plan *plan);

/* Of steps that come after `count` others, the first that gives an output. */
size_t fl_next_output(const fl_convolution *convolution, size_t count);

/* T', the outputs of T steps, of a stream in this state, or of a whole sequence (state NULL: from
 * the start). As far as that depends on the steps they have read, the rows of a call must have read
 * as many, unless it gives `lengths`. */
size_t fl_output_steps(const fl_model *model, const fl_kernel *kernel, size_t T, int whole,
                       const void *state);

/* Run a call: alone, or on `team`, if there is one (NULL: none), the plan has more ranks than one
 * and the team is free. It has at least the threads that the plan was made for. Either way gives
 * the same bits, save where a BLAS is used.
 *
 * A call that is stopped by its `watch` leaves each row in the state after its first `done` steps,
 * or all of its steps where it has fewer; what y holds beyond their outputs is undefined. If it is
 * whole, states and y are undefined. */
void fl_run(const fl_kernel *kernel, const fl_model *model, fl_call *call, fl_team *team);

#ifdef __cplusplus
}
#endif
#endif
