/* run_template.h - a call: its layers one after the other, a chunk of steps at a time.
 *
 * A part of cells_template.h, which includes it with its definitions in place.
 */

/* Steps of all rows on their way through the layers. Rows are counted r = t * B + b; x (R,) and
 * y (R,) are pointers to the input and output rows of a layer, beside (R,) to another input. */
typedef struct {
    const fl_call *call;
    const real **x;
    const real **beside;
    real **y;
    const int64_t *tokens;
    size_t *left;     /* (B,) of these steps, those that each row still has; NULL: all of them */
    size_t *pooled;   /* (B,) steps of each row that came to the pool of a whole sequence */
    size_t *written;  /* (B,) rows of the call's output that are written, of each; left NULL: */
    size_t steps;
    size_t first;     /* number of the first of these steps, within the call */
    size_t outputs;   /* of all */
    int last;         /* no steps come after these */
} chunk;

/* y[r] (y_size,) = activation(bias + W x[r]) for a range of rows, in a range of panels; y[r] lies at
 * y_rows[r], else at y + r * y_size. */
static void multiply_rows(const fl_call *call, const fl_panels *matrix,
                          const fl_activation *activation, range panels, size_t x_size,
                          size_t y_size, const real *const *x_rows, real *const *y_rows, real *y,
                          range R, int back) {
    row *rows = own_at(call, call->cut->cell_rows);
    product a = matrix_product(matrix, panels, x_size, y_size);
    /* The rows there is room for. */
    const size_t most = call->B > FL_POSITIONS ? call->B : FL_POSITIONS;
    if (activation) a.activation = activation;
    for (size_t r = R.first; r < R.end; r += most) {
        size_t n = R.end - r < most ? R.end - r : most;
        for (size_t i = 0; i < n; ++i) {
            rows[i].init = matrix->bias;
            rows[i].table = NULL;
            rows[i].x = x_rows[r + i];
            rows[i].h = NULL;
            rows[i].y = y_rows ? y_rows[r + i] : y + (r + i) * y_size;
        }
        if (stopped(call, n * (panels.end - panels.first) * matrix->stride)) return;
        multiply(&a, rows, n, back);
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
        multiply_rows(call, a, NULL, panels, cell->input_rows, width, x_rows, NULL, gates, all,
                      0);
        return;
    }
    for (size_t p = panels.first; p < panels.end; ++p) {
        if (stopped(call, R * a->stride)) return;
        for (size_t r = 0; r < R; ++r)
            memcpy(gates + r * width + p * panel, (const real *)a->bias + p * panel,
                   panel * sizeof(real));
        call->gemm(R, panel, cell->input_rows, x_rows[0], x_stride,
                   (const real *)a->weights + p * a->stride, gates + p * panel, width);
    }
}

/* One step of n rows, this rank's panels of it, whatever the kind of cell. `spare` has room for
 * as many rows; `later` has blocks only for a single row of a plain LSTM or GRU. */
static void step_of_kind(const fl_call *call, const fl_layer *layer, const fl_cell *cell,
                         const row *rows, row *spare, size_t n, share mine, ahead *later) {
    if (cell->variant) {
        const size_t G = cell->gates.groups;
        const variant_step made = {call, cell, rows, spare, n,
                                   mine.panels, G, G * L * cell->gates.panels};
        if (layer->kind == FL_LSTM) lstm_variant(&made);
        else gru_variant(&made);
    } else if (layer->kind == FL_RNN) {
        product a = matrix_product(&cell->gates, mine.panels, cell->input_rows, cell->hidden_size);
        a.h_size = cell->h_size;
        a.clip = (real)layer->clip;
        a.activation = &cell->activation;
        multiply(&a, rows, n, mine.back);
    } else if (layer->kind == FL_GRU) {
        gru_step(cell, rows, n, mine, later);
    } else {
        lstm_step(cell, rows, n, mine, later);
    }
}

/* One step of n rows of one direction, whose h goes through `hidden` (n, H) if it is projected.
 * There is room for n rows more behind `rows`, and for as many again. */
static void cell_step(const fl_call *call, const fl_layer *layer, const fl_cell *cell, row *rows,
                      size_t n, share mine, ahead *later) {
    row *projected = rows + n, *spare = projected + n;
    if (!cell->projection.weights) {
        step_of_kind(call, layer, cell, rows, spare, n, mine, later);
        return;
    }
    real *hidden = shared_at(call, call->cut->hidden);
    product a = matrix_product(&cell->projection, part_of(cell->projection.panels, call),
                               cell->hidden_size, cell->h_size);
    for (size_t i = 0; i < n; ++i) {
        projected[i].init = cell->projection.bias;
        projected[i].table = NULL;
        projected[i].x = hidden + i * cell->hidden_size;
        projected[i].h = NULL;
        projected[i].y = rows[i].y;
        rows[i].y = hidden + i * cell->hidden_size;
    }
    step_of_kind(call, layer, cell, rows, spare, n, mine, later);
    meet(call);
    multiply(&a, projected, n, mine.back);
}

/* An input of fewer rows is multiplied within the step: its product would be longer than itself. */
enum { LEAST_INPUT_ROWS = 8 };

/* Whether row b has step t of the chunk. */
INLINE int has_step(const chunk *in, size_t b, size_t t) { return !in->left || t < in->left[b]; }

/* Where the rows of a step find their inputs: `gates` holds the projections of the steps from
 * `first` on, or is NULL. */
static size_t gather(const fl_cell *cell, const chunk *in, size_t t, int backwards,
                     const real *gates, size_t first, row *rows) {
    const size_t B = in->call->B, width = cell->gates.panels * cell->gates.groups * L;
    size_t n = 0;
    for (size_t b = 0; b < B; ++b) {
        const size_t r = t * B + b;
        real *state = in->call->state[b];
        const int starts = backwards ? t + 1 == in->steps || !has_step(in, b, t + 1) : t == 0;
        if (!has_step(in, b, t)) continue;
        rows[n].init = gates ? gates + (r - first * B) * width : (const real *)cell->gates.bias;
        rows[n].table =
            cell->table ? (const real *)cell->table + (size_t)in->tokens[r] * width : NULL;
        rows[n].x = gates || cell->table ? NULL : in->x[r];
        rows[n].h = starts ? state + cell->h_offset
                           : in->y[backwards ? r + B : r - B] + cell->y_offset;
        rows[n].c = state + cell->c_offset;
        rows[n].y = in->y[r] + cell->y_offset;
        ++n;
    }
    return n;
}

/* One direction of one recurrent layer over a chunk, a part of it after the other. The input
 * projection of a part is made before it is scanned, or on the side of the part before it. Each
 * rank makes and scans its own panels; all meet after every step, whose h they all read next. */
static void recur(const fl_layer *layer, const fl_cell *cell, const chunk *in, int backwards) {
    const fl_call *call = in->call;
    const size_t B = call->B, width = cell->gates.panels * cell->gates.groups * L;
    const range panels = part_of(cell->gates.panels, call);
    /* Rows of various lengths take what projection they need step by step. */
    const int projects = cell->input_rows >= LEAST_INPUT_ROWS && call->cut->gate_steps > 1 &&
                         in->steps > 1 && !in->left;
    const int on_the_side = AHEAD && projects && B == 1 && layer->kind != FL_RNN &&
                            !cell->variant && cell->input_rows >= K_BLOCK &&
                            cell->input_rows <= K_SPAN && cell->h_size <= K_SPAN &&
                            panels.end > panels.first;
    const size_t part = projects ? call->cut->gate_steps : in->steps;
    const size_t work = cell->gates.panels * cell->gates.stride + ROW_WORK * cell->hidden_size;
    row *rows = own_at(call, call->cut->cell_rows);
    real *gates = shared_at(call, call->cut->gates);
    real *next = projects ? gates + part * B * width : gates;
    size_t ready = 0; /* rows of this part that were projected on the side of the one before */
    for (size_t done = 0; done < in->steps; done += part) {
        const size_t left = in->steps - done, steps = left < part ? left : part;
        const size_t first = backwards ? left - steps : done; /* step of the chunk */
        const size_t after = left - steps < part ? left - steps : part;
        const real *const *x = (const real *const *)in->x;
        ahead later = {x + (backwards ? first - after : first + steps), next, panels, 0, 0,
                       panels.first, 0};
        if (on_the_side) later.blocks = after / (AHEAD ? AHEAD : 1);
        if (projects)
            project(call, cell, panels, x + first * B + ready, gates + ready * width,
                    steps * B - ready);
        ready = later.blocks * AHEAD;
        for (size_t s = 0; s < steps; ++s) {
            const size_t t = backwards ? first + steps - 1 - s : first + s;
            const share mine = {panels, (int)((call->turn + in->first + done + s) & 1)};
            const size_t n =
                gather(cell, in, t, backwards, projects ? gates : NULL, first, rows);
            cell_step(call, layer, cell, rows, n, mine, &later);
            meet(call);
            if (stopped(call, n * work)) return;
        }
        if (on_the_side) {
            real *scanned = gates;
            gates = next;
            next = scanned;
        }
    }
    for (size_t b = 0; b < B && call->rank == 0; ++b) {
        const size_t steps = in->left ? in->left[b] : in->steps;
        if (steps == 0) continue;
        memcpy((real *)call->state[b] + cell->h_offset,
               in->y[(backwards ? 0 : steps - 1) * B + b] + cell->y_offset,
               cell->h_size * sizeof(real));
    }
}

/* Rows, and elements of a matrix, from which a layer is shared by the ranks. */
enum { LEAST_SHARED_ROWS = 16, LEAST_ELEMENTS = 32768 };

typedef enum { BY_RANK_0, BY_ROWS, BY_PANELS } division;

/* Panels of a layer without cells, of all groups. */
INLINE size_t panels_of(const fl_layer *layer) {
    const size_t groups = layer->convolution.groups;
    return layer->linear.panels * (groups ? groups : 1);
}

/* Multiply-adds of a position of a convolution, about. */
INLINE size_t work_of(const fl_layer *layer) {
    const fl_convolution *a = &layer->convolution;
    return ROW_WORK * a->out_channels +
           (a->depthwise ? a->kernel_size * a->channels : panels_of(layer) * layer->linear.stride);
}

/* Whether a chunk takes panels from the last to the first: see FOR_ROWS_AND_PANELS. */
INLINE int goes_back(const chunk *in) { return (int)((in->call->turn + in->first) & 1); }

/* How the ranks divide a layer whose input has R rows. */
static division division_of(const fl_layer *layer, size_t R) {
    if (layer->directions) return BY_PANELS;
    if (layer->kind == FL_POOL) return BY_RANK_0;
    if (R >= LEAST_SHARED_ROWS && layer->kind != FL_TIME_CONV) return BY_ROWS;
    return panels_of(layer) * layer->linear.stride >= LEAST_ELEMENTS ? BY_PANELS : BY_RANK_0;
}

/* Whether the ranks must meet between a layer of R rows and the next one, of `next_R`. */
static int meet_between(const fl_layer *layer, size_t R, const fl_layer *next, size_t next_R) {
    return division_of(layer, R) != BY_RANK_0 || division_of(next, next_R) != BY_RANK_0;
}

/* The number of steps that a stream has read, and that a kernel must not trust to be one. */
INLINE size_t count_of(real count, double bound) {
    return count >= 0 && count < bound ? (size_t)count : 0;
}

/* Steps that a layer gives for `steps` of a row in this state; all but convolutions: as many. */
static size_t steps_after(const fl_layer *layer, size_t steps, const real *state) {
    const fl_convolution *a = &layer->convolution;
    if (layer->kind != FL_TIME_CONV) return steps;
    if (a->padding_right)
        return steps && steps + a->padding_right >= a->first
                   ? (steps + a->padding_right - a->first) / a->stride + 1
                   : 0;
    const size_t count =
        a->has_count ? count_of(state[a->count_offset], (double)(a->first + a->period)) : 0;
    const size_t next = fl_next_output(a, count);
    return next < steps ? (steps - 1 - next) / a->stride + 1 : 0;
}

/* A convolution over time: y of `outputs` steps, then the state after all steps. */
static void convolve_time(const fl_layer *layer, const chunk *in, size_t outputs, range panels) {
    const fl_call *call = in->call;
    const fl_convolution *a = &layer->convolution;
    batch made = {layer, own_at(call, call->cut->cell_rows), {NULL},
                  own_at(call, call->cut->patches), panels, goes_back(in), 0};
    const int has_state = a->has_count && !a->padding_right;
    for (size_t b = 0; b < call->B && outputs; ++b) {
        real *state = call->state[b];
        const size_t steps = in->left ? in->left[b] : in->steps;
        history h = {a->reach && has_state ? state + a->x_offset : NULL,
                     (const real *const *)in->x + b, call->B, steps,
                     has_state ? count_of(state[a->count_offset], (double)(a->first + a->period))
                               : 0};
        ptrdiff_t start = a->padding_right ? -a->padding_left
                                           : (ptrdiff_t)fl_next_output(a, h.count) -
                                                 (ptrdiff_t)a->reach;
        const size_t own = in->left ? steps_after(layer, steps, state) : outputs;
        for (size_t o = 0; o < own && o < outputs; ++o, start += (ptrdiff_t)a->stride) {
            add_step(&made, &h, start, in->y[o * call->B + b]);
            if (made.n < FL_POSITIONS) continue;
            if (stopped(call, FL_POSITIONS * work_of(layer))) return;
            convolve(&made);
        }
    }
    convolve(&made);
    if (!has_state) return;
    meet(call); /* all have read the state */
    for (size_t b = 0; b < call->B && call->rank == 0; ++b) {
        real *state = call->state[b];
        const double bound = (double)(a->first + a->period);
        const size_t steps = in->left ? in->left[b] : in->steps;
        size_t count = count_of(state[a->count_offset], bound);
        for (size_t i = steps > a->reach ? steps - a->reach : 0; i < steps; ++i)
            memcpy(state + a->x_offset + (count + i) % a->reach * a->channels,
                   in->x[i * call->B + b], a->channels * sizeof(real));
        count += steps;
        if (count >= a->first + a->period) count = a->first + (count - a->first) % a->period;
        state[a->count_offset] = (real)count;
    }
}

/* Count one row more, in two digits that are both below `bound`; how many rows those are. */
INLINE real count_row(real *count, double bound) {
    size_t low = count_of(count[0], bound) + 1, high = count_of(count[1], bound);
    if ((double)low >= bound && (double)high + 1 < bound) low = 0, ++high;
    else if ((double)low >= bound) --low; /* the largest count stays */
    count[0] = (real)low;
    count[1] = (real)high;
    return (real)((double)high * bound + (double)low);
}

/* One number x more of a mean and of what rounding took from it, `part` of the sum being its own:
 * mean += (x - mean) / n. `odd` is needed where that is not finite, and changes nothing where it
 * is: an infinite mean stays so, as a sum would, and a huge distance may be infinite where its part
 * is not. Rounding errors of what is not finite are NaN. */
INLINE vec next_mean(const int odd, vec x, vec mean, vec *rest, vec part) {
    const vec zero = v_set1(0), most = v_set1(REAL_MOST);
    const vec from = odd ? v_if_at_most(v_abs(mean), most, mean, zero) : mean;
    vec distance_error, more_error;
    const vec distance = v_exact_sum(x, v_sub(zero, from), &distance_error);
    vec more = v_mul(distance, part);
    if (odd)
        more = v_if_at_most(v_abs(distance), most, more,
                            v_sub(v_mul(x, part), v_mul(from, part)));
    const vec sum = v_exact_sum(mean, more, &more_error);
    const vec low = v_add(v_fma(v_sub(distance_error, *rest), part, *rest), more_error);
    const vec made = v_add(sum, low), left = v_sub(low, v_sub(made, sum));
    *rest = odd ? v_if_at_most(v_abs(made), most, left, zero) : left;
    return odd ? v_if_at_most(v_abs(made), most, made, sum) : made;
}

static __attribute__((noinline, cold)) vec next_odd_mean(vec x, vec mean, vec *rest, vec part) {
    return next_mean(1, x, mean, rest, part);
}

/* One row more of a mean (I,), behind which lie what rounding took from it (I,) and the number of
 * its rows. With twice the digits of a real it is as precise after any number of rows, and as large
 * as they are, where a sum would overflow. */
static void add_to_mean(const fl_layer *layer, const real *x, real *mean) {
    const size_t I = layer->input_size;
    real *rest = mean + I;
    const vec part = v_set1(1 / count_row(rest + I, layer->count_bound));
    for (size_t i = 0; i < I; i += L) {
        const size_t left = lanes_left(I, i);
        const vec a = load_left(x + i, left), m = load_left(mean + i, left);
        const vec before = load_left(rest + i, left);
        vec low = before, made = next_mean(0, a, m, &low, part);
        if (!v_all_finite(made)) {
            low = before;
            made = next_odd_mean(a, m, &low, part);
        }
        store_left(mean + i, made, left);
        store_left(rest + i, low, left);
    }
}

/* A row for each step of a stream; of a whole sequence one row, in y (B,), that is written anew as
 * long as steps come. */
static void pool(const fl_layer *layer, const chunk *in) {
    const fl_call *call = in->call;
    const size_t I = layer->input_size, half = I / 2, B = call->B;
    for (size_t b = 0; b < B; ++b) {
        const size_t steps = in->left ? in->left[b] : in->steps;
        real *mean = (real *)call->state[b] + layer->state_offset;
        for (size_t t = 0; t < steps; ++t) {
            const real *x = in->x[t * B + b];
            const size_t to = (call->whole ? 0 : t * B) + b;
            if (stopped(call, ROW_WORK * I)) return;
            if (layer->pooling == FL_MEAN) add_to_mean(layer, x, mean);
            if (call->whole && t + 1 < steps) continue;
            memcpy(in->y[to], layer->pooling == FL_MEAN ? mean : x, I * sizeof(real));
        }
        if (layer->pooling == FL_FINAL && steps)
            memcpy(in->y[b] + half, in->x[b] + half, (I - half) * sizeof(real));
    }
}

/* Keep of the pointers (R,) those to rows that have their step, and say how many that are. */
static size_t keep_rows(const chunk *in, size_t R) {
    const size_t B = in->call->B;
    size_t n = 0;
    if (!in->left) return R;
    for (size_t r = 0; r < R; ++r) {
        if (!has_step(in, r % B, r / B)) continue;
        in->x[n] = in->x[r];
        in->y[n] = in->y[r];
        in->beside[n++] = in->beside[r];
    }
    return n;
}

static void convolve_frames(const fl_layer *layer, const chunk *in, range rows, range panels) {
    const fl_call *call = in->call;
    batch made = {layer, own_at(call, call->cut->cell_rows), {NULL},
                  own_at(call, call->cut->patches), panels, goes_back(in), 0};
    for (size_t r = rows.first; r < rows.end; ++r) {
        for (size_t o = 0; o < layer->convolution.out_width; ++o) {
            add_position(&made, in->x[r], o, in->y[r]);
            if (made.n < FL_POSITIONS) continue;
            if (stopped(call, FL_POSITIONS * work_of(layer))) return;
            convolve(&made);
        }
    }
    convolve(&made);
}

/* A layer over a chunk; `outputs` are the steps of its output. */
static void run_layer(const fl_layer *layer, const chunk *in, size_t outputs) {
    const fl_call *call = in->call;
    const size_t R = in->steps * call->B, size = layer->output_size;
    const division by = division_of(layer, R);
    const int takes_part = by != BY_RANK_0 || call->rank == 0;
    range panels = {0, panels_of(layer)}, rows = {0, R};
    if (by == BY_PANELS && !layer->directions) panels = part_of(panels.end, call);
    /* A convolution over time has all ranks meet before its state changes. */
    if (!takes_part && layer->kind != FL_TIME_CONV) return;
    switch (layer->kind) {
    case FL_LSTM:
    case FL_GRU:
    case FL_RNN:
        for (int d = 0; d < layer->directions; ++d)
            recur(layer, &layer->cell[d], in, layer->reverse || d == 1);
        return;
    case FL_TIME_CONV: convolve_time(layer, in, takes_part ? outputs : 0, panels); return;
    case FL_POOL: pool(layer, in); return;
    case FL_LOOKUP: break; /* tokens are read by the number of their row */
    default: rows.end = keep_rows(in, R);
    }
    if (by == BY_ROWS) rows = part_of(rows.end, call);
    switch (layer->kind) {
    case FL_LOOKUP:
        for (size_t r = rows.first; r < rows.end && !stopped(call, size); ++r)
            if (has_step(in, r % call->B, r / call->B))
                memcpy(in->y[r], (const real *)layer->table + (size_t)in->tokens[r] * size,
                       size * sizeof(real));
        break;
    case FL_LINEAR:
        multiply_rows(call, &layer->linear, &layer->activation, panels, layer->input_size, size,
                      (const real *const *)in->x, in->y, NULL, rows, goes_back(in));
        break;
    case FL_FRAME_CONV: convolve_frames(layer, in, rows, panels); break;
    default:
        for (size_t r = rows.first; r < rows.end && !stopped(call, ROW_WORK * size); ++r)
            run_row(layer, in->beside[r], in->x[r], in->y[r]);
    }
}

/* Pointers to the rows of `steps` steps: of the call's input, of its output, or in a buffer. */
static void place(const chunk *in, size_t where, size_t size, size_t steps, real **rows) {
    const fl_call *call = in->call;
    const size_t B = call->B;
    if (where >= FL_BUFFERS) {
        real *buffer = shared_at(call, call->cut->buffer[where]);
        for (size_t r = 0; r < steps * B; ++r) rows[r] = buffer + r * size;
        return;
    }
    const int out = where == FL_OUTPUT;
    const ptrdiff_t t_stride = out ? call->y_t : call->x_t, b_stride = out ? call->y_b : call->x_b;
    real *first = out ? (real *)call->y : (real *)call->x;
    for (size_t t = 0; t < steps; ++t) {
        for (size_t b = 0; b < B; ++b) {
            const size_t t0 = !out ? in->first : in->left ? in->written[b] : in->outputs;
            rows[t * B + b] =
                first + (ptrdiff_t)(t0 + t) * t_stride + (ptrdiff_t)b * b_stride;
        }
    }
}

/* The tokens of a chunk. They were checked, but they are the caller's: another thread may have
 * written to them since, and must not make a table be read beyond its end. */
static void take_tokens(const fl_model *model, const chunk *in, int64_t *tokens) {
    const fl_call *call = in->call;
    for (size_t t = 0; t < in->steps; ++t) {
        for (size_t b = 0; b < call->B; ++b) {
            const ptrdiff_t at =
                (ptrdiff_t)(in->first + t) * call->x_t + (ptrdiff_t)b * call->x_b;
            const int64_t token = ((const volatile int64_t *)call->tokens)[at];
            const int known = (uint64_t)token < model->layers[0].input_size;
            tokens[t * call->B + b] = known ? token : 0;
        }
    }
}

/* The steps that each row still has, of as many as `in` has. */
static size_t *take_left(const chunk *in) {
    const fl_call *call = in->call;
    size_t *left = own_at(call, call->cut->left);
    if (!call->lengths) return NULL;
    for (size_t b = 0; b < call->B; ++b) {
        const size_t length = call->lengths[b];
        left[b] = length <= in->first ? 0 : length - in->first;
        if (left[b] > in->steps) left[b] = in->steps;
    }
    return left;
}

/* Steps of the output of a layer, in all or, in `left`, of each row. Of a whole sequence a pool gives
 * one, at its end, if there ever was one. */
static size_t leave(const fl_layer *layer, const chunk *in) {
    const fl_call *call = in->call;
    const int pools = layer->kind == FL_POOL && call->whole;
    size_t steps = 0, *after = in->pooled + call->B;
    if (!pools && !in->left) return steps_after(layer, in->steps, call->state[0]);
    for (size_t b = 0; b < call->B; ++b) {
        after[b] = steps_after(layer, in->left ? in->left[b] : in->steps, call->state[b]);
        if (pools) {
            in->pooled[b] += after[b];
            after[b] = in->last && in->pooled[b];
        }
        if (after[b] > steps) steps = after[b];
    }
    return steps;
}

static void run(const fl_model *model, fl_call *call) {
    const fl_cut *cut = call->cut;
    int64_t *tokens = own_at(call, cut->tokens);
    chunk in = {call, own_at(call, cut->x_rows), own_at(call, cut->beside_rows),
                own_at(call, cut->y_rows), tokens, NULL,
                (size_t *)own_at(call, cut->left) + call->B,
                (size_t *)own_at(call, cut->left) + 3 * call->B, 0, 0, 0, 0};
    __typeof__(v_flush_denormals()) before = v_flush_denormals();
    if (call->asks) call->watch->mode = before;
    if (model->pools) memset(in.pooled, 0, call->B * sizeof *in.pooled);
    if (call->lengths) memset(in.written, 0, call->B * sizeof *in.written);
    int goes_on = 1;
    for (size_t t0 = 0; goes_on && t0 < call->T && begin_chunk(model, call, t0);
         t0 += cut->chunk) {
        in.first = t0;
        in.steps = call->T - t0 < cut->chunk ? call->T - t0 : cut->chunk;
        in.last = t0 + in.steps == call->T;
        in.left = take_left(&in);
        if (model->takes_tokens) take_tokens(model, &in, tokens);
        /* Without a step there is nothing to do, but for what a pool has kept to the end. */
        const int ends = in.last && model->pools && call->whole;
        for (size_t l = 0; goes_on && l < model->n_layers && (in.steps || ends); ++l) {
            const fl_layer *layer = model->layers + l;
            const int changes = layer->kind == FL_TIME_CONV || layer->kind == FL_POOL;
            const size_t outputs = changes ? leave(layer, &in) : in.steps;
            const int pools = layer->kind == FL_POOL && call->whole;
            if (l || !model->takes_tokens)
                place(&in, layer->from, layer->input_size, in.steps, (real **)in.x);
            if (layer->kind == FL_ADD)
                place(&in, layer->beside, layer->input_size, in.steps, (real **)in.beside);
            if (layer->kind == FL_CONCAT)
                place(&in, layer->beside, layer->output_size - layer->input_size, in.steps,
                      (real **)in.beside);
            place(&in, layer->to, layer->output_size, pools ? 1 : outputs, in.y);
            run_layer(layer, &in, outputs);
            goes_on = !stopped(call, 0);
            if (changes && in.left)
                memcpy(in.left, in.pooled + call->B, call->B * sizeof *in.left);
            if (l + 1 < model->n_layers && !layer->directions &&
                meet_between(layer, in.steps * call->B, layer + 1, outputs * call->B))
                meet(call);
            in.steps = outputs;
        }
        in.outputs += in.steps;
        for (size_t b = 0; in.left && b < call->B; ++b) in.written[b] += in.left[b];
    }
    call->turn += call->T;
    call->ran = FL_NAME;
    v_restore(before);
}
