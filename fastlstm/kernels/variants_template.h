/* variants_template.h - one step of a cell that is not quite PyTorch's; spec.LSTM and spec.GRU have
 * the equations.
 *
 * A part of cells_template.h, which includes it with its definitions in place. The products of x
 * and of h are written to memory, panel by panel as the cell is packed, and read again: there is
 * one loop for every variant, and normalisation needs all of them at once. The ranks meet wherever
 * one reads what another wrote.
 */

/* Scratch of one batch row, each real (P, G, L) or (P, L). */
typedef struct {
    real *x, *h;      /* products; x becomes the sum of both */
    real *reset;      /* GRU: r * h; LSTM: the new c before its normalisation */
    real *candidate;  /* GRU that resets before: W_hn (r * h) + b_hn */
} products;

typedef struct {
    const fl_call *call;
    const fl_cell *cell;
    const row *rows;    /* (n,) */
    row *product_rows;  /* (n,) free for use */
    size_t n;
    range panels;
    size_t G, width;    /* G * L * P */
} variant_step;

static products products_of(const variant_step *s, size_t b) {
    const size_t P = s->cell->gates.panels;
    real *first = (real *)((char *)s->call->scratch + s->call->cut->variant);
    products made;
    first += b * 2 * (s->width + P * L);
    made.x = first;
    made.h = made.x + s->width;
    made.reset = made.h + s->width;
    made.candidate = made.reset + P * L;
    return made;
}

INLINE vec load_or_zero(const void *p, size_t at) {
    return p ? v_load((const real *)p + at) : v_set1(0);
}

/* panels of a matrix (K = size) times x, which starts from `init`, for every row of the batch. */
static void multiply_variant(const variant_step *s, const fl_panels *matrix, size_t skip,
                             size_t size, range panels) {
    product made = matrix_product(matrix, panels, size, SIZE_MAX);
    made.weights += skip * matrix->groups * L;
    multiply(&made, s->product_rows, s->n, 0);
}

/* The products of x, which start from what the rows do, and of h. */
static void multiply_both(const variant_step *s) {
    const fl_cell *cell = s->cell;
    const fl_variant *v = cell->variant;
    for (size_t b = 0; b < s->n; ++b) {
        s->product_rows[b] = s->rows[b];
        s->product_rows[b].h = NULL;
        s->product_rows[b].y = products_of(s, b).x;
    }
    multiply_variant(s, &cell->gates, 0, cell->input_rows, s->panels);
    for (size_t b = 0; b < s->n; ++b) {
        row *r = s->product_rows + b;
        memset(r, 0, sizeof *r);
        r->init = v->h_bias;
        r->x = s->rows[b].h;
        r->y = products_of(s, b).h;
    }
    if (v->reset_gates.weights)
        multiply_variant(s, &v->reset_gates, 0, cell->h_size, s->panels);
    else
        multiply_variant(s, &cell->gates, cell->input_rows, cell->h_size, s->panels);
}

/* Of gates [g, g + gates) of a product (P, G, L). */
static moments moments_of_gates(const variant_step *s, const real *z, size_t g, size_t gates,
                                size_t G) {
    const numbers a = {z, s->cell->hidden_size, g, gates, G};
    return moments_of(&a, s->cell->variant->eps);
}

/* x += h, with both normalised if that is asked for; then the peepholes to the old c. */
static void add_products(const variant_step *s) {
    const fl_variant *v = s->cell->variant;
    const size_t G = s->G, H = s->cell->hidden_size;
    if (v->norm == FL_NORM_PRODUCT) meet(s->call);
    for (size_t b = 0; b < s->n; ++b) {
        const products z = products_of(s, b);
        moments of_x = {1, 0, 0}, of_h = {1, 0, 0};
        if (v->norm == FL_NORM_PRODUCT) {
            of_x = moments_of_gates(s, z.x, 0, G, G);
            of_h = moments_of_gates(s, z.h, 0, G, G);
            if (s->call->ranks > 1) meet(s->call); /* all have read what is now written over */
        }
        for (size_t p = s->panels.first; p < s->panels.end; ++p) {
            const size_t left = lanes_left(H, p * L);
            for (size_t g = 0; g < G; ++g) {
                const size_t at = (p * G + g) * L;
                const void *peephole = g == 0 ? v->peepholes[0]
                                       : g == 1 && !v->coupled ? v->peepholes[1]
                                                               : NULL;
                vec a = v_load(z.x + at), h = v_load(z.h + at);
                if (v->norm == FL_NORM_PRODUCT) {
                    a = v_fma(normalised(&of_x, a), load_or_zero(v->norm_x[0], at),
                              load_or_zero(v->norm_x[1], at));
                    h = v_fma(normalised(&of_h, h), load_or_zero(v->norm_h[0], at),
                              load_or_zero(v->norm_h[1], at));
                }
                a = v_add(a, h);
                if (peephole)
                    a = v_fma(load_left(s->rows[b].c + p * L, left),
                              load_or_zero(peephole, p * L), a);
                v_store(z.x + at, a);
            }
        }
    }
}

/* Gate g of panel p, once it is normalised and has its bias: f(z). */
INLINE vec gate_of(const variant_step *s, const real *z, size_t p, size_t g, const moments *m,
                   const fl_activation *activation) {
    const fl_variant *v = s->cell->variant;
    const size_t at = (p * s->G + g) * L;
    vec a = v_load(z + at);
    if (v->norm == FL_NORM_GATE)
        a = v_mul(normalised(m, a), load_or_zero(v->norm_gate, at));
    a = v_add(a, load_or_zero(v->bias, at));
    if (v->clip != 0) a = clip_to((real)v->clip, a);
    return apply(activation, a);
}

/* The new c of a row's panels, before its normalisation, into `reset`. */
static void lstm_variant_c(const variant_step *s, size_t b) {
    const fl_variant *v = s->cell->variant;
    const products z = products_of(s, b);
    const size_t H = s->cell->hidden_size, g = v->coupled ? 1 : 2;
    moments m[3] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}};
    for (size_t i = 0; i < g + 1 && v->norm == FL_NORM_GATE; ++i)
        m[i] = moments_of_gates(s, z.x, i, 1, s->G);
    for (size_t p = s->panels.first; p < s->panels.end; ++p) {
        const vec c = load_left(s->rows[b].c + p * L, lanes_left(H, p * L));
        const vec i = gate_of(s, z.x, p, 0, &m[0], &v->functions[0]);
        const vec f = v->coupled ? v_sub(v_set1(1), i)
                                 : gate_of(s, z.x, p, 1, &m[1], &v->functions[0]);
        const vec n = gate_of(s, z.x, p, g, &m[g], &v->functions[1]);
        v_store(z.reset + p * L, v_fma(f, c, v_mul(i, n)));
    }
}

/* The new c, normalised and clipped, and the peephole of gate o, which sees it. */
static void lstm_variant_store_c(const variant_step *s, size_t b) {
    const fl_variant *v = s->cell->variant;
    const products z = products_of(s, b);
    const size_t H = s->cell->hidden_size, o = s->G - 1;
    moments m = {1, 0, 0};
    if (v->norm == FL_NORM_PRODUCT) m = moments_of_gates(s, z.reset, 0, 1, 1);
    for (size_t p = s->panels.first; p < s->panels.end; ++p) {
        vec c = v_load(z.reset + p * L);
        if (v->norm == FL_NORM_PRODUCT)
            c = v_fma(normalised(&m, c), load_or_zero(v->norm_c[0], p * L),
                      load_or_zero(v->norm_c[1], p * L));
        if (v->cell_clip != 0) c = clip_to((real)v->cell_clip, c);
        store_left(s->rows[b].c + p * L, c, lanes_left(H, p * L));
        if (v->peepholes[2]) {
            real *gate = z.x + (p * s->G + o) * L;
            v_store(gate, v_fma(c, load_or_zero(v->peepholes[2], p * L), v_load(gate)));
        }
    }
}

static void lstm_variant_h(const variant_step *s, size_t b) {
    const fl_variant *v = s->cell->variant;
    const products z = products_of(s, b);
    const size_t H = s->cell->hidden_size, o = s->G - 1;
    moments m = {1, 0, 0};
    if (v->norm == FL_NORM_GATE) m = moments_of_gates(s, z.x, o, 1, s->G);
    for (size_t p = s->panels.first; p < s->panels.end; ++p) {
        const size_t left = lanes_left(H, p * L);
        vec c = load_left(s->rows[b].c + p * L, left);
        const vec gate = gate_of(s, z.x, p, o, &m, &v->functions[0]);
        if (v->clip != 0) c = clip_to((real)v->clip, c);
        store_left(s->rows[b].y + p * L, v_mul(gate, apply(&v->functions[2], c)), left);
    }
}

static void lstm_variant(const variant_step *s) {
    const fl_norm norm = s->cell->variant->norm;
    multiply_both(s);
    add_products(s);
    if (norm == FL_NORM_GATE) meet(s->call);
    for (size_t b = 0; b < s->n; ++b) lstm_variant_c(s, b);
    if (norm == FL_NORM_PRODUCT) meet(s->call);
    for (size_t b = 0; b < s->n; ++b) lstm_variant_store_c(s, b);
    if (norm == FL_NORM_GATE) meet(s->call);
    for (size_t b = 0; b < s->n; ++b) lstm_variant_h(s, b);
}

/* r, z and n lie at 0, 1 and 2 of the product of x; a cell that resets before its product has r
 * and z alone in the product of h. */
static void gru_variant(const variant_step *s) {
    const fl_cell *cell = s->cell;
    const fl_variant *v = cell->variant;
    const int before = v->reset_candidate.weights != NULL;
    const size_t H = cell->hidden_size, of_h = before ? 2 : 3;
    const moments none = {1, 0, 0};
    multiply_both(s);
    for (size_t b = 0; b < s->n; ++b) {
        const products z = products_of(s, b);
        for (size_t p = s->panels.first; p < s->panels.end; ++p) {
            const vec h = load_left(s->rows[b].h + p * L, lanes_left(H, p * L));
            for (size_t g = 0; g < 2; ++g) {
                real *to = z.x + (p * 3 + g) * L;
                v_store(to, v_add(v_load(to), v_load(z.h + (p * of_h + g) * L)));
            }
            const vec r = gate_of(s, z.x, p, 0, &none, &v->functions[0]);
            const vec n = before ? h : v_load(z.h + (p * 3 + 2) * L);
            v_store(z.reset + p * L, v_mul(r, n));
        }
    }
    if (before) {
        meet(s->call);
        for (size_t b = 0; b < s->n; ++b) {
            const products z = products_of(s, b);
            s->product_rows[b].init = v->reset_candidate.bias;
            s->product_rows[b].x = z.reset;
            s->product_rows[b].y = z.candidate;
        }
        multiply_variant(s, &v->reset_candidate, 0, cell->h_size, s->panels);
    }
    for (size_t b = 0; b < s->n; ++b) {
        const products z = products_of(s, b);
        for (size_t p = s->panels.first; p < s->panels.end; ++p) {
            const size_t left = lanes_left(H, p * L);
            const vec h = load_left(s->rows[b].h + p * L, left);
            real *n_at = z.x + (p * 3 + 2) * L;
            v_store(n_at, v_add(v_load(n_at), v_load((before ? z.candidate : z.reset) + p * L)));
            const vec n = gate_of(s, z.x, p, 2, &none, &v->functions[1]);
            const vec u = gate_of(s, z.x, p, 1, &none, &v->functions[0]);
            store_left(s->rows[b].y + p * L, v_fma(u, v_sub(h, n), n), left);
        }
    }
}
