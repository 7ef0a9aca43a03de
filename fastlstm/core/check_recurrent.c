/* check_recurrent.c - one layer and direction of a recurrence: its shapes, and what each kind of
 * cell has.
 */
#include <string.h>

#include "check.h"

/* What only some cells have is refused of the others, which would not look at it. */
static int check_cell(fl_checker *check, const fl_recurrent *r, uint64_t gates) {
    const uint64_t all = gates * r->hidden_size;
    const int is_lstm = r->cell == FL_CELL_lstm, is_gru = r->cell == FL_CELL_gru;
    const int normalises = r->norm == FL_CELL_NORM_product;
    const ptrdiff_t norms[] = {r->norm_x_bias, r->norm_h_weight, r->norm_h_bias, r->norm_c_weight,
                               r->norm_c_bias};
    const uint64_t peepholes = is_lstm ? (gates - 1) * r->hidden_size : 0;
    if (!is_lstm && (r->coupled || r->norm != FL_CELL_NORM_none || r->peepholes >= 0 ||
                     r->projection >= 0 || r->cell_clip != 0 || r->c_column >= 0))
        return fl_refuse(check, "it has parts that only a cell of kind lstm has");
    if (!is_gru && (r->h_bias >= 0 || r->reset_after))
        return fl_refuse(check, "it has parts that only a cell of kind gru has");
    if (!(r->clip >= 0) || !(r->cell_clip >= 0))
        return fl_refuse(check, "clip is %g, cell_clip %g; expected 0 or more", r->clip,
                         r->cell_clip);
    if (!fl_check_vector(check, "bias", r->bias, all, 0) ||
        !fl_check_vector(check, "h_bias", r->h_bias, r->hidden_size, 0) ||
        !fl_check_vector(check, "peepholes", r->peepholes, peepholes, 0) ||
        !fl_check_vector(check, "norm_x_weight", r->norm_x_weight, all,
                         r->norm != FL_CELL_NORM_none))
        return 0;
    if (r->norm == FL_CELL_NORM_none && r->norm_x_weight >= 0)
        return fl_refuse(check, "norm_x_weight is there, without a norm");
    for (int i = 0; i < 5; ++i)
        if (normalises
                ? !fl_check_vector(check, "a weight or bias of the norm", norms[i],
                                   i < 3 ? all : r->hidden_size, 1)
                : norms[i] >= 0 && !fl_refuse(check, "norms are there, but not of the products"))
            return 0;
    return 1;
}

/* All that tells how the matrices of a recurrence, but its projection, are packed. */
enum { PACKING_FIELDS = 10 };

static void read_packing(const fl_program *program, const fl_recurrent *r, uint64_t *fields) {
    fields[0] = r->cell, fields[1] = (uint64_t)r->coupled, fields[2] = (uint64_t)r->reset_after;
    fields[3] = r->input_size, fields[4] = r->hidden_size, fields[5] = r->h_size;
    fields[6] = (uint64_t)r->input, fields[7] = (uint64_t)r->hidden, fields[8] = (uint64_t)r->table;
    fields[9] = program->value[r->x].tokens != 0;
}

/* Find the recurrence before this one whose matrices are packed as its own are. */
static int find_twin(fl_checker *check, const fl_recurrent *r) {
    const fl_program *program = check->program;
    const uint64_t basis = 0xcbf29ce484222325u, prime = 0x100000001b3u; /* FNV-1a */
    uint64_t own[PACKING_FIELDS], other[PACKING_FIELDS], at = basis;
    read_packing(program, r, own);
    for (int i = 0; i < PACKING_FIELDS; ++i) at = (at ^ own[i]) * prime;
    for (at ^= at >> 32;; ++at) {
        size_t *slot = check->slots + at % check->slot_count;
        if (!fl_spend(check, 1)) return 0;
        if (!*slot) *slot = check->operation + 1;
        read_packing(program, &program->operations[*slot - 1].recurrent, other);
        if (memcmp(own, other, sizeof own)) continue;
        check->twins[check->operation] = *slot - 1;
        return 1;
    }
}

static int check_matrices(fl_checker *check, const fl_recurrent *r, uint64_t gates) {
    const uint64_t all = gates * r->hidden_size;
    const fl_value *x = check->program->value + r->x;
    if (!fl_check_matrix(check, "input", r->input, all, r->input_size, 0) ||
        !fl_check_matrix(check, "hidden", r->hidden, all, r->h_size, 0) || !find_twin(check, r))
        return 0;
    const fl_matrix *input = check->program->matrix + r->input;
    const fl_matrix *hidden = check->program->matrix + r->hidden;
    if (!x->tokens && input->stored != hidden->stored)
        return fl_refuse(check, "input and hidden are not stored alike");
    if (r->projection < 0 && r->h_size != r->hidden_size)
        return fl_refuse(check, "h_size is %zu without a projection of %zu", r->h_size,
                         r->hidden_size);
    if (r->projection >= 0 &&
        !fl_check_matrix(check, "projection", r->projection, r->h_size, r->hidden_size,
                         FL_USE_PANELS))
        return 0;
    if (r->table < 0) return 1;
    if (!x->tokens) return fl_refuse(check, "there is a table, but x is no tokens");
    const fl_matrix *table = check->program->matrix + r->table;
    if (!fl_check_matrix(check, "table", r->table, 0, r->input_size, 0)) return 0;
    if (check->twins[check->operation] != check->operation) return 1;
    if (!fl_spend(check, fl_times(table->rows, table->pieces))) return 0;
    const uint64_t work = fl_times(fl_times(table->rows, table->columns), all);
    if (work > FL_MOST_PACKING - check->packing) {
        check->error = FL_TOO_LARGE;
        return fl_refuse(check, "the products of %zu tokens are %llu multiply-adds; at most %llu "
                                "are supported", table->rows, (unsigned long long)work,
                         (unsigned long long)FL_MOST_PACKING);
    }
    check->packing += work;
    return 1;
}

/* The states, and where each of them begins. */
static int check_states(fl_checker *check, const fl_recurrent *r, ptrdiff_t line) {
    const uint64_t h = fl_times(r->positions, r->h_size);
    const uint64_t c = fl_times(r->positions, r->hidden_size);
    const int is_lstm = r->cell == FL_CELL_lstm;
    if (!r->along_positions) {
        if (r->start_h >= 0 || r->start_c >= 0 || r->h_0 >= 0 || r->c_0 >= 0)
            return fl_refuse(check, "it starts from values, and goes along time");
        if (r->steps != 1) return fl_refuse(check, "%zu steps of each row, along time", r->steps);
        if (r->reverse && (!check->program->looks_ahead || check->loop_end))
            return fl_refuse(check, "it goes from the last row to the first, in a loop or a "
                                    "program that does not look ahead");
        if ((!is_lstm && r->c >= 0) || (r->mask < 0 && r->held >= 0))
            return fl_refuse(check, "it has a state that it does not use");
        return fl_check_claim(check, "h", r->h, h, 1) &&
               fl_check_claim(check, "c", r->c, c, is_lstm) &&
               fl_check_claim(check, "held", r->held, h, r->mask >= 0);
    }
    if (r->h >= 0 || r->c >= 0 || r->held >= 0)
        return fl_refuse(check, "it has a state of the stream, and goes along positions");
    if (!is_lstm && (r->start_c >= 0 || r->c_0 >= 0))
        return fl_refuse(check, "it has no c that could start");
    if ((r->start_h >= 0 && r->h_0 >= 0) || (r->start_c >= 0 && r->c_0 >= 0))
        return fl_refuse(check, "it starts from a value and from a vector");
    return fl_check_vector(check, "h_0", r->h_0, r->h_size, 0) &&
           fl_check_vector(check, "c_0", r->c_0, r->hidden_size, 0) &&
           (r->start_h < 0 || fl_check_one(check, "start_h", (size_t)r->start_h, line, h)) &&
           (r->start_c < 0 || fl_check_one(check, "start_c", (size_t)r->start_c, line, c));
}

/* Of y, recurrences that follow one another may write different columns: `operation` has written
 * some of them. */
static int writes_beside(const fl_checker *check, const fl_recurrent *r) {
    if (!check->operation || check->operation == check->program->held ||
        check->operation == check->loop_first)
        return 0;
    const fl_operation *before = check->program->operations + check->operation - 1;
    return before->kind == FL_RECURRENT && before->recurrent.y == r->y;
}

static int overlap(size_t a, size_t n, size_t b, size_t m) { return a < b + m && b < a + n; }

static int check_columns(fl_checker *check, const fl_recurrent *r) {
    const fl_operation *operations = check->program->operations;
    const size_t c = r->c_column < 0 ? 0 : (size_t)r->c_column;
    const size_t c_size = r->c_column < 0 ? 0 : r->hidden_size;
    const int goes_on = writes_beside(check, r);
    if (r->c_column < -1 || r->h_column + r->h_size > r->width || c + c_size > r->width ||
        (c_size && overlap(r->h_column, r->h_size, c, c_size)))
        return fl_refuse(check, "h lies at columns %zu to %zu and c from %td on, of %zu",
                         r->h_column, r->h_column + r->h_size - 1, r->c_column, r->width);
    if (!goes_on) check->columns = 0;
    for (size_t i = check->operation; goes_on && i-- > 0;) {
        const fl_recurrent *o = &operations[i].recurrent;
        if (operations[i].kind != FL_RECURRENT || o->y != r->y) break;
        const size_t o_c = o->c_column < 0 ? 0 : (size_t)o->c_column;
        const size_t o_size = o->c_column < 0 ? 0 : o->hidden_size;
        if (!fl_spend(check, 1)) return 0;
        if (o->width != r->width || o->positions != r->positions || o->steps != r->steps ||
            overlap(r->h_column, r->h_size, o->h_column, o->h_size) ||
            overlap(r->h_column, r->h_size, o_c, o_size) ||
            overlap(c, c_size, o->h_column, o->h_size) || overlap(c, c_size, o_c, o_size))
            return fl_refuse(check, "it writes over what operation %zu writes", i);
    }
    check->columns += r->h_size + c_size;
    const size_t next = check->operation + 1;
    if (next < check->program->operation_count && next != check->loop_end &&
        next != check->program->held && operations[next].kind == FL_RECURRENT &&
        operations[next].recurrent.y == r->y)
        return 1;
    return check->columns == r->width ||
           fl_refuse(check, "%zu of the %zu columns of y are written", check->columns, r->width);
}

int fl_check_recurrent(fl_checker *check, const fl_recurrent *r) {
    const fl_value *x = check->program->value + r->x, *y = check->program->value + r->y;
    const uint64_t gates = r->cell == FL_CELL_gru ? 3 : r->cell == FL_CELL_rnn ? 1
                           : r->coupled           ? 3
                                                  : 4;
    const uint64_t steps = fl_times(r->positions, r->steps);
    if (!r->input_size || !r->hidden_size || !r->h_size || !steps)
        return fl_refuse(check, "sizes of 0");
    if (check->operation < check->program->held && !r->along_positions)
        return fl_refuse(check, "it is held, and goes along time");
    if (x->tokens ? x->count != steps : x->count != fl_times(steps, r->input_size))
        return fl_refuse(check, "x is value %zu of %zu numbers; expected (%zu, %zu, %zu)", r->x,
                         x->count, r->positions, r->steps, r->input_size);
    if (!fl_check_read(check, "x", r->x, y->line)) return 0;
    if (!r->along_positions && x->line != y->line)
        return fl_refuse(check, "x is of line %td; expected that of y, %td", x->line, y->line);
    if (r->mask >= 0 &&
        !fl_check_one(check, "mask", (size_t)r->mask, y->line,
                      check->program->value[r->mask].count == 1 ? 1 : steps))
        return 0;
    if (!check_matrices(check, r, gates) || !check_cell(check, r, gates) ||
        !check_states(check, r, y->line) || !check_columns(check, r))
        return 0;
    if (writes_beside(check, r)) return 1;
    return fl_check_write(check, r->y, fl_times(steps, r->width));
}
