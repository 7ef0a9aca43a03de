/* constant.h - a model whose program, sizes and weights are constants: one sequence, step by step.
 *
 * What fl_source() writes comes behind kernel.h and before this; FL_CONSTANT_STACK says whether
 * scratch memory is the stack's or given. The operations are called one after the other, each with
 * structs of its own that a compiler knows: recurrences and products that have one row each step
 * are inlined, and then have no size, kind or place to look up. Whatever else there is runs as run.h
 * runs it. The numbers are those of run.h.
 */

_Static_assert(L == FL_CONSTANT_LANES && DOT_OFFSET == FL_CONSTANT_OFFSET,
               "the weights are packed for another instruction set");

FL_REGION(FL_TARGET)

typedef struct {
    const fl_rows *inputs, *outputs;
    real *state;
    char *scratch;  /* (FL_CONSTANT_SCRATCH,), where the stack has none */
    size_t *given;  /* (outputs,) written: rows of each output; or NULL */
} constant_call;

/* ---- One row ---- */

/* The row of a value that has one. */
INLINE real *constant_row(const constant_call *of, char *scratch, size_t value) {
    const size_t first = model_value[value].first;
    if (model_value[value].place == FL_PLACE_stretch) value = model_value[value].number;
    const size_t n = model_value[value].number;
    switch (model_value[value].place) {
    case FL_PLACE_input: return (real *)of->inputs[n].data + first;
    case FL_PLACE_output: return (real *)of->outputs[n].data + first;
    case FL_PLACE_buffer:
        return (real *)(void *)scratch + model_rooms[n].each + model_rooms[n].more + first;
    case FL_PLACE_state: return of->state + n + first;
    default: return (real *)(uintptr_t)model_vectors[n] + first;
    }
}

/* All P panels of one row, in groups as even as can be: what sums of one panel leave idle while
 * they wait for each other, others use. N is a constant where P is one. */
enum { MOST_TOGETHER = ROWS < 4 ? ROWS : 4 };
#define ONE_ROW(BLOCK, P)                                                                \
    do {                                                                                 \
        const size_t turns_ = ((P) + MOST_TOGETHER - 1) / MOST_TOGETHER;                 \
        const size_t N_ = turns_ ? ((P) + turns_ - 1) / turns_ : 1, rest_ = (P) % N_;    \
        for (size_t p_ = 0; p_ + rest_ < (P); p_ += N_) BLOCK((int)N_, p_);              \
        if (rest_) BLOCK((int)rest_, (P) - rest_);                                       \
    } while (0)

INLINE void one_product(const constant_call *of, char *scratch, const size_t number) {
    const fl_product *is = &model_operations[number].product;
    const fl_packed_product *packed = &model_packed[number].product;
    const fl_panels *panels = model_packed[number].product.panels;
    const fl_stretch *from = packed->x.stretches;
    const size_t read = from ? (size_t)is->reads.at[from->read] : (size_t)is->reads.at[0];
    const range all = {0, panels->panels};
    product a;
    fill_product(&a, panels, all, packed->columns, packed->outputs, NULL, NULL);
    a.activation = &model_operations[number].product.function;
    const row one = {panels->bias, NULL,
                     constant_row(of, scratch, read) + (from ? from->first : 0), NULL, NULL,
                     constant_row(of, scratch, is->y), NULL};
#define BLOCK_1(N, p) product_block(N, 1, &a, p, &one)
#define BLOCK_2(N, p) product_block(N, 2, &a, p, &one)
#define BLOCK_3(N, p) product_block(N, 3, &a, p, &one)
#define BLOCK_4(N, p) product_block(N, 4, &a, p, &one)
    switch (a.groups) {
    case 1: ONE_ROW(BLOCK_1, a.full); break;
    case 2: ONE_ROW(BLOCK_2, a.full); break;
    case 3: ONE_ROW(BLOCK_3, a.full); break;
    default: ONE_ROW(BLOCK_4, a.full); break;
    }
    if (!a.last_groups) return;
    a.weights += a.full * a.stride;
    a.first = a.full * a.groups * L;
    switch (a.last_groups) {
    case 1: BLOCK_1(1, 0); break;
    case 2: BLOCK_2(1, 0); break;
    default: BLOCK_3(1, 0); break;
    }
#undef BLOCK_1
#undef BLOCK_2
#undef BLOCK_3
#undef BLOCK_4
}

INLINE void one_recurrent(const constant_call *of, char *scratch, const size_t number) {
    const fl_recurrent *is = &model_operations[number].recurrent;
    const fl_cell *packed = &model_packed[number].recurrent;
    const fl_panels *gates = &model_packed[number].recurrent.gates;
    const cell a = {is, packed, NULL, NULL, NULL};
    const view x = {.base = constant_row(of, scratch, is->x)};
    real *h = of->state + is->h, *y = constant_row(of, scratch, is->y) + is->h_column;
    const real *table = packed->table;
    if (table) table += token_at(&x, 0, 0, 0, packed->tokens) * gates->panels * gates->groups * L;
    const row one = {gates->bias, table, table ? NULL : x.base, h,
                     is->c < 0 ? NULL : of->state + is->c, y, NULL};
#define BLOCK_LSTM(N, p) gated_block(FL_CELL_lstm, N, 4, 0, a, p, &one, NULL)
#define BLOCK_GRU(N, p) gated_block(FL_CELL_gru, N, 3, 0, a, p, &one, NULL)
#define BLOCK_1(N, p) rnn_block(N, 1, 0, a, p, &one)
#define BLOCK_2(N, p) rnn_block(N, 2, 0, a, p, &one)
#define BLOCK_3(N, p) rnn_block(N, 3, 0, a, p, &one)
#define BLOCK_4(N, p) rnn_block(N, 4, 0, a, p, &one)
    if (is->cell == FL_CELL_lstm) ONE_ROW(BLOCK_LSTM, gates->panels);
    else if (is->cell == FL_CELL_gru) ONE_ROW(BLOCK_GRU, gates->panels);
    else if (gates->groups == 1) ONE_ROW(BLOCK_1, gates->panels);
    else if (gates->groups == 2) ONE_ROW(BLOCK_2, gates->panels);
    else if (gates->groups == 3) ONE_ROW(BLOCK_3, gates->panels);
    else ONE_ROW(BLOCK_4, gates->panels);
#undef BLOCK_LSTM
#undef BLOCK_GRU
#undef BLOCK_1
#undef BLOCK_2
#undef BLOCK_3
#undef BLOCK_4
    put_run(y, 1, h, is->h_size);
}

/* ---- Whatever else there is ---- */

/* Run an operation over the rows that its line has. */
#define CONSTANT_OPERATION(number, name)                                           \
    if (model_courses[number].to >= 0)                                             \
        make_rows(&in, model_operations + number, model_courses[number].from,      \
                  model_courses[number].to);                                       \
    in.at = number;                                                                \
    in.packed = model_packed + number;                                             \
    if (!in.loops) {                                                               \
        in.on = in.lines + model_courses[number].on;                               \
        in.rows.first = 0;                                                         \
        in.rows.end = in.on->rows;                                                 \
    }                                                                              \
    in.mine.first = 0;                                                             \
    in.mine.end = in.rows.end - in.rows.first;                                     \
    run_##name(&in, &model_operations[number].name);

#define CONSTANT_ONE(number, name) one_##name(of, scratch, number);
#define CONSTANT_NO_ONE(number, name)

/* The line of a loop's operations: what is remembered may be a constant. */
INLINE ptrdiff_t line_of_loop(size_t number) {
    const size_t end = number + 1 + model_operations[number].loop.operations;
    for (size_t i = number + 1; i < end; ++i)
        if (model_courses[i].on >= 0) return model_courses[i].on;
    return 0;
}

#define CONSTANT_LOOP(number)                                     \
    in.loops = 1;                                                 \
    in.on = in.lines + line_of_loop(number);                      \
    for (size_t t = 0; t < in.on->rows; ++t) {                    \
        in.rows.first = t;                                        \
        in.rows.end = t + 1;
#define CONSTANT_END                                              \
    }                                                             \
    in.loops = 0;

#if FL_CONSTANT_STACK
#define CONSTANT_SCRATCH _Alignas(FL_ALIGNMENT) char scratch[FL_CONSTANT_SCRATCH]
#else
#define CONSTANT_SCRATCH char *scratch = of->scratch
#endif

/* A call of one sequence, as run_call has it once it is planned. */
#define CONSTANT_CALL(steps, row)                                                        \
    void *const states[1] = {row};                                                       \
    const fl_running call = {.model = &the_model, .T = steps, .B = 1,                    \
                             .inputs = of->inputs, .outputs = of->outputs,               \
                             .states = states, .scratch = scratch, .given = of->given,   \
                             .batch = 1, .cut = &the_cut, .ranks = 1,                    \
                             .members = 1};                                              \
    line_rows own[1 + FL_CONSTANT_LINES + FL_CONSTANT_OUTPUTS] = {{1, NULL}};            \
    run in = {.call = &call, .lines = own + 1, .given = own + 1 + FL_CONSTANT_LINES,     \
              .by = BY_ROWS, .by_before = BY_RANK_0}

/* ---- Begin, step, end ---- */

#define CONSTANT_PART static __attribute__((noinline, unused)) void

CONSTANT_PART constant_begin(const constant_call *of) {
    CONSTANT_SCRATCH;
    CONSTANT_CALL(0, of->state);
    (void)in;
    memset(of->state, 0, FL_CONSTANT_STATE * sizeof(real));
    for (size_t i = 0; i < the_model.program.initial_count; ++i)
        memcpy(of->state + model_initial[i].offset, model_vectors[model_initial[i].values],
               model_vector[model_initial[i].values].count * sizeof(real));
    FL_CONSTANT_BEGIN(CONSTANT_ONE, CONSTANT_OPERATION, CONSTANT_LOOP, CONSTANT_END)
}

CONSTANT_PART constant_step(const constant_call *of) {
    CONSTANT_SCRATCH;
    CONSTANT_CALL(1, of->state);
    in.lines[0].rows = 1;
    FL_CONSTANT_STEP(CONSTANT_ONE, CONSTANT_OPERATION, CONSTANT_LOOP, CONSTANT_END)
    if (the_model.copies) give_outputs(&in);
    if (of->given) {
        count_given(&in);
        tell_given(&in);
    }
}

/* The end of the sequence, on a copy of its state. Without a step, what has one row each has none. */
CONSTANT_PART constant_end(const constant_call *of) {
    CONSTANT_SCRATCH;
    real *copy = (real *)(void *)(scratch + the_cut.kept);
    memcpy(copy, of->state, FL_CONSTANT_STATE * sizeof(real));
    CONSTANT_CALL(0, copy);
    in.ends = 1;
    FL_CONSTANT_STEP(CONSTANT_NO_ONE, CONSTANT_OPERATION, CONSTANT_LOOP, CONSTANT_END)
    give_outputs(&in);
    count_given(&in);
    tell_given(&in);
}

FL_REGION_END
