/* variants.h - one step of a cell that is not quite PyTorch's; spec.LSTM and spec.GRU have the
 * equations. A part of kernel.h.
 *
 * The products of x and of h are written to memory, panel by panel as the cell is packed, and
 * read again: there is one loop for every variant, and normalisation needs all of them at once.
 * The ranks meet wherever one reads what another wrote, as often whatever rows there are.
 */

/* One step of n rows. */
typedef struct {
    const run *in;
    cell of;
    const row *rows;    /* (n,) */
    row *product_rows;  /* (n,) free for use */
    size_t n;
    range panels;
    size_t G, width;    /* G * L * P */
    real *scratch;      /* of each row what fl_variant_numbers tells */
} variant_step;

/* Scratch of one row, each real (P, G, L) or (P, L). */
typedef struct {
    real *x;          /* products of x, */
    const real *h;    /* and of h; where they were made before, they are there */
    real *z;          /* the sum of both, in the place of x, or behind if both are normalised */
    real *reset;      /* GRU: r * h; LSTM: the new c before its normalisation */
    real *candidate;  /* GRU that resets before: W_hn (r * h) + b_hn */
} products;

static products products_of(const variant_step *s, size_t b) {
    const size_t units = s->of.packed->gates.panels * L;
    const int both = s->of.packed->variant->norm == FL_CELL_NORM_product;
    products made;
    made.x = s->scratch + b * fl_variant_numbers(s->of.packed, units);
    made.h = s->rows[b].from_h ? s->rows[b].from_h : made.x + s->width;
    made.z = both ? made.x + 2 * s->width : made.x;
    made.reset = made.x + (both ? 3 : 2) * s->width;
    made.candidate = made.reset + units;
    return made;
}

/* Wait for what the other ranks wrote, if they have part in this operation. */
INLINE void meet_panels(const run *in) {
    if (in->by == BY_PANELS) meet(in->call);
}

INLINE vec load_or_zero(const void *p, size_t at) {
    return p ? v_load((const real *)p + at) : v_set1(0);
}

/* Panels of a matrix of `size` inputs times x, which starts from `init`, for every row of the batch. */
static void multiply_variant(const variant_step *s, const fl_panels *matrix, size_t size) {
    product made;
    fill_product(&made, matrix, s->panels, size, SIZE_MAX, s->of.int8, s->of.x_twins);
    multiply(&made, s->product_rows, s->n, 0);
}

/* The product of h of any cell, of rows that have h as their x. */
INLINE void fill_product_of_h(product *made, cell of, range panels) {
    const fl_panels *matrix = fl_panels_of_h(of.packed);
    fill_product(made, matrix, panels, of.is->h_size, SIZE_MAX, of.int8, of.x_twins);
    if (matrix != &of.packed->gates) return;
    made->weights += fl_words(matrix->stored, of.packed->input_rows) * matrix->groups * L;
    made->unit = of.packed->h_unit;
}

/* A row of that product. */
INLINE void fill_row_of_h(row *made, cell of, const real *h, real *y) {
    memset(made, 0, sizeof *made);
    made->init = of.packed->h_bias;
    made->x = h;
    made->y = y;
}

/* The products of x, which start from what the rows do, and of h. */
static void multiply_both(const variant_step *s) {
    const fl_cell *packed = s->of.packed;
    product of_h;
    size_t n = 0;
    for (size_t b = 0; b < s->n; ++b) {
        s->product_rows[b] = s->rows[b];
        s->product_rows[b].y = products_of(s, b).x;
    }
    multiply_variant(s, &packed->gates, packed->input_rows);
    for (size_t b = 0; b < s->n; ++b)
        if (!s->rows[b].from_h)
            fill_row_of_h(s->product_rows + n++, s->of, s->rows[b].h,
                          products_of(s, b).x + s->width);
    fill_product_of_h(&of_h, s->of, s->panels);
    multiply(&of_h, s->product_rows, n, 0);
}

/* Of gates [g, g + gates) of a product (P, G, L). */
static moments moments_of_gates(const variant_step *s, const real *z, size_t g, size_t gates,
                                size_t G) {
    const numbers a = {z, s->of.is->hidden_size, g, gates, G};
    return moments_of(&a, s->of.packed->variant->eps);
}

/* z = x + h, with both normalised if that is asked for; then the peepholes to the old c. */
static void add_products(const variant_step *s) {
    const fl_variant *v = s->of.packed->variant;
    const size_t G = s->G, H = s->of.is->hidden_size;
    const int normalises = v->norm == FL_CELL_NORM_product;
    if (normalises) meet_panels(s->in);
    for (size_t b = 0; b < s->n; ++b) {
        const products of = products_of(s, b);
        moments of_x = {1, 0, 0}, of_h = {1, 0, 0};
        if (normalises) {
            of_x = moments_of_gates(s, of.x, 0, G, G);
            of_h = moments_of_gates(s, of.h, 0, G, G);
        }
        for (size_t p = s->panels.first; p < s->panels.end; ++p) {
            const size_t left = lanes_left(H, p * L);
            for (size_t g = 0; g < G; ++g) {
                const size_t at = (p * G + g) * L;
                const void *peephole = g == 0 ? v->peepholes[0]
                                       : g == 1 && !v->coupled ? v->peepholes[1]
                                                               : NULL;
                vec a = v_load(of.x + at), h = v_load(of.h + at);
                if (normalises) {
                    a = v_fma(normalised(&of_x, a), load_or_zero(v->norm_x[0], at),
                              load_or_zero(v->norm_x[1], at));
                    h = v_fma(normalised(&of_h, h), load_or_zero(v->norm_h[0], at),
                              load_or_zero(v->norm_h[1], at));
                }
                a = v_add(a, h);
                if (peephole)
                    a = v_fma(load_left(s->rows[b].c + p * L, left),
                              load_or_zero(peephole, p * L), a);
                v_store(of.z + at, a);
            }
        }
    }
}

/* Gate g of panel p, once it is normalised and has its bias: f(z). */
INLINE vec gate_of(const variant_step *s, const real *z, size_t p, size_t g, const moments *m,
                   const fl_activation *activation) {
    const fl_variant *v = s->of.packed->variant;
    const size_t at = (p * s->G + g) * L;
    vec a = v_load(z + at);
    if (v->norm == FL_CELL_NORM_gate)
        a = v_mul(normalised(m, a), load_or_zero(v->norm_gate, at));
    a = v_add(a, load_or_zero(v->bias, at));
    if (v->clip != 0) a = clip_to((real)v->clip, a);
    return apply(activation, a);
}

/* The new c of a row's panels, before its normalisation, into `reset`. */
static void lstm_variant_c(const variant_step *s, size_t b) {
    const fl_variant *v = s->of.packed->variant;
    const products of = products_of(s, b);
    const size_t H = s->of.is->hidden_size, g = v->coupled ? 1 : 2;
    moments m[3] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}};
    for (size_t i = 0; i < g + 1 && v->norm == FL_CELL_NORM_gate; ++i)
        m[i] = moments_of_gates(s, of.z, i, 1, s->G);
    for (size_t p = s->panels.first; p < s->panels.end; ++p) {
        const vec c = load_left(s->rows[b].c + p * L, lanes_left(H, p * L));
        const vec i = gate_of(s, of.z, p, 0, &m[0], &v->functions[0]);
        const vec f = v->coupled ? v_sub(v_set1(1), i)
                                 : gate_of(s, of.z, p, 1, &m[1], &v->functions[0]);
        const vec n = gate_of(s, of.z, p, g, &m[g], &v->functions[1]);
        v_store(of.reset + p * L, v_fma(f, c, v_mul(i, n)));
    }
}

/* The new c, normalised and clipped, and the peephole of gate o, which sees it. */
static void lstm_variant_store_c(const variant_step *s, size_t b) {
    const fl_variant *v = s->of.packed->variant;
    const products of = products_of(s, b);
    const size_t H = s->of.is->hidden_size, o = s->G - 1;
    moments m = {1, 0, 0};
    if (v->norm == FL_CELL_NORM_product) m = moments_of_gates(s, of.reset, 0, 1, 1);
    for (size_t p = s->panels.first; p < s->panels.end; ++p) {
        vec c = v_load(of.reset + p * L);
        if (v->norm == FL_CELL_NORM_product)
            c = v_fma(normalised(&m, c), load_or_zero(v->norm_c[0], p * L),
                      load_or_zero(v->norm_c[1], p * L));
        if (v->cell_clip != 0) c = clip_to((real)v->cell_clip, c);
        store_left(s->rows[b].c + p * L, c, lanes_left(H, p * L));
        if (v->peepholes[2]) {
            real *gate = of.z + (p * s->G + o) * L;
            v_store(gate, v_fma(c, load_or_zero(v->peepholes[2], p * L), v_load(gate)));
        }
    }
}

static void lstm_variant_h(const variant_step *s, size_t b) {
    const fl_variant *v = s->of.packed->variant;
    const products of = products_of(s, b);
    const size_t H = s->of.is->hidden_size, o = s->G - 1;
    moments m = {1, 0, 0};
    if (v->norm == FL_CELL_NORM_gate) m = moments_of_gates(s, of.z, o, 1, s->G);
    for (size_t p = s->panels.first; p < s->panels.end; ++p) {
        const size_t left = lanes_left(H, p * L);
        vec c = load_left(s->rows[b].c + p * L, left);
        const vec gate = gate_of(s, of.z, p, o, &m, &v->functions[0]);
        if (v->clip != 0) c = clip_to((real)v->clip, c);
        store_left(s->rows[b].y + p * L, v_mul(gate, apply(&v->functions[2], c)), left);
    }
}

static void lstm_variant(const variant_step *s) {
    const fl_cell_norm_kind norm = s->of.packed->variant->norm;
    multiply_both(s);
    add_products(s);
    if (norm == FL_CELL_NORM_gate) meet_panels(s->in);
    for (size_t b = 0; b < s->n; ++b) lstm_variant_c(s, b);
    if (norm == FL_CELL_NORM_product) meet_panels(s->in);
    for (size_t b = 0; b < s->n; ++b) lstm_variant_store_c(s, b);
    if (norm == FL_CELL_NORM_gate) meet_panels(s->in);
    for (size_t b = 0; b < s->n; ++b) lstm_variant_h(s, b);
}

/* r, z and n lie at 0, 1 and 2 of the product of x; a cell that resets before its product has r
 * and z alone in the product of h. */
static void gru_variant(const variant_step *s) {
    const fl_variant *v = s->of.packed->variant;
    const int before = v->reset_candidate.weights != NULL;
    const size_t H = s->of.is->hidden_size, of_h = before ? 2 : 3;
    const moments none = {1, 0, 0};
    multiply_both(s);
    for (size_t b = 0; b < s->n; ++b) {
        const products of = products_of(s, b);
        for (size_t p = s->panels.first; p < s->panels.end; ++p) {
            const vec h = load_left(s->rows[b].h + p * L, lanes_left(H, p * L));
            for (size_t g = 0; g < 2; ++g) {
                real *to = of.z + (p * 3 + g) * L;
                v_store(to, v_add(v_load(to), v_load(of.h + (p * of_h + g) * L)));
            }
            const vec r = gate_of(s, of.z, p, 0, &none, &v->functions[0]);
            const vec n = before ? h : v_load(of.h + (p * 3 + 2) * L);
            v_store(of.reset + p * L, v_mul(r, n));
        }
    }
    if (before) {
        meet_panels(s->in);
        for (size_t b = 0; b < s->n; ++b) {
            const products of = products_of(s, b);
            fill_row_of_h(s->product_rows + b, s->of, of.reset, of.candidate);
            s->product_rows[b].init = v->reset_candidate.bias;
        }
        multiply_variant(s, &v->reset_candidate, s->of.is->h_size);
    }
    for (size_t b = 0; b < s->n; ++b) {
        const products of = products_of(s, b);
        for (size_t p = s->panels.first; p < s->panels.end; ++p) {
            const size_t left = lanes_left(H, p * L);
            const vec h = load_left(s->rows[b].h + p * L, left);
            real *n_at = of.z + (p * 3 + 2) * L;
            v_store(n_at, v_add(v_load(n_at), v_load((before ? of.candidate : of.reset) + p * L)));
            const vec n = gate_of(s, of.z, p, 2, &none, &v->functions[1]);
            const vec u = gate_of(s, of.z, p, 1, &none, &v->functions[0]);
            store_left(s->rows[b].y + p * L, v_fma(u, v_sub(h, n), n), left);
        }
    }
}
