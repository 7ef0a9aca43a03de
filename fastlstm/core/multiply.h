/* multiply.h - rows times a matrix in panels. A part of kernel.h. */

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
    fl_stored_kind stored;
    const real *unit;      /* (P, G, L), of int8, */
    char *twins;           /* and scratch memory for those of as many rows as are multiplied at once */
    const fl_int8 *int8;
} product;

/* r->y = function(scale total + shift) of one row in panel p. */
INLINE void finish_product(const int G, const product *a, size_t p, const row *r, vec *total) {
    for (int g = 0; g < G; ++g) {
        const size_t at = a->first + (p * (size_t)G + (size_t)g) * L;
        vec sum = total[g];
        if (a->scale) sum = v_fma(sum, v_load(a->scale + at), v_load(a->shift + at));
        store_left(r->y + at, apply(a->activation, sum), lanes_left(a->y_size, at));
    }
}

/* The product of one row in panels [p, p + N). */
INLINE void product_block(const int N, const int G, const product *a, size_t p, const row *r) {
    vec total[ROWS][4];
    for (int n = 0; n < N; ++n)
        start_sums(G, total[n], r, a->first + (p + (size_t)n) * (size_t)(G * L));
    if (r->x)
        accumulate(N, G, total, a->weights + p * a->stride, a->stride, &r->x, 0, a->x_size);
    for (int n = 0; n < N; ++n) finish_product(G, a, p + (size_t)n, r, total[n]);
}

/* The product of the rows [first, first + n) of all, TILE at most, in panel p. */
INLINE void product_rows(const int G, const product *a, size_t p, size_t next, const row *all,
                         size_t first, size_t n) {
    const row *rows = all + first;
    vec total[TILE][4];
    for (size_t r = 0; r < n; ++r)
        start_sums(G, total[r], rows + r, a->first + p * (size_t)(G * L));
    if (rows->x && a->stored != FL_STORED_real) {
        const stored_part part = {a->weights, a->stride, a->stored,
                                  a->unit ? a->unit + a->first : NULL, a->x_size,
                                  a->twins + first * fl_twin_bytes(a->x_size), a->int8};
        sum_stored(G, &part, p, rows, n, 0, total);
    } else if (rows->x)
        sum_rows(G, rows, n, 0, a->weights + p * a->stride, a->x_size,
                 a->weights + next * a->stride, total);
    for (size_t r = 0; r < n; ++r) finish_product(G, a, p, rows + r, total[r]);
}

INLINE void multiply_groups(const int G, const product *a, const row *rows, size_t n, int back) {
#define BLOCK(N, p) product_block(N, G, a, p, rows)
#define BLOCK_OF_ROWS(p, next, r, m) product_rows(G, a, p, next, rows, r, m)
    if (n == 1 && a->stored == FL_STORED_real) FOR_PANELS(BLOCK, a->panels, back);
    else FOR_PANELS_AND_ROWS(BLOCK_OF_ROWS, a->panels, n, back);
#undef BLOCK
#undef BLOCK_OF_ROWS
}

static void multiply_panels(const product *a, const row *rows, size_t n, int back) {
    switch (a->groups) {
    case 1: multiply_groups(1, a, rows, n, back); break;
    case 2: multiply_groups(2, a, rows, n, back); break;
    case 3: multiply_groups(3, a, rows, n, back); break;
    default: multiply_groups(4, a, rows, n, back); break;
    }
}

/* Full panels and the narrower one, or the other way. */
INLINE void multiply_all(const product *a, const row *rows, size_t n, int back) {
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

/* The product of a matrix and n rows. */
static void multiply(const product *a, const row *rows, size_t n, int back) {
    const int of_int8 = a->stored == FL_STORED_int8 && n && rows->x;
    if (of_int8) {
        make_twins(rows, n, 0, a->x_size, a->twins);
        begin_int8(a->int8, n);
    }
    multiply_all(a, rows, n, back);
    if (of_int8) end_int8(a->int8, n);
}

static const fl_activation identity = {FL_FUNCTION_identity, 0, 0};

/* Panels of a matrix applied to rows that all have an x and start from its bias. twins: scratch memory
 * for those of the rows. */
INLINE void fill_product(product *made, const fl_panels *a, range panels, size_t x_size,
                         size_t y_size, const fl_int8 *int8, char *twins) {
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
    made->stored = a->stored;
    made->unit = a->unit;
    made->twins = twins;
    made->int8 = int8;
}
