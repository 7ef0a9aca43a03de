/* view.h - where the rows of a value are, and which of them there are. A part of kernel.h. */

/* Row t of batch row b begins at base + t * t + b * b, or, of a held value, at `offset` of the state
 * of b. */
typedef struct {
    real *base;           /* of tokens int64_t, for token_at */
    ptrdiff_t t, b;       /* strides in elements */
    const size_t *later;  /* (B,) rows to skip of each batch row, or NULL: none */
    void *const *states;  /* (B,) of a held value, else NULL */
    size_t offset;
} view;

INLINE real *at(const view *a, size_t t, size_t b) {
    if (a->states) return (real *)a->states[b] + a->offset;
    if (a->later) t += a->later[b];
    return a->base + (ptrdiff_t)t * a->t + (ptrdiff_t)b * a->b;
}

/* Token i of a row of n tokens, which an input is; one outside [0, n) counts as 0. They were
 * checked, but they are the caller's: another thread may have written to them since, and must not
 * make a table be read beyond its end. */
INLINE size_t token_at(const view *a, size_t t, size_t b, size_t i, size_t n) {
    const int64_t *row = (const int64_t *)(const void *)a->base;
    const int64_t token =
        ((const volatile int64_t *)row)[(ptrdiff_t)t * a->t + (ptrdiff_t)b * a->b + (ptrdiff_t)i];
    return (uint64_t)token < n ? (size_t)token : 0;
}

/* Where the rows of this chunk of a value are. */
static void find_view(const run *in, size_t value, view *made) {
    const fl_running *call = in->call;
    const fl_value *v = call->model->program.value + value;
    const size_t first = v->first;
    if (v->place == FL_PLACE_stretch) v = call->model->program.value + v->number;
    const size_t n = v->number, B = call->B;
    const int held = v->line < 0;
    made->base = NULL;
    made->t = made->b = 0;
    made->later = NULL;
    made->states = NULL;
    switch (v->place) {
    case FL_PLACE_input: {
        if (!call->inputs) break; /* at the end of sequences, no input has a row */
        const fl_rows *rows = call->inputs + n;
        made->t = held ? 0 : rows->t;
        made->b = rows->b;
        const ptrdiff_t from =
            (ptrdiff_t)in->first * made->t + (ptrdiff_t)call->first_row * made->b;
        made->base = v->tokens ? (real *)(void *)((int64_t *)rows->data + from)
                              : (real *)rows->data + from + first;
        break;
    }
    case FL_PLACE_output: {
        const fl_rows *rows = call->outputs + n;
        const line_rows *given = in->given + n;
        made->t = held ? 0 : rows->t;
        made->b = rows->b;
        made->later = held ? NULL : given->of;
        made->base = (real *)rows->data + (ptrdiff_t)call->first_row * made->b +
                    (given->of ? 0 : (ptrdiff_t)given->rows * made->t) + first;
        break;
    }
    case FL_PLACE_buffer: {
        const fl_room *room = call->model->rooms + n;
        made->base =
            (real *)call->scratch + B * (call->cut->chunk * room->each + room->more) + first;
        made->t = held ? 0 : (ptrdiff_t)(B * v->count);
        made->b = (ptrdiff_t)v->count;
        break;
    }
    case FL_PLACE_state:
        made->states = call->states;
        made->offset = n + first;
        break;
    default: made->base = (real *)(uintptr_t)call->model->vectors[n] + first;
    }
}

INLINE view view_of(const run *in, size_t value) {
    view made;
    find_view(in, value, &made);
    return made;
}

/* Rows that batch row b has on a line. */
INLINE size_t rows_on(line_rows a, size_t b) { return a.of ? a.of[b] : a.rows; }

/* Where those rows of batch row b end that an operation runs over. */
INLINE size_t rows_end(const run *in, size_t b) {
    const size_t own = rows_on(*in->on, b), end = own < in->rows.end ? own : in->rows.end;
    return end > in->rows.first ? end : in->rows.first;
}

/* Whether batch row b has row t. */
INLINE int has_row(const run *in, size_t t, size_t b) { return !in->on->of || t < in->on->of[b]; }

/* A row of this rank's: number r of those of the operation, row t of batch row b. */
typedef struct {
    size_t r, t, b;
} cursor;

INLINE cursor skip_missing(const run *in, cursor p) {
    const size_t B = in->call->B;
    while (p.r < in->mine.end && !has_row(in, p.t, p.b)) {
        ++p.r;
        if (++p.b == B) p.b = 0, ++p.t;
    }
    return p;
}

INLINE cursor first_row(const run *in) {
    const size_t B = in->call->B, r = in->mine.first;
    cursor p = {r, in->rows.first, r};
    if (r >= B) p.t += r / B, p.b = r % B;
    return skip_missing(in, p);
}

INLINE cursor next_row(const run *in, cursor p) {
    ++p.r;
    if (++p.b == in->call->B) p.b = 0, ++p.t;
    return in->on->of ? skip_missing(in, p) : p;
}

/* Each of this rank's rows that there are, in order: p.t and p.b say which. */
#define FOR_ROWS(in, p)                                                                           \
    for (cursor p = first_row(in); p.r < (in)->mine.end; p = next_row(in, p))
