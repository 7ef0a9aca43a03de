/* model.h - a program packed for a kernel: what the operations read beside their own fields.
 *
 * Dimension letters in the shape comments:
 *   T time, B batch, I input, H hidden, O output (of a cell H, or the projection's size), G gates,
 *   L lanes of one vector, P panels, K words of a panel for each lane, V tokens known.
 * `real` is the type the model is packed for: float, or double where fl_kernel.real_size is 8.
 * All sizes, strides and offsets count elements, not bytes, unless a name says bytes.
 */
#ifndef FL_MODEL_H
#define FL_MODEL_H

#include "lines.h"
#include "program.h"

/* Numbers of a lane that lie together: a word, which is a real, or as large as a float. Of int8 and
 * bfloat16 each lane's lie together; of float16 the first ones of all L lanes come before the second.
 * What is left of the last word is 0. An int8 is stored as fl_kernel.int8_offset more. */
static inline size_t fl_per_word(fl_stored_kind stored) {
    return stored == FL_STORED_real ? 1 : stored == FL_STORED_int8 ? 4 : 2;
}
static inline size_t fl_words(fl_stored_kind stored, size_t inputs) {
    const size_t each = fl_per_word(stored);
    return inputs / each + (inputs % each != 0);
}

/* A matrix packed in panels: panel p holds outputs [p * G * L, (p + 1) * G * L), zero padded. Of a
 * matrix that is not a cell's the last panel may hold fewer vectors, none of them padding only. */
typedef struct {
    const void *weights;  /* words (P, K, G, L), 64-byte aligned; panels lie `stride` apart */
    const void *unit;     /* real (P, G, L), of int8: the scale of each output's weights */
    const void *bias;     /* real (P, G, L) */
    const void *scale;    /* real (P, G, L), of the sum of bias and products, or NULL, */
    const void *shift;    /* and what is then added, likewise */
    size_t stride;        /* K * G * L */
    fl_stored_kind stored;
    size_t panels;        /* P */
    size_t groups;        /* G: the gates of a cell, else 1 to 4 vectors of outputs a panel */
    size_t last_groups;   /* those of the last panel */
} fl_panels;

/* What makes a cell another than PyTorch's: spec.LSTM and spec.GRU say what each part means. Such
 * a cell computes the products of x and of h apart and reads them again from memory. Vectors are in
 * the order of panels, real (P, G, L) or (P, L), or NULL where the cell has no such part. */
typedef struct {
    fl_activation functions[3];  /* LSTM: of gates, candidate, c; GRU: of gates, candidate */
    double clip, cell_clip;      /* 0: none */
    fl_cell_norm_kind norm;
    double eps;
    int coupled;                 /* LSTM without gate f: G is 3, in the order i g o */
    const void *bias;            /* (P, G, L) added to the sum of both, or normalised, products */
    const void *peepholes[3];    /* (P, L) of i, f, o */
    const void *norm_x[2];       /* (P, G, L) weight and bias, FL_CELL_NORM_product */
    const void *norm_h[2];       /* (P, G, L), likewise */
    const void *norm_c[2];       /* (P, L) */
    const void *norm_gate;       /* (P, G, L) weight, FL_CELL_NORM_gate */
    fl_panels reset_gates;       /* GRU that resets before: K = H of r and z, and of n; the */
    fl_panels reset_candidate;   /* cell's own panels then have the rows of x only */
} fl_variant;

/* FL_RECURRENT. Offsets, columns and sizes are those of the operation. */
typedef struct {
    fl_panels gates;        /* words of the input first, fl_words(input_rows), then of h */
    const void *h_unit;     /* real (P, G, L), of int8: gates.unit is of the input's weights */
    fl_panels projection;   /* K = H; weights NULL if there is none */
    const fl_variant *variant;  /* NULL for PyTorch's cell */
    fl_activation activation;   /* RNN */
    const void *h_bias;     /* real (P, G, L) what the product of h starts from: zeros, and of a GRU */
                            /* the bias inside r * (W_hn h + b_hn); G of fl_panels_of_h */
    const void *table;      /* real (V, P, G, L): the input product of each token, or NULL */
    size_t tokens;          /* V, or 0 */
    size_t input_rows;      /* I, or 0 if there is a table */
    const void *h_0, *c_0;  /* real (O,), (H,), or NULL */
    size_t prepared;        /* where a fl_prepared has real (positions, P, G, L) of it; 0: nowhere */
} fl_cell;

/* The panels that are multiplied by h, whose rows come last in them. */
static inline const fl_panels *fl_panels_of_h(const fl_cell *cell) {
    const fl_variant *variant = cell->variant;
    return variant && variant->reset_gates.weights ? &variant->reset_gates : &cell->gates;
}

/* What of a stream's next step was made before: numbers of it, from fl_cell.prepared on, counted
 * from its beginning. Zeros are one in which nothing is made. */
typedef struct {
    size_t made;  /* not 0: all of it is there, of the state as it is */
} fl_prepared;

/* `count` numbers of one of the values that an operation reads, each `stride` behind the last. */
typedef struct {
    int32_t read;    /* which of them; -1: the fill of a move, else zeros */
    uint32_t first;  /* the number of it */
    int32_t stride;
    uint32_t count;
} fl_stretch;

/* Rows that are put together from stretches of stride 1: row i of those from first[i] on, up to
 * first[i + 1]. A row of one stretch that is not of zeros can be read where it lies. */
typedef struct {
    const fl_stretch *stretches;
    const uint32_t *first;  /* (rows + 1,) */
    uint32_t most;          /* stretches of any row */
} fl_gather;

/* FL_MOVE: y is these, one behind the other. A stretch lies within one value. */
typedef struct {
    const fl_stretch *stretches;
    size_t count;
} fl_packed_move;

/* One function of a map: registers below the number of reads are what is read, each next one what
 * the code before gave. */
typedef struct {
    fl_activation function;
    uint32_t arity;
    uint32_t from[3];  /* registers, `arity` of them */
} fl_code;

/* What an operation has at most: values that it reads; axes of a map; and registers of it, its reads
 * and its code. */
enum { FL_MOST_READS = 4096, FL_MOST_AXES = 32, FL_MOST_REGISTERS = 64 };

/* FL_MAP, with axes put together that every read strides over as one. The last of each read's
 * strides is 0 or 1. No axes: y is one number. */
typedef struct {
    const fl_code *code;       /* (codes,) */
    size_t codes;
    const size_t *shape;       /* (axes,) */
    const size_t *strides;     /* (reads, axes) */
    const size_t *begins;      /* (reads,) the first number of each read */
    size_t axes;
} fl_packed_map;

/* FL_PRODUCT: panels of each group (groups,), with K = columns; x of each position and group
 * (positions, groups) by gather, which has no stretches (NULL) where there is one read, one group,
 * and x of position i is the numbers of it from i * columns on. */
typedef struct {
    const fl_panels *panels;
    fl_gather x;
    size_t groups, outputs, columns;
} fl_packed_product;

/* FL_TAPS: weight (taps, C), vectors (C,) or NULL; x (positions, taps), each of C numbers. */
typedef struct {
    const void *weight, *bias, *scale, *shift;
    const fl_stretch *x;
    size_t taps, channels;
} fl_packed_taps;

/* FL_NORM: vectors (n,), or (outer * n,) where `each` is not 0; or NULL. */
typedef struct {
    const void *weight, *bias;
    int weight_each, bias_each;
} fl_packed_norm;

/* FL_LOOKUP: (V, width), of int8 with a scale of each row, real (V,). */
typedef struct {
    const void *table, *unit;
    fl_stored_kind stored;
    size_t tokens, width;
} fl_packed_lookup;

typedef union {
    fl_packed_move move;
    fl_packed_map map;
    fl_packed_product product;
    fl_packed_taps taps;
    fl_packed_norm norm;
    fl_packed_lookup lookup;
    fl_cell recurrent;
} fl_packed;

struct fl_running;  /* a call under way: call.h */

/* A row of floats as integers, of int8: fl_twin, and then (fl_words(int8, K), 4) of them, zeros behind
 * the last. */
typedef struct {
    float scale;    /* that an integer is multiplied by */
    int32_t total;  /* of all integers */
} fl_twin;

/* sums (n, G, L) of the integers of n rows, whose twins lie `bytes` apart, times those of the weights
 * w (K, G, L) of one panel. */
typedef void fl_sum_int8(size_t G, const void *w, size_t K, const void *twins, size_t bytes,
                         size_t n, int32_t *sums);

/* Sums of n rows at once, and what goes before the first and comes after the last of the same n, where
 * something does, or NULL. */
typedef struct {
    fl_sum_int8 *sum;  /* NULL: the kernel is for doubles, and has reals of all */
    void (*begin)(size_t n);
    void (*end)(size_t n);
} fl_int8;

/* What a file of an instruction set fills. */
typedef struct {
    const char *name;
    size_t lanes;             /* L, what the weights must be packed for */
    size_t real_size;         /* 4 or 8 */
    uint32_t needs;           /* FL_CPU_ bits */
    size_t gemm_rows;         /* rows from which a BLAS projects faster than the kernel; 0: never */
    uint32_t int8_offset;     /* what is added to weights of int8, which are then unsigned; or 0 */
    fl_int8 int8;
    void (*run)(struct fl_running *call);    /* the operations behind the held ones, of a call */
    void (*begin)(struct fl_running *call);  /* the held ones */
    void (*count)(struct fl_running *call);  /* only tell how many rows `run` would give */
} fl_kernel;

/* Instruction sets, best first, the plain kernels for float and double last; ends with NULL. */
extern const fl_kernel *const fl_kernels[];

enum {
    FL_CPU_AVX2 = 1,
    FL_CPU_AVX512 = 2,
    FL_CPU_NEON = 4,
    FL_CPU_AVXVNNI = 8,
    FL_CPU_AVX512VNNI = 16,
    FL_CPU_DOT = 32,
    FL_CPU_AMX = 64
};

/* The FL_CPU_ bits that processor and operating system support, each checked (CPUID, XGETBV). */
uint32_t fl_cpu_features(void);

/* The kernel of this name, or if it is NULL the best one, for reals of this size, if this processor
 * can run it, else NULL. */
const fl_kernel *fl_find(const char *name, size_t real_size);

/* Read only once it is made, and all of it in one block of memory. */
struct fl_model {
    fl_program program;
    const fl_kernel *kernel;
    const fl_packed *packed;     /* (operations,) */
    const void *const *vectors;  /* (vectors,) real (count,); NULL where only panels have it */
    const fl_course *courses;    /* (operations,), fl_course_of */
    const fl_bound *bounds;      /* (lines,), fl_bound_lines */
    const fl_room *rooms;        /* (buffers + 1,), fl_place_buffers */
    int copies;                  /* whether an output has rows that no operation puts there */
    size_t prepared_bytes;       /* of a fl_prepared with its numbers; 0: there are none */
    size_t bytes;                /* of the block */
};

#endif
