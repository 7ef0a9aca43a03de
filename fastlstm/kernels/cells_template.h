/* cells_template.h - sums, products and PyTorch's cells, written once. variants_template.h has other
 * cells, layers_template.h what lies between cells, run_template.h the loop over time.
 *
 * An instruction set's file defines, and then includes this file:
 *   FL_AVX512 | FL_AVX2 | FL_NEON | FL_SCALAR | FL_SCALAR64   which operations vec.h gives
 *   FL_KERNEL    the fl_kernel object to define
 *   FL_NAME      its name, a string
 *   FL_NEEDS     the FL_CPU_ bits it needs
 *   FL_TARGET    the compiler's names of those instruction sets, a string, if any
 *   GEMM_ROWS    rows from which a BLAS does input projections faster, 0 if it never does
 *   ROWS         batch rows computed together, 2 to 6: ROWS * 4 accumulators fit the registers
 *   PANELS       panels of a single row computed together, so that enough sums are in flight
 *   AHEAD        rows projected on the side of a scan: (AHEAD + 1) * 4 accumulators fit; 0: none
 * Combinations tested: the files beside this one.
 *
 * The summation order of every output is: bias, then the inputs, then h, each in blocks. It does
 * not depend on ROWS, on how many rows or steps a call has, or on who else is in the batch, so
 * neither does any bit of the result. No expression may be contracted (-ffp-contract=off).
 */
#include "fastlstm.h"

#define FL_PRAGMA(x) _Pragma(#x)
#if defined(FL_TARGET)
#if defined(__clang__)
#define FL_REGION(t) \
    FL_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
#define FL_REGION_END FL_PRAGMA(clang attribute pop)
#else
#define FL_REGION(t) FL_PRAGMA(GCC push_options) FL_PRAGMA(GCC target(t))
#define FL_REGION_END FL_PRAGMA(GCC pop_options)
#endif
#else
#define FL_REGION(t)
#define FL_REGION_END
#endif

FL_REGION(FL_TARGET)

#include "vec.h"

#define UNROLL FL_PRAGMA(GCC unroll 8)

/* One row of a batch at one step: pointers, so that rows may lie anywhere. */
typedef struct {
    const real *init;  /* (P, G, L) what the gates start from: the bias, or bias + input product */
    const real *table; /* (P, G, L) the input product of a token, or NULL */
    const real *x;     /* (I,), or NULL where there is a table or init holds the product already */
    const real *h;     /* (O,) of the step before */
    real *c;           /* (H,), LSTM only; updated in place */
    real *y;           /* (H,) or (O,): this step's h */
} row;

/* Panels [first, end), or rows. */
typedef struct {
    size_t first, end;
} range;

/* The accumulators of M rows and N panels: acc[m * N + n][g] holds L outputs. They stay in
 * registers; totals of the same shape lie in memory, where an index need not be a constant. */
typedef vec accumulators[ROWS][4];

/* Products are summed in blocks of K_BLOCK inputs, whose sums are then added up: rounding errors
 * grow with the length of a sum, and a sum of 256 in one go would lose three times as much. One
 * lane has no fused multiply-add, rounds twice as often, and takes shorter blocks. From more than
 * K_SPAN inputs on there would be too many blocks for one sum: those of each K_SPAN inputs have a
 * sum of their own, and these are added up. */
enum { K_BLOCK = L == 1 ? 16 : 32, K_SPAN = 1024 };
_Static_assert(K_SPAN % K_BLOCK == 0, "a span is whole blocks");

INLINE void clear(const int MN, const int G, accumulators acc) {
    UNROLL for (int i = 0; i < MN; ++i)
        UNROLL for (int g = 0; g < G; ++g) acc[i][g] = v_set1(0);
}

/* Keep what lies behind `p` in memory. Where totals of several rows fit beside the accumulators, a
 * compiler puts them into registers, and then has too few for the loop that matters. */
#define IN_MEMORY(p) __asm__ volatile("" : : "r"(p) : "memory")

/* total[i][g] += acc[i][g], where the last gate is added to `last`. */
INLINE void add_to(const int MN, const int G, const int last, accumulators acc, vec (*total)[4]) {
    UNROLL for (int i = 0; i < MN; ++i) {
        UNROLL for (int g = 0; g < G; ++g) {
            const int to = g == G - 1 ? last : g;
            total[i][to] = v_add(total[i][to], acc[i][g]);
        }
    }
}

/* acc[m * N + n][g] += x[m][k] * w[n][g] for one k. */
INLINE void accumulate_one(const int M, const int N, const int G, accumulators acc,
                           const real *w /* N of (G, L), `stride` apart */, size_t stride,
                           const real *const *x /* (M,) pointers to (K,) */, size_t k) {
    UNROLL for (int n = 0; n < N; ++n) {
        vec wk[4];
        UNROLL for (int g = 0; g < G; ++g) {
            wk[g] = v_load(w + (size_t)n * stride + g * L);
            if (M > 1) wk[g] = v_keep(wk[g]);
        }
        UNROLL for (int m = 0; m < M; ++m) {
            vec xk = v_set1(x[m][k]);
            UNROLL for (int g = 0; g < G; ++g)
                acc[m * N + n][g] = v_fma(xk, wk[g], acc[m * N + n][g]);
        }
    }
}

/* Set the totals of a span that is done aside, in `kept`, and begin those of the next. */
INLINE void next_span(const int MN, const int G, const int last, vec (*total)[4],
                      accumulators kept) {
    UNROLL for (int i = 0; i < MN; ++i) {
        UNROLL for (int g = 0; g < G; ++g) {
            const int of = g == G - 1 ? last : g;
            kept[i][g] = v_add(kept[i][g], total[i][of]);
            total[i][of] = v_set1(0);
        }
    }
}

/* total[m * N + n][g] += the sum over inputs [k, K), block by block; w is N panels at input k. */
INLINE void accumulate(const int M, const int N, const int G, const int last, vec (*total)[4],
                       const real *w, size_t stride, const real *const *x, size_t k, size_t K) {
    const int several = K > K_SPAN; /* spans */
    accumulators kept;
    IN_MEMORY(kept);
    if (several) clear(M * N, G, kept);
    while (k < K) {
        const size_t end = K - k < K_BLOCK ? K : k + K_BLOCK;
        accumulators acc;
        if (M * N > 1) IN_MEMORY(total);
        clear(M * N, G, acc);
        for (; k < end; ++k, w += G * L) accumulate_one(M, N, G, acc, w, stride, x, k);
        add_to(M * N, G, last, acc, total);
        if (several && k % K_SPAN == 0 && k < K) next_span(M * N, G, last, total, kept);
    }
    if (several) add_to(M * N, G, last, kept, total);
}

/* Outputs [first, first + L) of `size`: all L, or what is left of them. */
INLINE size_t lanes_left(size_t size, size_t first) {
    size_t left = size > first ? size - first : 0;
    return left < L ? left : L;
}
INLINE vec load_left(const real *p, size_t left) {
    return left == L ? v_load(p) : v_load_n(p, left);
}
INLINE void store_left(real *p, vec a, size_t left) {
    if (left == L) v_store(p, a);
    else v_store_n(p, a, left);
}

/* f * c + i * g and o * tanh(c), each product with one division: see vec.h. */
INLINE vec lstm_unit(const vec *gate /* i f g o */, vec c, vec *c_new) {
    vec g_divisor, y_divisor;
    vec g = v_tanh_parts(gate[2], &g_divisor);
    g = v_div(g, v_mul(v_sigmoid_divisor(gate[0]), g_divisor));
    *c_new = v_add(v_div(c, v_sigmoid_divisor(gate[1])), g);
    vec y = v_tanh_parts(*c_new, &y_divisor);
    return v_div(y, v_mul(v_sigmoid_divisor(gate[3]), y_divisor));
}

INLINE vec gru_unit(const vec *gate /* r z n_x n_h */, vec h) {
    vec n = v_tanh(v_fma(v_sigmoid(gate[0]), gate[3], gate[2]));
    return v_fma(v_sigmoid(gate[1]), v_sub(h, n), n);
}

/* A part of the input projection of AHEAD later rows: inputs [0, K) of x for one panel, added to
 * what y holds, or to `init` if this is the first part. Parts begin where blocks do. */
typedef struct {
    size_t K;
    const real *w;             /* (K, G, L) */
    const real *init;          /* (G, L), or NULL to go on from y */
    const real *x[AHEAD + 1];  /* (AHEAD,) pointers to (K,) */
    real *y[AHEAD + 1];        /* (AHEAD,) pointers to (G, L) */
} slice;

/* Add one block's sums to the rows of a slice. */
INLINE void add_to_slice(const int G, accumulators acc, slice *side) {
    UNROLL for (int m = 0; m < AHEAD; ++m) {
        const real *before = side->init ? side->init : side->y[m];
        UNROLL for (int g = 0; g < G; ++g)
            v_store(side->y[m] + g * L, v_add(v_load(before + g * L), acc[m][g]));
    }
    side->init = NULL;
}

/* The recurrent sum of one row, with a slice computed in between: the sum waits for its weights to
 * come from the second-level cache, which leaves the multipliers idle half of the time. The slice
 * takes one input for every AHEAD of the sum, so that a part and a panel's step are as long. Neither
 * has more inputs than a span. */
INLINE void accumulate_beside(const int G, vec (*total)[4], const real *w, const real *const *h,
                              size_t K, slice *side) {
    enum { EACH = AHEAD ? AHEAD : 1, ROUND = K_BLOCK / EACH };
    accumulators acc, other;
    size_t k = 0, j = 0;
    clear(AHEAD, G, other);
    while (k + K_BLOCK <= K && j + ROUND <= side->K) {
        IN_MEMORY(total);
        clear(1, G, acc);
        for (int i = 0; i < ROUND; ++i, ++j) {
            UNROLL for (int e = 0; e < EACH; ++e, ++k, w += G * L)
                accumulate_one(1, 1, G, acc, w, 0, h, k);
            accumulate_one(AHEAD, 1, G, other, side->w + j * (size_t)(G * L), 0, side->x, j);
        }
        add_to(1, G, 3, acc, total);
        if (j % K_BLOCK == 0) {
            add_to_slice(G, other, side);
            clear(AHEAD, G, other);
        }
    }
    while (j < side->K || j % K_BLOCK) { /* what is left of a block that was begun, whole ones */
        const size_t block_end = j + K_BLOCK - j % K_BLOCK;
        const size_t end = block_end < side->K ? block_end : side->K;
        for (; j < end; ++j)
            accumulate_one(AHEAD, 1, G, other, side->w + j * (size_t)(G * L), 0, side->x, j);
        add_to_slice(G, other, side);
        clear(AHEAD, G, other);
        if (j == side->K) break;
    }
    accumulate(1, 1, G, 3, total, w, 0, h, k, K);
}

/* What G vectors start from, at element `at` of a row's gates. */
INLINE void start(const int G, vec *total, const row *r, size_t at) {
    const real *init = r->init + at;
    UNROLL for (int g = 0; g < G; ++g) total[g] = v_load(init + g * L);
    if (!r->table) return;
    UNROLL for (int g = 0; g < G; ++g)
        total[g] = v_add(total[g], v_load(r->table + at + (size_t)g * L));
}

/* One step of M rows in panels [p, p + N). `kind` is FL_LSTM or FL_GRU, G its gates; `side`, if not
 * NULL, is computed on the way (M = N = 1 then). */
INLINE void gated_block(const fl_kind kind, const int M, const int N, const int G,
                        const fl_cell *cell, size_t p, const row *rows, slice *side) {
    const real *w = (const real *)cell->gates.weights + p * cell->gates.stride;
    const real *x[ROWS], *h[ROWS];
    vec total[ROWS][4];
    for (int m = 0; m < M; ++m) {
        x[m] = rows[m].x;
        h[m] = rows[m].h;
        for (int n = 0; n < N; ++n) {
            start(G, total[m * N + n], rows + m, (p + (size_t)n) * (size_t)(G * L));
            if (kind == FL_GRU)
                total[m * N + n][3] = v_load((const real *)cell->bias_n + (p + (size_t)n) * L);
        }
    }
    if (x[0])
        accumulate(M, N, G, G - 1, total, w, cell->gates.stride, x, 0, cell->input_rows);
    w += cell->input_rows * (size_t)(G * L);
    if (side) accumulate_beside(G, total, w, h, cell->h_size, side);
    else accumulate(M, N, G, 3, total, w, cell->gates.stride, h, 0, cell->h_size);
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) {
            const size_t at = (p + (size_t)n) * L, left = lanes_left(cell->hidden_size, at);
            vec y, *gate = total[m * N + n];
            if (kind == FL_LSTM) {
                vec c = load_left(rows[m].c + at, left);
                y = lstm_unit(gate, c, &c);
                store_left(rows[m].c + at, c, left);
            } else {
                y = gru_unit(gate, load_left(rows[m].h + at, left));
            }
            store_left(rows[m].y + at, y, left);
        }
    }
}

/* A product with a matrix in panels, of up to two inputs that follow each other along K. */
typedef struct {
    const real *weights;   /* (P, K, G, L), panels `stride` apart */
    size_t stride;
    range panels;          /* to compute */
    size_t full, groups;   /* panels before a narrower one, and vectors of each, */
    size_t last_groups;    /* and of that one; 0: there is none */
    size_t first;          /* element of the vectors and outputs that panel 0 begins with */
    size_t x_size, h_size; /* K = x_size + h_size */
    size_t y_size;         /* outputs to write: the rest of the last panel is padding */
    const real *scale, *shift; /* (P, G, L), or NULL */
    real clip;             /* 0: none */
    const fl_activation *activation;
} product;

INLINE vec clip_to(real bound, vec a) {
    return v_min(v_set1(bound), v_max(v_set1(-bound), a));
}

/* The functions that few models have, in one place instead of in every block. */
static __attribute__((noinline)) vec apply_other(const fl_activation *activation, vec a) {
    const vec alpha = v_set1((real)activation->alpha), beta = v_set1((real)activation->beta);
    switch (activation->function) {
    case FL_SOFTSIGN: return v_softsign(a);
    case FL_SOFTPLUS: return v_softplus(a);
    case FL_SILU: return v_silu(a);
    case FL_GELU: return v_gelu(a);
    case FL_GELU_TANH: return v_gelu_tanh(a);
    case FL_AFFINE: return v_affine(a, alpha, beta);
    case FL_ELU: return v_elu(a, alpha);
    case FL_LEAKY_RELU: return v_leaky_relu(a, alpha);
    case FL_THRESHOLDED_RELU: return v_thresholded_relu(a, alpha);
    case FL_HARD_SIGMOID: return v_hard_sigmoid(a, alpha, beta);
    case FL_SCALED_TANH: return v_scaled_tanh(a, alpha, beta);
    case FL_HARDTANH: return v_hardtanh(a, alpha, beta);
    default: return a;
    }
}

INLINE vec apply(const fl_activation *activation, vec a) {
    switch (activation->function) {
    case FL_IDENTITY: return a;
    case FL_RELU: return v_relu(a);
    case FL_TANH: return v_tanh(a);
    case FL_SIGMOID: return v_sigmoid(a);
    default: return apply_other(activation, a);
    }
}

/* What becomes of the sum of a product: element `at` of its panels. */
INLINE vec finish(const product *a, vec sum, size_t at) {
    if (a->scale) sum = v_fma(sum, v_load(a->scale + at), v_load(a->shift + at));
    if (a->clip != 0) sum = clip_to(a->clip, sum);
    return apply(a->activation, sum);
}

/* rows[m].y = function(init + W [x, h]) for M rows in panels [p, p + N). */
INLINE void product_block(const int M, const int N, const int G, const product *a, size_t p,
                          const row *rows) {
    const real *w = a->weights + p * a->stride;
    const real *x[ROWS], *h[ROWS];
    vec total[ROWS][4];
    for (int m = 0; m < M; ++m) {
        x[m] = rows[m].x;
        h[m] = rows[m].h;
        for (int n = 0; n < N; ++n)
            start(G, total[m * N + n], rows + m, a->first + (p + (size_t)n) * (size_t)(G * L));
    }
    if (x[0]) accumulate(M, N, G, G - 1, total, w, a->stride, x, 0, a->x_size);
    w += a->x_size * (size_t)(G * L);
    if (h[0]) accumulate(M, N, G, G - 1, total, w, a->stride, h, 0, a->h_size);
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) {
            for (int g = 0; g < G; ++g) {
                const size_t at = a->first + ((p + (size_t)n) * (size_t)G + (size_t)g) * L;
                store_left(rows[m].y + at, finish(a, total[m * N + n][g], at),
                           lanes_left(a->y_size, at));
            }
        }
    }
}

/* Every panel of a range, for every row: panels outside, so that a panel's weights are read once
 * for all rows. A row alone takes PANELS at a time, which changes no sum. `back` takes the panels
 * from the last to the first: a step that begins where the step before ended finds those weights in
 * the nearest cache, where one that always began with the first would find them gone. */
#define FOR_ROWS_AND_PANELS(BLOCK, range, n, back)                               \
    do {                                                                         \
        const size_t P_ = (range).end - (range).first;                           \
        size_t i_ = 0;                                                           \
        for (; (n) == 1 && PANELS > 1 && i_ + PANELS <= P_; i_ += PANELS)        \
            BLOCK(1, PANELS, (back) ? (range).end - i_ - PANELS : (range).first + i_, 0); \
        for (; i_ < P_; ++i_) {                                                  \
            const size_t p_ = (back) ? (range).end - i_ - 1 : (range).first + i_; \
            size_t r_ = 0;                                                       \
            for (; r_ + ROWS <= (n); r_ += ROWS) BLOCK(ROWS, 1, p_, r_);         \
            switch ((n) - r_) {                                                  \
                CASE_5(BLOCK, p_, r_)                                            \
                CASE_4(BLOCK, p_, r_)                                            \
                CASE_3(BLOCK, p_, r_)                                            \
                CASE_2(BLOCK, p_, r_)                                            \
            case 1: BLOCK(1, 1, p_, r_); break;                                  \
            default: break;                                                      \
            }                                                                    \
        }                                                                        \
    } while (0)
#define ROWS_CASE(BLOCK, M, p, r) case M: BLOCK(M, 1, p, r); break;
#define CASE_2(BLOCK, p, r)
#define CASE_3(BLOCK, p, r)
#define CASE_4(BLOCK, p, r)
#define CASE_5(BLOCK, p, r)
#if ROWS > 2
#undef CASE_2
#define CASE_2(BLOCK, p, r) ROWS_CASE(BLOCK, 2, p, r)
#endif
#if ROWS > 3
#undef CASE_3
#define CASE_3(BLOCK, p, r) ROWS_CASE(BLOCK, 3, p, r)
#endif
#if ROWS > 4
#undef CASE_4
#define CASE_4(BLOCK, p, r) ROWS_CASE(BLOCK, 4, p, r)
#endif
#if ROWS > 5
#undef CASE_5
#define CASE_5(BLOCK, p, r) ROWS_CASE(BLOCK, 5, p, r)
#endif

/* Rows whose input projection is made on the side, while the rows before them are scanned: AHEAD
 * rows at a time, panel by panel, each in AHEAD parts, so that a step of one row makes one row. */
typedef struct {
    const real *const *x;             /* (blocks * AHEAD,) pointers to (I,) */
    real *gates;                      /* (blocks * AHEAD, P, G, L) */
    range panels;
    size_t blocks, block, panel, part;
} ahead;

/* The next slice, if there is one with anything to multiply. */
static slice *take_slice(ahead *a, const fl_cell *cell, slice *taken) {
    if (a->block == a->blocks) return NULL;
    const size_t G = cell->gates.groups, I = cell->input_rows;
    const size_t rows = AHEAD, parts = rows ? rows : 1;
    const size_t blocks = (I + K_BLOCK - 1) / K_BLOCK, at = a->panel * G * L;
    const size_t first = blocks * a->part / parts * K_BLOCK;
    const size_t end = blocks * (a->part + 1) / parts * K_BLOCK;
    taken->K = (end < I ? end : I) - first;
    taken->w = (const real *)cell->gates.weights + a->panel * cell->gates.stride + first * G * L;
    taken->init = first ? NULL : (const real *)cell->gates.bias + at;
    for (size_t m = 0; m < rows; ++m) {
        size_t r = a->block * rows + m;
        taken->x[m] = a->x[r] + first;
        taken->y[m] = a->gates + r * cell->gates.panels * G * L + at;
    }
    if (++a->part == parts) a->part = 0, ++a->panel;
    if (a->panel == a->panels.end) a->panel = a->panels.first, ++a->block;
    return taken->K ? taken : NULL;
}

/* The panels of one step that this call computes, and in which order. */
typedef struct {
    range panels;
    int back;
} share;

INLINE void gated_step(const fl_kind kind, const int G, const fl_cell *cell, const row *rows,
                       size_t n, share mine, ahead *later) {
#define BLOCK(M, N, p, r) gated_block(kind, M, N, G, cell, p, rows + (r), NULL)
    if (later->block < later->blocks) {
        for (size_t i = mine.panels.first; i < mine.panels.end; ++i) {
            const size_t p = mine.back ? mine.panels.end - 1 - (i - mine.panels.first) : i;
            slice side;
            gated_block(kind, 1, 1, G, cell, p, rows, take_slice(later, cell, &side));
        }
    } else {
        FOR_ROWS_AND_PANELS(BLOCK, mine.panels, n, mine.back);
    }
#undef BLOCK
}

static void lstm_step(const fl_cell *cell, const row *rows, size_t n, share mine, ahead *later) {
    gated_step(FL_LSTM, 4, cell, rows, n, mine, later);
}

static void gru_step(const fl_cell *cell, const row *rows, size_t n, share mine, ahead *later) {
    gated_step(FL_GRU, 3, cell, rows, n, mine, later);
}

static void multiply_panels(const product *a, const row *rows, size_t n, int back) {
#define BLOCK_1(M, N, p, r) product_block(M, N, 1, a, p, rows + (r))
#define BLOCK_2(M, N, p, r) product_block(M, N, 2, a, p, rows + (r))
#define BLOCK_3(M, N, p, r) product_block(M, N, 3, a, p, rows + (r))
#define BLOCK_4(M, N, p, r) product_block(M, N, 4, a, p, rows + (r))
    switch (a->groups) {
    case 1: FOR_ROWS_AND_PANELS(BLOCK_1, a->panels, n, back); break;
    case 2: FOR_ROWS_AND_PANELS(BLOCK_2, a->panels, n, back); break;
    case 3: FOR_ROWS_AND_PANELS(BLOCK_3, a->panels, n, back); break;
    default: FOR_ROWS_AND_PANELS(BLOCK_4, a->panels, n, back); break;
    }
#undef BLOCK_1
#undef BLOCK_2
#undef BLOCK_3
#undef BLOCK_4
}

/* The product of a matrix and n rows: its full panels and the narrower one, or the other way. */
static void multiply(const product *a, const row *rows, size_t n, int back) {
    product full = *a, last = *a;
    if (!a->last_groups || a->panels.end <= a->full) {
        multiply_panels(a, rows, n, back);
        return;
    }
    full.panels.end = a->full;
    last.weights += a->full * a->stride;
    last.first += a->full * a->groups * L;
    last.groups = a->last_groups;
    last.panels.first = 0;
    last.panels.end = a->panels.first <= a->full;
    if (back) multiply_panels(&last, rows, n, back);
    if (full.panels.first < full.panels.end) multiply_panels(&full, rows, n, back);
    if (!back) multiply_panels(&last, rows, n, back);
}

static const fl_activation identity = {FL_IDENTITY, 0, 0};

/* Panels of a matrix applied to rows that all have an x and start from its bias. */
static product matrix_product(const fl_panels *a, range panels, size_t x_size, size_t y_size) {
    const int narrow = a->last_groups < a->groups;
    product made = {0};
    made.weights = a->weights;
    made.stride = a->stride;
    made.panels = panels;
    made.full = a->panels - (size_t)narrow;
    made.groups = a->groups;
    made.last_groups = narrow ? a->last_groups : 0;
    made.x_size = x_size;
    made.y_size = y_size;
    made.scale = a->scale;
    made.shift = a->shift;
    made.activation = &identity;
    return made;
}

#include "layers_template.h"
#include "ranks_template.h"
#include "variants_template.h"
#include "run_template.h"

FL_REGION_END

extern const fl_kernel FL_KERNEL;
const fl_kernel FL_KERNEL = {FL_NAME, L, sizeof(real), FL_NEEDS, GEMM_ROWS, run};
