/* pack_rows.c - places within what is read -> stretches of single values; code and axes of maps;
 * products and taps.
 */
#include <string.h>

#include "pack.h"

/* Where each read begins among all numbers that are read. */
typedef struct {
    size_t reads;
    uint32_t first[FL_MOST_READS + 1];
} starts;

static void find_starts(const fl_packer *from, const fl_list *reads, starts *made) {
    uint32_t at = 0;
    made->reads = reads->count;
    for (size_t i = 0; i < reads->count; ++i) {
        made->first[i] = at;
        at += (uint32_t)from->program->value[reads->at[i]].count;
    }
    made->first[reads->count] = at;
}

/* The read in which a place is. */
static size_t read_of(const starts *of, uint32_t place) {
    size_t low = 0, high = of->reads;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (of->first[middle] <= place) low = middle;
        else high = middle;
    }
    return low;
}

/* Stretches as they are found: counted, and kept where there is memory for them. */
typedef struct {
    fl_stretch *to;
    size_t count;
    size_t row;       /* the first one that may be joined to the next */
    fl_stretch last;
} stretches;

static void add(stretches *to, fl_stretch made) {
    if (to->count > to->row && made.stride == 1 && to->last.stride == 1 &&
        to->last.read == made.read &&
        (made.read < 0 || to->last.first + to->last.count == made.first)) {
        to->last.count += made.count;
        if (to->to) to->to[to->count - 1] = to->last;
        return;
    }
    to->last = made;
    if (to->to) to->to[to->count] = made;
    ++to->count;
}

/* The places start, start + stride, ... as stretches, each of one read. */
static void add_run(stretches *to, const starts *of, int64_t start, int64_t stride,
                    uint32_t count) {
    if (start < 0) {
        const fl_stretch none = {-1, 0, 1, count};
        add(to, none);
        return;
    }
    while (count) {
        const size_t read = read_of(of, (uint32_t)start);
        const int64_t first = of->first[read], end = of->first[read + 1];
        uint32_t n = count;
        if (stride > 0 && (end - 1 - start) / stride + 1 < n)
            n = (uint32_t)((end - 1 - start) / stride + 1);
        if (stride < 0 && (start - first) / -stride + 1 < n)
            n = (uint32_t)((start - first) / -stride + 1);
        const fl_stretch made = {(int32_t)read, (uint32_t)(start - first), (int32_t)stride, n};
        add(to, made);
        start += stride * n;
        count -= n;
    }
}

static void add_move(stretches *to, const starts *of, const fl_list *runs) {
    for (size_t i = 0; i < runs->count; i += 3)
        add_run(to, of, runs->at[i], runs->at[i + 1], (uint32_t)runs->at[i + 2]);
}

void fl_pack_move(fl_packer *to, const fl_move *move, fl_packed_move *made) {
    starts of;
    stretches found = {0};
    find_starts(to, &move->reads, &of);
    add_move(&found, &of, &move->runs);
    fl_stretch *kept = fl_take(&to->arena, found.count, sizeof *kept);
    if (!kept) return;
    found = (stretches){.to = kept};
    add_move(&found, &of, &move->runs);
    made->stretches = kept;
    made->count = found.count;
}

/* ---- Maps ---- */

static void read_code(const fl_list *words, fl_code *code) {
    for (size_t i = 0; i < words->count / 6; ++i) {
        const int64_t *at = words->at + 6 * i;
        code[i].function.function = (fl_function)at[0];
        code[i].arity = (uint32_t)fl_arity(code[i].function.function);
        for (uint32_t k = 0; k < code[i].arity; ++k) code[i].from[k] = (uint32_t)at[1 + k];
        memcpy(&code[i].function.alpha, at + 4, sizeof(double));
        memcpy(&code[i].function.beta, at + 5, sizeof(double));
    }
}

/* Whether every read strides over axes i and i + 1 as over one. */
static int is_one_axis(const fl_map *map, size_t i) {
    const size_t n = map->shape.count;
    for (size_t r = 0; r < map->reads.count; ++r) {
        const int64_t *strides = map->strides.at + r * n;
        if (strides[i] != strides[i + 1] * map->shape.at[i + 1]) return 0;
    }
    return 1;
}

/* Axes that are left once those of 1 are left out and those that are one are put together: their
 * sizes, and of the axes of y the last one that is part of each. A last axis of 1 stays where
 * without it a last stride were not 0 or 1. */
static size_t join_axes(const fl_map *map, size_t *sizes, size_t *last) {
    const size_t n = map->shape.count;
    size_t axes = 0, joined = SIZE_MAX;
    int strides_on = 0;
    for (size_t i = 0; i < n; ++i) {
        for (size_t r = 0; r < map->reads.count && i + 1 == n && axes; ++r)
            strides_on |= map->strides.at[r * n + last[axes - 1]] > 1;
        if (map->shape.at[i] == 1 && !(i + 1 == n && strides_on)) continue;
        if (axes && joined + 1 == i && is_one_axis(map, joined)) {
            sizes[axes - 1] *= (size_t)map->shape.at[i];
        } else {
            sizes[axes++] = (size_t)map->shape.at[i];
        }
        last[axes - 1] = joined = i;
    }
    return axes;
}

void fl_pack_map(fl_packer *to, const fl_map *map, fl_packed_map *made) {
    size_t sizes[FL_MOST_AXES], last[FL_MOST_AXES];
    const size_t codes = map->code.count / 6, n = map->shape.count, reads = map->reads.count;
    const size_t axes = join_axes(map, sizes, last);
    fl_code *code = fl_take(&to->arena, codes, sizeof *code);
    size_t *shape = fl_take(&to->arena, axes, sizeof *shape);
    size_t *strides = fl_take(&to->arena, axes * reads, sizeof *strides);
    size_t *begins = fl_take(&to->arena, reads, sizeof *begins);
    if (!begins) return;
    read_code(&map->code, code);
    for (size_t i = 0; i < axes; ++i) {
        shape[i] = sizes[i];
        for (size_t r = 0; r < reads; ++r)
            strides[r * axes + i] = (size_t)map->strides.at[r * n + last[i]];
    }
    for (size_t r = 0; r < reads; ++r) begins[r] = map->begins.at ? (size_t)map->begins.at[r] : 0;
    made->begins = begins;
    made->code = code;
    made->codes = codes;
    made->shape = shape;
    made->strides = strides;
    made->axes = axes;
}

/* ---- Products ---- */

static void add_rows(stretches *to, const starts *of, const fl_list *places, size_t rows,
                     size_t columns, size_t piece, uint32_t *first, uint32_t *most) {
    const size_t pieces = columns / piece;
    *most = 0;
    for (size_t row = 0; row < rows; ++row) {
        to->row = to->count;
        if (first) first[row] = (uint32_t)to->count;
        for (size_t k = 0; k < pieces; ++k) {
            const int64_t place = places->at ? places->at[row * pieces + k]
                                             : (int64_t)(row * columns + k * piece);
            add_run(to, of, place, 1, (uint32_t)piece);
        }
        if (to->count - to->row > *most) *most = (uint32_t)(to->count - to->row);
    }
    if (first) first[rows] = (uint32_t)to->count;
}

static void pack_gather(fl_packer *to, const fl_product *product, size_t columns, fl_gather *made) {
    const size_t rows = product->positions * product->matrices.count;
    starts of;
    stretches found = {0};
    uint32_t most;
    if (!product->places.at && product->reads.count == 1) return;
    find_starts(to, &product->reads, &of);
    add_rows(&found, &of, &product->places, rows, columns, product->piece, NULL, &most);
    if (found.count > UINT32_MAX) to->arena.used = SIZE_MAX;
    fl_stretch *kept = fl_take(&to->arena, found.count, sizeof *kept);
    uint32_t *first = fl_take(&to->arena, rows + 1, sizeof *first);
    if (!first) return;
    found = (stretches){.to = kept};
    add_rows(&found, &of, &product->places, rows, columns, product->piece, first, &made->most);
    made->stretches = kept;
    made->first = first;
}

void fl_pack_product(fl_packer *to, const fl_product *product, fl_packed_product *made) {
    const size_t groups = product->matrices.count;
    const fl_matrix *matrix = to->program->matrix + product->matrices.at[0];
    pack_gather(to, product, matrix->columns, &made->x);
    fl_panels *panels = fl_take(&to->arena, groups, sizeof *panels);
    for (size_t g = 0; g < groups; ++g) {
        const size_t first = g * matrix->rows;
        const void *bias = fl_plain_vector(to, product->bias, first);
        if (!panels) break;
        panels[g] = fl_shared_panels(to, (ptrdiff_t)product->matrices.at[g], bias);
        if (product->scale < 0) continue;
        panels[g].scale = fl_plain_vector(to, product->scale, first);
        panels[g].shift = fl_plain_vector(to, product->shift, first);
    }
    made->panels = panels;
    made->groups = groups;
    made->outputs = matrix->rows;
    made->columns = matrix->columns;
}

/* ---- Taps ---- */

static const void *vector_of(const fl_packer *to, ptrdiff_t vector) {
    return vector < 0 || !to->vectors ? NULL : to->vectors[vector];
}

void fl_pack_taps(fl_packer *to, const fl_taps *taps, fl_packed_taps *made) {
    const fl_matrix *weight = to->program->matrix + taps->weight;
    starts of;
    fl_stretch *x = fl_take(&to->arena, taps->places.count, sizeof *x);
    if (!x) return;
    find_starts(to, &taps->reads, &of);
    for (size_t i = 0; i < taps->places.count; ++i) {
        stretches found = {.to = x + i};
        add_run(&found, &of, taps->places.at[i], 1, (uint32_t)weight->columns);
    }
    made->weight = to->rows[taps->weight];
    made->bias = vector_of(to, taps->bias);
    made->scale = vector_of(to, taps->scale);
    made->shift = vector_of(to, taps->shift);
    made->x = x;
    made->taps = weight->rows;
    made->channels = weight->columns;
}
