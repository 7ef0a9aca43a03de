/* lines.c - bounds of the number of rows, followed from the steps through all that changes it. */
#include <string.h>

#include "lines.h"

static size_t divided(size_t a, size_t b) { return a / b + (a % b != 0); }

size_t fl_most_rows(fl_bound bound, size_t steps) {
    const size_t rows = fl_checked(steps, bound.factor, 0);
    return rows == SIZE_MAX ? SIZE_MAX : fl_checked(1, divided(rows, bound.divisor), bound.more);
}

/* After a window a row takes `stride` of those before, but for what is due at its end and, where
 * more rows stand before the first than a window sees, with its first. */
static fl_bound of_window(fl_bound x, const fl_window *w) {
    const ptrdiff_t seen =
        (ptrdiff_t)fl_checked(w->dilation, w->size - 1, w->ahead); /* both are below 2^31 */
    const size_t early = w->before > seen ? (size_t)(w->before - seen) : 0;
    const size_t late = w->behind > 0 ? (size_t)w->behind : 0;
    size_t divisor;
    /* A smaller divisor is a bound too. */
    if (__builtin_mul_overflow(x.divisor, w->stride, &divisor)) divisor = x.divisor;
    x.divisor = divisor;
    x.more = fl_checked(1, fl_checked(1, x.more, late), early);
    if (x.more != SIZE_MAX) x.more = divided(x.more, w->stride);
    return x;
}

/* The bound of the line that an operation makes from bounds of those before it; `line` is -1 where it
 * makes none. */
static fl_bound bound_of(const fl_program *program, const fl_operation *op, const fl_bound *bounds,
                         ptrdiff_t *line) {
    const fl_value *values = program->value;
    ptrdiff_t from = -1;
    fl_bound made = {0, 1, 1};
    switch (op->kind) {
    case FL_WINDOW: from = values[op->window.x].line, *line = values[op->window.y].line; break;
    case FL_SPREAD: from = values[op->spread.x].line, *line = values[op->spread.y].line; break;
    case FL_FOLD: from = values[op->fold.x].line, *line = values[op->fold.y].line; break;
    case FL_ATTENTION:
        from = values[op->attention.scores].line;
        if (from < 0) from = values[op->attention.values].line;
        *line = values[op->attention.y].line;
        break;
    case FL_MEET:
        /* There are no more rows than of any of the reads: with those of its queue. */
        for (size_t i = 0; i < op->meet.reads.count; ++i) {
            const ptrdiff_t read = values[op->meet.reads.at[i]].line;
            const size_t waiting = (size_t)op->meet.capacities.at[i];
            if (read < 0) continue;
            if (from < 0 || fl_checked(1, bounds[read].more, waiting) < made.more) {
                made = bounds[read];
                made.more = fl_checked(1, made.more, waiting);
            }
            from = read;
        }
        *line = values[op->meet.ys.at[0]].line;
        return made;
    default: return made;
    }
    if (from == *line) *line = -1;
    if (from >= 0) made = bounds[from];
    if (op->kind == FL_WINDOW) made = of_window(made, &op->window);
    if (op->kind == FL_SPREAD) {
        made.factor = fl_checked(made.factor, op->spread.times, 0);
        made.more = fl_checked(made.more, op->spread.times, made.divisor > 1 ? op->spread.times : 0);
    }
    if (op->kind == FL_FOLD || op->kind == FL_ATTENTION) made.more = fl_checked(1, made.more, 1);
    return made;
}

int fl_bound_lines(const fl_program *program, fl_bound *bounds) {
    for (size_t l = 0; l < program->lines; ++l) bounds[l] = (fl_bound){l == 0, 1, 0};
    for (size_t i = 0; i < program->operation_count; ++i) {
        ptrdiff_t line = -1;
        const fl_bound made = bound_of(program, program->operations + i, bounds, &line);
        if (made.factor == SIZE_MAX || made.more == SIZE_MAX) return -1;
        if (line > 0) bounds[line] = made;
    }
    return 0;
}

/* Elements that 64 bytes have of the smallest real. */
enum { LINE_ELEMENTS = 16 };

static size_t padded(size_t elements) {
    const size_t more = fl_checked(1, elements, LINE_ELEMENTS - 1);
    return more == SIZE_MAX ? SIZE_MAX : more / LINE_ELEMENTS * LINE_ELEMENTS;
}

int fl_place_buffers(const fl_program *program, const fl_bound *bounds, fl_room *rooms) {
    const size_t buffers = program->buffers;
    memset(rooms, 0, (buffers + 1) * sizeof *rooms);
    for (size_t v = 0; v < program->value_count; ++v) {
        const fl_value *value = program->value + v;
        fl_bound rows = {0, 1, 1};
        if (value->place != FL_PLACE_buffer) continue;
        if (value->line >= 0) rows = bounds[value->line];
        fl_room *room = rooms + value->number + 1;
        const size_t each = fl_checked(rows.factor, value->count, 0);
        if (each == SIZE_MAX) return -1;
        room->each = fl_most(room->each, divided(each, rows.divisor));
        /* Rounding up the number of rows may add one. */
        room->more = fl_most(room->more, fl_checked(fl_checked(1, rows.more, rows.divisor > 1),
                                                    value->count, 0));
    }
    for (size_t i = 1; i <= buffers; ++i) {
        rooms[i].each = fl_checked(1, padded(rooms[i].each), rooms[i - 1].each);
        rooms[i].more = fl_checked(1, padded(rooms[i].more), rooms[i - 1].more);
        if (rooms[i].each == SIZE_MAX || rooms[i].more == SIZE_MAX) return -1;
    }
    return 0;
}
