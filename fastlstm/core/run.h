/* run.h - a call: its operations one after the other, a chunk of steps at a time. A part of kernel.h.
 */

/* Rows, and elements of a matrix, from which an operation is shared by the ranks. */
enum { LEAST_SHARED_ROWS = 16, LEAST_ELEMENTS = 32768 };

/* The line whose rows an operation runs over, or -1. */
static ptrdiff_t line_of(const run *in, const fl_operation *op) {
    ptrdiff_t scores;
    switch (op->kind) {
    case FL_MOVE: return line_of_value(in, op->move.y);
    case FL_MAP: return line_of_value(in, op->map.y);
    case FL_PRODUCT: return line_of_value(in, op->product.y);
    case FL_TAPS: return line_of_value(in, op->taps.y);
    case FL_MATMUL: return line_of_value(in, op->matmul.y);
    case FL_REDUCE: return line_of_value(in, op->reduce.y);
    case FL_SOFTMAX: return line_of_value(in, op->softmax.y);
    case FL_NORM: return line_of_value(in, op->norm.y);
    case FL_LOOKUP: return line_of_value(in, op->lookup.y);
    case FL_ONE_HOT: return line_of_value(in, op->one_hot.y);
    case FL_WINDOW: return line_of_value(in, op->window.y);
    case FL_DELAY: return line_of_value(in, op->delay.y);
    case FL_RECALL: return line_of_value(in, op->recall.y);
    case FL_REMEMBER: return line_of_value(in, op->remember.x);
    case FL_SPREAD: return line_of_value(in, op->spread.y);
    case FL_FOLD: return line_of_value(in, op->fold.x);
    case FL_ATTENTION:
        scores = line_of_value(in, op->attention.scores);
        return scores < 0 ? line_of_value(in, op->attention.values) : scores;
    case FL_MEET: return line_of_value(in, (size_t)op->meet.ys.at[0]);
    case FL_RECURRENT: return line_of_value(in, op->recurrent.y);
    default: return -1;
    }
}

/* ---- Lines ---- */

/* Of a line that an operation makes, where its counts are: (B,). */
static size_t *counts_of(const run *in, ptrdiff_t number) {
    return (size_t *)own_at(in->call, in->call->cut->counts) + (size_t)number * in->call->B;
}

/* The rows of a line are as many as `of` (B,) says. */
static line_rows line_with(const run *in, const size_t *of) {
    line_rows made = {of[0], NULL};
    for (size_t b = 1; b < in->call->B; ++b) {
        if (of[b] != of[0]) made.of = of;
        if (of[b] > made.rows) made.rows = of[b];
    }
    return made;
}

/* Count the rows that an operation gives on a line of its own, before it runs. */
static void count_rows(run *in, const fl_operation *op) {
    const fl_running *call = in->call;
    const size_t B = call->B;
    ptrdiff_t from = -1, to = -1, rows_at = -1;
    int once = 0;
    switch (op->kind) {
    case FL_WINDOW:
        from = line_of_value(in, op->window.x);
        to = line_of_value(in, op->window.y);
        break;
    case FL_SPREAD:
        from = line_of_value(in, op->spread.x);
        to = line_of_value(in, op->spread.y);
        break;
    case FL_FOLD:
        from = line_of(in, op);
        to = line_of_value(in, op->fold.y);
        once = op->fold.folded && call->whole;
        rows_at = op->fold.rows;
        break;
    case FL_ATTENTION:
        from = line_of(in, op);
        to = line_of_value(in, op->attention.y);
        once = op->attention.folded && call->whole;
        rows_at = op->attention.rows;
        break;
    case FL_MEET: to = line_of(in, op); break;
    default: return;
    }
    if (from == to) return;
    const line_rows x = in->lines[from];
    if (op->kind != FL_MEET && op->kind != FL_WINDOW && !once && !x.of) {
        in->lines[to].of = NULL;
        in->lines[to].rows = op->kind == FL_SPREAD ? x.rows * op->spread.times : x.rows;
        return;
    }
    size_t *of = counts_of(in, to);
    for (size_t b = 0; b < B; ++b) {
        const size_t rows = rows_on(x, b);
        const real *state = state_of(in, b);
        if (op->kind == FL_WINDOW) of[b] = more_windows(&op->window, state, rows, in->ends);
        else if (op->kind == FL_SPREAD) of[b] = rows * op->spread.times;
        else if (op->kind == FL_MEET) of[b] = rows_met(in, &op->meet, b);
        else if (once) of[b] = in->ends && (rows || counted(state + rows_at) > 0);
        else of[b] = rows;
    }
    in->lines[to] = line_with(in, of);
}

/* ---- Operations ---- */

/* How the ranks divide an operation over R rows. */
static division division_of(const run *in, const fl_operation *op, size_t R) {
    switch (op->kind) {
    case FL_DELAY:
    case FL_RECALL:
    case FL_REMEMBER:
    case FL_FOLD:
    case FL_ATTENTION:
    case FL_MEET:
    case FL_START: return BY_RANK_0;
    case FL_RECURRENT: return BY_PANELS;
    case FL_PRODUCT: {
        const fl_packed_product *packed = &in->packed->product;
        const size_t elements = packed->groups * packed->panels->panels * packed->panels->stride;
        if (R >= LEAST_SHARED_ROWS) return BY_ROWS;
        return elements >= LEAST_ELEMENTS ? BY_PANELS : BY_RANK_0;
    }
    default: return R >= LEAST_SHARED_ROWS ? BY_ROWS : BY_RANK_0;
    }
}

static void run_loop(run *in, const fl_loop *loop);

/* Run operation `at` of the program over in->rows of its line. */
static void run_operation(run *in, size_t at) {
    const fl_running *call = in->call;
    const fl_operation *op = call->model->program.operations + at;
    const size_t R = (in->rows.end - in->rows.first) * call->B;
    in->at = at;
    in->packed = call->model->packed + at;
    in->mine.first = 0;
    in->mine.end = R;
    in->by = BY_ROWS;
    if (call->ranks > 1 && op->kind != FL_LOOP) {
        const division before = in->by_before;
        in->by = in->by_before = division_of(in, op, R);
        if (in->by != BY_RANK_0 || before != BY_RANK_0) meet(call);
        /* A recurrence ends with a meeting; in a loop its next step reads the state, which is written
         * behind that. */
        if (op->kind == FL_RECURRENT && !in->loops) in->by_before = BY_RANK_0;
        if (in->by == BY_ROWS) in->mine = part_of(R, call);
        /* These have all ranks meet before the state changes. */
        else if (in->by == BY_RANK_0 && call->rank && op->kind != FL_WINDOW && op->kind != FL_MEET)
            return;
    }
    switch (op->kind) {
#define O(NAME, name) \
    case FL_##NAME: run_##name(in, &op->name); break;
        FL_OPERATIONS(O)
#undef O
    default: break;
    }
}

/* All of the operations for one row, then all for the next. They are on one line. */
static void run_loop(run *in, const fl_loop *loop) {
    const fl_operation *operations = in->call->model->program.operations;
    const size_t first = in->at + 1, end = first + loop->operations;
    ptrdiff_t on = -1;
    /* What is remembered may be a constant. */
    for (size_t i = first; i < end && on < 0; ++i) on = line_of(in, operations + i);
    in->on = in->lines[on];
    in->loops = 1;
    for (size_t t = 0; t < in->on.rows; ++t) {
        in->rows.first = t;
        in->rows.end = t + 1;
        for (size_t i = first; i < end; ++i) {
            run_operation(in, i);
            if (stopped(in->call, 0)) return;
        }
    }
    in->loops = 0;
}

/* Run operations [first, end) over a chunk; 0 if the call stops within it. */
static int run_operations(run *in, size_t first, size_t end) {
    const fl_operation *operations = in->call->model->program.operations;
    for (size_t i = first; i < end; ++i) {
        const fl_operation *op = operations + i;
        count_rows(in, op);
        in->on = in->lines[line_of(in, op)];
        in->rows.first = 0;
        in->rows.end = in->on.rows;
        run_operation(in, i);
        if (op->kind == FL_LOOP) i += op->loop.operations;
        if (stopped(in->call, 0)) return 0;
    }
    return 1;
}

/* ---- Outputs ---- */

/* Put the rows of output o where the caller has them, if no operation does. */
static void give_rows(run *in, size_t o) {
    const fl_running *call = in->call;
    const size_t value = call->model->program.outputs[o];
    const fl_value *v = call->model->program.value + value;
    if (v->place == FL_PLACE_output && v->number == o) return;
    if (in->by_before != BY_RANK_0) meet(call);
    in->by_before = BY_RANK_0;
    if (call->rank) return;
    const fl_rows *rows = call->outputs + o;
    const view x = view_of(in, value);
    for (size_t b = 0; b < call->B; ++b) {
        const size_t n = rows_on(in->on, b), given = v->line < 0 ? 0 : rows_on(in->given[o], b);
        real *y = (real *)rows->data + (ptrdiff_t)(call->first_row + b) * rows->b;
        for (size_t t = 0; t < n && !stopped(call, ROW_WORK * v->count); ++t)
            memcpy(y + (ptrdiff_t)(given + t) * (v->line < 0 ? 0 : rows->t), at(&x, t, b),
                   v->count * sizeof(real));
    }
}

/* Count the rows that a chunk gave of output o. */
static void count_given(run *in, size_t o) {
    const size_t B = in->call->B;
    line_rows *given = in->given + o;
    if (!in->on.of && !given->of) {
        given->rows += in->on.rows;
        return;
    }
    size_t *of = counts_of(in, (ptrdiff_t)(in->call->model->program.lines + o));
    for (size_t b = 0; b < B; ++b) of[b] = rows_on(*given, b) + rows_on(in->on, b);
    given->of = of;
}

/* Outputs are given before any is counted: what lies in one of them is read for others. */
static void give_outputs(run *in) {
    const fl_program *program = &in->call->model->program;
    for (size_t o = 0; o < program->output_count; ++o) {
        in->on = in->lines[program->value[program->outputs[o]].line];
        give_rows(in, o);
    }
    for (size_t o = 0; o < program->output_count; ++o) {
        const ptrdiff_t l = program->value[program->outputs[o]].line;
        in->on = in->lines[l];
        if (l >= 0) count_given(in, o);
        else in->given[o].rows = 1;
    }
}

/* Tell the caller how many rows it was given. */
static void tell_given(const run *in) {
    const fl_running *call = in->call;
    const size_t outputs = call->model->program.output_count;
    for (size_t o = 0; call->given && call->rank == 0 && o < outputs; ++o)
        for (size_t b = 0; b < call->B; ++b)
            call->given[o * call->given_stride + b] = rows_on(in->given[o], b);
}

/* ---- Calls ---- */

/* Begin the chunk that starts with step in->first: 0 if the call stops before it. All ranks go back
 * to the same chunk. Between here and the next call of this, all are in the same one, so that one
 * which is not yet in the chunk that was given up keeps its states first, and tells its rows. */
static int begin_chunk(const run *in) {
    const fl_running *call = in->call;
    fl_watch *watch = call->watch;
    const size_t size = call->model->program.state_size * sizeof(real);
    if (!watch || call->ending) {
        /* Rank 0 may still be writing the state that this chunk begins with. */
        if (in->first) meet(call);
        return !stopped(call, 0);
    }
    if (call->members > 1)
        call->threads->barrier(call->threads->team, call->member, call->members);
    const size_t stop = __atomic_load_n(&watch->stop, __ATOMIC_ACQUIRE);
    if (stop && stop != in->first + 1) return 0;
    char *kept = shared_at(call, call->cut->kept);
    for (size_t b = 0; b < call->B && call->rank == 0; ++b)
        memcpy(kept + b * size, call->states[b], size);
    tell_given(in);
    meet(call);
    if (call->asks) watch->at = in->first + 1;
    return !stopped(call, 0);
}

/* The steps that each row still has, of as many as come at most. */
static line_rows steps_left(const run *in, size_t steps) {
    const fl_running *call = in->call;
    const line_rows all = {steps, NULL};
    if (!call->lengths) return all;
    size_t *left = counts_of(in, 0);
    for (size_t b = 0; b < call->B; ++b) {
        const size_t length = call->lengths[b], from = in->first;
        left[b] = length <= from ? 0 : length - from < steps ? length - from : steps;
    }
    return line_with(in, left);
}

/* What a rank has to itself, as a call starts. */
static run started(const fl_running *call) {
    const fl_program *program = &call->model->program;
    run in = {0};
    in.call = call;
    in.lines = (line_rows *)own_at(call, call->cut->lines) + 1;
    in.given = in.lines + program->lines;
    in.by_before = BY_RANK_0;
    memset(in.lines - 1, 0, (1 + program->lines + program->output_count) * sizeof(line_rows));
    in.lines[-1].rows = 1;
    return in;
}

/* The end of sequences, on a copy of their states. */
static void end_sequences(run *in, fl_running *call) {
    const size_t size = call->model->program.state_size * sizeof(real), B = call->B;
    void *const *states = call->states;
    void **copies = shared_at(call, call->cut->states);
    char *kept = shared_at(call, call->cut->kept);
    for (size_t b = 0; b < B && call->rank == 0; ++b) {
        copies[b] = kept + b * size;
        memcpy(copies[b], states[b], size);
    }
    meet(call);
    call->states = copies;
    in->ends = 1;
    const fl_program *program = &call->model->program;
    if (begin_chunk(in) && run_operations(in, program->held, program->operation_count)) {
        give_outputs(in);
        tell_given(in);
    }
    call->states = states;
}

static void run_chunks(run *in) {
    const fl_running *call = in->call;
    const fl_program *program = &call->model->program;
    const size_t chunk = call->cut->chunk;
    in->ends = program->looks_ahead;
    for (size_t first = 0; first < call->T; first += chunk) {
        in->first = first;
        in->back = (int)((call->turn + first) & 1);
        if (!begin_chunk(in)) return;
        in->lines[0] = steps_left(in, call->T - first < chunk ? call->T - first : chunk);
        if (!run_operations(in, program->held, program->operation_count)) return;
        give_outputs(in);
    }
    /* The last chunk of all ranks is given up if one of them stops in it. */
    if (call->watch && call->members > 1)
        call->threads->barrier(call->threads->team, call->member, call->members);
    if (!stopped(call, 0)) tell_given(in);
}

static void run_call(fl_running *call) {
    const __typeof__(v_flush_denormals()) before = v_flush_denormals();
    run in = started(call);
    if (call->asks) call->watch->mode = before;
    if (call->ending) end_sequences(&in, call);
    else run_chunks(&in);
    v_restore(before);
}

/* Put states where a sequence starts. */
static void begin_call(fl_running *call) {
    const __typeof__(v_flush_denormals()) before = v_flush_denormals();
    const fl_program *program = &call->model->program;
    run in = started(call);
    for (size_t b = 0; b < call->B && call->rank == 0; ++b) {
        real *state = call->states[b];
        memset(state, 0, program->state_size * sizeof(real));
        for (size_t i = 0; i < program->initial_count; ++i) {
            const fl_initial *initial = program->initial + i;
            memcpy(state + initial->offset, call->model->vectors[initial->values],
                   program->vector[initial->values].count * sizeof(real));
        }
    }
    run_operations(&in, 0, program->held);
    v_restore(before);
}

/* Tell how many rows a call would give, as if all of its steps were one chunk. */
static void count_call(fl_running *call) {
    const fl_program *program = &call->model->program;
    run in = started(call);
    in.ends = call->ending || program->looks_ahead;
    in.lines[0] = steps_left(&in, call->T);
    for (size_t i = program->held; i < program->operation_count; ++i)
        count_rows(&in, program->operations + i);
    for (size_t o = 0; o < program->output_count; ++o)
        in.given[o] = in.lines[program->value[program->outputs[o]].line];
    tell_given(&in);
}
