/* check_time.c - operations over time: their lines, and what they keep in the state. */
#include "check.h"

/* A line that a time operation reads. */
static int check_over(fl_checker *check, const char *field, size_t x, uint64_t count) {
    const fl_value *value = check->program->value + x;
    return fl_check_one(check, field, x, value->line, count ? count : value->count);
}

/* Lines that a meet reads, and what may wait on each. */
static int meets_alike(fl_checker *check, const fl_meet *a, const fl_meet *b) {
    const fl_value *values = check->program->value;
    if (!fl_spend(check, fl_times(a->reads.count, b->reads.count))) return 0;
    for (size_t i = 0; i < a->reads.count; ++i) {
        size_t j = 0;
        while (j < b->reads.count && (values[a->reads.at[i]].line != values[b->reads.at[j]].line ||
                                      a->capacities.at[i] != b->capacities.at[j]))
            ++j;
        if (j == b->reads.count) return 0;
    }
    return 1;
}

/* Whether two operations make as many rows of a line, whatever number that is. */
static int makes_as_many(fl_checker *check, const fl_operation *a, const fl_operation *b) {
    const fl_value *values = check->program->value;
    if (a->kind == FL_WINDOW && b->kind == FL_WINDOW) {
        const fl_window *v = &a->window, *w = &b->window;
        return values[v->x].line == values[w->x].line && v->stride == w->stride &&
               v->before - (ptrdiff_t)(v->dilation * (v->size - 1)) ==
                   w->before - (ptrdiff_t)(w->dilation * (w->size - 1)) &&
               v->ahead == w->ahead && v->behind == w->behind;
    }
    if (a->kind == FL_SPREAD && b->kind == FL_SPREAD)
        return values[a->spread.x].line == values[b->spread.x].line &&
               a->spread.times == b->spread.times;
    if (a->kind == FL_MEET && b->kind == FL_MEET)
        return meets_alike(check, &a->meet, &b->meet) && meets_alike(check, &b->meet, &a->meet);
    const size_t x = a->kind == FL_FOLD ? a->fold.x : a->attention.scores;
    const size_t z = b->kind == FL_FOLD ? b->fold.x : b->attention.scores;
    const int folds = (a->kind == FL_FOLD || a->kind == FL_ATTENTION) &&
                      (b->kind == FL_FOLD || b->kind == FL_ATTENTION);
    return folds && values[x].line == values[z].line;
}

/* y is on the line of what is read, where there is a row for each; else on one that this operation
 * makes, or an earlier one that makes as many rows. */
static int check_line(fl_checker *check, ptrdiff_t read, size_t y, int keeps) {
    const fl_operation *operations = check->program->operations;
    const ptrdiff_t line = check->program->value[y].line;
    if (read < 0 || line < 0)
        return fl_refuse(check, "it goes over the rows of line %td to line %td; expected lines of "
                                "steps", read, line);
    if (check->loop_end && !keeps) return fl_refuse(check, "it is in a loop, and makes a line");
    if (keeps)
        return line == read ||
               fl_refuse(check, "y is on line %td; expected that of what is read, %td", line, read);
    if (!line || line == read)
        return fl_refuse(check, "y is on line %td; expected one of its own", line);
    if (!check->maker[line]) {
        check->maker[line] = check->operation + 1;
        return 1;
    }
    return makes_as_many(check, operations + check->maker[line] - 1,
                         operations + check->operation) ||
           fl_refuse(check, "y is on line %td, which operation %zu made with other rows", line,
                     check->maker[line] - 1);
}

/* A ring of so many rows, and where its oldest row's number is; none where there are no rows. */
static int check_ring(fl_checker *check, ptrdiff_t ring, ptrdiff_t position, uint64_t rows,
                      uint64_t count) {
    if (!rows)
        return (ring < 0 && position < 0) || fl_refuse(check, "there is a ring of no rows");
    return fl_check_claim(check, "ring", ring, fl_times(rows, count), 1) &&
           fl_check_claim(check, "position", position, 1, rows > 1);
}

static int check_window(fl_checker *check, const fl_window *w) {
    const fl_value *x = check->program->value + w->x;
    if (!w->size || !w->stride || !w->dilation)
        return fl_refuse(check, "a window of %zu rows, stride %zu, dilation %zu", w->size,
                         w->stride, w->dilation);
    const uint64_t reach = fl_times(w->dilation, w->size - 1);
    const uint64_t most = (uint64_t)FL_SIZE_END - 1;
    if (reach > most || reach + w->ahead > most)
        return fl_refuse(check, "a window that keeps more than %llu rows", (unsigned long long)most);
    const uint64_t kept = reach + w->ahead;
    const int keeps = w->stride == 1 && w->before == (ptrdiff_t)kept && !w->behind;
    if (!keeps && w->rows < 0) return fl_refuse(check, "rows, which it depends on, is missing");
    return check_over(check, "x", w->x, 0) && check_line(check, x->line, w->y, keeps) &&
           check_ring(check, w->ring, w->position, kept, x->count) &&
           fl_check_claim(check, "rows", w->rows, 1, 0) &&
           fl_check_write(check, w->y, fl_times(w->size, x->count));
}

static int check_delay(fl_checker *check, const fl_delay *delay) {
    const fl_value *x = check->program->value + delay->x;
    if (!delay->steps) return fl_refuse(check, "a delay of no steps");
    return check_over(check, "x", delay->x, 0) && check_line(check, x->line, delay->y, 1) &&
           check_ring(check, delay->ring, delay->position, delay->steps, x->count) &&
           fl_check_write(check, delay->y, x->count);
}

static int check_recall(fl_checker *check, const fl_recall *recall) {
    const size_t count = check->program->value[recall->y].count;
    if (!check->loop_end) return fl_refuse(check, "it is in no loop");
    if (!recall->steps) return fl_refuse(check, "a delay of no steps");
    return check_line(check, check->program->value[recall->y].line, recall->y, 1) &&
           check_ring(check, recall->ring, recall->position, recall->steps, count) &&
           fl_check_write(check, recall->y, count);
}

/* The other half of an earlier recall of the same loop; each has one. */
static int check_remember(fl_checker *check, const fl_remember *remember) {
    const fl_operation *operations = check->program->operations;
    const fl_value *values = check->program->value;
    int found = 0;
    if (!check->loop_end) return fl_refuse(check, "it is in no loop");
    if (!fl_spend(check, check->operation - check->loop_first)) return 0;
    for (size_t i = check->loop_first; i < check->operation; ++i) {
        const fl_recall *recall = &operations[i].recall;
        if (operations[i].kind == FL_RECALL && recall->ring == remember->ring)
            found = recall->steps == remember->steps && recall->position == remember->position &&
                    values[recall->y].count == values[remember->x].count;
        if (operations[i].kind == FL_REMEMBER &&
            operations[i].remember.ring == remember->ring)
            return fl_refuse(check, "operation %zu remembers in the same ring", i);
    }
    if (!found) return fl_refuse(check, "no recall of the same loop has this ring");
    return fl_check_one(check, "x", remember->x, check->loop_line, values[remember->x].count);
}

static int check_spread(fl_checker *check, const fl_spread *spread) {
    const fl_value *x = check->program->value + spread->x;
    const size_t count = check->program->value[spread->y].count;
    if (!check_over(check, "x", spread->x, 0) || !check_line(check, x->line, spread->y, 0))
        return 0;
    if (!spread->times || count > x->count ||
        fl_times(spread->times - 1, spread->stride) > x->count - count)
        return fl_refuse(check, "%zu rows of %zu numbers, one %zu behind the other, of %zu",
                         spread->times, count, spread->stride, x->count);
    return fl_check_write(check, spread->y, count);
}

/* The number of all rows so far, of two digits, is needed where a row of y depends on it. */
static int check_rows(fl_checker *check, ptrdiff_t rows, int needed) {
    return fl_check_claim(check, "rows", rows, 2, needed);
}

static int check_fold(fl_checker *check, const fl_fold *fold) {
    const fl_value *x = check->program->value + fold->x;
    const int is_last = fold->fold == FL_FOLD_last;
    const int counts = fold->folded || fold->fold == FL_FOLD_mean || fold->fold == FL_FOLD_first;
    if (fold->rest >= 0 && fold->fold != FL_FOLD_sum && fold->fold != FL_FOLD_mean)
        return fl_refuse(check, "rest is of a fold that does not add");
    return check_over(check, "x", fold->x, 0) &&
           check_line(check, x->line, fold->y, !fold->folded) &&
           fl_check_claim(check, "total", fold->total, x->count, fold->folded || !is_last) &&
           fl_check_claim(check, "rest", fold->rest, x->count, 0) &&
           check_rows(check, fold->rows, counts) && fl_check_write(check, fold->y, x->count);
}

/* Which score, or value, each number of y has. */
static int check_of(fl_checker *check, const char *field, const fl_list *of, size_t count,
                    size_t read) {
    if (of->at) return fl_check_list(check, field, of, count, 0, read);
    return count == read || fl_refuse(check, "%s is missing: %zu numbers of %zu", field, count,
                                      read);
}

static int check_attention(fl_checker *check, const fl_attention *a) {
    const fl_value *values = check->program->value;
    const size_t count = values[a->y].count, scores = values[a->scores].count;
    ptrdiff_t line = values[a->scores].line;
    if (line < 0) line = values[a->values].line;
    return fl_check_one(check, "scores", a->scores, line, scores) &&
           fl_check_one(check, "values", a->values, line, values[a->values].count) &&
           check_line(check, line, a->y, !a->folded) &&
           check_of(check, "score_of", &a->score_of, count, scores) &&
           check_of(check, "value_of", &a->value_of, count, values[a->values].count) &&
           fl_check_claim(check, "largest", a->largest, scores, 1) &&
           fl_check_claim(check, "weight", a->weight, scores, 1) &&
           fl_check_claim(check, "total", a->total, count, 1) &&
           check_rows(check, a->rows, a->folded) && fl_check_write(check, a->y, count);
}

static int check_meet(fl_checker *check, const fl_meet *meet) {
    const fl_value *values = check->program->value;
    const size_t n = meet->reads.count;
    int waits = 0;
    if (!meet->reads.at || !n) return fl_refuse(check, "nothing is read");
    if (!fl_check_list(check, "reads", &meet->reads, n, 0, check->program->value_count) ||
        !fl_check_list(check, "ys", &meet->ys, n, 0, check->program->value_count) ||
        !fl_check_list(check, "capacities", &meet->capacities, n, 0, INT32_MAX) ||
        !fl_check_list(check, "queues", &meet->queues, n, -1, check->program->state_size))
        return 0;
    for (size_t i = 0; i < n; ++i) waits |= meet->capacities.at[i] > 0;
    if (!fl_check_claim(check, "heads", meet->heads, fl_times(2, n), waits)) return 0;
    for (size_t i = 0; i < n; ++i)
        if (!check_over(check, "what is read", (size_t)meet->reads.at[i], 0)) return 0;
    for (size_t i = 0; i < n; ++i) {
        const fl_value *x = values + meet->reads.at[i];
        const size_t y = (size_t)meet->ys.at[i];
        const uint64_t queue = fl_times((uint64_t)meet->capacities.at[i], x->count);
        if (values[y].line != values[meet->ys.at[0]].line)
            return fl_refuse(check, "ys are on lines %td and %td", values[meet->ys.at[0]].line,
                             values[y].line);
        if ((i == 0 || x->line == values[y].line) && !check_line(check, x->line, y, 0)) return 0;
        if (x->line < 0) return fl_refuse(check, "value %lld is of no step",
                                          (long long)meet->reads.at[i]);
        if (queue ? !fl_check_claim(check, "a queue", (ptrdiff_t)meet->queues.at[i], queue, 1)
                  : meet->queues.at[i] >= 0)
            return fl_refuse(check, "read %zu has a queue of no rows", i);
        if (!fl_check_write(check, y, x->count)) return 0;
    }
    return 1;
}

/* The operations behind it, which all are on one line. */
static int check_loop(fl_checker *check, const fl_loop *loop) {
    const size_t first = check->operation + 1, left = check->program->operation_count - first;
    if (check->loop_end) return fl_refuse(check, "it is in a loop");
    if (check->operation < check->program->held) return fl_refuse(check, "a held operation loops");
    if (!loop->operations || loop->operations > left)
        return fl_refuse(check, "%zu operations, of the %zu behind it", loop->operations, left);
    check->loop_first = first;
    check->loop_end = first + loop->operations;
    check->loop_line = -1;
    return 1;
}

static int check_start(fl_checker *check, const fl_start *start) {
    const fl_value *x = check->program->value + start->x;
    const size_t size = check->program->state_size;
    if (check->operation >= check->program->held) return fl_refuse(check, "it is not held");
    if (!fl_check_one(check, "x", start->x, -1, x->count)) return 0;
    if (start->offset >= 0 && x->count <= size && (size_t)start->offset <= size - x->count)
        return 1;
    return fl_refuse(check, "%zu numbers from %td on, of a state of %zu", x->count, start->offset,
                     size);
}

int fl_check_over_time(fl_checker *check, const fl_operation *op) {
    if (op->kind == FL_LOOP) return check_loop(check, &op->loop);
    if (op->kind == FL_START) return check_start(check, &op->start);
    if (check->operation < check->program->held)
        return fl_refuse(check, "it is held, and goes over steps");
    switch (op->kind) {
    case FL_WINDOW: return check_window(check, &op->window);
    case FL_DELAY:
        if (check->loop_end) return fl_refuse(check, "it is in a loop");
        return check_delay(check, &op->delay);
    case FL_RECALL: return check_recall(check, &op->recall);
    case FL_REMEMBER: return check_remember(check, &op->remember);
    case FL_SPREAD: return check_spread(check, &op->spread);
    case FL_FOLD: return check_fold(check, &op->fold);
    case FL_ATTENTION: return check_attention(check, &op->attention);
    default: return check_meet(check, &op->meet);
    }
}
