/* run.h - a call: its operations one after the other, a chunk of steps at a time. A part of kernel.h.
 */

/* Rows, and elements of a matrix, from which an operation is shared by the ranks. */
enum { LEAST_SHARED_ROWS = 16, LEAST_ELEMENTS = 32768 };

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

/* Count the rows that an operation makes on line `to`, before it runs. */
static __attribute__((noinline)) void make_rows(run *in, const fl_operation *op, ptrdiff_t from,
                                                ptrdiff_t to) {
    const fl_running *call = in->call;
    const line_rows x = in->lines[from];
    ptrdiff_t rows_at = -1;
    int once = 0;
    if (op->kind == FL_FOLD) {
        once = op->fold.folded && call->whole;
        rows_at = op->fold.rows;
    } else if (op->kind == FL_ATTENTION) {
        once = op->attention.folded && call->whole;
        rows_at = op->attention.rows;
    }
    if (op->kind != FL_MEET && op->kind != FL_WINDOW && !once && !x.of) {
        in->lines[to].of = NULL;
        in->lines[to].rows = op->kind == FL_SPREAD ? x.rows * op->spread.times : x.rows;
        return;
    }
    size_t *of = counts_of(in, to);
    for (size_t b = 0; b < call->B; ++b) {
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

/* What of an operation over R rows is this rank's, once the ranks have met where they must; 0:
 * nothing. */
static __attribute__((noinline)) int take_share(run *in, const fl_operation *op, size_t R) {
    const fl_running *call = in->call;
    const division before = in->by_before;
    in->by = in->by_before = division_of(in, op, R);
    if (in->by != BY_RANK_0 || before != BY_RANK_0) meet(call);
    /* A recurrence ends with a meeting; in a loop its next step reads the state, which is written
     * behind that. */
    if (op->kind == FL_RECURRENT && !in->loops) in->by_before = BY_RANK_0;
    if (in->by == BY_ROWS) in->mine = part_of(R, call);
    /* These have all ranks meet before the state changes. */
    return in->by != BY_RANK_0 || !call->rank || op->kind == FL_WINDOW || op->kind == FL_MEET;
}

/* Run operation `at` of the program over in->rows of its line. */
INLINE void run_operation(run *in, size_t at) {
    const fl_running *call = in->call;
    const fl_operation *op = call->model->program.operations + at;
    const size_t R = (in->rows.end - in->rows.first) * call->B;
    in->at = at;
    in->packed = call->model->packed + at;
    in->mine.first = 0;
    in->mine.end = R;
    in->by = BY_ROWS;
    if (call->ranks > 1 && op->kind != FL_LOOP && !take_share(in, op, R)) return;
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
    const size_t first = in->at + 1, end = first + loop->operations;
    const fl_course *courses = in->call->model->courses;
    ptrdiff_t on = -1;
    /* What is remembered may be a constant. */
    for (size_t i = first; i < end && on < 0; ++i) on = courses[i].on;
    in->on = in->lines + on;
    in->loops = 1;
    for (size_t t = 0; t < in->on->rows; ++t) {
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
    const fl_model *model = in->call->model;
    for (size_t i = first; i < end; ++i) {
        const fl_operation *op = model->program.operations + i;
        const fl_course *course = model->courses + i;
        if (course->to >= 0) make_rows(in, op, course->from, course->to);
        in->on = in->lines + course->on;
        in->rows.first = 0;
        in->rows.end = in->on->rows;
        run_operation(in, i);
        if (op->kind == FL_LOOP) i += op->loop.operations;
        if (stopped(in->call, 0)) return 0;
    }
    return 1;
}

/* ---- Outputs ---- */

/* Put the rows of output o, which no operation did, where the caller has them. */
static void give_rows(run *in, size_t o, size_t value) {
    const fl_running *call = in->call;
    const fl_value *v = call->model->program.value + value;
    const line_rows on = in->lines[v->line];
    if (in->by_before != BY_RANK_0) meet(call);
    in->by_before = BY_RANK_0;
    if (call->rank) return;
    const fl_rows *rows = call->outputs + o;
    const view x = view_of(in, value);
    for (size_t b = 0; b < call->B; ++b) {
        const size_t n = rows_on(on, b), given = v->line < 0 ? 0 : rows_on(in->given[o], b);
        real *y = (real *)rows->data + (ptrdiff_t)(call->first_row + b) * rows->b;
        for (size_t t = 0; t < n && !stopped(call, ROW_WORK * v->count); ++t)
            memcpy(y + (ptrdiff_t)(given + t) * (v->line < 0 ? 0 : rows->t), at(&x, t, b),
                   v->count * sizeof(real));
    }
}

static void give_outputs(run *in) {
    const fl_program *program = &in->call->model->program;
    if (!in->call->model->copies) return;
    for (size_t o = 0; o < program->output_count; ++o) {
        const size_t value = program->outputs[o];
        const fl_value *v = program->value + value;
        if (v->place != FL_PLACE_output || v->number != o) give_rows(in, o, value);
    }
}

/* Count the rows that a chunk gave, once all are given: what lies in one output is read for others. */
static void count_given(run *in) {
    const fl_program *program = &in->call->model->program;
    for (size_t o = 0; o < program->output_count; ++o) {
        const ptrdiff_t l = program->value[program->outputs[o]].line;
        const line_rows on = in->lines[l];
        line_rows *given = in->given + o;
        if (l < 0) {
            given->rows = 1;
        } else if (!on.of && !given->of) {
            given->rows += on.rows;
        } else {
            size_t *of = counts_of(in, (ptrdiff_t)(program->lines + o));
            for (size_t b = 0; b < in->call->B; ++b) of[b] = rows_on(*given, b) + rows_on(on, b);
            given->of = of;
        }
    }
}

/* Tell the caller how many rows it was given. */
static void tell_given(const run *in) {
    const fl_running *call = in->call;
    const size_t outputs = call->model->program.output_count;
    if (!call->given || call->rank) return;
    for (size_t o = 0; o < outputs; ++o)
        for (size_t b = 0; b < call->B; ++b)
            call->given[o * call->batch + b] = rows_on(in->given[o], b);
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
INLINE void start(run *in, const fl_running *call) {
    const fl_program *program = &call->model->program;
    const size_t lines = 1 + program->lines + program->output_count;
    line_rows *own = own_at(call, call->cut->lines);
    in->call = call;
    in->lines = own + 1;
    in->given = in->lines + program->lines;
    in->by_before = BY_RANK_0;
    in->first = 0;
    in->ends = in->loops = in->back = 0;
    for (size_t i = 0; i < lines; ++i) {
        own[i].rows = 0;
        own[i].of = NULL;
    }
    own[0].rows = 1;
}

/* ---- Where sequences start ---- */

/* Put the states of a call that has one rank where a sequence starts. */
static void put_starts(run *in) {
    const fl_running *call = in->call;
    const fl_program *program = &call->model->program;
    for (size_t b = 0; b < call->B; ++b) {
        real *state = call->states[b];
        memset(state, 0, program->state_size * sizeof(real));
        for (size_t i = 0; i < program->initial_count; ++i) {
            const fl_initial *initial = program->initial + i;
            memcpy(state + initial->offset, call->model->vectors[initial->values],
                   program->vector[initial->values].count * sizeof(real));
        }
    }
    run_operations(in, 0, program->held);
}

/* Between two chunks of a call: a call of its batch row b alone, which `made` is. */
static run one_row(const run *in, size_t b, fl_running *made) {
    const run alone = {.call = made, .lines = in->lines, .given = in->given};
    *made = *in->call;
    made->B = made->ranks = 1;
    made->rank = 0;
    made->first_row += b;
    made->states += b;
    made->lengths = NULL;
    made->gemm = NULL; /* who counts rows before may not have it, and must count those that come */
    return alone;
}

static int any_of(const unsigned char *flags, size_t n) {
    unsigned char any = 0;
    for (size_t i = 0; i < n; ++i) any |= flags[i];
    return any != 0;
}

/* Steps of the chunk that starts with in->first, of `most`: a reset of any row of the whole call
 * ends it, so that all ranks have the same chunks. */
static size_t steps_together(const run *in, size_t most) {
    const fl_running *call = in->call;
    const size_t left = call->T - in->first, end = left < most ? left : most;
    size_t steps = 1;
    if (!call->resets) return end;
    while (steps < end && !any_of(call->resets + (in->first + steps) * call->batch, call->batch))
        ++steps;
    return steps;
}

/* The batch rows that start anew with the chunk do, once begin_chunk() has kept them as they were:
 * 0 if the call stops meanwhile. */
static int start_anew(const run *in) {
    const fl_running *call = in->call;
    const unsigned char *resets = call->resets + in->first * call->batch + call->first_row;
    if (!any_of(resets, call->B)) return 1;
    for (size_t b = 0; b < call->B && call->rank == 0; ++b) {
        if (!resets[b] || (call->lengths && call->lengths[b] <= in->first)) continue;
        fl_running call_of_row;
        run alone = one_row(in, b, &call_of_row);
        put_starts(&alone);
    }
    meet(call);
    return !stopped(call, 0);
}

/* ---- All of a call ---- */

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
        count_given(in);
        tell_given(in);
    }
    call->states = states;
}

static void run_chunks(run *in) {
    const fl_running *call = in->call;
    const fl_program *program = &call->model->program;
    const size_t chunk = call->cut->chunk;
    in->ends = program->looks_ahead;
    for (size_t first = 0, steps; first < call->T; first += steps) {
        in->first = first;
        in->back = (int)((call->turn + first) & 1);
        if ((first || call->watch) && !begin_chunk(in)) return;
        if (call->resets && !start_anew(in)) return;
        steps = steps_together(in, chunk);
        in->lines[0] = steps_left(in, steps);
        if (!run_operations(in, program->held, program->operation_count)) return;
        give_outputs(in);
        if (call->given || first + steps < call->T) count_given(in);
    }
    /* The last chunk of all ranks is given up if one of them stops in it. */
    if (call->watch && call->members > 1)
        call->threads->barrier(call->threads->team, call->member, call->members);
    if (!stopped(call, 0)) tell_given(in);
}

static void run_call(fl_running *call) {
    const __typeof__(v_flush_denormals()) before = v_flush_denormals();
    run in;
    start(&in, call);
    if (call->asks) call->watch->mode = before;
    if (call->prepares) prepare_recurrences(&in);
    else if (call->ending) end_sequences(&in, call);
    else run_chunks(&in);
    v_restore(before);
}

/* Put states where a sequence starts. */
static void begin_call(fl_running *call) {
    const __typeof__(v_flush_denormals()) before = v_flush_denormals();
    run in;
    start(&in, call);
    put_starts(&in);
    v_restore(before);
}

/* Count the rows that so many steps give, as if they were one chunk. */
static void count_steps(run *in, size_t steps) {
    const fl_program *program = &in->call->model->program;
    in->lines[0] = steps_left(in, steps);
    for (size_t i = program->held; i < program->operation_count; ++i) {
        const fl_course *course = in->call->model->courses + i;
        if (course->to >= 0) make_rows(in, program->operations + i, course->from, course->to);
    }
    for (size_t o = 0; o < program->output_count; ++o)
        in->given[o] = in->lines[program->value[program->outputs[o]].line];
}

/* Tell how many rows batch row b would be given: of each part between two resets what it gives. */
static void count_parts(const run *in, size_t b) {
    const fl_running *call = in->call;
    const fl_program *program = &call->model->program;
    const size_t end = call->lengths ? call->lengths[b] : call->T;
    const unsigned char *resets = call->resets + b;
    void *const begun = shared_at(call, call->cut->kept);
    fl_running call_of_row;
    run alone = one_row(in, b, &call_of_row);
    size_t first = 0;
    do {
        size_t next = first + 1;
        while (next < end && !resets[next * call->batch]) ++next;
        if (first < end && resets[first * call->batch] && call_of_row.states != &begun) {
            call_of_row.states = &begun;
            put_starts(&alone);
        }
        count_steps(&alone, (next < end ? next : end) - first);
        for (size_t o = 0; o < program->output_count; ++o) {
            const int held = program->value[program->outputs[o]].line < 0;
            size_t *rows = call->given + o * call->batch + b;
            *rows = alone.given[o].rows + (held || !first ? 0 : *rows);
        }
        first = next;
    } while (first < end);
}

/* Tell how many rows a call would give. */
static void count_call(fl_running *call) {
    const __typeof__(v_flush_denormals()) before = v_flush_denormals();
    run in;
    start(&in, call);
    in.ends = call->ending || call->model->program.looks_ahead;
    if (call->resets) {
        for (size_t b = 0; b < call->B; ++b) count_parts(&in, b);
    } else {
        count_steps(&in, call->T);
        tell_given(&in);
    }
    v_restore(before);
}
