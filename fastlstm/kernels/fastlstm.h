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

typedef enum { FL_LOOKUP, FL_LINEAR, FL_ACTIVATION, FL_LSTM, FL_GRU, FL_RNN } fl_kind;

typedef enum {
    FL_IDENTITY,
    FL_RELU,
    FL_TANH,
    FL_SIGMOID,
    FL_SOFTMAX,
    FL_LOG_SOFTMAX
} fl_function;

/* A matrix packed in panels: panel p holds outputs [p * G * L, (p + 1) * G * L), zero padded. */
typedef struct {
    const void *weights;  /* real (P, K, G, L), 64-byte aligned; panels lie `stride` apart */
    const void *bias;     /* real (P, G, L) */
    size_t stride;        /* K * G * L */
    size_t panels;        /* P */
    size_t groups;        /* G: 4 for LSTM, 3 for GRU, else 1 to 4 vectors of outputs a panel */
} fl_panels;

/* One direction of one layer of a recurrent stack. */
typedef struct {
    fl_panels gates;        /* K = input_rows + O: rows of the input first, then of h */
    fl_panels projection;   /* K = H, LSTM proj_size only; weights NULL if there is none */
    const void *bias_n;     /* real (P, L), GRU only: the bias inside r * (W_hn h + b_hn) */
    const void *table;      /* real (V, P, G, L): the input product of each token, or NULL */
    size_t input_rows;      /* I, or 0 if there is a table */
    size_t hidden_size;     /* H */
    size_t h_size;          /* O */
    size_t h_offset;        /* of h (O) within a stream's state */
    size_t c_offset;        /* of c (H) within a stream's state, LSTM only */
    size_t y_offset;        /* of this direction's O columns within the layer's output row */
} fl_cell;

typedef struct {
    fl_kind kind;
    fl_function function;   /* FL_ACTIVATION: which; FL_RNN: FL_TANH or FL_RELU */
    size_t input_size;      /* I; number of tokens V for a layer that takes tokens */
    size_t output_size;     /* width of an output row */
    const void *table;      /* FL_LOOKUP: real (V, output_size) */
    fl_panels linear;       /* FL_LINEAR: K = I */
    int directions;         /* recurrent kinds: 1, or 2 with cell[1] running backwards in time */
    fl_cell cell[2];
} fl_layer;

typedef struct {
    const fl_layer *layers;  /* (n_layers,) */
    size_t n_layers;
    size_t state_size;       /* elements of one stream's state, all layers */
    int takes_tokens;        /* the input is int64 tokens instead of real features */
} fl_model;

/* How a run is cut into pieces, and where its scratch memory goes. Buffers are shared by the ranks
 * of a call, byte offsets into the scratch; then comes each rank's own, with offsets into that. */
typedef struct {
    size_t chunk;         /* steps that pass through all layers before the next ones start */
    size_t gate_steps;    /* steps of one part: whose input projections are made together */
    size_t buffer[2];     /* outputs of the layers between the first and the last, in turn */
    size_t gates;         /* input projections, (2, gate_steps * B, P, G, L) */
    size_t hidden;        /* h before its projection, (B, H) */
    size_t own, own_bytes;  /* of the first rank, and from one rank to the next */
    size_t x_rows, y_rows, tokens;  /* (chunk * B,) pointers and int64 */
    size_t cell_rows;     /* (2, max(B, 6)) structs of six pointers */
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

typedef struct {
    size_t T, B;
    const void *x;            /* real (T, B, I) with unit stride along I; NULL for token models */
    ptrdiff_t x_t, x_b;       /* strides of x, or of tokens */
    const int64_t *tokens;    /* (T, B), each already checked to lie in [0, V) */
    void *y;                  /* real (T, B, O); must not overlap x or any state */
    ptrdiff_t y_t, y_b;
    void *const *state;       /* (B,) pointers to real (state_size,), all distinct */
    const fl_plan *plan;      /* made by fl_plan_run for at least this T and exactly this B */
    void *scratch;            /* plan->bytes, 64-byte aligned */
    fl_gemm gemm;             /* for input projections of many rows; NULL: the kernel's own loops */
    size_t turn;              /* steps run before; counted on by the run */
    const char *ran;          /* written by the kernel that ran: its own name */
    const fl_cut *cut;        /* set by fl_run: the plan's, */
    fl_team *team;            /* who shares the work, unless ranks is 1, */
    size_t rank, ranks;       /* and which part of it this is */
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

/* Run a call: alone, or on `team`, if there is one (NULL: none), the plan has more ranks than one
 * and the team is free. It has at least the threads that the plan was made for. Either way gives
 * the same bits, save where a BLAS is used. */
void fl_run(const fl_kernel *kernel, const fl_model *model, fl_call *call, fl_team *team);

#ifdef __cplusplus
}
#endif
#endif
