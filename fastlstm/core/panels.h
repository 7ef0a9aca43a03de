/* panels.h - sums of products of a matrix in panels: of one row in registers, of many rows a part
 * of the inputs at a time. A part of kernel.h.
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
    const real *from_h; /* (P, G, L) of a cell, the product of h that was made before, or NULL */
} row;

/* The accumulators of M rows and N panels: acc[m * N + n][g] holds L outputs. They stay in
 * registers; totals of the same shape lie in memory, where an index need not be a constant. */
typedef vec accumulators[ROWS][4];

/* Products are summed in blocks of K_BLOCK inputs, whose sums are then added up, and those
 * totals again in levels of K_LEVEL inputs: rounding errors grow with the length of a sum, and a
 * sum of 256 in one go would lose three times as much. What has no fused multiply-add rounds twice
 * as often, and takes shorter blocks. */
#if defined(FL_SCALAR) || defined(FL_SCALAR64) || defined(FL_SIMD128)
enum { K_BLOCK = 16 };
#else
enum { K_BLOCK = 32 };
#endif
enum { K_LEVEL = 32 * K_BLOCK };

INLINE void clear(const int MN, const int G, vec (*acc)[4]) {
    UNROLL for (int i = 0; i < MN; ++i)
        UNROLL for (int g = 0; g < G; ++g) acc[i][g] = v_set1(0);
}

INLINE void add_to(const int MN, const int G, vec (*acc)[4], vec (*total)[4]) {
    UNROLL for (int i = 0; i < MN; ++i)
        UNROLL for (int g = 0; g < G; ++g) total[i][g] = v_add(total[i][g], acc[i][g]);
}

/* acc[m * N + n][g] += x[m][k] * w[n][g] for one k. The fewer of both, numbers of the rows or vectors
 * of weights, are held in registers, of which accumulators leave few. */
INLINE void accumulate_one(const int M, const int N, const int G, accumulators acc,
                           const real *w /* N of (G, L), `stride` apart */, size_t stride,
                           const real *const *x /* (M,) pointers to (K,) */, size_t k) {
    UNROLL for (int n = 0; n < N; ++n) {
        const real *w_n = w + (size_t)n * stride;
        vec held[ROWS > 4 ? ROWS : 4];
        if (M < G) {
            UNROLL for (int m = 0; m < M; ++m) held[m] = v_set1(x[m][k]);
            UNROLL for (int g = 0; g < G; ++g) {
                vec wk = v_load(w_n + g * L);
                if (M > 1) wk = v_keep(wk);
                UNROLL for (int m = 0; m < M; ++m)
                    acc[m * N + n][g] = v_fma(held[m], wk, acc[m * N + n][g]);
            }
        } else {
            UNROLL for (int g = 0; g < G; ++g) {
                held[g] = v_load(w_n + g * L);
                if (M > 1) held[g] = v_keep(held[g]);
            }
            UNROLL for (int m = 0; m < M; ++m) {
                vec xk = v_set1(x[m][k]);
                UNROLL for (int g = 0; g < G; ++g)
                    acc[m * N + n][g] = v_fma(xk, held[g], acc[m * N + n][g]);
            }
        }
    }
}

/* total[n][g] += the sum over inputs [k, K) of one row, block by block; w is N panels at input k,
 * which is K_LEVEL at most. */
INLINE void accumulate(const int N, const int G, vec (*total)[4], const real *w, size_t stride,
                       const real *const *x, size_t k, size_t K) {
    vec levels[ROWS][4];
    size_t level = K_LEVEL;
    while (k < K) {
        const size_t end = K - k < K_BLOCK ? K : k + K_BLOCK;
        accumulators acc;
        if (k == level) {
            IN_MEMORY(levels);
            if (level == K_LEVEL) clear(N, G, levels);
            add_to(N, G, total, levels);
            clear(N, G, total);
            level += K_LEVEL;
        }
        if (N > 1) IN_MEMORY(total);
        clear(N, G, acc);
        for (; k < end; ++k, w += G * L) accumulate_one(1, N, G, acc, w, stride, x, k);
        add_to(N, G, acc, total);
    }
    if (level > K_LEVEL) add_to(N, G, levels, total);
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

/* Panel number i of a range, taken from the first to the last, or the other way if `back`: a step
 * that begins where the step before ended finds those weights in the nearest cache, where one that
 * always began with the first would find them gone. */
INLINE size_t panel_at(range a, size_t i, int back) { return back ? a.end - i - 1 : a.first + i; }

/* BLOCK(N, p) of all panels of a range, for one row: PANELS at a time, which changes no sum. */
#define FOR_PANELS(BLOCK, range, back)                                               \
    do {                                                                             \
        const size_t P_ = (range).end - (range).first;                               \
        size_t i_ = 0;                                                               \
        for (; PANELS > 1 && i_ + PANELS <= P_; i_ += PANELS)                        \
            BLOCK(PANELS, panel_at(range, (back) ? i_ + PANELS - 1 : i_, back));     \
        for (; i_ < P_; ++i_) BLOCK(1, panel_at(range, i_, back));                   \
    } while (0)

/* ---- Many rows ---- */

/* Inputs whose weights of a panel stay in the first-level cache while all rows pass: 16 KB. */
enum {
    K_FILL = 16384 / (4 * L * sizeof(real)),
    K_PART = K_FILL < K_BLOCK ? K_BLOCK : K_FILL < K_LEVEL ? K_FILL : K_LEVEL
};
_Static_assert(K_PART % K_BLOCK == 0 && K_LEVEL % K_PART == 0, "a part ends where a block does");

/* Rows whose sums in a panel stay in the first-level cache beside such a part. */
enum { TILE = 24 };

/* How many of so many rows come next, if they are taken `most` at a time and none much fewer. */
INLINE size_t next_rows(size_t left, size_t most) { return left / ((left + most - 1) / most); }

/* total[m][g] += the sum over inputs [0, K) of a part, block by block. Meanwhile what lies at
 * `next`, `apart` bytes of it for each input, is brought nearer. */
INLINE void accumulate_part(const int M, const int G, vec (*total)[4], const real *w,
                            const real *const *x, size_t K, const char *next, size_t apart) {
    size_t k = 0;
    while (k < K) {
        const size_t end = K - k < K_BLOCK ? K : k + K_BLOCK;
        accumulators acc;
        IN_MEMORY(total);
        clear(M, G, acc);
        for (; k < end; ++k, w += G * L, next += apart) {
            __builtin_prefetch(next, 0, 2);
            accumulate_one(M, 1, G, acc, w, 0, x, k);
        }
        add_to(M, G, acc, total);
    }
}

/* The same for n rows, in groups, of which one of few rows would have too few sums in flight. `next`
 * are the weights of the part behind this one. */
INLINE void sum_part(const int G, const row *rows, size_t n, int of_h, size_t k, size_t K,
                     const real *w, const real *next, vec (*total)[4]) {
    const size_t groups = (n + ROWS - 1) / ROWS, apart = (size_t)(G * L) * sizeof(real) / groups;
    const char *ahead = (const char *)next;
    for (size_t r = 0, m; r < n; r += m, ahead += K * apart) {
        const real *x[ROWS];
        m = next_rows(n - r, ROWS);
        for (size_t i = 0; i < m; ++i) x[i] = (of_h ? rows[r + i].h : rows[r + i].x) + k;
#define PART_OF(M) accumulate_part(M, G, total + r, w, x, K, ahead, apart)
        switch (m) {
#if ROWS > 5
        case 6: PART_OF(6); break;
#endif
#if ROWS > 4
        case 5: PART_OF(5); break;
#endif
#if ROWS > 3
        case 4: PART_OF(4); break;
#endif
#if ROWS > 2
        case 3: PART_OF(3); break;
#endif
        case 2: PART_OF(2); break;
        default: PART_OF(1);
        }
#undef PART_OF
    }
}

/* total[m][g] += the sum over the inputs [0, K) of x, or of h, of n rows, TILE at most. w is the panel
 * at input 0, and `next` what is read after it.
 *
 * A part of the weights meets all rows before the next part comes: it is then in the first-level
 * cache, and the next one on its way from farther away. Between two parts, as between two blocks,
 * what each row has summed up lies in memory. */
#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* levels, which the first level clears */
#endif
INLINE void sum_rows(const int G, const row *rows, size_t n, int of_h, const real *w, size_t K,
                     const real *next, vec (*total)[4]) {
    vec levels[TILE][4];
    for (size_t k = 0, end; k < K; k = end) {
        const int last = K - k <= K_PART;
        end = last ? K : k + K_PART;
        if (k && k % K_LEVEL == 0) {
            for (size_t r = 0; r < n; ++r) {
                if (k == K_LEVEL) clear(1, G, levels + r);
                add_to(1, G, total + r, levels + r);
                clear(1, G, total + r);
            }
        }
        sum_part(G, rows, n, of_h, k, end - k, w + k * (size_t)(G * L),
                 last ? next : w + end * (size_t)(G * L), total);
    }
    for (size_t r = 0; r < n && K > K_LEVEL; ++r) add_to(1, G, levels + r, total + r);
}
#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic pop
#endif

/* BODY for the panels p of a range and the rows [r, r + m) of n, as many as TILE: panels outside, so
 * that a panel comes from afar once for all rows. `next` is the panel that is read after p. */
#define FOR_PANELS_AND_ROWS(BODY, range, n, back)                                          \
    do {                                                                                   \
        const size_t P_ = (range).end - (range).first;                                     \
        for (size_t i_ = 0; i_ < P_; ++i_) {                                               \
            const size_t p_ = panel_at(range, i_, back);                                   \
            const size_t then_ = i_ + 1 < P_ ? panel_at(range, i_ + 1, back) : p_;         \
            for (size_t r_ = 0, m_; r_ < (n); r_ += m_) {                                  \
                m_ = next_rows((n) - r_, TILE);                                            \
                BODY(p_, r_ + m_ < (n) ? p_ : then_, r_, m_);                              \
            }                                                                              \
        }                                                                                  \
    } while (0)
