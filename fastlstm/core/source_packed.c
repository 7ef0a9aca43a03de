/* source_packed.c - what packing gave an operation -> C: its arrays, then the struct that points at
 * them, with the names of its fields.
 */
#include "source.h"

/* ---- Panels ---- */

static size_t vectors_in(const fl_panels *a) {
    return (a->panels - 1) * a->groups + a->last_groups;
}

static void put_panels(fl_text *to, fl_owner of, const fl_panels *a, size_t lanes) {
    if (!a->weights) return;
    const size_t outputs = vectors_in(a) * lanes, inputs = a->stride / (a->groups * lanes);
    fl_put_words(to, of, "weights", a->stored, a->weights, outputs * inputs);
    fl_put_reals(to, of, "unit", a->unit, outputs);
    fl_put_reals(to, of, "bias", a->bias, outputs);
    fl_put_reals(to, of, "scale", a->scale, outputs);
    fl_put_reals(to, of, "shift", a->shift, outputs);
}

static void say_panels(fl_text *to, fl_owner of, const fl_panels *a) {
    fl_say(to, "{");
    if (a->weights) {
        fl_say_pointer(to, of, "weights", 1);
        fl_say_pointer(to, of, "unit", a->unit != NULL);
        fl_say_pointer(to, of, "bias", a->bias != NULL);
        fl_say_pointer(to, of, "scale", a->scale != NULL);
        fl_say_pointer(to, of, "shift", a->shift != NULL);
        fl_say_size(to, "stored", (size_t)a->stored);
        fl_say_size(to, "stride", a->stride);
        fl_say_size(to, "panels", a->panels);
        fl_say_size(to, "groups", a->groups);
        fl_say_size(to, "last_groups", a->last_groups);
    } else {
        fl_say(to, "0");
    }
    fl_say(to, "}");
}

/* ---- Operations ---- */

/* The vectors of a variant, of `gates` and `units` numbers each. */
#define VARIANT_VECTORS(V, gates, units)                                                         \
    V(bias, 0, v->bias, gates) V(norm_gate, 0, v->norm_gate, gates)                             \
    V(peepholes, 0, v->peepholes[0], units) V(peepholes, 1, v->peepholes[1], units)             \
    V(peepholes, 2, v->peepholes[2], units) V(norm_x, 0, v->norm_x[0], gates)                   \
    V(norm_x, 1, v->norm_x[1], gates) V(norm_h, 0, v->norm_h[0], gates)                         \
    V(norm_h, 1, v->norm_h[1], gates) V(norm_c, 0, v->norm_c[0], units)                         \
    V(norm_c, 1, v->norm_c[1], units)

static void put_variant(fl_text *to, size_t i, const fl_cell *cell, size_t lanes) {
    const fl_variant *v = cell->variant;
    const fl_panels *reset = &v->reset_gates;
    const fl_owner of = {i, "variant", 0};
    const fl_owner gates_of = {i, "reset_gates", 0}, candidate_of = {i, "reset_candidate", 0};
    const size_t units = cell->gates.panels * lanes, gates = units * cell->gates.groups;
#define V(field, k, from, count) fl_put_reals(to, (fl_owner){i, "variant", k}, #field, from, count);
    VARIANT_VECTORS(V, gates, units)
#undef V
    put_panels(to, gates_of, reset, lanes);
    put_panels(to, candidate_of, &v->reset_candidate, lanes);
    fl_begin_array(to, of, "all", "fl_variant");
    fl_say(to, "{.functions = {");
    for (int k = 0; k < 3; ++k) {
        fl_say_function(to, v->functions + k);
        fl_say(to, ", ");
    }
    fl_say(to, "}, ");
    fl_say_real(to, "clip", v->clip);
    fl_say_real(to, "cell_clip", v->cell_clip);
    fl_say_size(to, "norm", (size_t)v->norm);
    fl_say_real(to, "eps", v->eps);
    fl_say_size(to, "coupled", (size_t)v->coupled);
    fl_say_pointer(to, of, "bias", v->bias != NULL);
    fl_say_pointer(to, of, "norm_gate", v->norm_gate != NULL);
#define MEMBER(field, k)                                        \
    if (v->field[k]) {                                          \
        fl_say(to, "." #field "[" #k "] = ");                   \
        fl_say_name(to, (fl_owner){i, "variant", k}, #field);         \
        fl_say(to, ", ");                                       \
    }
    MEMBER(peepholes, 0) MEMBER(peepholes, 1) MEMBER(peepholes, 2)
    MEMBER(norm_x, 0) MEMBER(norm_x, 1) MEMBER(norm_h, 0) MEMBER(norm_h, 1)
    MEMBER(norm_c, 0) MEMBER(norm_c, 1)
#undef MEMBER
    fl_say_field(to, "reset_gates");
    say_panels(to, gates_of, reset);
    fl_say(to, ", ");
    fl_say_field(to, "reset_candidate");
    say_panels(to, candidate_of, &v->reset_candidate);
    fl_say(to, "}};\n");
}

/* What the product of h starts from; NULL where that is 0 and no loop reads it. */
static const void *h_bias_of(const fl_recurrent *is, const fl_cell *cell) {
    return cell->variant || is->cell == FL_CELL_gru ? cell->h_bias : NULL;
}

static void put_cell(fl_text *to, size_t i, const fl_recurrent *is, const fl_cell *cell,
                     size_t lanes) {
    const fl_owner of = {i, "cell", 0};
    const size_t units = cell->gates.panels * lanes;
    put_panels(to, (fl_owner){i, "gates", 0}, &cell->gates, lanes);
    put_panels(to, (fl_owner){i, "projection", 0}, &cell->projection, lanes);
    fl_put_reals(to, of, "h_bias", h_bias_of(is, cell), units * fl_panels_of_h(cell)->groups);
    fl_put_reals(to, of, "h_unit", cell->h_unit, units * cell->gates.groups);
    fl_put_reals(to, of, "table", cell->table, cell->tokens * units * cell->gates.groups);
    fl_put_reals(to, of, "h_0", cell->h_0, is->h_size);
    fl_put_reals(to, of, "c_0", cell->c_0, is->hidden_size);
    if (cell->variant) put_variant(to, i, cell, lanes);
}

static void say_cell(fl_text *to, size_t i, const fl_recurrent *is, const fl_cell *cell) {
    const fl_owner of = {i, "cell", 0};
    fl_say(to, "{.recurrent = {.gates = ");
    say_panels(to, (fl_owner){i, "gates", 0}, &cell->gates);
    fl_say(to, ", .projection = ");
    say_panels(to, (fl_owner){i, "projection", 0}, &cell->projection);
    fl_say(to, ", .activation = ");
    fl_say_function(to, &cell->activation);
    fl_say(to, ", ");
    if (cell->variant) {
        fl_say(to, ".variant = ");
        fl_say_name(to, (fl_owner){i, "variant", 0}, "all");
        fl_say(to, ", ");
    }
    fl_say_pointer(to, of, "h_bias", h_bias_of(is, cell) != NULL);
    fl_say_pointer(to, of, "h_unit", cell->h_unit != NULL);
    fl_say_pointer(to, of, "table", cell->table != NULL);
    fl_say_pointer(to, of, "h_0", cell->h_0 != NULL);
    fl_say_pointer(to, of, "c_0", cell->c_0 != NULL);
    fl_say_size(to, "tokens", cell->tokens);
    fl_say_size(to, "input_rows", cell->input_rows);
    fl_say(to, "}}");
}

static void put_product(fl_text *to, size_t i, const fl_product *is, const fl_packed_product *a,
                        size_t lanes) {
    const fl_owner of = {i, "product", 0};
    for (size_t g = 0; g < a->groups; ++g)
        put_panels(to, (fl_owner){i, "panels", g}, a->panels + g, lanes);
    fl_begin_array(to, of, "panels", "fl_panels");
    for (size_t g = 0; g < a->groups; ++g) {
        say_panels(to, (fl_owner){i, "panels", g}, a->panels + g);
        fl_say(to, ", ");
    }
    fl_say(to, "};\n");
    if (!a->x.stretches) return;
    const size_t rows = is->positions * a->groups;
    fl_put_stretches(to, of, "stretches", a->x.stretches, a->x.first[rows]);
    fl_begin_array(to, of, "first", "uint32_t");
    for (size_t r = 0; r <= rows; ++r) {
        fl_say_number(to, a->x.first[r]);
        fl_say(to, ", ");
    }
    fl_say(to, "};\n");
}

static void say_product(fl_text *to, size_t i, const fl_packed_product *a) {
    const fl_owner of = {i, "product", 0};
    fl_say(to, "{.product = {");
    fl_say_pointer(to, of, "panels", 1);
    fl_say(to, ".x = {");
    if (a->x.stretches) {
        fl_say_pointer(to, of, "stretches", 1);
        fl_say_pointer(to, of, "first", 1);
    }
    fl_say_size(to, "most", a->x.most);
    fl_say(to, "}, ");
    fl_say_size(to, "groups", a->groups);
    fl_say_size(to, "outputs", a->outputs);
    fl_say_size(to, "columns", a->columns);
    fl_say(to, "}}");
}

static void put_map(fl_text *to, size_t i, const fl_map *is, const fl_packed_map *a) {
    const fl_owner of = {i, "map", 0};
    fl_begin_array(to, of, "code", "fl_code");
    for (size_t k = 0; k < a->codes; ++k) {
        const fl_code *code = a->code + k;
        fl_say(to, "{");
        fl_say_function(to, &code->function);
        fl_say(to, ", ");
        fl_say_number(to, code->arity);
        fl_say(to, ", {");
        for (int r = 0; r < 3; ++r) {
            fl_say_number(to, code->from[r]);
            fl_say(to, ", ");
        }
        fl_say(to, "}}, ");
    }
    fl_say(to, "};\n");
    fl_put_sizes(to, of, "shape", "size_t", a->shape, a->axes);
    fl_put_sizes(to, of, "strides", "size_t", a->strides, is->reads.count * a->axes);
    fl_put_sizes(to, of, "begins", "size_t", a->begins, is->reads.count);
}

static void say_map(fl_text *to, size_t i, const fl_map *is, const fl_packed_map *a) {
    const fl_owner of = {i, "map", 0};
    fl_say(to, "{.map = {");
    fl_say_pointer(to, of, "code", 1);
    fl_say_pointer(to, of, "shape", a->axes != 0);
    fl_say_pointer(to, of, "strides", is->reads.count * a->axes != 0);
    fl_say_pointer(to, of, "begins", is->reads.count != 0);
    fl_say_size(to, "codes", a->codes);
    fl_say_size(to, "axes", a->axes);
    fl_say(to, "}}");
}

static void put_taps(fl_text *to, size_t i, const fl_taps *is, const fl_packed_taps *a) {
    const fl_owner of = {i, "taps", 0};
    fl_put_reals(to, of, "weight", a->weight, a->taps * a->channels);
    fl_put_reals(to, of, "bias", a->bias, a->channels);
    fl_put_reals(to, of, "scale", a->scale, a->channels);
    fl_put_reals(to, of, "shift", a->shift, a->channels);
    fl_put_stretches(to, of, "x", a->x, is->positions * a->taps);
}

static void say_taps(fl_text *to, size_t i, const fl_packed_taps *a) {
    const fl_owner of = {i, "taps", 0};
    fl_say(to, "{.taps = {");
    fl_say_pointer(to, of, "weight", 1);
    fl_say_pointer(to, of, "bias", a->bias != NULL);
    fl_say_pointer(to, of, "scale", a->scale != NULL);
    fl_say_pointer(to, of, "shift", a->shift != NULL);
    fl_say_pointer(to, of, "x", 1);
    fl_say_size(to, "taps", a->taps);
    fl_say_size(to, "channels", a->channels);
    fl_say(to, "}}");
}

static void put_norm(fl_text *to, size_t i, const fl_norm *is, const fl_packed_norm *a) {
    const fl_owner of = {i, "norm", 0};
    fl_put_reals(to, of, "weight", a->weight, a->weight_each ? is->outer * is->n : is->n);
    fl_put_reals(to, of, "bias", a->bias, a->bias_each ? is->outer * is->n : is->n);
}

static void say_norm(fl_text *to, size_t i, const fl_packed_norm *a) {
    const fl_owner of = {i, "norm", 0};
    fl_say(to, "{.norm = {");
    fl_say_pointer(to, of, "weight", a->weight != NULL);
    fl_say_pointer(to, of, "bias", a->bias != NULL);
    fl_say_size(to, "weight_each", (size_t)a->weight_each);
    fl_say_size(to, "bias_each", (size_t)a->bias_each);
    fl_say(to, "}}");
}

static void put_lookup(fl_text *to, fl_owner of, const fl_packed_lookup *a) {
    fl_put_words(to, of, "table", a->stored, a->table, fl_words(a->stored, a->tokens * a->width));
    fl_put_reals(to, of, "unit", a->unit, a->tokens);
}

void fl_put_packed(fl_text *to, size_t i, const fl_operation *op, const fl_packed *packed,
                   size_t lanes) {
    switch (op->kind) {
    case FL_MOVE:
        fl_put_stretches(to, (fl_owner){i, "move", 0}, "stretches", packed->move.stretches,
                         packed->move.count);
        break;
    case FL_MAP: put_map(to, i, &op->map, &packed->map); break;
    case FL_PRODUCT: put_product(to, i, &op->product, &packed->product, lanes); break;
    case FL_TAPS: put_taps(to, i, &op->taps, &packed->taps); break;
    case FL_NORM: put_norm(to, i, &op->norm, &packed->norm); break;
    case FL_LOOKUP:
        put_lookup(to, (fl_owner){i, "lookup", 0}, &packed->lookup);
        break;
    case FL_RECURRENT: put_cell(to, i, &op->recurrent, &packed->recurrent, lanes); break;
    default: break;
    }
}

void fl_say_packed(fl_text *to, size_t i, const fl_operation *op, const fl_packed *packed) {
    switch (op->kind) {
    case FL_MOVE:
        fl_say(to, "{.move = {");
        fl_say_pointer(to, (fl_owner){i, "move", 0}, "stretches", packed->move.count != 0);
        fl_say_size(to, "count", packed->move.count);
        fl_say(to, "}}");
        break;
    case FL_MAP: say_map(to, i, &op->map, &packed->map); break;
    case FL_PRODUCT: say_product(to, i, &packed->product); break;
    case FL_TAPS: say_taps(to, i, &packed->taps); break;
    case FL_NORM: say_norm(to, i, &packed->norm); break;
    case FL_LOOKUP:
        fl_say(to, "{.lookup = {");
        fl_say_pointer(to, (fl_owner){i, "lookup", 0}, "table", 1);
        fl_say_pointer(to, (fl_owner){i, "lookup", 0}, "unit", packed->lookup.unit != NULL);
        fl_say_size(to, "stored", (size_t)packed->lookup.stored);
        fl_say_size(to, "tokens", packed->lookup.tokens);
        fl_say_size(to, "width", packed->lookup.width);
        fl_say(to, "}}");
        break;
    case FL_RECURRENT: say_cell(to, i, &op->recurrent, &packed->recurrent); break;
    default: fl_say(to, "{{0}}");
    }
}
