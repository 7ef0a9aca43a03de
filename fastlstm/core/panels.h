/* panels.h - sums of products in registers, and matrices in panels times rows. A part of kernel.h.
 *
 * A sum is what it starts from, and then its products, in blocks and levels. Its order does not
 * depend on ROWS, on how many rows or steps a call has, or on who else is in the batch.
 */

/* One row of a batch at one step: pointers, so that rows may lie anywhere. */
typedef struct {
    const real *init;  /* (P, G, L) what the sums start from: the bias, or bias + input product */
    const real *table; /* (P, G, L) the input product of a token, or NULL */
    const real *x;     /* (I,), or NULL where there is a table or init holds the product already */
    const real *h;     /* (O,) of the step before, of a cell */
    real *c;           /* (H,), LSTM only; updated in place */
    real *y;           /* outputs: of a cell its new h (H,), or (O,) */
} row;

/* The accumulators of M rows and N panels: acc[m * N + n][g] holds L outputs. They stay in
 * registers; totals of the same shape lie in memory, where an index need not be a constant. */
typedef vec accumulators[ROWS][4];

/* Products are summed in blocks of K_BLOCK inputs, whose sums are then added up, and those
 * totals again in levels of K_LEVEL inputs: rounding errors grow with the length of a sum, and a
 * sum of 256 in one go would lose three times as much. One lane has no fused multiply-add,
 * rounds twice as often, and takes shorter blocks. */
enum { K_BLOCK = L == 1 ? 16 : 32, K_LEVEL = 32 * K_BLOCK };

INLINE void clear(const int MN, const int G, vec (*acc)[4]) {
    UNROLL for (int i = 0; i < MN; ++i)
        UNROLL for (int g = 0; g < G; ++g) acc[i][g] = v_set1(0);
}

/* Keep what lies behind `p` in memory. Where totals of several rows fit beside the accumulators, a
 * compiler puts them into registers, and then has too few for the loop that matters. */
#define IN_MEMORY(p) __asm__ volatile("" : : "r"(p) : "memory")

INLINE void add_to(const int MN, const int G, vec (*acc)[4], vec (*total)[4]) {
    UNROLL for (int i = 0; i < MN; ++i)
        UNROLL for (int g = 0; g < G; ++g) total[i][g] = v_add(total[i][g], acc[i][g]);
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

/* total[m * N + n][g] += the sum over inputs [k, K), block by block; w is N panels at input k,
 * which is K_LEVEL at most. */
INLINE void accumulate(const int M, const int N, const int G, vec (*total)[4], const real *w,
                       size_t stride, const real *const *x, size_t k, size_t K) {
    vec levels[ROWS][4];
    size_t level = K_LEVEL;
    while (k < K) {
        const size_t end = K - k < K_BLOCK ? K : k + K_BLOCK;
        accumulators acc;
        if (k == level) {
            IN_MEMORY(levels);
            if (level == K_LEVEL) clear(M * N, G, levels);
            add_to(M * N, G, total, levels);
            clear(M * N, G, total);
            level += K_LEVEL;
        }
        if (M * N > 1) IN_MEMORY(total);
        clear(M * N, G, acc);
        for (; k < end; ++k, w += G * L) accumulate_one(M, N, G, acc, w, stride, x, k);
        add_to(M * N, G, acc, total);
    }
    if (level > K_LEVEL) add_to(M * N, G, levels, total);
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

/* What G vectors start from, at element `at` of a row's sums. */
INLINE void start_sums(const int G, vec *total, const row *r, size_t at) {
    const real *init = r->init + at;
    UNROLL for (int g = 0; g < G; ++g) total[g] = v_load(init + g * L);
    if (!r->table) return;
    UNROLL for (int g = 0; g < G; ++g)
        total[g] = v_add(total[g], v_load(r->table + at + (size_t)g * L));
}

/* A product with a matrix in panels. */
typedef struct {
    const real *weights;   /* (P, K, G, L), panels `stride` apart */
    size_t stride;
    range panels;          /* to compute */
    size_t full, groups;   /* panels before a narrower one, and vectors of each, */
    size_t last_groups;    /* and of that one; 0: there is none */
    size_t first;          /* element of the vectors and outputs that panel 0 begins with */
    size_t x_size;         /* K */
    size_t y_size;         /* outputs to write: the rest of the last panel is padding */
    const real *scale, *shift; /* (P, G, L), or NULL */
    const fl_activation *activation;
} product;

/* rows[m].y = function(scale (init + W x) + shift) for M rows in panels [p, p + N). */
INLINE void product_block(const int M, const int N, const int G, const product *a, size_t p,
                          const row *rows) {
    const real *x[ROWS];
    vec total[ROWS][4];
    for (int m = 0; m < M; ++m) {
        x[m] = rows[m].x;
        for (int n = 0; n < N; ++n)
            start_sums(G, total[m * N + n], rows + m,
                       a->first + (p + (size_t)n) * (size_t)(G * L));
    }
    if (x[0])
        accumulate(M, N, G, total, a->weights + p * a->stride, a->stride, x, 0, a->x_size);
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) {
            for (int g = 0; g < G; ++g) {
                const size_t at = a->first + ((p + (size_t)n) * (size_t)G + (size_t)g) * L;
                vec sum = total[m * N + n][g];
                if (a->scale) sum = v_fma(sum, v_load(a->scale + at), v_load(a->shift + at));
                store_left(rows[m].y + at, apply(a->activation, sum), lanes_left(a->y_size, at));
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
    if (!a->last_groups || a->panels.end <= a->full) {
        multiply_panels(a, rows, n, back);
        return;
    }
    product full = *a, last = *a;
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

static const fl_activation identity = {FL_FUNCTION_identity, 0, 0};

/* Panels of a matrix applied to rows that all have an x and start from its bias. */
static void fill_product(product *made, const fl_panels *a, range panels, size_t x_size,
                         size_t y_size) {
    const int narrow = a->last_groups < a->groups;
    made->weights = a->weights;
    made->stride = a->stride;
    made->panels = panels;
    made->full = a->panels - (size_t)narrow;
    made->groups = a->groups;
    made->last_groups = narrow ? a->last_groups : 0;
    made->first = 0;
    made->x_size = x_size;
    made->y_size = y_size;
    made->scale = a->scale;
    made->shift = a->shift;
    made->activation = &identity;
}
