/* lines.c - bounds of the number of rows, followed from the steps through all that changes it. */
#include <string.h>

#include "lines.h"

size_t fl_most_rows(fl_bound bound, size_t steps) {
    const size_t rows = fl_checked(steps, bound.factor, 0);
    return rows == SIZE_MAX ? SIZE_MAX : fl_checked(1, fl_divided(rows, bound.divisor), bound.more);
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
    if (x.more != SIZE_MAX) x.more = fl_divided(x.more, w->stride);
    return x;
}

fl_course fl_course_of(const fl_program *program, const fl_operation *op) {
    fl_course made = {-1, -1, -1};
#define LINE(number) (program->value[number].line)
    switch (op->kind) {
    case FL_MOVE: made.on = LINE(op->move.y); break;
    case FL_MAP: made.on = LINE(op->map.y); break;
    case FL_PRODUCT: made.on = LINE(op->product.y); break;
    case FL_TAPS: made.on = LINE(op->taps.y); break;
    case FL_MATMUL: made.on = LINE(op->matmul.y); break;
    case FL_REDUCE: made.on = LINE(op->reduce.y); break;
    case FL_SOFTMAX: made.on = LINE(op->softmax.y); break;
    case FL_NORM: made.on = LINE(op->norm.y); break;
    case FL_LOOKUP: made.on = LINE(op->lookup.y); break;
    case FL_ONE_HOT: made.on = LINE(op->one_hot.y); break;
    case FL_DELAY: made.on = LINE(op->delay.y); break;
    case FL_RECALL: made.on = LINE(op->recall.y); break;
    case FL_REMEMBER: made.on = LINE(op->remember.x); break;
    case FL_RECURRENT: made.on = LINE(op->recurrent.y); break;
    case FL_WINDOW:
        made.from = LINE(op->window.x);
        made.on = made.to = LINE(op->window.y);
        break;
    case FL_SPREAD:
        made.from = LINE(op->spread.x);
        made.on = made.to = LINE(op->spread.y);
        break;
    case FL_FOLD:
        made.on = made.from = LINE(op->fold.x);
        made.to = LINE(op->fold.y);
        break;
    case FL_ATTENTION:
        made.on = LINE(op->attention.scores);
        if (made.on < 0) made.on = LINE(op->attention.values);
        made.from = made.on;
        made.to = LINE(op->attention.y);
        break;
    case FL_MEET: made.on = made.to = LINE(op->meet.ys.at[0]); break;
    default: break;
    }
#undef LINE
    if (made.to == made.from) made.to = -1;
    return made;
}

/* There are no more rows than of any of the reads: with those of its queue. */
static fl_bound of_meet(const fl_program *program, const fl_meet *meet, const fl_bound *bounds) {
    fl_bound made = {0, 1, 1};
    int any = 0;
    for (size_t i = 0; i < meet->reads.count; ++i) {
        const ptrdiff_t read = program->value[meet->reads.at[i]].line;
        const size_t waiting = (size_t)meet->capacities.at[i];
        if (read < 0) continue;
        if (!any || fl_checked(1, bounds[read].more, waiting) < made.more) {
            made = bounds[read];
            made.more = fl_checked(1, made.more, waiting);
        }
        any = 1;
    }
    return made;
}

/* The bound of the line that an operation makes, from bounds of those before it. */
static fl_bound bound_of(const fl_program *program, const fl_operation *op, ptrdiff_t from,
                         const fl_bound *bounds) {
    fl_bound made = {0, 1, 1};
    if (op->kind == FL_MEET) return of_meet(program, &op->meet, bounds);
    if (from >= 0) made = bounds[from];
    if (op->kind == FL_WINDOW) made = of_window(made, &op->window);
    if (op->kind == FL_SPREAD) {
        made.factor = fl_checked(made.factor, op->spread.times, 0);
        made.more = fl_checked(made.more, op->spread.times, made.divisor > 1 ? op->spread.times : 0);
    }
    if (op->kind == FL_FOLD || op->kind == FL_ATTENTION) made.more = fl_checked(1, made.more, 1);
    return made;
}

int fl_bound_lines(const fl_program *program, const fl_course *courses, fl_bound *bounds) {
    for (size_t l = 0; l < program->lines; ++l) bounds[l] = (fl_bound){l == 0, 1, 0};
    for (size_t i = 0; i < program->operation_count; ++i) {
        const fl_course *course = courses + i;
        if (course->to < 0) continue;
        const fl_bound made = bound_of(program, program->operations + i, course->from, bounds);
        if (made.factor == SIZE_MAX || made.more == SIZE_MAX) return -1;
        if (course->to > 0) bounds[course->to] = made;
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
        room->each = fl_most(room->each, fl_divided(each, rows.divisor));
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
