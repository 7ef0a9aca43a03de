/* pack_cells.c - recurrences: one direction of one layer -> fl_cell.
 *
 * The rows of the input come first in a cell's panels, then those of h. Tokens need no such rows:
 * the product of every token is made here, once, and the kernel looks it up.
 */
#include <string.h>

#include "pack.h"

static int is(const fl_activation *activation, fl_function function) {
    return activation->function == function;
}

/* Whether it is PyTorch's cell, which has loops of its own. */
static int is_plain(const fl_recurrent *r) {
    if (r->cell == FL_CELL_rnn) return 1;
    if (r->clip != 0 || r->cell_clip != 0 || r->coupled || r->peepholes >= 0 ||
        r->norm != FL_CELL_NORM_none || (r->cell == FL_CELL_gru && !r->reset_after) ||
        !is(&r->function_0, FL_FUNCTION_sigmoid) || !is(&r->function_1, FL_FUNCTION_tanh))
        return 0;
    return r->cell == FL_CELL_gru || is(&r->function_2, FL_FUNCTION_tanh);
}

/* The same units, with another number of gates. */
static fl_layout with_gates(const fl_layout *at, size_t gates) {
    fl_layout made = *at;
    made.gates = made.groups = made.last_groups = gates;
    return made;
}

static void pack_norms(fl_packer *to, const fl_recurrent *r, const fl_layout *at, fl_variant *made) {
    const ptrdiff_t of_x[] = {r->norm_x_weight, r->norm_x_bias};
    const ptrdiff_t of_h[] = {r->norm_h_weight, r->norm_h_bias};
    const ptrdiff_t of_c[] = {r->norm_c_weight, r->norm_c_bias};
    const fl_layout units = with_gates(at, 1);
    if (r->norm == FL_CELL_NORM_none) return;
    made->bias = fl_pack_gates(to, at, r->bias, 0, 0, r->bias < 0 ? 0 : at->gates);
    if (r->norm == FL_CELL_NORM_gate) {
        made->norm_gate = fl_pack_gates(to, at, r->norm_x_weight, 0, 0, at->gates);
        return;
    }
    for (int i = 0; i < 2; ++i) {
        made->norm_x[i] = fl_pack_gates(to, at, of_x[i], 0, 0, at->gates);
        made->norm_h[i] = fl_pack_gates(to, at, of_h[i], 0, 0, at->gates);
        made->norm_c[i] = fl_pack_gates(to, &units, of_c[i], 0, 0, 1);
    }
}

/* The panels of gates that resets come before, K = H of a part of `hidden`: of z and r, or of n. */
static fl_panels pack_resets(fl_packer *to, const fl_recurrent *r, const fl_layout *at,
                             size_t first_row, const void *bias) {
    const fl_stored_kind stored = fl_packed_as(to, to->program->matrix + r->hidden);
    const size_t words = fl_words(stored, r->h_size);
    void *weights = fl_take_weights(to, at, words);
    fl_fill_weights(to, at, weights, words, r->hidden, first_row, 0);
    fl_panels made = fl_panels_of(at, stored, words, weights, bias);
    made.unit = fl_pack_units(to, at, r->hidden, first_row);
    return made;
}

static void pack_variant(fl_packer *to, const fl_recurrent *r, const fl_layout *at,
                         const fl_cell *twin, fl_variant *made) {
    const size_t H = r->hidden_size;
    const fl_layout units = with_gates(at, 1);
    made->functions[0] = r->function_0;
    made->functions[1] = r->function_1;
    made->functions[2] = r->function_2;
    made->clip = r->clip;
    made->cell_clip = r->cell_clip;
    made->norm = r->norm;
    made->eps = r->eps;
    made->coupled = r->coupled;
    if (r->cell == FL_CELL_gru && !r->reset_after) {
        const fl_layout gates = with_gates(at, 2);
        const void *bias = fl_pack_gates(to, &units, r->h_bias, 0, 0, 1);
        if (!twin) {
            made->reset_gates = pack_resets(to, r, &gates, 0, NULL);
            made->reset_candidate = pack_resets(to, r, &units, 2 * H, bias);
        } else if (twin->variant) {
            made->reset_gates = twin->variant->reset_gates;
            made->reset_candidate = twin->variant->reset_candidate;
            made->reset_candidate.bias = bias;
        }
        return;
    }
    pack_norms(to, r, at, made);
    if (r->peepholes < 0) return;
    made->peepholes[0] = fl_pack_gates(to, &units, r->peepholes, 0, 0, 1);
    if (!r->coupled) made->peepholes[1] = fl_pack_gates(to, &units, r->peepholes, H, 0, 1);
    made->peepholes[2] =
        fl_pack_gates(to, &units, r->peepholes, r->coupled ? H : 2 * H, 0, 1);
}

/* Panels whose words are those of I inputs, and then those of O numbers of h. */
static void pack_gates(fl_packer *to, const fl_recurrent *r, const fl_layout *at, size_t I, size_t O,
                       const fl_cell *twin, const void *bias, fl_cell *made) {
    const fl_stored_kind stored = fl_packed_as(to, to->program->matrix + r->hidden);
    const size_t of_x = fl_words(stored, I), words = of_x + fl_words(stored, O);
    made->gates = fl_panels_of(at, stored, words, NULL, bias);
    made->input_rows = I;
    if (twin) {
        made->gates.weights = twin->gates.weights;
        made->gates.unit = twin->gates.unit;
        made->h_unit = twin->h_unit;
        return;
    }
    void *weights = fl_take_weights(to, at, words);
    if (I) fl_fill_weights(to, at, weights, words, r->input, 0, 0);
    if (O) fl_fill_weights(to, at, weights, words, r->hidden, 0, of_x);
    if (I) made->gates.unit = fl_pack_units(to, at, r->input, 0);
    if (O) made->h_unit = fl_pack_units(to, at, r->hidden, 0);
    made->gates.weights = weights;
}

void fl_pack_cell(fl_packer *to, const fl_recurrent *r, const fl_cell *twin, fl_cell *made) {
    const size_t gates = r->cell == FL_CELL_rnn                     ? 1
                         : r->cell == FL_CELL_gru || r->coupled ? 3
                                                                : 4;
    const fl_layout at = fl_cell_layout(to, r->hidden_size, gates);
    const int tokens = to->program->value[r->x].tokens != 0;
    const int resets_before = r->cell == FL_CELL_gru && !r->reset_after;
    const size_t I = tokens ? 0 : r->input_size, O = resets_before ? 0 : r->h_size;
    fl_variant variant;
    const ptrdiff_t bias = r->norm == FL_CELL_NORM_none ? r->bias : -1;
    pack_gates(to, r, &at, I, O, twin, fl_pack_gates(to, &at, bias, 0, 0, gates), made);
    made->activation = r->function_0;
    if (tokens) {
        made->table = twin ? twin->table : fl_pack_tokens(to, &at, r->input, r->table);
        made->tokens = r->table < 0 ? r->input_size : to->program->matrix[r->table].rows;
    }
    if (!is_plain(r)) {
        fl_variant *kept = fl_take(&to->arena, 1, sizeof *kept);
        memset(&variant, 0, sizeof variant);
        pack_variant(to, r, &at, twin, &variant);
        if (kept) *kept = variant;
        made->variant = kept;
    }
    if (resets_before) {
        const fl_layout of_h = with_gates(&at, 2);
        made->h_bias = fl_pack_gates(to, &of_h, -1, 0, 0, 0);
    } else {
        made->h_bias = fl_pack_gates(to, &at, r->h_bias, 0, 2, 1);
    }
    if (r->projection >= 0)
        made->projection = fl_shared_panels(to, r->projection, fl_plain_vector(to, -1, 0));
    if (to->vectors) {
        made->h_0 = r->h_0 < 0 ? NULL : to->vectors[r->h_0];
        made->c_0 = r->c_0 < 0 ? NULL : to->vectors[r->c_0];
    }
}
