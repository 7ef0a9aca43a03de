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
} chunk;

static char *scratch_at(const fl_call *call, size_t offset) {
    return (char *)call->scratch + offset;
}

/* y[r] (y_size,) = bias + W x[r] for R rows; y[r] lies at y_rows[r], else at y + r * y_size. */
static void multiply_rows(const fl_call *call, const fl_panels *matrix, size_t x_size,
                          size_t y_size, const real *const *x_rows, real *const *y_rows, real *y,
                          size_t R) {
    row *rows = (row *)scratch_at(call, call->plan->cell_rows);
    product a = matrix_product(matrix, x_size, y_size);
    size_t most = call->B > ROWS ? call->B : ROWS; /* the rows there is room for */
    for (size_t r = 0; r < R; r += most) {
        size_t n = R - r < most ? R - r : most;
        for (size_t i = 0; i < n; ++i) {
            rows[i].init = matrix->bias;
            rows[i].x = x_rows[r + i];
            rows[i].h = NULL;
            rows[i].y = y_rows ? y_rows[r + i] : y + (r + i) * y_size;
        }
        multiply(&a, matrix->groups, rows, n);
    }
}

/* gates (R, P, G, L) = bias + W_ih x for R rows of x: the one place where a BLAS may be used. It
 * sums in an order of its own, so a result then depends on how a sequence is cut into calls. */
static void project(const fl_call *call, const fl_cell *cell, const real *const *x_rows,
                    real *gates, size_t R) {
    const fl_panels *a = &cell->gates;
    size_t panel = a->groups * L, width = a->panels * panel;
    size_t x_stride = R > 1 ? (size_t)(x_rows[1] - x_rows[0]) : 0;
    const size_t least = GEMM_ROWS;
    int by_gemm = call->gemm && least && R >= least && x_rows[1] > x_rows[0] &&
                  x_stride <= INT32_MAX && width <= INT32_MAX; /* a BLAS counts in int */
    for (size_t r = 1; by_gemm && r < R; ++r) by_gemm = x_rows[r] == x_rows[0] + r * x_stride;
    if (!by_gemm) {
        multiply_rows(call, a, cell->input_rows, width, x_rows, NULL, gates, R);
        return;
    }
    for (size_t r = 0; r < R; ++r) memcpy(gates + r * width, a->bias, width * sizeof(real));
    for (size_t p = 0; p < a->panels; ++p)
        call->gemm(R, panel, cell->input_rows, x_rows[0], x_stride,
                   (const real *)a->weights + p * a->stride, gates + p * panel, width);
}

/* One direction of one recurrent layer over a chunk, a part of it after the other. The input
 * projection of a part is made before it is scanned, or on the side of the part before it. */
static void recur(const fl_layer *layer, const fl_cell *cell, const chunk *in, int backwards) {
    const fl_call *call = in->call;
    const size_t B = call->B, width = cell->gates.panels * cell->gates.groups * L;
    const int projects = !cell->table && call->plan->gate_steps > 1 && in->steps > 1;
    const int on_the_side =
        AHEAD && projects && B == 1 && layer->kind != FL_RNN && cell->input_rows >= K_BLOCK;
    const size_t part = projects ? call->plan->gate_steps : in->steps;
    row *rows = (row *)scratch_at(call, call->plan->cell_rows);
    real *hidden = (real *)scratch_at(call, call->plan->hidden);
    real *gates = (real *)scratch_at(call, call->plan->gates);
    real *next = projects ? gates + part * B * width : gates;
    size_t ready = 0; /* rows of this part that were projected on the side of the one before */
    for (size_t done = 0; done < in->steps; done += part) {
        const size_t left = in->steps - done, steps = left < part ? left : part;
        const size_t first = backwards ? left - steps : done; /* step of the chunk */
        const size_t after = left - steps < part ? left - steps : part;
        ahead later = {in->x + (backwards ? first - after : first + steps), next, 0, 0, 0, 0};
        if (on_the_side) later.blocks = after / (AHEAD ? AHEAD : 1);
        if (projects)
            project(call, cell, in->x + first * B + ready, gates + ready * width,
                    steps * B - ready);
        ready = later.blocks * AHEAD;
        for (size_t s = 0; s < steps; ++s) {
            const size_t t = backwards ? first + steps - 1 - s : first + s;
            for (size_t b = 0; b < B; ++b) {
                const size_t r = t * B + b, before = backwards ? r + B : r - B;
                real *state = call->state[b];
                rows[b].x = projects || cell->table ? NULL : in->x[r];
                rows[b].init = projects ? gates + (r - first * B) * width
                               : cell->table
                                   ? (const real *)cell->table + (size_t)in->tokens[r] * width
                                   : (const real *)cell->gates.bias;
                rows[b].h = done + s == 0 ? state + cell->h_offset : in->y[before] + cell->y_offset;
                rows[b].c = state + cell->c_offset;
                rows[b].y = in->y[r] + cell->y_offset;
            }
            cell_step(layer, cell, rows, rows + B, hidden, B, &later);
        }
        if (on_the_side) {
            real *scanned = gates;
            gates = next;
            next = scanned;
        }
    }
    for (size_t b = 0; b < B; ++b) {
        const size_t r = (backwards ? 0 : in->steps - 1) * B + b;
        memcpy((real *)call->state[b] + cell->h_offset, in->y[r] + cell->y_offset,
               cell->h_size * sizeof(real));
    }
}

static void run_layer(const fl_layer *layer, const chunk *in) {
    size_t R = in->steps * in->call->B, size = layer->output_size;
    switch (layer->kind) {
    case FL_LOOKUP:
        for (size_t r = 0; r < R; ++r)
            memcpy(in->y[r], (const real *)layer->table + (size_t)in->tokens[r] * size,
                   size * sizeof(real));
        break;
    case FL_LINEAR:
        multiply_rows(in->call, &layer->linear, layer->input_size, size, in->x, in->y, NULL, R);
        break;
    case FL_ACTIVATION:
        for (size_t r = 0; r < R; ++r) activate(layer->function, in->x[r], in->y[r], size);
        break;
    default:
        for (int d = 0; d < layer->directions; ++d) recur(layer, &layer->cell[d], in, d == 1);
    }
}

static void run(const fl_model *model, fl_call *call) {
    const fl_plan *plan = call->plan;
    const real **x = (const real **)(void *)scratch_at(call, plan->x_rows);
    real **y = (real **)(void *)scratch_at(call, plan->y_rows);
    int64_t *tokens = (int64_t *)(void *)scratch_at(call, plan->tokens);
    __typeof__(v_flush_denormals()) before = v_flush_denormals();
    for (size_t t0 = 0; t0 < call->T; t0 += plan->chunk) {
        size_t steps = call->T - t0 < plan->chunk ? call->T - t0 : plan->chunk;
        chunk in = {call, x, y, tokens, steps};
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
            real *buffer = (real *)(void *)scratch_at(call, plan->buffer[l % 2]);
            for (size_t t = 0; t < steps; ++t)
                for (size_t b = 0; b < call->B; ++b)
                    y[t * call->B + b] =
                        last ? (real *)call->y + (ptrdiff_t)(t0 + t) * call->y_t +
                                   (ptrdiff_t)b * call->y_b
                             : buffer + (t * call->B + b) * layer->output_size;
            run_layer(layer, &in);
            for (size_t r = 0; r < steps * call->B; ++r) x[r] = y[r];
        }
    }
    call->ran = FL_NAME;
    v_restore(before);
}
