/* over_time.h - rows that are kept, and handed on later, fewer or more of them: window, delay, spread, and
 * the queues where lines meet. A part of kernel.h.
 */

/* An integer below `bound` that a state holds, and that a kernel must not trust to be one. */
INLINE size_t count_of(real count, size_t bound) {
    const size_t n = count >= 0 && count < (real)0x1p31 ? (size_t)count : 0;
    return n < bound ? n : 0;
}

INLINE real *state_of(const run *in, size_t b) { return in->call->states[b]; }
INLINE size_t numbers_of(const run *in, size_t value) {
    return in->call->model->program.value[value].count;
}
INLINE ptrdiff_t line_of_value(const run *in, size_t value) {
    return in->call->model->program.value[value].line;
}

/* A ring of a state: its rows (rows, count), of which the oldest is number `oldest`. */
typedef struct {
    real *data;
    size_t rows, count, oldest;
} ring;

INLINE ring ring_of(real *state, ptrdiff_t offset, ptrdiff_t oldest, size_t rows, size_t count) {
    ring made = {state + offset, rows, count, 0};
    if (rows > 1) made.oldest = count_of(state[oldest], rows);
    return made;
}

/* Row i, counted from the oldest. */
INLINE real *ring_row(const ring *a, size_t i) {
    const size_t at = a->oldest + i;
    return a->data + (at < a->rows ? at : at - a->rows) * a->count;
}

/* A stream of rows as it is read: those kept of before, rows -kept.rows to -1, and new ones, from
 * row 0 on. */
typedef struct {
    ring kept;
    view x;
    size_t b, first, rows;  /* new ones: rows [first, first + rows) of x */
    ptrdiff_t start;        /* its first row of all; those before are no rows of it */
    vec fill;               /* stands for what is no row */
} history;

/* Row i, which there is, and in `together` how many rows follow it without a gap. */
INLINE const real *history_row(const history *h, ptrdiff_t i, size_t *together) {
    const size_t count = h->kept.count;
    if (i >= 0) {
        *together = h->x.t == (ptrdiff_t)count ? h->rows - (size_t)i : 1;
        return at(&h->x, h->first + (size_t)i, h->b);
    }
    const size_t rows = h->kept.rows, before = (size_t)-i, from = h->kept.oldest + rows - before;
    const size_t slot = from < rows ? from : from - rows;
    *together = rows - slot < before ? rows - slot : before;
    return h->kept.data + slot * count;
}

/* Put row i and each `step`-th behind it, n of them, one behind the other into y. */
static void put_rows(const history *h, ptrdiff_t i, size_t n, size_t step, real *y) {
    const size_t count = h->kept.count;
    while (n) {
        size_t together = 1;
        if (i < h->start || i < -(ptrdiff_t)h->kept.rows || i >= (ptrdiff_t)h->rows) {
            for (size_t at = 0; at < count; at += L)
                store_left(y + at, h->fill, lanes_left(count, at));
        } else {
            const real *x = history_row(h, i, &together);
            if (step > 1) together = 1;
            if (together > n) together = n;
            memcpy(y, x, together * count * sizeof(real));
        }
        y += together * count;
        i += (ptrdiff_t)(together * step);
        n -= together;
    }
}

/* Keep the last rows, of those kept and the new ones, as many as there are kept. */
static void keep_rows(const history *h, real *state, ptrdiff_t oldest) {
    const size_t rows = h->kept.rows, count = h->kept.count;
    if (!rows || !h->rows) return;
    ring kept = h->kept;
    kept.oldest = (kept.oldest + h->rows) % rows;
    for (size_t i = h->rows > rows ? h->rows - rows : 0; i < h->rows; ++i)
        memmove(ring_row(&kept, rows - (h->rows - i)), at(&h->x, h->first + i, h->b),
                count * sizeof(real));
    if (rows > 1) state[oldest] = (real)kept.oldest;
}

/* ---- Window ---- */

INLINE size_t reach_of(const fl_window *w) { return w->dilation * (w->size - 1); }

/* From this many rows on only what is left of a stride matters. */
INLINE size_t enough_rows(const fl_window *w) {
    return reach_of(w) + w->ahead + w->stride + (size_t)(w->before < 0 ? -w->before : w->before) +
           (size_t)(w->behind < 0 ? -w->behind : w->behind);
}

/* Rows that a stream has read, as far as anything depends on it; where nothing does, those kept. A
 * state that was put there may have counted them all. */
INLINE size_t rows_read(const fl_window *w, const real *state) {
    if (w->rows < 0) return reach_of(w) + w->ahead;
    const size_t enough = enough_rows(w), n = count_of(state[w->rows], 16777216);
    return n < enough + w->stride ? n : enough + (n - enough) % w->stride;
}

/* Rows of y that a stream of n rows has given, or with those behind its end all of them. */
INLINE size_t windows_of(const fl_window *w, size_t n, ptrdiff_t behind) {
    const ptrdiff_t seen = (ptrdiff_t)(n + w->stride) + behind + w->before -
                           (ptrdiff_t)(w->ahead + reach_of(w) + 1);
    return n && seen > 0 ? (size_t)seen / w->stride : 0;
}

/* Rows of y that come with `steps` rows more. */
INLINE size_t more_windows(const fl_window *w, const real *state, size_t steps, int ends) {
    const size_t n = rows_read(w, state), before = windows_of(w, n, 0);
    const size_t after = windows_of(w, n + steps, ends ? w->behind : 0);
    return after > before ? after - before : 0;
}

/* The rows that a window reads of batch row b. */
static history window_history(const run *in, const fl_window *w, view x, size_t b) {
    real *state = state_of(in, b);
    const size_t kept = reach_of(w) + w->ahead;
    history h = {ring_of(state, w->ring, w->position, kept, numbers_of(in, w->x)), x, b,
                 0, 0, -(ptrdiff_t)kept, v_set1((real)w->fill)};
    if (line_of_value(in, w->x) == line_of_value(in, w->y)) {
        h.first = in->rows.first;
        h.rows = rows_end(in, b) - in->rows.first;
    } else {
        h.rows = rows_on(in->lines[line_of_value(in, w->x)], b);
    }
    if (w->rows >= 0) h.start = -(ptrdiff_t)rows_read(w, state);
    return h;
}

static void run_window(const run *in, const fl_window *w) {
    const fl_running *call = in->call;
    const view x = view_of(in, w->x), y = view_of(in, w->y);
    const int takes_part = in->by != BY_RANK_0 || call->rank == 0;
    const size_t work = ROW_WORK * numbers_of(in, w->y);
    if (takes_part) {
        FOR_ROWS(in, p) {
            const history h = window_history(in, w, x, p.b);
            const size_t n = rows_read(w, state_of(in, p.b));
            const size_t j = windows_of(w, n, 0) + p.t - in->rows.first;
            if (stopped(call, work)) return;
            put_rows(&h, (ptrdiff_t)(j * w->stride) - w->before - (ptrdiff_t)n, w->size, w->dilation,
                     at(&y, p.t, p.b));
        }
    }
    meet(call); /* all have read the state */
    for (size_t b = 0; b < call->B && call->rank == 0; ++b) {
        real *state = state_of(in, b);
        const history h = window_history(in, w, x, b);
        const size_t enough = enough_rows(w), n = rows_read(w, state) + h.rows;
        keep_rows(&h, state, w->position);
        if (w->rows >= 0)
            state[w->rows] = (real)(n < enough ? n : enough + (n - enough) % w->stride);
    }
}

/* ---- Delay, and its halves ---- */

static void run_delay(const run *in, const fl_delay *d) {
    const view x = view_of(in, d->x), y = view_of(in, d->y);
    const size_t count = numbers_of(in, d->x), steps = d->steps;
    for (size_t b = 0; b < in->call->B; ++b) {
        real *state = state_of(in, b);
        const size_t first = in->rows.first, rows = rows_end(in, b) - first;
        const history h = {ring_of(state, d->ring, d->position, steps, count), x, b, first, rows,
                           -(ptrdiff_t)steps, v_set1(0)};
        for (size_t t = 0; t < rows; ++t) {
            if (stopped(in->call, ROW_WORK * count)) return;
            put_rows(&h, (ptrdiff_t)t - (ptrdiff_t)steps, 1, 1, at(&y, first + t, b));
        }
        keep_rows(&h, state, d->position);
    }
}

static void run_recall(const run *in, const fl_recall *r) {
    const view y = view_of(in, r->y);
    const size_t count = numbers_of(in, r->y);
    FOR_ROWS(in, p) {
        const ring kept = ring_of(state_of(in, p.b), r->ring, r->position, r->steps, count);
        memmove(at(&y, p.t, p.b), ring_row(&kept, 0), count * sizeof(real));
    }
}

static void run_remember(const run *in, const fl_remember *r) {
    const view x = view_of(in, r->x);
    const size_t count = numbers_of(in, r->x);
    FOR_ROWS(in, p) {
        real *state = state_of(in, p.b);
        const history h = {ring_of(state, r->ring, r->position, r->steps, count), x, p.b, p.t, 1,
                           0, v_set1(0)};
        keep_rows(&h, state, r->position);
    }
}

/* ---- Spread ---- */

static void run_spread(const run *in, const fl_spread *s) {
    const view x = view_of(in, s->x), y = view_of(in, s->y);
    const size_t count = numbers_of(in, s->y);
    FOR_ROWS(in, p) {
        if (stopped(in->call, ROW_WORK * count)) return;
        memcpy(at(&y, p.t, p.b),
               at(&x, p.t / s->times, p.b) + p.t % s->times * s->stride, count * sizeof(real));
    }
}

/* ---- Meet ---- */

/* Rows of read i that wait in its queue. */
INLINE size_t waiting_of(const fl_meet *m, size_t i, const real *state) {
    const size_t capacity = (size_t)m->capacities.at[i];
    return capacity ? count_of(state[(size_t)m->heads + 2 * i + 1], capacity + 1) : 0;
}

/* Rows that all reads have of batch row b. */
static size_t rows_met(const run *in, const fl_meet *m, size_t b) {
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < m->reads.count; ++i) {
        const line_rows on = in->lines[line_of_value(in, (size_t)m->reads.at[i])];
        const size_t rows = waiting_of(m, i, state_of(in, b)) + rows_on(on, b);
        if (rows < least) least = rows;
    }
    return least;
}

/* Hand on the first `rows` rows of those of read i that wait and the new ones; the others wait. */
static void meet_read(const run *in, const fl_meet *m, size_t i, size_t b, size_t rows) {
    const size_t value = (size_t)m->reads.at[i], capacity = (size_t)m->capacities.at[i];
    const size_t count = numbers_of(in, value), waiting = waiting_of(m, i, state_of(in, b));
    const view x = view_of(in, value), y = view_of(in, (size_t)m->ys.at[i]);
    const size_t come = rows_on(in->lines[line_of_value(in, value)], b);
    const ptrdiff_t head = m->heads + 2 * (ptrdiff_t)i;
    real *state = state_of(in, b);
    ring queue = ring_of(state, (ptrdiff_t)m->queues.at[i], head, capacity, count);
    for (size_t t = 0; t < rows; ++t) {
        if (stopped(in->call, ROW_WORK * count)) return;
        memcpy(at(&y, t, b), t < waiting ? ring_row(&queue, t) : at(&x, t - waiting, b),
               count * sizeof(real));
    }
    if (!capacity) return;
    queue.oldest = (queue.oldest + rows) % capacity;
    /* In a state that no stream can have there may be more than there is room for. */
    size_t left = waiting + come - rows;
    if (left > capacity) left = capacity;
    for (size_t j = waiting > rows ? waiting - rows : 0; j < left; ++j)
        memcpy(ring_row(&queue, j), at(&x, rows + j - waiting, b), count * sizeof(real));
    if (capacity > 1) state[head] = (real)queue.oldest;
    state[head + 1] = (real)left;
}

static void run_meet(const run *in, const fl_meet *m) {
    meet(in->call); /* all have counted the rows */
    for (size_t b = 0; b < in->call->B && in->call->rank == 0; ++b)
        for (size_t i = 0; i < m->reads.count; ++i)
            meet_read(in, m, i, b, rows_on(*in->on, b));
}

/* ---- Start ---- */

static void run_start(const run *in, const fl_start *s) {
    const view x = view_of(in, s->x);
    const size_t count = numbers_of(in, s->x);
    for (size_t b = 0; b < in->call->B; ++b)
        memmove(state_of(in, b) + s->offset, at(&x, 0, b), count * sizeof(real));
}
