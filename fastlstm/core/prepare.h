/* prepare.h - what of a step does not need its input: the products of h of every recurrence along
 * time, made before and read in their place. A part of kernel.h.
 *
 * Sums of what x gives and of what h gives are made apart (cells.h), so that a step has the same
 * bits whether it finds the second or makes it.
 */

/* Where the product of h of position p of batch row b is; NULL: nowhere. */
INLINE real *prepared_place(const fl_running *call, const fl_cell *packed, size_t b, size_t p) {
    const fl_panels *matrix = fl_panels_of_h(packed);
    if (!packed->prepared || !call->prepared[b]) return NULL;
    return (real *)call->prepared[b] + packed->prepared + p * matrix->panels * matrix->groups * L;
}

INLINE int is_prepared(const fl_running *call, size_t b) {
    const fl_prepared *prepared = call->prepared[b];
    return prepared && prepared->made;
}

/* The same, if it was made. */
INLINE const real *prepared_of(const fl_running *call, const fl_cell *packed, size_t b, size_t p) {
    if (!call->prepared || !is_prepared(call, b)) return NULL;
    return prepared_place(call, packed, b, p);
}

/* Rows [0, n) of a step, and one behind them, whose product of h was made if the first `made` of them
 * and this one: have those come first. */
INLINE void put_in_order(row *rows, size_t n, size_t *made) {
    if (!rows[n].from_h) return;
    const row last = rows[n];
    rows[n] = rows[*made];
    rows[(*made)++] = last;
}

/* Have rows of one step, from position `first` of all batch rows on, read what was made. */
static __attribute__((noinline)) void read_prepared(const fl_running *call, cell of, size_t first,
                                                    row *rows, size_t n) {
    const size_t P = of.is->positions;
    size_t made = 0;
    for (size_t i = 0; i < n; ++i) {
        rows[i].from_h = prepared_of(call, of.packed, (first + i) / P, (first + i) % P);
        put_in_order(rows, i, &made);
    }
}

/* Make it of all rows that do not have it, this rank's panels. */
static void prepare_recurrence(const run *in, cell of) {
    const fl_running *call = in->call;
    const fl_recurrent *is = of.is;
    row *rows = own_scratch(call);
    product made;
    size_t n = 0;
    fill_product_of_h(&made, of, panels_of(in, of.packed->gates.panels));
    for (size_t b = 0; b < call->B; ++b) {
        if (!call->prepared[b] || is_prepared(call, b)) continue;
        const real *h = (const real *)call->states[b] + is->h;
        for (size_t p = 0; p < is->positions; ++p) {
            fill_row_of_h(rows + n++, of, h + p * is->h_size,
                          prepared_place(call, of.packed, b, p));
            if (n < FL_TILE_ROWS) continue;
            multiply(&made, rows, n, in->back);
            n = 0;
        }
    }
    if (n) multiply(&made, rows, n, in->back);
}

/* What one recurrence makes no other reads, so that the ranks need not meet. */
static void prepare_recurrences(run *in) {
    const fl_model *model = in->call->model;
    in->by = BY_PANELS;
    in->back = (int)(in->call->turn & 1);
    for (size_t i = 0; i < model->program.operation_count; ++i) {
        const fl_operation *op = model->program.operations + i;
        in->packed = model->packed + i;
        if (op->kind != FL_RECURRENT || !in->packed->recurrent.prepared) continue;
        const fl_recurrent *is = &op->recurrent;
        const size_t rows = fl_tile_rows(in->call->B, is->positions);
        const cell of = {is, &in->packed->recurrent,
                         (char *)own_scratch(in->call) + fl_twins_at(is, rows, sizeof(real)), NULL,
                         &in->call->model->kernel->int8};
        prepare_recurrence(in, of);
    }
}
