/* run_template.h - a call: its layers one after the other, a chunk of steps at a time.
 *
 * A part of cells_template.h, which includes it with its definitions in place.
 */

/* Rows of a chunk: x (R,) and y (R,) are pointers to its input and output rows, r = t * B + b. */
typedef struct {
    const fl_call *call;
    const real *const *x;
    real *const *y;
    const int64_t *tokens;
    size_t steps;
    size_t turn;  /* number of its first step, counted over calls */
} chunk;

/* The ranks of a call share its buffers; the pointers to rows are each rank's own. */
static void *shared_at(const fl_call *call, size_t offset) {
    return (char *)call->scratch + offset;
}

static void *own_at(const fl_call *call, size_t offset) {
    return shared_at(call, call->cut->own + call->rank * call->cut->own_bytes + offset);
}

/* This rank's part of n panels or rows. A call alone is not made to wait for a division. */
static range part_of(size_t n, const fl_call *call) {
    range made = {0, n};
    if (call->ranks > 1) {
        made.first = n * call->rank / call->ranks;
        made.end = n * (call->rank + 1) / call->ranks;
    }
    return made;
}

/* Wait until all ranks are here, and see what they wrote. */
static void meet(const fl_call *call) {
    if (call->ranks > 1) fl_team_barrier(call->team, call->rank, call->ranks);
}

/* y[r] (y_size,) = bias + W x[r] for a range of rows, in a range of panels; y[r] lies at y_rows[r],
 * else at y + r * y_size. */
static void multiply_rows(const fl_call *call, const fl_panels *matrix, range panels, size_t x_size,
                          size_t y_size, const real *const *x_rows, real *const *y_rows, real *y,
                          range R) {
    row *rows = own_at(call, call->cut->cell_rows);
    product a = matrix_product(matrix, panels, x_size, y_size);
    size_t most = call->B > ROWS ? call->B : ROWS; /* the rows there is room for */
    for (size_t r = R.first; r < R.end; r += most) {
        size_t n = R.end - r < most ? R.end - r : most;
        for (size_t i = 0; i < n; ++i) {
            rows[i].init = matrix->bias;
            rows[i].table = NULL;
            rows[i].x = x_rows[r + i];
            rows[i].h = NULL;
            rows[i].y = y_rows ? y_rows[r + i] : y + (r + i) * y_size;
        }
        multiply(&a, matrix->groups, rows, n, 0);
    }
}

/* gates (R, P, G, L) = bias + W_ih x for R rows of x, in the panels given: the one place where a
 * BLAS may be used. It sums in an order of its own, so a result then depends on how a sequence is
 * cut into calls. */
static void project(const fl_call *call, const fl_cell *cell, range panels,
                    const real *const *x_rows, real *gates, size_t R) {
    const fl_panels *a = &cell->gates;
    size_t panel = a->groups * L, width = a->panels * panel;
    size_t x_stride = R > 1 ? (size_t)(x_rows[1] - x_rows[0]) : 0;
    const size_t least = GEMM_ROWS;
    int by_gemm = call->gemm && least && R >= least && x_rows[1] > x_rows[0] &&
                  x_stride <= INT32_MAX && width <= INT32_MAX; /* a BLAS counts in int */
    for (size_t r = 1; by_gemm && r < R; ++r) by_gemm = x_rows[r] == x_rows[0] + r * x_stride;
    if (!by_gemm) {
        const range all = {0, R};
        multiply_rows(call, a, panels, cell->input_rows, width, x_rows, NULL, gates, all);
        return;
    }
    for (size_t p = panels.first; p < panels.end; ++p) {
        for (size_t r = 0; r < R; ++r)
            memcpy(gates + r * width + p * panel, (const real *)a->bias + p * panel,
                   panel * sizeof(real));
        call->gemm(R, panel, cell->input_rows, x_rows[0], x_stride,
                   (const real *)a->weights + p * a->stride, gates + p * panel, width);
    }
}

/* One step of B rows of one direction, this rank's panels of it. An h that is projected goes
 * through `hidden` (B, H), and `projected` has room for B rows. `later` has blocks only for a
 * single row of an LSTM or GRU. */
static void cell_step(const fl_call *call, const fl_layer *layer, const fl_cell *cell, row *rows,
                      row *projected, share mine, ahead *later) {
    const size_t B = call->B;
    if (layer->kind == FL_RNN) {
        product a = {cell->gates.weights, cell->gates.stride, mine.panels, cell->input_rows,
                     cell->h_size, cell->hidden_size, layer->function};
        multiply(&a, cell->gates.groups, rows, B, mine.back);
    } else if (layer->kind == FL_GRU) {
        gru_step(cell, rows, B, mine, later);
    } else if (!cell->projection.weights) {
        lstm_step(cell, rows, B, mine, later);
    } else {
        real *hidden = shared_at(call, call->cut->hidden);
        product a = matrix_product(&cell->projection, part_of(cell->projection.panels, call),
                                   cell->hidden_size, cell->h_size);
        for (size_t b = 0; b < B; ++b) {
            projected[b].init = cell->projection.bias;
            projected[b].table = NULL;
            projected[b].x = hidden + b * cell->hidden_size;
            projected[b].h = NULL;
            projected[b].y = rows[b].y;
            rows[b].y = hidden + b * cell->hidden_size;
        }
        lstm_step(cell, rows, B, mine, later);
        meet(call);
        multiply(&a, cell->projection.groups, projected, B, mine.back);
    }
}

/* An input of fewer rows is multiplied within the step: its product would be longer than itself. */
enum { LEAST_INPUT_ROWS = 8 };

/* One direction of one recurrent layer over a chunk, a part of it after the other. The input
 * projection of a part is made before it is scanned, or on the side of the part before it. Each
 * rank makes and scans its own panels; all meet after every step, whose h they all read next. */
static void recur(const fl_layer *layer, const fl_cell *cell, const chunk *in, int backwards) {
    const fl_call *call = in->call;
    const size_t B = call->B, width = cell->gates.panels * cell->gates.groups * L;
    const range panels = part_of(cell->gates.panels, call);
    const int projects = cell->input_rows >= LEAST_INPUT_ROWS && call->cut->gate_steps > 1 &&
                         in->steps > 1;
    const int on_the_side = AHEAD && projects && B == 1 && layer->kind != FL_RNN &&
                            cell->input_rows >= K_BLOCK && panels.end > panels.first;
    const size_t part = projects ? call->cut->gate_steps : in->steps;
    row *rows = own_at(call, call->cut->cell_rows);
    real *gates = shared_at(call, call->cut->gates);
    real *next = projects ? gates + part * B * width : gates;
    size_t ready = 0; /* rows of this part that were projected on the side of the one before */
    for (size_t done = 0; done < in->steps; done += part) {
        const size_t left = in->steps - done, steps = left < part ? left : part;
        const size_t first = backwards ? left - steps : done; /* step of the chunk */
        const size_t after = left - steps < part ? left - steps : part;
        ahead later = {in->x + (backwards ? first - after : first + steps), next, panels, 0, 0,
                       panels.first, 0};
        if (on_the_side) later.blocks = after / (AHEAD ? AHEAD : 1);
        if (projects)
            project(call, cell, panels, in->x + first * B + ready, gates + ready * width,
                    steps * B - ready);
        ready = later.blocks * AHEAD;
        for (size_t s = 0; s < steps; ++s) {
            const size_t t = backwards ? first + steps - 1 - s : first + s;
            const share mine = {panels, (int)((in->turn + done + s) & 1)};
            for (size_t b = 0; b < B; ++b) {
                const size_t r = t * B + b, before = backwards ? r + B : r - B;
                real *state = call->state[b];
                rows[b].init = projects ? gates + (r - first * B) * width
                                        : (const real *)cell->gates.bias;
                rows[b].table = cell->table
                                    ? (const real *)cell->table + (size_t)in->tokens[r] * width
                                    : NULL;
                rows[b].x = projects || cell->table ? NULL : in->x[r];
                rows[b].h = done + s == 0 ? state + cell->h_offset : in->y[before] + cell->y_offset;
                rows[b].c = state + cell->c_offset;
                rows[b].y = in->y[r] + cell->y_offset;
            }
            cell_step(call, layer, cell, rows, rows + B, mine, &later);
            meet(call);
        }
        if (on_the_side) {
            real *scanned = gates;
            gates = next;
            next = scanned;
        }
    }
    for (size_t b = 0; b < B && call->rank == 0; ++b) {
        const size_t r = (backwards ? 0 : in->steps - 1) * B + b;
        memcpy((real *)call->state[b] + cell->h_offset, in->y[r] + cell->y_offset,
               cell->h_size * sizeof(real));
    }
}

/* Rows, and elements of a matrix, from which a layer without a state is shared by the ranks. */
enum { LEAST_SHARED_ROWS = 16, LEAST_ELEMENTS = 32768 };

typedef enum { BY_RANK_0, BY_ROWS, BY_PANELS } division;

/* How the ranks divide a layer whose input has R rows. */
static division division_of(const fl_layer *layer, size_t R) {
    if (layer->directions) return BY_PANELS;
    if (R >= LEAST_SHARED_ROWS) return BY_ROWS;
    return layer->linear.panels * layer->linear.stride >= LEAST_ELEMENTS ? BY_PANELS : BY_RANK_0;
}

/* Whether the ranks must meet between a layer without a state and the next one. */
static int meet_between(const fl_layer *layer, const fl_layer *next, size_t R) {
    return division_of(layer, R) != BY_RANK_0 || division_of(next, R) != BY_RANK_0;
}

static void run_layer(const fl_layer *layer, const chunk *in) {
    const fl_call *call = in->call;
    const size_t R = in->steps * call->B, size = layer->output_size;
    const division by = division_of(layer, R);
    const range all = {0, by == BY_RANK_0 && call->rank ? 0 : R};
    const range rows = by == BY_ROWS ? part_of(R, call) : all;
    range panels = {0, layer->linear.panels};
    switch (layer->kind) {
    case FL_LOOKUP:
        for (size_t r = rows.first; r < rows.end; ++r)
            memcpy(in->y[r], (const real *)layer->table + (size_t)in->tokens[r] * size,
                   size * sizeof(real));
        break;
    case FL_LINEAR:
        if (by == BY_PANELS) panels = part_of(panels.end, call);
        multiply_rows(call, &layer->linear, panels, layer->input_size, size, in->x, in->y, NULL,
                      rows);
        break;
    case FL_ACTIVATION:
        for (size_t r = rows.first; r < rows.end; ++r)
            activate(layer->function, in->x[r], in->y[r], size);
        break;
    default:
        for (int d = 0; d < layer->directions; ++d) recur(layer, &layer->cell[d], in, d == 1);
    }
}

static void run(const fl_model *model, fl_call *call) {
    const fl_cut *cut = call->cut;
    const real **x = own_at(call, cut->x_rows);
    real **y = own_at(call, cut->y_rows);
    int64_t *tokens = own_at(call, cut->tokens);
    __typeof__(v_flush_denormals()) before = v_flush_denormals();
    for (size_t t0 = 0; t0 < call->T; t0 += cut->chunk) {
        size_t steps = call->T - t0 < cut->chunk ? call->T - t0 : cut->chunk;
        chunk in = {call, x, y, tokens, steps, call->turn + t0};
        /* Rank 0 may still be writing the state that this chunk begins with. */
        if (t0) meet(call);
        for (size_t t = 0; t < steps; ++t) {
            for (size_t b = 0; b < call->B; ++b) {
                ptrdiff_t at = (ptrdiff_t)(t0 + t) * call->x_t + (ptrdiff_t)b * call->x_b;
                /* The tokens were checked, but they are the caller's: another thread may have
                 * written to them since, and must not make a table be read beyond its end. */
                if (model->takes_tokens) {
                    const int64_t token = ((const volatile int64_t *)call->tokens)[at];
                    const int known = (uint64_t)token < model->layers[0].input_size;
                    tokens[t * call->B + b] = known ? token : 0;
                } else {
                    x[t * call->B + b] = (const real *)call->x + at;
                }
            }
        }
        for (size_t l = 0; l < model->n_layers; ++l) {
            const fl_layer *layer = model->layers + l;
            const int last = l + 1 == model->n_layers;
            real *buffer = shared_at(call, cut->buffer[l % 2]);
            for (size_t t = 0; t < steps; ++t)
                for (size_t b = 0; b < call->B; ++b)
                    y[t * call->B + b] =
                        last ? (real *)call->y + (ptrdiff_t)(t0 + t) * call->y_t +
                                   (ptrdiff_t)b * call->y_b
                             : buffer + (t * call->B + b) * layer->output_size;
            run_layer(layer, &in);
            if (!last && !layer->directions && meet_between(layer, layer + 1, steps * call->B))
                meet(call);
            for (size_t r = 0; r < steps * call->B; ++r) x[r] = y[r];
        }
    }
    call->turn += call->T;
    call->ran = FL_NAME;
    v_restore(before);
}
