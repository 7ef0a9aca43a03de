/* recurrent.h - a recurrence over the rows of a chunk: along time, each position of each batch
 * row with a state of its own, or along the positions of each row, anew in each. A part of
 * kernel.h.
 *
 * What runs is the same: tracks that go through steps side by side, a tile of them at a time.
 * The ranks share the panels of a cell: each makes its own of every step, and all meet after it,
 * as they all read the whole h next.
 */

/* One of the recurrences that run side by side: a position of a batch row, or of any row. */
typedef struct {
    const real *x;       /* (input_size,) of step 0, */
    real *y;             /* and where its h (h_size,) goes */
    const real *h;       /* (h_size,) after the last step that counted */
    const real *held;    /* (h_size,) the last output, where there is a mask */
    real *c;             /* (hidden_size,), LSTM only; advanced in place */
    const real *mask;    /* number of step 0, or NULL */
    real *state;         /* of the stream, along time */
    const real *from_h;  /* (P, G, L) the product of h of its one step, made before, or NULL */
    size_t steps;        /* that it has */
    size_t t, b, place;  /* row, and number in it, of its first token */
    size_t index;        /* position, along time */
} track;

_Static_assert(sizeof(track) <= FL_TRACK_BYTES, "scratch.h reserves what a track takes");
_Static_assert(sizeof(row) == FL_ROW_BYTES, "scratch.h reserves what a row takes");

/* Tracks [0, n) over steps [0, S), with what all of them have in common. */
typedef struct {
    const run *in;
    cell of;
    view x, y;
    int ragged;                           /* not all tracks have all steps */
    int masks_each;                       /* a mask has a number for each position and step */
    size_t n, S;
    ptrdiff_t x_step, y_step, mask_step;  /* from one step to the next */
    track *tracks;
    row *rows;                            /* fl_tile_structs */
    const real *zeros;                    /* (h_size,), along positions */
    real *shared;                         /* what scratch.h says of a tile */
    fl_tile tile;
    range panels;                         /* of this rank */
} tracks;

INLINE int writes(const run *in) { return in->by != BY_PANELS || in->call->rank == 0; }

/* Row r of the inputs of steps [first, ...) of all tracks, step by step. */
INLINE const real *input_of(const tracks *a, size_t first, size_t r) {
    const size_t step = a->n == 1 ? r : r / a->n, i = a->n == 1 ? 0 : r % a->n;
    return a->tracks[i].x + (ptrdiff_t)(first + step) * a->x_step;
}

/* By a BLAS, if the rows [from, R) from step `first` on lie evenly and are many: the one place
 * where one may be used. It sums in an order of its own, so a result then depends on how a
 * sequence is cut into calls; in blocks, as its sums may be as long as it likes. */
static int project_by_gemm(const tracks *a, size_t first, size_t from, size_t R, real *gates) {
    enum { BLOCK = 8 * K_BLOCK };
    const fl_running *call = a->in->call;
    const fl_panels *matrix = &a->of.packed->gates;
    const size_t panel = matrix->groups * L, width = a->tile.width, I = a->of.packed->input_rows;
    const size_t least = GEMM_ROWS, n = R - from;
    if (!call->gemm || !least || n < least || matrix->stored != FL_STORED_real) return 0;
    const real *x = input_of(a, first, from);
    const ptrdiff_t x_stride = input_of(a, first, from + 1) - x;
    if (x_stride <= 0 || x_stride > INT32_MAX || width > INT32_MAX) return 0; /* it counts in int */
    for (size_t r = 1; r < n; ++r)
        if (input_of(a, first, from + r) != x + (ptrdiff_t)r * x_stride) return 0;
    for (size_t p = a->panels.first; p < a->panels.end; ++p) {
        const real *w = (const real *)matrix->weights + p * matrix->stride;
        real *to = gates + from * width + p * panel;
        if (stopped(call, n * matrix->stride)) return 1;
        for (size_t r = 0; r < n; ++r)
            memcpy(to + r * width, (const real *)matrix->bias + p * panel, panel * sizeof(real));
        for (size_t k = 0; k < I; k += BLOCK)
            call->gemm(n, panel, I - k < BLOCK ? I - k : BLOCK, x + k, (size_t)x_stride,
                       w + k * panel, to, width);
    }
    return 1;
}

/* gates (R, P, G, L) = bias + W x, of this rank's panels, for the rows [from, R) of the inputs
 * of all tracks from step `first` on. */
static void project(const tracks *a, size_t first, size_t from, size_t R, real *gates) {
    const fl_panels *matrix = &a->of.packed->gates;
    const size_t most = fl_tile_structs(a->n), width = a->tile.width;
    product made;
    if (from == R || project_by_gemm(a, first, from, R, gates)) return;
    fill_product(&made, matrix, a->panels, a->of.packed->input_rows, width, a->of.int8,
                 a->of.x_twins);
    for (size_t r = from; r < R; r += most) {
        const size_t n = R - r < most ? R - r : most;
        for (size_t i = 0; i < n; ++i) {
            const row each = {matrix->bias, NULL, input_of(a, first, r + i), NULL, NULL,
                              gates + (r + i) * width, NULL};
            a->rows[i] = each;
        }
        if (stopped(a->in->call, n * (a->panels.end - a->panels.first) * matrix->stride)) return;
        multiply(&made, a->rows, n, 0);
    }
}

/* One step of n rows of PyTorch's cells, this rank's panels of it. `later` has blocks only for a
 * single row of an LSTM or GRU. */
INLINE void plain_step(cell a, const row *rows, size_t n, share mine, ahead *later) {
    const int of_int8 = a.packed->gates.stored == FL_STORED_int8 && n;
    if (of_int8) {
        a.h_twins = a.x_twins + n * fl_twin_bytes(a.packed->input_rows);
        if (rows->x) make_twins(rows, n, 0, a.packed->input_rows, a.x_twins);
        make_twins(rows, n, 1, a.is->h_size, a.h_twins);
        begin_int8(a.int8, n);
    }
    switch (a.is->cell) {
    case FL_CELL_lstm: lstm_step(a, rows, n, mine, later); break;
    case FL_CELL_gru: gru_step(a, rows, n, mine, later); break;
    default: rnn_step(a, rows, n, mine); break;
    }
    if (of_int8) end_int8(a.int8, n);
}

/* The same of any cell. `spare` has room for as many rows. */
static void step_of_kind(const tracks *a, const row *rows, row *spare, size_t n, share mine,
                         ahead *later) {
    if (!a->of.packed->variant) {
        plain_step(a->of, rows, n, mine, later);
        return;
    }
    const variant_step made = {a->in, a->of, rows, spare, n, *mine.panels,
                               a->of.packed->gates.groups, a->tile.width,
                               a->shared + a->tile.variant};
    if (a->of.is->cell == FL_CELL_lstm) lstm_variant(&made);
    else gru_variant(&made);
}

/* The same, where h goes through a projection on its way to y. */
static void cell_step(const tracks *a, row *rows, size_t n, share mine, ahead *later) {
    const fl_panels *projection = &a->of.packed->projection;
    row *projected = rows + n, *spare = projected + n;
    if (!projection->weights) {
        step_of_kind(a, rows, spare, n, mine, later);
        return;
    }
    const size_t H = a->of.is->hidden_size;
    real *hidden = a->shared + a->tile.hidden;
    product made;
    fill_product(&made, projection, panels_of(a->in, projection->panels), H, a->of.is->h_size,
                 a->of.int8, a->of.x_twins);
    for (size_t i = 0; i < n; ++i) {
        const row each = {projection->bias, NULL, hidden + i * H, NULL, NULL, rows[i].y, NULL};
        projected[i] = each;
        rows[i].y = hidden + i * H;
    }
    step_of_kind(a, rows, spare, n, mine, later);
    meet_panels(a->in);
    multiply(&made, projected, n, mine.back);
}

/* The input product of token i of row t of batch row b. */
INLINE const real *product_of_token(const fl_cell *packed, const view *x, size_t t, size_t b,
                                    size_t i) {
    const size_t width = packed->gates.panels * packed->gates.groups * L;
    return (const real *)packed->table + token_at(x, t, b, i, packed->tokens) * width;
}

/* The rows of step t, whose tracks move on to it: those of tracks that have it and are not held.
 * gates (n, P, G, L) are its input projections, or NULL. */
static size_t gather(const tracks *a, size_t t, const real *gates) {
    const fl_cell *packed = a->of.packed;
    const int along = a->of.is->along_positions;
    size_t n = 0, made = 0;
    for (size_t i = 0; i < a->n; ++i) {
        track *k = a->tracks + i;
        if (t >= k->steps) continue;
        real *y = k->y + (ptrdiff_t)t * a->y_step;
        if (k->mask && k->mask[(ptrdiff_t)t * a->mask_step] == 0) {
            if (writes(a->in)) memcpy(y, k->held, a->of.is->h_size * sizeof(real));
            continue;
        }
        row *r = a->rows + n;
        r->init = gates ? gates + i * a->tile.width : packed->gates.bias;
        r->table = !packed->table ? NULL
                   : along        ? product_of_token(packed, &a->x, k->t, k->b, k->place + t)
                                  : product_of_token(packed, &a->x, k->t + t, k->b, k->place);
        r->x = gates || packed->table ? NULL : k->x + (ptrdiff_t)t * a->x_step;
        r->h = k->h;
        r->c = k->c;
        r->y = y;
        r->from_h = k->from_h;
        k->h = k->held = y;
        put_in_order(a->rows, n++, &made);
    }
    return n;
}

/* c of step t, as far as it is in this rank's panels, also goes to the output. */
static void give_c(const tracks *a, size_t t) {
    const size_t H = a->of.is->hidden_size, first = a->panels.first * L;
    const size_t end = a->panels.end * L < H ? a->panels.end * L : H;
    const ptrdiff_t apart = a->of.is->c_column - (ptrdiff_t)a->of.is->h_column;
    for (size_t i = 0; i < a->n && first < end; ++i) {
        const track *k = a->tracks + i;
        if (t >= k->steps) continue;
        memcpy(k->y + (ptrdiff_t)t * a->y_step + apart + (ptrdiff_t)first, k->c + first,
               (end - first) * sizeof(real));
    }
}

/* All tracks over the steps [first, first + steps), from their input projections gates (steps, n, P, G, L)
 * or NULL; 0: the call stops. Panels are taken as `back` says in the first, then the other way. */
INLINE int take_steps(const tracks *a, size_t first, size_t steps, int back, const real *gates,
                      ahead *later) {
    const fl_recurrent *is = a->of.is;
    const fl_panels *matrix = &a->of.packed->gates;
    for (size_t s = 0; s < steps; ++s) {
        const size_t i = is->reverse ? steps - 1 - s : s;
        const share mine = {&a->panels, back ^ (int)(s & 1)};
        const size_t n = gather(a, first + i, gates ? gates + i * a->n * a->tile.width : NULL);
        cell_step(a, a->rows, n, mine, later);
        if (is->c_column >= 0) give_c(a, first + i);
        meet_panels(a->in);
        if (stopped(a->in->call,
                    n * (matrix->panels * matrix->stride + ROW_WORK * is->hidden_size)))
            return 0;
    }
    return 1;
}

/* All tracks over all steps, `part` of them after the other; 0: the call stops. The input projection
 * of a part is made before it is scanned, or on the side of the part before it. */
static int scan_parts(const tracks *a, size_t part) {
    const run *in = a->in;
    const fl_recurrent *is = a->of.is;
    const fl_cell *packed = a->of.packed;
    const size_t I = packed->input_rows, n = a->n, S = a->S;
    const int on_the_side = AHEAD && n == 1 && is->mask < 0 && !packed->variant &&
                            packed->gates.stored == FL_STORED_real &&
                            is->cell != FL_CELL_rnn && I >= K_BLOCK && I <= K_LEVEL &&
                            a->panels.end > a->panels.first;
    if (part > S) part = S;
    real *gates = a->shared + a->tile.gates, *next = gates + part * n * a->tile.width;
    size_t ready = 0; /* rows of this part that were projected on the side of the one before */
    for (size_t done = 0; done < S; done += part) {
        const size_t left = S - done, steps = left < part ? left : part;
        const size_t first = is->reverse ? left - steps : done;
        const size_t after = left - steps < part ? left - steps : part;
        ahead later = {NULL, a->x_step, next, a->panels, 0, 0, a->panels.first, 0};
        if (on_the_side) {
            later.x = input_of(a, is->reverse ? first - after : first + steps, 0);
            later.blocks = after / (AHEAD ? AHEAD : 1);
        }
        project(a, first, ready, steps * n, gates);
        ready = later.blocks * AHEAD;
        if (!take_steps(a, first, steps, in->back ^ (int)(done & 1), gates, &later)) return 0;
        if (on_the_side) {
            real *scanned = gates;
            gates = next;
            next = scanned;
        }
    }
    return 1;
}

/* An input of fewer rows is multiplied within the step: its product would be longer than itself. */
enum { LEAST_INPUT_ROWS = 8 };

/* All tracks over all steps; 0: the call stops. Tracks of various lengths take what projection they
 * need step by step. */
static int scan(const tracks *a) {
    if (a->S > 1 && a->of.packed->input_rows >= LEAST_INPUT_ROWS && !a->ragged) {
        const size_t part = fl_gate_rows(a->tile.width, sizeof(real)) / a->n;
        if (part > 1) return scan_parts(a, part);
    }
    return take_steps(a, 0, a->S, a->in->back, NULL, NULL);
}

/* A row of a value that few recurrences read. */
static const real *numbers_at(const tracks *a, size_t value, size_t t, size_t b) {
    const view rows = view_of(a->in, value);
    return at(&rows, t, b);
}

/* A track begins with step 0 of position p in row t of batch row b. */
INLINE track *begin_track(tracks *a, size_t t, size_t b, size_t p) {
    const fl_recurrent *is = a->of.is;
    const size_t place = p * is->steps;
    track *k = a->tracks + a->n;
    k->x = a->of.packed->table ? NULL : at(&a->x, t, b) + place * is->input_size;
    k->y = at(&a->y, t, b) + place * is->width + is->h_column;
    k->mask = is->mask < 0 ? NULL
                           : numbers_at(a, (size_t)is->mask, t, b) + (a->masks_each ? place : 0);
    k->t = t;
    k->b = b;
    k->place = place;
    k->index = p;
    ++a->n;
    return k;
}

/* The state that track k has along time, or where its steps start along positions. c is made by
 * each rank as far as it is in its panels. */
INLINE void begin_in_state(const tracks *a, track *k) {
    const fl_recurrent *is = a->of.is;
    real *state = a->in->call->states[k->b];
    k->state = state;
    k->h = state + is->h + k->index * is->h_size;
    k->c = is->c < 0 ? NULL : state + is->c + k->index * is->hidden_size;
    k->held = is->held < 0 ? NULL : state + is->held + k->index * is->h_size;
    k->from_h = a->in->rows.end - a->in->rows.first == 1
                    ? prepared_of(a->in->call, a->of.packed, k->b, k->index)
                    : NULL;
}

static void begin_anew(const tracks *a, track *k) {
    const fl_recurrent *is = a->of.is;
    const fl_cell *packed = a->of.packed;
    const size_t H = is->hidden_size, first = a->panels.first * L;
    const size_t end = a->panels.end * L < H ? a->panels.end * L : H;
    const real *c = packed->c_0;
    k->h = packed->h_0 ? packed->h_0 : a->zeros;
    k->held = a->zeros;
    k->from_h = NULL;
    if (is->start_h >= 0)
        k->h = numbers_at(a, (size_t)is->start_h, k->t, k->b) + k->index * is->h_size;
    if (is->start_c >= 0) c = numbers_at(a, (size_t)is->start_c, k->t, k->b) + k->index * H;
    k->c = a->shared + a->tile.c + (size_t)(k - a->tracks) * packed->gates.panels * L;
    if (is->cell != FL_CELL_lstm || first >= end) return;
    if (c) memcpy(k->c + first, c + first, (end - first) * sizeof(real));
    else memset(k->c + first, 0, (end - first) * sizeof(real));
}

/* Put where the tracks have come to into their states. All ranks have met since it was written. */
static void keep_states(const tracks *a) {
    const fl_recurrent *is = a->of.is;
    if (!writes(a->in)) return;
    for (size_t i = 0; i < a->n; ++i) {
        const track *k = a->tracks + i;
        real *h = k->state + is->h + k->index * is->h_size;
        if (k->h == h) continue;
        put_run(k->h, 1, h, is->h_size);
        if (is->held >= 0)
            put_run(k->h, 1, k->state + is->held + k->index * is->h_size, is->h_size);
    }
}

/* Along time: the tracks are positions of batch rows, steps the rows of the chunk. */
static void scan_time(tracks *a, size_t room) {
    const run *in = a->in;
    const fl_recurrent *is = a->of.is;
    const size_t B = in->call->B, first = in->rows.first, all = in->rows.end - first;
    size_t least = all;
    for (size_t b = 0; b < B; ++b) {
        const size_t steps = rows_end(in, b) - first;
        for (size_t p = 0; p < is->positions; ++p) {
            track *k = begin_track(a, first, b, p);
            begin_in_state(a, k);
            k->steps = steps;
            if (steps > a->S) a->S = steps;
            if (steps < least) least = steps;
            if (a->n < room && (b + 1 < B || p + 1 < is->positions)) continue;
            a->ragged = least < a->S;
            if (!scan(a)) return;
            keep_states(a);
            a->n = a->S = 0;
            least = all;
        }
    }
}

/* Whether step_time may do what scan_time does: one step, which all have, of PyTorch's cells. */
INLINE int is_one_step(const run *in, const fl_recurrent *is, const fl_cell *packed) {
    return in->rows.end - in->rows.first == 1 && !in->on->of && !is->along_positions &&
           is->mask < 0 && is->c_column < 0 && !packed->projection.weights && !packed->variant;
}

/* Along time, one step: its rows, without what a track takes on to the next step. No struct is given
 * or taken as a whole: one that is written in parts and read in one piece must reach the cache in
 * between, behind all that the step before still has to write. */
static __attribute__((noinline)) void step_time(const run *in, const fl_recurrent *is,
                                                size_t room) {
    const fl_running *call = in->call;
    const fl_cell *packed = &in->packed->recurrent;
    row *rows = own_scratch(call);
    const cell of = {is, packed, (char *)rows + fl_twins_at(is, room, sizeof(real)), NULL,
                     &call->model->kernel->int8};
    const size_t B = call->B, t = in->rows.first, P = is->positions;
    const range panels = panels_of(in, packed->gates.panels);
    const share mine = {&panels, in->back};
    view x, y;
    find_view(in, is->x, &x);
    find_view(in, is->y, &y);
    for (size_t b = 0, p = 0; b < B;) {
        const size_t first = b * P + p;
        size_t n = 0;
        for (; n < room && b < B; ++n) {
            real *state = call->states[b];
            row *r = rows + n;
            r->init = packed->gates.bias;
            r->table = packed->table ? product_of_token(packed, &x, t, b, p) : NULL;
            r->x = packed->table ? NULL : at(&x, t, b) + p * is->input_size;
            r->h = state + is->h + p * is->h_size;
            r->c = is->c < 0 ? NULL : state + is->c + p * is->hidden_size;
            r->y = at(&y, t, b) + p * is->width + is->h_column;
            r->from_h = NULL;
            if (++p == P) p = 0, ++b;
        }
        if (call->prepared) read_prepared(call, of, first, rows, n);
        plain_step(of, rows, n, mine, NULL);
        meet_panels(in);
        if (stopped(call, n * (packed->gates.panels * packed->gates.stride +
                               ROW_WORK * is->hidden_size)))
            return;
        for (size_t i = 0; i < n && writes(in); ++i)
            put_run(rows[i].y, 1, (real *)(uintptr_t)rows[i].h, is->h_size);
    }
}

/* Along positions: the tracks are rows of the chunk, and of each all that the axes before leave. */
static void scan_positions(tracks *a, size_t room) {
    const run *in = a->in;
    const fl_recurrent *is = a->of.is;
    a->S = is->steps;
    FOR_ROWS(in, r) {
        for (size_t p = 0; p < is->positions; ++p) {
            track *k = begin_track(a, r.t, r.b, p);
            begin_anew(a, k);
            k->steps = is->steps;
            if (a->n < room) continue;
            if (!scan(a)) return;
            a->n = 0;
        }
    }
    if (a->n) scan(a);
}

/* All steps of a chunk, up to `room` tracks at a time. */
static __attribute__((noinline)) void scan_chunk(const run *in, const fl_recurrent *is,
                                                 size_t room) {
    const fl_running *call = in->call;
    const fl_cell *packed = &in->packed->recurrent;
    const int along = is->along_positions;
    tracks a;
    a.in = in;
    a.of.is = is;
    a.of.packed = packed;
    find_view(in, is->x, &a.x);
    find_view(in, is->y, &a.y);
    a.tracks = own_scratch(call);
    a.rows = (row *)(a.tracks + room);
    a.of.x_twins = (char *)a.tracks + fl_twins_at(is, room, sizeof(real));
    a.of.h_twins = NULL;
    a.of.int8 = &call->model->kernel->int8;
    a.shared = shared_scratch(call);
    a.tile = fl_tile_of(is, packed, L, sizeof(real), room, 0);
    a.panels = panels_of(in, packed->gates.panels);
    a.ragged = 0;
    a.n = a.S = 0;
    a.x_step = along ? (ptrdiff_t)is->input_size : a.x.t;
    a.y_step = along ? (ptrdiff_t)is->width : a.y.t;
    a.mask_step = a.masks_each = 0;
    if (is->mask >= 0) {
        a.masks_each = call->model->program.value[is->mask].count > 1;
        a.mask_step = along ? a.masks_each : view_of(in, (size_t)is->mask).t;
    }
    a.zeros = NULL;
    if (along) {
        real *zeros = (real *)(a.rows + fl_tile_structs(room));
        memset(zeros, 0, is->h_size * sizeof(real));
        a.zeros = zeros;
        scan_positions(&a, room);
    } else {
        scan_time(&a, room);
    }
}

static void run_recurrent(const run *in, const fl_recurrent *is) {
    const size_t rows = is->along_positions ? in->mine.end - in->mine.first : in->call->B;
    const size_t room = fl_tile_rows(rows, is->positions);
    if (!room) return;
    if (is_one_step(in, is, &in->packed->recurrent)) step_time(in, is, room);
    else scan_chunk(in, is, room);
}
