/* cells.h - one step of PyTorch's cells, in the registers in which their gates are summed. A
 * part of kernel.h; variants.h has other cells, recurrent.h the loop over steps.
 *
 * z = (bias + products of x) + (products of h, from 0), either in blocks as panels.h has them:
 * the products of h are the same bits whether or not x is there when they are made.
 */

/* A cell: what the operation says of it, and how it is packed. */
typedef struct {
    const fl_recurrent *is;
    const fl_cell *packed;
} cell;

/* f * c + i * g and o * tanh(c), each product with one division: see activations.h. */
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

INLINE vec clip_to(real bound, vec a) {
    return v_min(v_set1(bound), v_max(v_set1(-bound), a));
}

/* A part of the input projection of AHEAD later rows: inputs [0, K) of x for one panel, added to
 * what y holds, or to `init` if this is the first part. Parts begin where blocks do, and all of
 * them are within one level. */
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
 * takes one input for every AHEAD of the sum, so that a part and a panel's step are as long. */
INLINE void accumulate_beside(const int G, vec (*total)[4], const real *w, const real *const *h,
                              size_t K, slice *side) {
    enum { EACH = AHEAD ? AHEAD : 1, ROUND = K_BLOCK / EACH };
    const size_t level = K < K_LEVEL ? K : K_LEVEL;
    accumulators acc, other;
    size_t k = 0, j = 0;
    clear(AHEAD, G, other);
    while (k + K_BLOCK <= level && j + ROUND <= side->K) {
        IN_MEMORY(total);
        clear(1, G, acc);
        for (int i = 0; i < ROUND; ++i, ++j) {
            UNROLL for (int e = 0; e < EACH; ++e, ++k, w += G * L)
                accumulate_one(1, 1, G, acc, w, 0, h, k);
            accumulate_one(AHEAD, 1, G, other, side->w + j * (size_t)(G * L), 0, side->x, j);
        }
        add_to(1, G, acc, total);
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
    accumulate(1, 1, G, total, w, 0, h, k, K);
}

/* Of M rows, in panels [p, p + N): what x gives, from what the rows start from, and what h
 * gives, from `h_init` (P, L) in the last gate and 0 in the others; h_init NULL: 0 there too.
 * `side`, if not NULL, is computed on the way (M = N = 1 then). */
INLINE void sum_both(const int M, const int N, const int G, cell a, size_t p, const row *rows,
                     const real *h_init, slice *side, vec (*from_x)[4], vec (*from_h)[4]) {
    const fl_panels *gates = &a.packed->gates;
    const real *w = (const real *)gates->weights + p * gates->stride;
    const real *x[ROWS], *h[ROWS];
    for (int m = 0; m < M; ++m) {
        x[m] = rows[m].x;
        h[m] = rows[m].h;
        for (int n = 0; n < N; ++n)
            start_sums(G, from_x[m * N + n], rows + m, (p + (size_t)n) * (size_t)(G * L));
    }
    if (x[0]) accumulate(M, N, G, from_x, w, gates->stride, x, 0, a.packed->input_rows);
    w += a.packed->input_rows * (size_t)(G * L);
    if (M * N > 1 || side) IN_MEMORY(from_x);
    clear(M * N, G, from_h);
    for (int m = 0; m < M && h_init; ++m)
        for (int n = 0; n < N; ++n)
            from_h[m * N + n][G - 1] = v_load(h_init + (p + (size_t)n) * L);
    if (side) accumulate_beside(G, from_h, w, h, a.is->h_size, side);
    else accumulate(M, N, G, from_h, w, gates->stride, h, 0, a.is->h_size);
}

/* One step of M rows in panels [p, p + N). `kind` is FL_CELL_lstm or FL_CELL_gru, G its gates;
 * `side` as above. */
INLINE void gated_block(const fl_cell_kind kind, const int M, const int N, const int G, cell a,
                        size_t p, const row *rows, slice *side) {
    vec from_x[ROWS][4], from_h[ROWS][4];
    sum_both(M, N, G, a, p, rows, kind == FL_CELL_gru ? a.packed->bias_n : NULL, side, from_x,
             from_h);
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) {
            const size_t at = (p + (size_t)n) * L, left = lanes_left(a.is->hidden_size, at);
            vec y, gate[4], *x = from_x[m * N + n], *h = from_h[m * N + n];
            UNROLL for (int g = 0; g < G; ++g) gate[g] = v_add(x[g], h[g]);
            if (kind == FL_CELL_lstm) {
                vec c = load_left(rows[m].c + at, left);
                y = lstm_unit(gate, c, &c);
                store_left(rows[m].c + at, c, left);
            } else {
                gate[2] = x[2];
                gate[3] = h[2];
                y = gru_unit(gate, load_left(rows[m].h + at, left));
            }
            store_left(rows[m].y + at, y, left);
        }
    }
}

/* One step of M rows of an RNN in panels [p, p + N), each of G vectors of its one gate. */
INLINE void rnn_block(const int M, const int N, const int G, cell a, size_t p, const row *rows) {
    const real clip = (real)a.is->clip;
    vec from_x[ROWS][4], from_h[ROWS][4];
    sum_both(M, N, G, a, p, rows, NULL, NULL, from_x, from_h);
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) {
            for (int g = 0; g < G; ++g) {
                const size_t at = ((p + (size_t)n) * (size_t)G + (size_t)g) * L;
                vec z = v_add(from_x[m * N + n][g], from_h[m * N + n][g]);
                if (clip != 0) z = clip_to(clip, z);
                store_left(rows[m].y + at, apply(&a.packed->activation, z),
                           lanes_left(a.is->hidden_size, at));
            }
        }
    }
}

/* Rows whose input projection is made on the side, while the rows before them are scanned: AHEAD
 * rows at a time, panel by panel, each in AHEAD parts, so that a step of one row makes one row. */
typedef struct {
    const real *x;                    /* (blocks * AHEAD,) rows of (I,), x_step apart */
    ptrdiff_t x_step;
    real *gates;                      /* (blocks * AHEAD, P, G, L) */
    range panels;
    size_t blocks, block, panel, part;
} ahead;

/* The next slice, if there is one with anything to multiply. */
static slice *take_slice(ahead *a, const fl_cell *packed, slice *taken) {
    if (a->block == a->blocks) return NULL;
    const fl_panels *gates = &packed->gates;
    const size_t G = gates->groups, I = packed->input_rows;
    const size_t rows = AHEAD, parts = rows ? rows : 1;
    const size_t blocks = (I + K_BLOCK - 1) / K_BLOCK, at = a->panel * G * L;
    const size_t first = blocks * a->part / parts * K_BLOCK;
    const size_t end = blocks * (a->part + 1) / parts * K_BLOCK;
    taken->K = (end < I ? end : I) - first;
    taken->w = (const real *)gates->weights + a->panel * gates->stride + first * G * L;
    taken->init = first ? NULL : (const real *)gates->bias + at;
    for (size_t m = 0; m < rows; ++m) {
        size_t r = a->block * rows + m;
        taken->x[m] = a->x + (ptrdiff_t)r * a->x_step + first;
        taken->y[m] = a->gates + r * gates->panels * G * L + at;
    }
    if (++a->part == parts) a->part = 0, ++a->panel;
    if (a->panel == a->panels.end) a->panel = a->panels.first, ++a->block;
    return taken->K ? taken : NULL;
}

/* The panels of one step that this call computes, and in which order. */
typedef struct {
    const range *panels;
    int back;
} share;

INLINE void gated_step(const fl_cell_kind kind, const int G, cell a, const row *rows, size_t n,
                       share mine, ahead *later) {
#define BLOCK(M, N, p, r) gated_block(kind, M, N, G, a, p, rows + (r), NULL)
    if (later && later->block < later->blocks) {
        const size_t first = mine.panels->first, end = mine.panels->end;
        for (size_t i = first; i < end; ++i) {
            const size_t p = mine.back ? end - 1 - (i - first) : i;
            slice side;
            gated_block(kind, 1, 1, G, a, p, rows, take_slice(later, a.packed, &side));
        }
    } else {
        FOR_ROWS_AND_PANELS(BLOCK, *mine.panels, n, mine.back);
    }
#undef BLOCK
}

static void lstm_step(cell a, const row *rows, size_t n, share mine, ahead *later) {
    gated_step(FL_CELL_lstm, 4, a, rows, n, mine, later);
}

static void gru_step(cell a, const row *rows, size_t n, share mine, ahead *later) {
    gated_step(FL_CELL_gru, 3, a, rows, n, mine, later);
}

static void rnn_step(cell a, const row *rows, size_t n, share mine) {
#define BLOCK_1(M, N, p, r) rnn_block(M, N, 1, a, p, rows + (r))
#define BLOCK_2(M, N, p, r) rnn_block(M, N, 2, a, p, rows + (r))
#define BLOCK_3(M, N, p, r) rnn_block(M, N, 3, a, p, rows + (r))
#define BLOCK_4(M, N, p, r) rnn_block(M, N, 4, a, p, rows + (r))
    switch (a.packed->gates.groups) {
    case 1: FOR_ROWS_AND_PANELS(BLOCK_1, *mine.panels, n, mine.back); break;
    case 2: FOR_ROWS_AND_PANELS(BLOCK_2, *mine.panels, n, mine.back); break;
    case 3: FOR_ROWS_AND_PANELS(BLOCK_3, *mine.panels, n, mine.back); break;
    default: FOR_ROWS_AND_PANELS(BLOCK_4, *mine.panels, n, mine.back); break;
    }
#undef BLOCK_1
#undef BLOCK_2
#undef BLOCK_3
#undef BLOCK_4
}
