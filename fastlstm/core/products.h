/* products.h - products of matrices and rows, of channels and taps, of two values. A part of
 * kernel.h.
 */

/* Rows of one group's product that are computed together. */
typedef struct {
    const run *in;
    product made;
    const void *bias;
    real *patches;  /* (FL_POSITIONS, columns) x of those rows that do not lie in one piece */
    size_t most, n;
    row rows[FL_TILE_ROWS];
} batch;

/* Compute a batch and begin the next; 0 if the call is to stop. */
static int multiply_batch(batch *b) {
    const size_t panels = b->made.panels.end - b->made.panels.first;
    if (stopped(b->in->call, b->n * panels * b->made.stride)) return 0;
    multiply(&b->made, b->rows, b->n, b->in->back);
    b->n = 0;
    return 1;
}

/* Row i of a gather: where it lies, or `patch`, to which it is put together. */
INLINE const real *gathered(const values *x, const fl_gather *a, size_t i, real *patch) {
    const fl_stretch *s = a->stretches + a->first[i], *end = a->stretches + a->first[i + 1];
    if (end - s == 1 && s->read >= 0) return start_of(x, s);
    for (real *to = patch; s < end; to += s++->count) put_stretch(x, s, 0, to);
    return patch;
}

/* Group g of a product, in panels [made.panels.first, made.panels.end) of it; 0: the call stops. */
static int multiply_group(batch *b, const fl_product *a, size_t g, values *x, const view *to) {
    const fl_packed_product *packed = &b->in->packed->product;
    const size_t columns = packed->columns;
    FOR_ROWS(b->in, p) {
        real *y = at(to, p.t, p.b) + g * packed->outputs;
        go_to(x, p);
        for (size_t i = 0; i < a->positions; ++i, y += packed->groups * packed->outputs) {
            row *made = b->rows + b->n;
            made->init = b->bias;
            made->table = NULL;
            made->x = packed->x.stretches ? gathered(x, &packed->x, i * packed->groups + g,
                                                     b->patches + b->n * columns)
                                          : row_of(x, 0) + i * columns;
            made->y = y;
            if (++b->n == b->most && !multiply_batch(b)) return 0;
        }
    }
    return !b->n || multiply_batch(b);
}

static void run_product(const run *in, const fl_product *operation) {
    const fl_packed_product *a = &in->packed->product;
    const view to = view_of(in, operation->y);
    const size_t P = a->panels->panels;
    const range mine = panels_of(in, a->groups * P);
    values x;
    batch b;
    find_values(&x, in, &operation->reads);
    b.in = in;
    b.patches = own_scratch(in->call);
    b.most = a->x.stretches ? FL_POSITIONS : FL_TILE_ROWS;
    char *twins = (char *)b.patches + fl_patch_bytes(a, sizeof(real));
    b.n = 0;
    for (size_t g = 0; g < a->groups; ++g) {
        const size_t first = g * P, end = mine.end < first + P ? mine.end : first + P;
        const size_t skipped = mine.first > first ? mine.first - first : 0;
        if (end <= first + skipped) continue;
        const range panels = {skipped, end - first};
        fill_product(&b.made, a->panels + g, panels, a->columns, a->outputs, 
                     &in->call->model->kernel->int8, twins);
        b.made.activation = &operation->function;
        b.bias = a->panels[g].bias;
        if (!multiply_group(&b, operation, g, &x, &to)) return;
    }
}

/* Vectors of channels from `c` on, of one position; `left` of the last. x (taps,). */
INLINE void add_taps(const int N, const fl_packed_taps *a, const fl_activation *function,
                     const values *x, const fl_stretch *taps, size_t c, size_t left, real *y) {
    const real *weight = (const real *)a->weight + c, *bias = a->bias;
    const real *scale = a->scale, *shift = a->shift;
    vec sums[4];
#define LEFT(v) ((v) == N - 1 ? left : L)
    UNROLL for (int v = 0; v < N; ++v)
        sums[v] = bias ? load_left(bias + c + v * L, LEFT(v)) : v_set1(0);
    for (size_t k = 0; k < a->taps; ++k, weight += a->channels) {
        if (taps[k].read < 0) continue;
        const real *from = start_of(x, taps + k) + c;
        UNROLL for (int v = 0; v < N; ++v)
            sums[v] = v_fma(load_left(from + v * L, LEFT(v)), load_left(weight + v * L, LEFT(v)),
                            sums[v]);
    }
    UNROLL for (int v = 0; v < N; ++v) {
        const size_t i = c + (size_t)v * L;
        if (scale)
            sums[v] = v_fma(sums[v], load_left(scale + i, LEFT(v)), load_left(shift + i, LEFT(v)));
        store_left(y + i, apply(function, sums[v]), LEFT(v));
    }
#undef LEFT
}

static void run_taps(const run *in, const fl_taps *operation) {
    const fl_packed_taps *a = &in->packed->taps;
    const view to = view_of(in, operation->y);
    const size_t C = a->channels;
    values x;
    find_values(&x, in, &operation->reads);
    FOR_ROWS(in, p) {
        real *y = at(&to, p.t, p.b);
        const fl_stretch *taps = a->x;
        go_to(&x, p);
        for (size_t i = 0; i < operation->positions; ++i, y += C, taps += a->taps) {
            size_t c = 0;
            if (stopped(in->call, a->taps * C)) return;
            for (; c + 4 * L <= C; c += 4 * L)
                add_taps(4, a, &operation->function, &x, taps, c, L, y);
            for (; c < C; c += L)
                add_taps(1, a, &operation->function, &x, taps, c, lanes_left(C, c), y);
        }
    }
}

/* Rows of the first matrix and vectors of the second that are multiplied together. */
enum { MATMUL_ROWS = 4, MATMUL_VECTORS = 2 };

/* y (M rows, N vectors, `left` of the last) = a (M, K) b (K, ...), rows of y and b `p` apart. Sums
 * are made in blocks and levels as those of panels are. */
INLINE void matmul_block(const int M, const int N, const real *a, const real *b, size_t K, size_t p,
                         size_t left, real *y) {
    vec total[MATMUL_ROWS][MATMUL_VECTORS], levels[MATMUL_ROWS][MATMUL_VECTORS];
#define LEFT(n) ((n) == N - 1 ? left : L)
#define EACH                             \
    UNROLL for (int m = 0; m < M; ++m) \
        UNROLL for (int n = 0; n < N; ++n)
    EACH total[m][n] = levels[m][n] = v_set1(0);
    for (size_t k = 0, end; k < K; k = end) {
        vec acc[MATMUL_ROWS][MATMUL_VECTORS];
        if (k && k % K_LEVEL == 0)
            EACH levels[m][n] = v_add(levels[m][n], total[m][n]), total[m][n] = v_set1(0);
        end = K - k < K_BLOCK ? K : k + K_BLOCK;
        EACH acc[m][n] = v_set1(0);
        for (; k < end; ++k) {
            vec bk[MATMUL_VECTORS];
            UNROLL for (int n = 0; n < N; ++n) bk[n] = load_left(b + k * p + n * L, LEFT(n));
            EACH acc[m][n] = v_fma(v_set1(a[(size_t)m * K + k]), bk[n], acc[m][n]);
        }
        EACH total[m][n] = v_add(total[m][n], acc[m][n]);
    }
    EACH store_left(y + (size_t)m * p + n * L, v_add(levels[m][n], total[m][n]), LEFT(n));
#undef EACH
#undef LEFT
}

/* N vectors of columns of all rows of a (rows, K) b. */
INLINE void matmul_columns(const int N, const real *a, const real *b, size_t rows, size_t K,
                           size_t p, size_t left, real *y) {
    size_t i = 0;
    for (; i + MATMUL_ROWS <= rows; i += MATMUL_ROWS)
        matmul_block(MATMUL_ROWS, N, a + i * K, b, K, p, left, y + i * p);
    switch (rows - i) {
    case 3: matmul_block(3, N, a + i * K, b, K, p, left, y + i * p); break;
    case 2: matmul_block(2, N, a + i * K, b, K, p, left, y + i * p); break;
    case 1: matmul_block(1, N, a + i * K, b, K, p, left, y + i * p); break;
    default: break;
    }
}

static void run_matmul(const run *in, const fl_matmul *operation) {
    const view a = view_of(in, operation->a), b = view_of(in, operation->b);
    const view to = view_of(in, operation->y);
    const size_t n = operation->n, K = operation->k, p = operation->p;
    const fl_list *places = &operation->places;
    FOR_ROWS(in, r) {
        real *y = at(&to, r.t, r.b);
        for (size_t i = 0; i < places->count; i += 2, y += n * p) {
            const real *a_i = at(&a, r.t, r.b) + places->at[i];
            const real *b_i = at(&b, r.t, r.b) + places->at[i + 1];
            size_t j = 0;
            for (; j + 2 * L <= p; j += 2 * L) {
                if (stopped(in->call, n * K * 2 * L)) return;
                matmul_columns(2, a_i, b_i + j, n, K, p, L, y + j);
            }
            for (; j < p; j += L) {
                if (stopped(in->call, n * K * L)) return;
                matmul_columns(1, a_i, b_i + j, n, K, p, lanes_left(p, j), y + j);
            }
        }
    }
}
