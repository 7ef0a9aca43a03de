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
    char *x_twins, *h_twins; /* of int8: of the rows of a step, in scratch memory */
    const fl_int8 *int8;
} cell;

/* A unit is made in two parts, of which the second waits for the functions of the first: of many
 * rows each part is done for all of them, so that the functions of one row need not wait for those
 * of another. Each product with a sigmoid or a tanh costs one division: see activations.h.
 *
 * LSTM: gate g becomes the new c = f * c + i * g, and gate o the divisor of its sigmoid; then
 * y = o * tanh(c). */
INLINE void lstm_begin(vec *gate /* i f g o */, vec c) {
    vec g_divisor, g = v_tanh_parts(gate[2], &g_divisor);
    g = v_div(g, v_mul(v_sigmoid_divisor(gate[0]), g_divisor));
    gate[2] = v_add(v_div(c, v_sigmoid_divisor(gate[1])), g);
    gate[3] = v_sigmoid_divisor(gate[3]);
}
INLINE vec lstm_end(const vec *gate) {
    vec y_divisor, y = v_tanh_parts(gate[2], &y_divisor);
    return v_div(y, v_mul(gate[3], y_divisor));
}

/* GRU: gate z becomes its sigmoid and n_x what n is the tanh of; then y = n + z * (h - n). */
INLINE void gru_begin(vec *gate /* r z n_x n_h */) {
    gate[2] = v_fma(v_sigmoid(gate[0]), gate[3], gate[2]);
    gate[1] = v_sigmoid(gate[1]);
}
INLINE vec gru_end(const vec *gate, vec h) {
    vec n = v_tanh(gate[2]);
    return v_fma(gate[1], v_sub(h, n), n);
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
    accumulate(1, G, total, w, 0, h, k, K);
}

/* What the sum over h starts from: the last gate of `h_init` (P, G, L), and 0 in the others; NULL:
 * 0 there too. */
INLINE void start_h(const int G, vec *total, const real *h_init, size_t p) {
    clear(1, G, (vec(*)[4])total);
    if (h_init) total[G - 1] = v_load(h_init + (p * (size_t)G + (size_t)(G - 1)) * L);
}

/* What h gives a row in panel p, which was made before. */
INLINE void load_h(const int G, vec *total, const row *r, size_t p) {
    UNROLL for (int g = 0; g < G; ++g)
        total[g] = v_load(r->from_h + (p * (size_t)G + (size_t)g) * L);
}

/* Of one row, in panels [p, p + N): what x gives, from what the row starts from, and what h gives,
 * which is read where it was `made` before. `side`, if not NULL, is computed on the way (N = 1 then,
 * and nothing was made). */
INLINE void sum_both(const int N, const int G, const int made, cell a, size_t p, const row *r,
                     const real *h_init, slice *side, vec (*from_x)[4], vec (*from_h)[4]) {
    const fl_panels *gates = &a.packed->gates;
    const real *w = (const real *)gates->weights + p * gates->stride;
    for (int n = 0; n < N; ++n) start_sums(G, from_x[n], r, (p + (size_t)n) * (size_t)(G * L));
    if (r->x) accumulate(N, G, from_x, w, gates->stride, &r->x, 0, a.packed->input_rows);
    w += a.packed->input_rows * (size_t)(G * L);
    if (N > 1 || side) IN_MEMORY(from_x);
    if (made) {
        for (int n = 0; n < N; ++n) load_h(G, from_h[n], r, p + (size_t)n);
        return;
    }
    for (int n = 0; n < N; ++n) start_h(G, from_h[n], h_init, p + (size_t)n);
    if (side) accumulate_beside(G, from_h, w, &r->h, a.is->h_size, side);
    else accumulate(N, G, from_h, w, gates->stride, &r->h, 0, a.is->h_size);
}

/* The part of a cell's panels that x is multiplied by, and the one of h, for rows [first, ...) of a step;
 * their weights are stored in fewer bits than reals. */
INLINE stored_part stored_x(cell a, size_t first) {
    const fl_panels *gates = &a.packed->gates;
    const size_t I = a.packed->input_rows;
    const stored_part made = {gates->weights, gates->stride, gates->stored, gates->unit, I,
                              a.x_twins + first * fl_twin_bytes(I), a.int8};
    return made;
}
INLINE stored_part stored_h(const int G, cell a, size_t first) {
    const fl_panels *gates = &a.packed->gates;
    const size_t words = fl_words(gates->stored, a.packed->input_rows), H = a.is->h_size;
    const stored_part made = {(const real *)gates->weights + words * (size_t)(G * L),
                              gates->stride, gates->stored, a.packed->h_unit, H,
                              a.h_twins + first * fl_twin_bytes(H), a.int8};
    return made;
}

/* The same of the rows [first, first + n) of all, TILE at most, in panel p; `next` is the panel read
 * after it. Rows whose product of h was made before come first (put_in_order). */
INLINE void sum_both_of_rows(const int G, cell a, size_t p, size_t next, const row *all,
                             size_t first, size_t n, const real *h_init, vec (*from_x)[4],
                             vec (*from_h)[4]) {
    const fl_panels *gates = &a.packed->gates;
    const row *rows = all + first;
    const size_t I = a.packed->input_rows;
    const size_t of_h = fl_words(gates->stored, I) * (size_t)(G * L);
    const real *w = (const real *)gates->weights + p * gates->stride;
    const real *w_next = (const real *)gates->weights + next * gates->stride;
    size_t made = 0;
    for (; made < n && rows[made].from_h; ++made) load_h(G, from_h[made], rows + made, p);
    for (size_t r = made; r < n; ++r) start_h(G, from_h[r], h_init, p);
    for (size_t r = 0; r < n; ++r) start_sums(G, from_x[r], rows + r, p * (size_t)(G * L));
    if (gates->stored != FL_STORED_real) {
        const stored_part of_x = stored_x(a, first), with_h = stored_h(G, a, first + made);
        if (rows->x) sum_stored(G, &of_x, p, rows, n, 0, from_x);
        if (made < n) sum_stored(G, &with_h, p, rows + made, n - made, 1, from_h + made);
        return;
    }
    if (rows->x) sum_rows(G, rows, n, 0, w, I, made == n ? w_next : w + of_h, from_x);
    else w_next += of_h;
    if (made == n) return;
    sum_rows(G, rows + made, n - made, 1, w + of_h, a.is->h_size, w_next, from_h + made);
}

/* The gates of one row from both sums, and its unit as far as it goes before its end. `gate` may be
 * h. */
INLINE void begin_unit(const fl_cell_kind kind, const int G, cell a, size_t p, const row *r,
                       const vec *x, const vec *h, vec *gate) {
    const size_t at = p * L, left = lanes_left(a.is->hidden_size, at);
    const vec n_h = h[2];
    UNROLL for (int g = 0; g < G; ++g) gate[g] = v_add(x[g], h[g]);
    if (kind == FL_CELL_lstm) {
        lstm_begin(gate, load_left(r->c + at, left));
        store_left(r->c + at, gate[2], left);
    } else {
        gate[2] = x[2];
        gate[3] = n_h;
        gru_begin(gate);
    }
}

INLINE void end_unit(const fl_cell_kind kind, cell a, size_t p, const row *r, const vec *gate) {
    const size_t at = p * L, left = lanes_left(a.is->hidden_size, at);
    const vec y = kind == FL_CELL_lstm ? lstm_end(gate)
                                       : gru_end(gate, load_left(r->h + at, left));
    store_left(r->y + at, y, left);
}

INLINE const real *h_init_of(const fl_cell_kind kind, cell a) {
    return kind == FL_CELL_gru ? a.packed->h_bias : NULL;
}

/* One step of a row in panels [p, p + N). `kind` is FL_CELL_lstm or FL_CELL_gru, G its gates;
 * `side` as above. */
INLINE void gated_block(const fl_cell_kind kind, const int N, const int G, const int made, cell a,
                        size_t p, const row *r, slice *side) {
    vec from_x[ROWS][4], from_h[ROWS][4], gate[4];
    sum_both(N, G, made, a, p, r, h_init_of(kind, a), side, from_x, from_h);
    for (int n = 0; n < N; ++n) {
        begin_unit(kind, G, a, p + (size_t)n, r, from_x[n], from_h[n], gate);
        end_unit(kind, a, p + (size_t)n, r, gate);
    }
}

/* One step of an RNN row in panel p, of G vectors of its one gate, from both sums. */
INLINE void rnn_unit(const int G, cell a, size_t p, const row *r, const vec *x, const vec *h) {
    const real clip = (real)a.is->clip;
    for (int g = 0; g < G; ++g) {
        const size_t at = (p * (size_t)G + (size_t)g) * L;
        vec z = v_add(x[g], h[g]);
        if (clip != 0) z = clip_to(clip, z);
        store_left(r->y + at, apply(&a.packed->activation, z), lanes_left(a.is->hidden_size, at));
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

/* One step of the rows [first, first + n) of all, TILE at most, in panel p. */
INLINE void gated_rows(const fl_cell_kind kind, const int G, cell a, size_t p, size_t next,
                       const row *all, size_t first, size_t n) {
    const row *rows = all + first;
    vec from_x[TILE][4], from_h[TILE][4];
    sum_both_of_rows(G, a, p, next, all, first, n, h_init_of(kind, a), from_x, from_h);
    for (size_t r = 0; r < n; ++r)
        begin_unit(kind, G, a, p, rows + r, from_x[r], from_h[r], from_h[r]);
    for (size_t r = 0; r < n; ++r) end_unit(kind, a, p, rows + r, from_h[r]);
}

/* One step of a row in panels of fewer bits: the units of several at once, as the functions of one
 * would wait for each other while there is little to read. */
INLINE void gated_panels(const fl_cell_kind kind, const int G, cell a, const row *r, share mine) {
    enum { TOGETHER = 4 };
    const size_t P = mine.panels->end - mine.panels->first;
    vec from_x[TOGETHER][4], from_h[TOGETHER][4];
    for (size_t i = 0, m; i < P; i += m) {
        m = next_rows(P - i, TOGETHER);
        for (size_t j = 0; j < m; ++j) {
            const size_t p = panel_at(*mine.panels, i + j, mine.back);
            sum_both_of_rows(G, a, p, p, r, 0, 1, h_init_of(kind, a), from_x + j, from_h + j);
        }
        for (size_t j = 0; j < m; ++j)
            begin_unit(kind, G, a, panel_at(*mine.panels, i + j, mine.back), r, from_x[j],
                       from_h[j], from_h[j]);
        for (size_t j = 0; j < m; ++j)
            end_unit(kind, a, panel_at(*mine.panels, i + j, mine.back), r, from_h[j]);
    }
}

INLINE void gated_step(const fl_cell_kind kind, const int G, cell a, const row *rows, size_t n,
                       share mine, ahead *later) {
#define BLOCK(N, p) gated_block(kind, N, G, 0, a, p, rows, NULL)
#define BLOCK_MADE(N, p) gated_block(kind, N, G, 1, a, p, rows, NULL)
#define BLOCK_OF_ROWS(p, next, r, m) gated_rows(kind, G, a, p, next, rows, r, m)
    if (later && later->block < later->blocks) {
        const size_t P = mine.panels->end - mine.panels->first;
        for (size_t i = 0; i < P; ++i) {
            slice side;
            gated_block(kind, 1, G, 0, a, panel_at(*mine.panels, i, mine.back), rows,
                        take_slice(later, a.packed, &side));
        }
    } else if (n != 1) {
        FOR_PANELS_AND_ROWS(BLOCK_OF_ROWS, *mine.panels, n, mine.back);
    } else if (a.packed->gates.stored != FL_STORED_real) {
        gated_panels(kind, G, a, rows, mine);
    } else if (rows->from_h) {
        FOR_PANELS(BLOCK_MADE, *mine.panels, mine.back);
    } else {
        FOR_PANELS(BLOCK, *mine.panels, mine.back);
    }
#undef BLOCK
#undef BLOCK_MADE
#undef BLOCK_OF_ROWS
}

static void lstm_step(cell a, const row *rows, size_t n, share mine, ahead *later) {
    gated_step(FL_CELL_lstm, 4, a, rows, n, mine, later);
}

static void gru_step(cell a, const row *rows, size_t n, share mine, ahead *later) {
    gated_step(FL_CELL_gru, 3, a, rows, n, mine, later);
}

/* One step of an RNN row in panels [p, p + N). */
INLINE void rnn_block(const int N, const int G, const int made, cell a, size_t p, const row *r) {
    vec from_x[ROWS][4], from_h[ROWS][4];
    sum_both(N, G, made, a, p, r, NULL, NULL, from_x, from_h);
    for (int n = 0; n < N; ++n) rnn_unit(G, a, p + (size_t)n, r, from_x[n], from_h[n]);
}

/* One step of the RNN rows [first, first + n) of all, TILE at most, in panel p. */
INLINE void rnn_rows(const int G, cell a, size_t p, size_t next, const row *all, size_t first,
                     size_t n) {
    const row *rows = all + first;
    vec from_x[TILE][4], from_h[TILE][4];
    sum_both_of_rows(G, a, p, next, all, first, n, NULL, from_x, from_h);
    for (size_t r = 0; r < n; ++r) rnn_unit(G, a, p, rows + r, from_x[r], from_h[r]);
}

INLINE void rnn_groups(const int G, cell a, const row *rows, size_t n, share mine) {
#define BLOCK(N, p) rnn_block(N, G, 0, a, p, rows)
#define BLOCK_MADE(N, p) rnn_block(N, G, 1, a, p, rows)
#define BLOCK_OF_ROWS(p, next, r, m) rnn_rows(G, a, p, next, rows, r, m)
    if (n != 1 || a.packed->gates.stored != FL_STORED_real)
        FOR_PANELS_AND_ROWS(BLOCK_OF_ROWS, *mine.panels, n, mine.back);
    else if (rows->from_h)
        FOR_PANELS(BLOCK_MADE, *mine.panels, mine.back);
    else
        FOR_PANELS(BLOCK, *mine.panels, mine.back);
#undef BLOCK
#undef BLOCK_MADE
#undef BLOCK_OF_ROWS
}

static void rnn_step(cell a, const row *rows, size_t n, share mine) {
    switch (a.packed->gates.groups) {
    case 1: rnn_groups(1, a, rows, n, mine); break;
    case 2: rnn_groups(2, a, rows, n, mine); break;
    case 3: rnn_groups(3, a, rows, n, mine); break;
    default: rnn_groups(4, a, rows, n, mine); break;
    }
}
