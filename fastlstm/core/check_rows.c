/* check_rows.c - operations on rows: their shapes, and every place that they read. */
#include "check.h"

/* The numbers of an (a, b, c) array, which no value has if it is 0. */
static uint64_t size_of(uint64_t a, uint64_t b, uint64_t c) { return fl_times(fl_times(a, b), c); }

static int check_move(fl_checker *check, const fl_move *move, ptrdiff_t line) {
    size_t total;
    uint64_t made = 0;
    const fl_list *runs = &move->runs;
    const size_t reads = move->reads.count;
    if (!fl_check_reads(check, &move->reads, line, 1, &total)) return 0;
    if (!runs->at || runs->count % 3) return fl_refuse(check, "runs are no list of triples");
    if (!fl_spend(check, runs->count)) return 0;
    for (size_t i = 0; i < runs->count; i += 3) {
        const int64_t start = runs->at[i], stride = runs->at[i + 1], count = runs->at[i + 2];
        const int64_t end = (int64_t)total;
        int fits = count > 0 && count < INT32_MAX;
        if (start < 0) fits = fits && start == -1 && stride == 0;
        else
            fits = fits && start < end && stride > -end - 1 && stride < end + 1 &&
                   start + stride * (count - 1) >= 0 && start + stride * (count - 1) < end;
        if (!fits)
            return fl_refuse(check, "run %zu is (%lld, %lld, %lld), of %zu numbers", i / 3,
                             (long long)start, (long long)stride, (long long)count, total);
        made += (uint64_t)count;
        /* It is packed as a stretch of each value that it meets. */
        if (!fl_spend(check, (uint64_t)count < reads ? (uint64_t)count : reads)) return 0;
    }
    return fl_check_write(check, move->y, made);
}

static int check_code(fl_checker *check, const fl_list *code, size_t reads) {
    if (!code->at || !code->count || code->count % 6)
        return fl_refuse(check, "code is no list of sixes");
    const size_t m = code->count / 6;
    if (reads + m > FL_MOST_REGISTERS)
        return fl_refuse(check, "%zu values are read and %zu made; at most %d are supported",
                         reads, m, FL_MOST_REGISTERS);
    for (size_t i = 0; i < m; ++i) {
        const int64_t *words = code->at + 6 * i;
        if (words[0] < 0 || words[0] >= FL_FUNCTION_COUNT)
            return fl_refuse(check, "code %zu has function %lld, of %d", i, (long long)words[0],
                             FL_FUNCTION_COUNT);
        const size_t arity = fl_arity((fl_function)words[0]);
        for (size_t k = 0; k < 3; ++k)
            if (k < arity ? words[1 + k] < 0 || words[1 + k] >= (int64_t)(reads + i)
                          : words[1 + k] != -1)
                return fl_refuse(check, "code %zu (%s) reads register %lld, of %zu", i,
                                 fl_function_name((fl_function)words[0]), (long long)words[1 + k],
                                 reads + i);
    }
    return 1;
}

static int check_map(fl_checker *check, const fl_map *map, ptrdiff_t line) {
    const fl_list *shape = &map->shape, *strides = &map->strides;
    const size_t n = shape->count, reads = map->reads.count;
    size_t total;
    uint64_t size = 1;
    if (!fl_check_reads(check, &map->reads, line, 0, &total)) return 0;
    if (!shape->at || n > FL_MOST_AXES)
        return fl_refuse(check, "y has %zu axes; at most %d are supported", n, FL_MOST_AXES);
    if (!fl_check_list(check, "shape", shape, n, 1, INT32_MAX) ||
        !fl_check_list(check, "strides", strides, n * reads, 0, INT32_MAX) ||
        (map->begins.at && !fl_check_list(check, "begins", &map->begins, reads, 0, INT32_MAX)) ||
        !check_code(check, &map->code, reads))
        return 0;
    for (size_t i = 0; i < n; ++i) size = fl_times(size, (uint64_t)shape->at[i]);
    for (size_t r = 0; r < reads; ++r) {
        const fl_value *value = check->program->value + map->reads.at[r];
        uint64_t last = map->begins.at ? (uint64_t)map->begins.at[r] : 0, more;
        for (size_t i = 0; i < n; ++i) {
            more = (uint64_t)(shape->at[i] - 1) * (uint64_t)strides->at[r * n + i];
            if (__builtin_add_overflow(last, more, &last)) last = UINT64_MAX;
        }
        if (last >= value->count)
            return fl_refuse(check, "read %zu strides to number %llu, of %zu", r,
                             (unsigned long long)last, value->count);
        if (n && strides->at[r * n + n - 1] > 1)
            return fl_refuse(check, "read %zu has a last stride of %lld; expected 0 or 1", r,
                             (long long)strides->at[r * n + n - 1]);
    }
    return fl_check_write(check, map->y, size);
}

static int check_scale(fl_checker *check, ptrdiff_t bias, ptrdiff_t scale, ptrdiff_t shift,
                       uint64_t count) {
    if ((scale < 0) != (shift < 0)) return fl_refuse(check, "scale and shift are not both there");
    return fl_check_vector(check, "bias", bias, count, 0) &&
           fl_check_vector(check, "scale", scale, count, 0) &&
           fl_check_vector(check, "shift", shift, count, 0);
}

static int check_product(fl_checker *check, const fl_product *product, ptrdiff_t line) {
    const fl_list *matrices = &product->matrices, *places = &product->places;
    const size_t groups = matrices->count;
    size_t total;
    if (!fl_check_reads(check, &product->reads, line, 0, &total)) return 0;
    if (!matrices->at || !groups) return fl_refuse(check, "matrices are missing");
    if (!fl_check_list(check, "matrices", matrices, groups, 0, check->program->matrix_count))
        return 0;
    const fl_matrix *first = check->program->matrix + matrices->at[0];
    for (size_t g = 0; g < groups; ++g)
        if (!fl_check_matrix(check, "a matrix", (ptrdiff_t)matrices->at[g], first->rows,
                             first->columns, FL_USE_PANELS))
            return 0;
    if (!check_scale(check, product->bias, product->scale, product->shift,
                     fl_times(groups, first->rows)))
        return 0;
    if (!product->piece || first->columns % product->piece)
        return fl_refuse(check, "%zu columns are no number of pieces of %zu", first->columns,
                         product->piece);
    if (places->at) {
        if (total < product->piece)
            return fl_refuse(check, "%zu numbers are read, in pieces of %zu", total,
                             product->piece);
        if (!fl_check_list(check, "places", places,
                           size_of(product->positions, groups, first->columns / product->piece),
                           -1, total - product->piece + 1) ||
            !fl_spend(check, fl_times(places->count, product->reads.count)))
            return 0;
    } else if (groups != 1 || fl_times(product->positions, first->columns) != total)
        return fl_refuse(check, "%zu numbers are read by %zu groups; expected (%zu, %zu), of one",
                         total, groups, product->positions, first->columns);
    return fl_check_write(check, product->y, size_of(product->positions, groups, first->rows));
}

static int check_taps(fl_checker *check, const fl_taps *taps, ptrdiff_t line) {
    size_t total;
    if (!fl_check_reads(check, &taps->reads, line, 0, &total) ||
        !fl_check_matrix(check, "weight", taps->weight, 0, 0, FL_USE_ROWS))
        return 0;
    const fl_matrix *weight = check->program->matrix + taps->weight;
    const size_t channels = weight->columns;
    if (total < channels)
        return fl_refuse(check, "%zu numbers are read, for %zu channels", total, channels);
    return check_scale(check, taps->bias, taps->scale, taps->shift, channels) &&
           fl_check_list(check, "places", &taps->places, fl_times(taps->positions, weight->rows),
                         -1, total - channels + 1) &&
           fl_check_write(check, taps->y, fl_times(taps->positions, channels));
}

static int check_matmul(fl_checker *check, const fl_matmul *m, ptrdiff_t line) {
    const fl_list *places = &m->places;
    const fl_value *values = check->program->value;
    const uint64_t a = fl_times(m->n, m->k), b = fl_times(m->k, m->p);
    if (!fl_check_one(check, "a", m->a, line, values[m->a].count) ||
        !fl_check_one(check, "b", m->b, line, values[m->b].count))
        return 0;
    if (!a || !b || a > values[m->a].count || b > values[m->b].count || !places->at ||
        places->count % 2)
        return fl_refuse(check, "(%zu, %zu) times (%zu, %zu) of %zu and %zu numbers", m->n, m->k,
                         m->k, m->p, values[m->a].count, values[m->b].count);
    if (!fl_check_list(check, "places", places, places->count, 0, INT32_MAX)) return 0;
    for (size_t i = 0; i < places->count; ++i) {
        const uint64_t most = i % 2 ? values[m->b].count - b : values[m->a].count - a;
        if ((uint64_t)places->at[i] > most)
            return fl_refuse(check, "product %zu begins at number %lld; expected at most %llu",
                             i / 2, (long long)places->at[i], (unsigned long long)most);
    }
    return fl_check_write(check, m->y, size_of(places->count / 2, m->n, m->p));
}

static int check_norm(fl_checker *check, const fl_norm *norm, ptrdiff_t line) {
    const uint64_t size = fl_times(norm->outer, norm->n);
    const ptrdiff_t vectors[] = {norm->weight, norm->bias};
    for (int i = 0; i < 2; ++i) {
        const int each = vectors[i] >= 0 && check->program->vector[vectors[i]].count != norm->n;
        if (!fl_check_vector(check, i ? "bias" : "weight", vectors[i], each ? size : norm->n, 0))
            return 0;
    }
    return fl_check_one(check, "x", norm->x, line, size) && fl_check_write(check, norm->y, size);
}

/* Places of tokens, each of which becomes `width` numbers. */
static int check_tokens(fl_checker *check, size_t x, size_t y, const fl_list *places,
                        ptrdiff_t line, uint64_t width) {
    const fl_value *value = check->program->value + x;
    if (!fl_check_read(check, "x", x, line)) return 0;
    if (!value->tokens) return fl_refuse(check, "x is value %zu, which is no tokens", x);
    return fl_check_list(check, "places", places, places->count, 0, value->count) &&
           fl_check_write(check, y, fl_times(places->count, width));
}

static int check_lookup(fl_checker *check, const fl_lookup *lookup, ptrdiff_t line) {
    if (!fl_check_matrix(check, "table", lookup->table, 0, 0, FL_USE_TABLE)) return 0;
    return check_tokens(check, lookup->x, lookup->y, &lookup->places, line,
                        check->program->matrix[lookup->table].columns);
}

static int check_reduce(fl_checker *check, const fl_reduce *reduce, ptrdiff_t line) {
    const uint64_t size = size_of(reduce->outer, reduce->n, reduce->inner);
    return fl_check_one(check, "x", reduce->x, line, size) &&
           fl_check_write(check, reduce->y, fl_times(reduce->outer, reduce->inner));
}

static int check_softmax(fl_checker *check, const fl_softmax *softmax, ptrdiff_t line) {
    const uint64_t size = size_of(softmax->outer, softmax->n, softmax->inner);
    return fl_check_one(check, "x", softmax->x, line, size) &&
           fl_check_write(check, softmax->y, size);
}

int fl_check_on_rows(fl_checker *check, const fl_operation *op) {
    const fl_value *values = check->program->value;
    switch (op->kind) {
    case FL_MOVE: return check_move(check, &op->move, values[op->move.y].line);
    case FL_MAP: return check_map(check, &op->map, values[op->map.y].line);
    case FL_PRODUCT: return check_product(check, &op->product, values[op->product.y].line);
    case FL_TAPS: return check_taps(check, &op->taps, values[op->taps.y].line);
    case FL_MATMUL: return check_matmul(check, &op->matmul, values[op->matmul.y].line);
    case FL_REDUCE: return check_reduce(check, &op->reduce, values[op->reduce.y].line);
    case FL_SOFTMAX: return check_softmax(check, &op->softmax, values[op->softmax.y].line);
    case FL_NORM: return check_norm(check, &op->norm, values[op->norm.y].line);
    case FL_LOOKUP: return check_lookup(check, &op->lookup, values[op->lookup.y].line);
    default: break;
    }
    const fl_one_hot *hot = &op->one_hot;
    return check_tokens(check, hot->x, hot->y, &hot->places, values[hot->y].line, hot->classes);
}
