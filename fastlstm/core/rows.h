/* rows.h - operations that put numbers elsewhere, unchanged: move, lookup, one-hot. A part of
 * kernel.h.
 */

/* The values that an operation reads at once, and their rows of one t and b. Of those beyond the
 * first few, which is rare, a view is found each time. */
enum { VIEWS = 16 };
typedef struct {
    const run *in;
    const fl_list *reads;
    size_t views;           /* that are kept */
    view of[VIEWS];
    const real *row[VIEWS];
    size_t t, b;
} values;

static void find_values(values *s, const run *in, const fl_list *reads) {
    s->in = in;
    s->reads = reads;
    s->views = reads->count < VIEWS ? reads->count : VIEWS;
    for (size_t i = 0; i < s->views; ++i) find_view(in, (size_t)reads->at[i], s->of + i);
}

INLINE void go_to(values *s, cursor p) {
    s->t = p.t;
    s->b = p.b;
    for (size_t i = 0; i < s->views; ++i) s->row[i] = at(&s->of[i], p.t, p.b);
}

INLINE const real *row_of(const values *s, size_t read) {
    if (read < s->views) return s->row[read];
    const view found = view_of(s->in, (size_t)s->reads->at[read]);
    return at(&found, s->t, s->b);
}

/* Where a stretch that is not of zeros begins. */
INLINE const real *start_of(const values *s, const fl_stretch *from) {
    return row_of(s, (size_t)from->read) + from->first;
}

/* Numbers x that lie `stride` apart, one behind the other. Most runs are short: what calls a function
 * to copy them takes longer than the copy. */
INLINE void put_run(const real *x, ptrdiff_t stride, real *y, size_t count) {
    if (stride == 1) {
        size_t j = 0;
        for (; j + L <= count; j += L) v_store(y + j, v_load(x + j));
        if (j < count) v_store_n(y + j, v_load_n(x + j, count - j), count - j);
    } else {
        for (ptrdiff_t j = 0; j < (ptrdiff_t)count; ++j) y[j] = x[j * stride];
    }
}

/* The numbers of a stretch, into y (count,). */
INLINE void put_stretch(const values *s, const fl_stretch *from, real fill, real *y) {
    const size_t n = from->count;
    if (from->read < 0) {
        for (size_t i = 0; i < n; ++i) y[i] = fill;
        return;
    }
    put_run(start_of(s, from), from->stride, y, n);
}

/* Those of tokens, as the numbers that they are. */
static void put_tokens(const run *in, size_t value, const fl_stretch *from, size_t t, size_t b,
                       real *y) {
    const size_t tokens = in->call->model->program.value[value].tokens;
    const view x = view_of(in, value);
    ptrdiff_t place = from->first;
    for (size_t i = 0; i < from->count; ++i, place += from->stride)
        y[i] = (real)token_at(&x, t, b, (size_t)place, tokens);
}

static void run_move(const run *in, const fl_move *operation) {
    const fl_packed_move *a = &in->packed->move;
    const view to = view_of(in, operation->y);
    const real fill = (real)operation->fill;
    size_t count = 0;
    values x;
    find_values(&x, in, &operation->reads);
    for (size_t i = 0; i < a->count; ++i) count += a->stretches[i].count;
    FOR_ROWS(in, p) {
        if (stopped(in->call, ROW_WORK * count)) return;
        real *y = at(&to, p.t, p.b);
        go_to(&x, p);
        for (size_t i = 0; i < a->count; y += a->stretches[i++].count) {
            const fl_stretch *from = a->stretches + i;
            const size_t value = from->read < 0 ? 0 : (size_t)operation->reads.at[from->read];
            if (from->read >= 0 && in->call->model->program.value[value].tokens)
                put_tokens(in, value, from, p.t, p.b, y);
            else put_stretch(&x, from, fill, y);
        }
    }
}

/* Row `token` of a table as numbers. */
INLINE void put_table_row(const fl_packed_lookup *a, size_t token, real *y) {
    const size_t first = token * a->width;
    const real scale = a->unit ? ((const real *)a->unit)[token] : 0;
    switch (a->stored) {
    case FL_STORED_real:
        memcpy(y, (const real *)a->table + first, a->width * sizeof(real));
        break;
    case FL_STORED_int8: {
        const int8_t *from = (const int8_t *)a->table + first;
        for (size_t k = 0; k < a->width; ++k) y[k] = (real)from[k] * scale;
        break;
    }
    case FL_STORED_float16:
        for (size_t k = 0; k < a->width; ++k)
            y[k] = fl_float_of_float16(((const uint16_t *)a->table)[first + k]);
        break;
    default:
        for (size_t k = 0; k < a->width; ++k)
            y[k] = fl_float_of_bfloat16(((const uint16_t *)a->table)[first + k]);
    }
}

static void run_lookup(const run *in, const fl_lookup *operation) {
    const fl_packed_lookup *a = &in->packed->lookup;
    const view x = view_of(in, operation->x), to = view_of(in, operation->y);
    const fl_list *places = &operation->places;
    FOR_ROWS(in, p) {
        if (stopped(in->call, places->count * a->width)) return;
        real *y = at(&to, p.t, p.b);
        for (size_t i = 0; i < places->count; ++i) {
            const size_t token = token_at(&x, p.t, p.b, (size_t)places->at[i], a->tokens);
            put_table_row(a, token, y + i * a->width);
        }
    }
}

static void run_one_hot(const run *in, const fl_one_hot *operation) {
    const view x = view_of(in, operation->x), to = view_of(in, operation->y);
    const size_t tokens = in->call->model->program.value[operation->x].tokens;
    const size_t classes = operation->classes;
    const fl_list *places = &operation->places;
    FOR_ROWS(in, p) {
        if (stopped(in->call, places->count * classes)) return;
        real *y = at(&to, p.t, p.b);
        for (size_t i = 0; i < places->count; ++i, y += classes) {
            const size_t token = token_at(&x, p.t, p.b, (size_t)places->at[i], tokens);
            for (size_t j = 0; j < classes; ++j) y[j] = 0;
            if (token < classes) y[token] = 1;
        }
    }
}
