/* matrices.c - matrices and vectors, which are pieces of tensors -> panels, tables, plain rows.
 *
 * Numbers pass through double on their way from a tensor's type to the kernel's, which keeps all of
 * every float, and are rounded once.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "halves.h"
#include "pack.h"

/* Columns, and rows, that are put together. */
enum { AT_ONCE = 64, MOST_ROWS = 16, MOST_GROUPS = 4 };

void fl_read_numbers(const fl_packer *from, ptrdiff_t tensor, int64_t first, int64_t stride,
                     size_t n, double *to) {
    const int own = tensor < 0;
    const void *data = own ? from->program->reals : from->tensors[tensor].data;
    const int64_t end = (int64_t)n;
#define READ(type, number)                                                          \
    do {                                                                            \
        const type *x = (const type *)data + first;                                 \
        if (stride == 1) /* the usual case, in vectors */                           \
            for (int64_t i = 0, at = 0; i < end; ++i, ++at) to[i] = (double)number; \
        else                                                                        \
            for (int64_t i = 0, at; i < end; ++i)                                   \
                at = i * stride, to[i] = (double)number;                            \
    } while (0)
    switch (own ? FL_FLOAT64 : from->tensors[tensor].type) {
    case FL_FLOAT64: READ(double, x[at]); break;
    case FL_FLOAT32: READ(float, x[at]); break;
    case FL_FLOAT16: READ(uint16_t, fl_float_of_float16(x[at])); break;
    case FL_BFLOAT16: READ(uint16_t, fl_float_of_bfloat16(x[at])); break;
    case FL_INT8: READ(int8_t, x[at]); break;
    }
#undef READ
}

fl_stored_kind fl_table_as(const fl_packer *to, const fl_matrix *matrix) {
    return to->kernel->real_size == sizeof(float) ? matrix->stored : FL_STORED_real;
}

fl_stored_kind fl_packed_as(const fl_packer *to, const fl_matrix *matrix) {
    const fl_stored_kind stored = fl_table_as(to, matrix);
    return stored == FL_STORED_float16 && to->widens_float16 ? FL_STORED_real : stored;
}

/* A number of a matrix of int8 as it is stored; no program of ours has another than -127 to 127. */
static unsigned char integer_of(double number, uint32_t offset) {
    const double most = number < 127 ? number : 127, is = most > -127 ? most : -127;
    return (unsigned char)((int)is + (int)offset);
}

/* Put numbers (rows, AT_ONCE), of which n columns count, into reals: column i from `at` + i * step on,
 * its rows behind one another. What a matrix has in a vector of outputs is written at once. */
static void put_reals(const fl_packer *to, void *reals, size_t at, size_t step, size_t n,
                     size_t rows, const double *numbers) {
    if (to->kernel->real_size == sizeof(float)) {
        float *y = (float *)reals + at;
        for (size_t i = 0; i < n; ++i)
            for (size_t r = 0; r < rows; ++r) y[i * step + r] = (float)numbers[r * AT_ONCE + i];
    } else {
        double *y = (double *)reals + at;
        for (size_t i = 0; i < n; ++i)
            for (size_t r = 0; r < rows; ++r) y[i * step + r] = numbers[r * AT_ONCE + i];
    }
}

void fl_put(const fl_packer *to, void *reals, size_t at, double number) {
    put_reals(to, reals, at, 0, 1, 1, &number);
}

void *fl_take_reals(fl_packer *to, size_t a, size_t b, size_t c) {
    size_t ab, count;
    if (__builtin_mul_overflow(a, b, &ab) || __builtin_mul_overflow(ab, c, &count)) {
        to->arena.used = SIZE_MAX;
        return NULL;
    }
    return fl_take(&to->arena, count, to->kernel->real_size);
}

/* ---- Layouts ---- */

fl_layout fl_plain_layout(const fl_packer *to, size_t outputs) {
    const size_t L = to->kernel->lanes, vectors = fl_divided(outputs, L);
    fl_layout at = {L, 0, vectors < MOST_GROUPS ? vectors : MOST_GROUPS, 0, 1, outputs};
    at.panels = fl_divided(vectors, at.groups);
    at.last_groups = vectors - (at.panels - 1) * at.groups;
    return at;
}

fl_layout fl_cell_layout(const fl_packer *to, size_t units, size_t gates) {
    const size_t L = to->kernel->lanes, vectors = fl_divided(units, L);
    fl_layout at = {L, vectors, gates, gates, gates, units};
    if (gates > 1) return at;
    size_t least = SIZE_MAX, most;
    for (size_t g = 1; g <= MOST_GROUPS; ++g)
        if (fl_divided(vectors, g) * g < least) least = fl_divided(vectors, g) * g;
    most = vectors * 6 / 5 > least ? vectors * 6 / 5 : least;
    for (size_t g = 1; g <= MOST_GROUPS; ++g)
        if (fl_divided(vectors, g) * g <= most) at.groups = g;
    at.panels = fl_divided(vectors, at.groups);
    at.last_groups = at.groups;
    return at;
}

/* Where an output's numbers are: the first one's index, and from each input to the next. */
typedef struct {
    size_t first, step;
} column;

/* Output r of a matrix (gates * units, K) in panels. */
static column column_of(const fl_layout *at, size_t r, size_t inputs) {
    const size_t L = at->lanes, unit = r % at->units, gate = r / at->units;
    const size_t panel = at->gates > 1 ? unit / L : unit / (at->groups * L);
    const size_t groups = panel + 1 == at->panels ? at->last_groups : at->groups;
    const size_t group = at->gates > 1 ? gate : unit / L % at->groups;
    const column made = {panel * inputs * at->groups * L + group * L + unit % L, groups * L};
    return made;
}

/* Vectors of all panels. */
static size_t vectors_of(const fl_layout *at) {
    return (at->panels - 1) * at->groups + at->last_groups;
}

/* ---- Pieces ---- */

/* Where numbers of a matrix go. */
typedef struct {
    const fl_packer *to;
    void *reals;            /* words; NULL: to doubles */
    fl_stored_kind stored;  /* as what numbers are put into words */
    double *doubles;
    const fl_layout *at;    /* outputs go as column_of() says, of so many words */
    size_t words, word;     /* the first column begins this word */
    size_t row_stride, column_stride; /* else, where `at` is NULL */
    size_t first_row, rows; /* of the matrix, that are wanted */
    int by_token;           /* inputs are tokens, which come before the panels */
} target;

/* Where number k of a lane lies, of those in its word of a panel and the words behind it. */
static size_t place_in_panel(const target *t, size_t word, size_t step, size_t k) {
    const size_t each = fl_per_word(t->stored), L = t->at->lanes;
    const size_t in = word + k / each * step;
    if (t->stored == FL_STORED_float16) return (in - in % L) * each + k % each * L + in % L;
    return in * each + k % each;
}

static void put_stored(const target *t, size_t place, double number) {
    if (t->stored == FL_STORED_int8)
        ((unsigned char *)t->reals)[place] =
            integer_of(number, t->at ? t->to->kernel->int8_offset : 0);
    else
        ((uint16_t *)t->reals)[place] = t->stored == FL_STORED_float16
                                            ? fl_float16_of_float((float)number)
                                            : fl_bfloat16_of_float((float)number);
}

/* numbers (rows, AT_ONCE), of which n columns count, of the matrix from (row, column_) on. */
static void put_numbers(const target *t, size_t row, size_t column_, size_t rows, size_t n,
                        const double *numbers) {
    const size_t each = fl_per_word(t->stored);
    column where = {row * t->row_stride + column_ * t->column_stride, t->column_stride};
    if (t->at) {
        where = column_of(t->at, row, t->by_token ? 1 : t->words);
        if (t->by_token) where.step = vectors_of(t->at) * t->at->lanes;
        where.first += (t->word + column_ / each) * where.step;
    }
    for (size_t i = 0; i < n && t->stored != FL_STORED_real; ++i)
        for (size_t r = 0; r < rows; ++r)
            put_stored(t,
                       t->at ? place_in_panel(t, where.first + r, where.step, column_ % each + i)
                             : where.first + i * where.step,
                       numbers[r * AT_ONCE + i]);
    if (t->stored != FL_STORED_real) return;
    if (t->reals) {
        put_reals(t->to, t->reals, where.first, where.step, n, rows, numbers);
        return;
    }
    for (size_t i = 0; i < n; ++i) t->doubles[where.first + i * where.step] = numbers[i];
}

/* How many rows from `row` on lie behind one another, of at most so many: those of a vector. */
static size_t rows_together(const target *t, size_t row, size_t most) {
    if (!t->at || !t->reals) return 1;
    const size_t unit = row % t->at->units, left = t->at->lanes - unit % t->at->lanes;
    const size_t units = t->at->units - unit, rows = left < units ? left : units;
    const size_t fewer = rows < MOST_ROWS ? rows : MOST_ROWS;
    return fewer < most ? fewer : most;
}

/* What row `row` of a matrix is multiplied by on its way to where its numbers go: integers by 1. */
static double scale_of(const target *t, const fl_matrix *matrix, size_t row) {
    double scale = 1;
    if (matrix->scale < 0 || t->stored == FL_STORED_int8) return scale;
    const fl_vector *from = t->to->program->vector + matrix->scale;
    fl_read_numbers(t->to, from->tensor, (int64_t)(from->first + row), 1, 1, &scale);
    return scale;
}

/* Columns [first, first + n) of some rows of a piece, which go where they lie behind one another. */
static void put_block(const target *t, const fl_matrix *matrix, const fl_piece *piece, size_t r,
                      size_t rows, size_t first, size_t n) {
    double numbers[MOST_ROWS * AT_ONCE];
    for (size_t i = 0; i < rows; ++i) {
        const int64_t begin = (int64_t)piece->first + (int64_t)(r + i) * piece->row_stride;
        double *row = numbers + i * AT_ONCE;
        if (!piece->order.at) {
            fl_read_numbers(t->to, piece->tensor, begin + (int64_t)first * piece->column_stride,
                            piece->column_stride, n, row);
        } else {
            for (size_t k = 0; k < n; ++k) {
                const int64_t place = piece->order.at[first + k];
                row[k] = 0;
                if (place >= 0) fl_read_numbers(t->to, piece->tensor, begin + place, 1, 1, row + k);
            }
        }
        const double scale = scale_of(t, matrix, piece->row + r + i);
        for (size_t k = 0; k < n && scale != 1; ++k) row[k] *= scale;
    }
    put_numbers(t, piece->row + r - t->first_row, piece->column + first, rows, n, numbers);
}

static void put_matrix(const target *t, ptrdiff_t number) {
    const fl_matrix *matrix = t->to->program->matrix + number;
    for (size_t p = 0; p < matrix->pieces; ++p) {
        const fl_piece *piece = t->to->program->piece + matrix->first_piece + p;
        for (size_t r = 0, rows; r < piece->rows; r += rows) {
            const size_t row = piece->row + r, end = t->first_row + t->rows;
            rows = 1;
            if (row < t->first_row || row >= end) continue;
            rows = piece->rows - r < end - row ? piece->rows - r : end - row;
            rows = rows_together(t, row - t->first_row, rows);
            for (size_t c = 0; c < piece->columns; c += AT_ONCE)
                put_block(t, matrix, piece, r, rows, c,
                          piece->columns - c < AT_ONCE ? piece->columns - c : AT_ONCE);
        }
    }
}

void *fl_take_weights(fl_packer *to, const fl_layout *at, size_t words) {
    return fl_take_reals(to, vectors_of(at), at->lanes, words);
}

/* Of int8, what no piece covers is a 0 that is stored as other zeros are: all of it before the first
 * word is filled. */
void fl_fill_weights(const fl_packer *to, const fl_layout *at, void *weights, size_t words,
                     ptrdiff_t matrix, size_t first_row, size_t word) {
    const target t = {.to = to, .reals = weights, .at = at, .words = words, .word = word,
                      .stored = fl_packed_as(to, to->program->matrix + matrix),
                      .first_row = first_row, .rows = at->gates * at->units};
    if (!weights) return;
    if (t.stored == FL_STORED_int8 && !word)
        memset(weights, (int)to->kernel->int8_offset,
               vectors_of(at) * at->lanes * words * fl_per_word(FL_STORED_int8));
    put_matrix(&t, matrix);
}

fl_panels fl_panels_of(const fl_layout *at, fl_stored_kind stored, size_t words,
                       const void *weights, const void *bias) {
    const fl_panels made = {.weights = weights, .bias = bias, .panels = at->panels,
                            .stride = words * at->groups * at->lanes, .groups = at->groups,
                            .last_groups = at->last_groups, .stored = stored};
    return made;
}

/* The one piece of a matrix that lies in a tensor row by row as it is to be stored; NULL if it does
 * not. */
static const fl_piece *whole_piece(const fl_packer *to, const fl_matrix *matrix,
                                   fl_stored_kind stored) {
    const fl_piece *piece = to->program->piece + matrix->first_piece;
    const int is_whole = matrix->pieces == 1 && piece->tensor >= 0 && !piece->order.at &&
                         (matrix->scale < 0 || stored == FL_STORED_int8) &&
                         to->program->tensor[piece->tensor].stored == stored &&
                         piece->rows == matrix->rows && piece->columns == matrix->columns &&
                         (piece->columns == 1 || piece->column_stride == 1) &&
                         (piece->rows == 1 || piece->row_stride == (ptrdiff_t)piece->columns);
    return is_whole ? piece : NULL;
}

/* A matrix row by row, (rows, columns): in the model's memory, or where it lies, if it is all one
 * tensor's that stays. */
static const void *pack_rows(fl_packer *to, ptrdiff_t number, fl_stored_kind stored) {
    const fl_matrix *matrix = to->program->matrix + number;
    const fl_piece *whole = to->keeps_tensors ? whole_piece(to, matrix, stored) : NULL;
    if (whole && !to->tensors) return NULL;
    if (whole)
        return (const char *)to->tensors[whole->tensor].data +
               (size_t)whole->first * (to->kernel->real_size / fl_per_word(stored));
    target t = {.to = to, .stored = stored, .row_stride = matrix->columns, .column_stride = 1};
    t.rows = matrix->rows;
    t.reals = fl_take_reals(to, matrix->rows, fl_words(stored, matrix->columns), 1);
    if (t.reals) put_matrix(&t, number);
    return t.reals;
}

/* ---- Vectors ---- */

const void *fl_pack_gates(fl_packer *to, const fl_layout *at, ptrdiff_t vector, size_t first,
                          size_t gate, size_t gates) {
    double numbers[AT_ONCE];
    void *made = fl_take_reals(to, vectors_of(at), at->lanes, 1);
    if (!made || vector < 0) return made;
    const fl_vector *from = to->program->vector + vector;
    const size_t count = gates * at->units;
    for (size_t i = 0; i < count; i += AT_ONCE) {
        const size_t n = count - i < AT_ONCE ? count - i : AT_ONCE;
        fl_read_numbers(to, from->tensor, (int64_t)(from->first + first + i), 1, n, numbers);
        for (size_t k = 0; k < n; ++k)
            fl_put(to, made, column_of(at, gate * at->units + i + k, 1).first, numbers[k]);
    }
    return made;
}

const void *fl_pack_units(fl_packer *to, const fl_layout *at, ptrdiff_t matrix, size_t first_row) {
    const fl_matrix *from = to->program->matrix + matrix;
    if (fl_packed_as(to, from) != FL_STORED_int8) return NULL;
    return fl_pack_gates(to, at, from->scale, first_row, 0, at->gates);
}

const void *fl_plain_vector(const fl_packer *to, ptrdiff_t vector, size_t first) {
    if (!to->vectors) return NULL;
    return vector < 0 ? to->zeros
                      : (const char *)to->vectors[vector] + first * to->kernel->real_size;
}

/* ---- What operations share ---- */

static const void *pack_panels(fl_packer *to, ptrdiff_t number) {
    const fl_matrix *matrix = to->program->matrix + number;
    const fl_layout at = fl_plain_layout(to, matrix->rows);
    const size_t words = fl_words(fl_packed_as(to, matrix), matrix->columns);
    void *weights = fl_take_weights(to, &at, words);
    fl_fill_weights(to, &at, weights, words, number, 0, 0);
    return weights;
}

void fl_pack_matrices(fl_packer *to, const void **panels, const void **rows, const void **tables) {
    const fl_program *program = to->program;
    size_t most = 0;
    for (size_t m = 0; m < program->matrix_count; ++m) {
        const void *as_panels = NULL, *as_rows = NULL, *as_table = NULL;
        if (program->uses[m] & FL_USE_PANELS) {
            as_panels = pack_panels(to, (ptrdiff_t)m);
            most = fl_most(most, program->matrix[m].rows);
        }
        if (program->uses[m] & FL_USE_ROWS) as_rows = pack_rows(to, (ptrdiff_t)m, FL_STORED_real);
        if (program->uses[m] & FL_USE_TABLE)
            as_table = pack_rows(to, (ptrdiff_t)m, fl_table_as(to, program->matrix + m));
        if (panels) panels[m] = as_panels, rows[m] = as_rows, tables[m] = as_table;
        if (to->arena.used == SIZE_MAX) return;
    }
    to->zeros = fl_take_reals(to, most + to->kernel->lanes, 1, 1);
    to->panels = panels;
    to->rows = rows;
    to->tables = tables;
}

fl_panels fl_shared_panels(const fl_packer *to, ptrdiff_t number, const void *bias) {
    const fl_matrix *matrix = to->program->matrix + number;
    const fl_layout at = fl_plain_layout(to, matrix->rows);
    const fl_stored_kind stored = fl_packed_as(to, matrix);
    const void *weights = to->panels ? to->panels[number] : NULL;
    fl_panels made = fl_panels_of(&at, stored, fl_words(stored, matrix->columns), weights, bias);
    if (stored == FL_STORED_int8) made.unit = fl_plain_vector(to, matrix->scale, 0);
    return made;
}

/* ---- Tokens ---- */

/* Tokens whose products are made at once, each in `all` sums of doubles. A sum begins at 0 and takes
 * the inputs in their order; products of floats are exact. */
enum { TOKENS = 4 };

static void read_row(const fl_packer *from, ptrdiff_t number, size_t row, double *to) {
    const target t = {.to = from, .doubles = to, .column_stride = 1, .first_row = row, .rows = 1};
    memset(to, 0, from->program->matrix[number].columns * sizeof *to);
    const fl_matrix *matrix = from->program->matrix + number;
    for (size_t p = 0; p < matrix->pieces; ++p) {
        const fl_piece *piece = from->program->piece + matrix->first_piece + p;
        if (row < piece->row || row >= piece->row + piece->rows) continue;
        for (size_t c = 0; c < piece->columns; c += AT_ONCE)
            put_block(&t, matrix, piece, row - piece->row, 1, c,
                      piece->columns - c < AT_ONCE ? piece->columns - c : AT_ONCE);
    }
}

/* A row as what a product of int8 takes it for (operations.h), as floats. */
static void round_row(double *row, size_t n) {
    const float middle = 0x1.8p23f; /* a float of this size is whole */
    float most = 0;
    int finite = 1;
    for (size_t i = 0; i < n; ++i) {
        const float size = row[i] < 0 ? (float)-row[i] : (float)row[i];
        finite &= size <= FLT_MAX;
        if (size > most) most = size;
    }
    const float scale = !finite ? (float)NAN : most / 127, inverse = 127 / most;
    for (size_t i = 0; i < n; ++i) {
        const volatile float raised = (float)row[i] * inverse + middle;
        row[i] = (double)scale * (most < 0x1p-100f ? 0.0 : (double)(raised - middle));
    }
}

static void multiply_tokens(const fl_packer *to, const fl_layout *at, ptrdiff_t input,
                            ptrdiff_t table, void *made) {
    const size_t all = at->gates * at->units, I = to->program->matrix[input].columns;
    const size_t V = to->program->matrix[table].rows, width = vectors_of(at) * at->lanes;
    double *w = to->scratch /* (I, all) */, *sums = w + I * all /* (TOKENS, all) */;
    double *rows = sums + TOKENS * all /* (TOKENS, I) */;
    const target t = {.to = to, .doubles = w, .row_stride = 1, .column_stride = all, .rows = all};
    const int as_integers = fl_packed_as(to, to->program->matrix + input) == FL_STORED_int8;
    memset(w, 0, I * all * sizeof *w);
    put_matrix(&t, input);
    for (size_t v = 0; v < V; v += TOKENS) {
        const size_t n = V - v < TOKENS ? V - v : TOKENS;
        memset(sums, 0, TOKENS * all * sizeof *sums);
        for (size_t m = 0; m < TOKENS; ++m) {
            read_row(to, table, v + (m < n ? m : 0), rows + m * I);
            if (as_integers) round_row(rows + m * I, I);
        }
        for (size_t i = 0; i < I; ++i) {
            const double a = rows[i], b = rows[I + i], c = rows[2 * I + i], d = rows[3 * I + i];
            const double *x = w + i * all;
            for (size_t o = 0; o < all; ++o) {
                sums[o] += a * x[o];
                sums[all + o] += b * x[o];
                sums[2 * all + o] += c * x[o];
                sums[3 * all + o] += d * x[o];
            }
        }
        for (size_t m = 0; m < n; ++m)
            for (size_t o = 0; o < all; ++o)
                fl_put(to, made, (v + m) * width + column_of(at, o, 1).first, sums[m * all + o]);
    }
}

const void *fl_pack_tokens(fl_packer *to, const fl_layout *at, ptrdiff_t input, ptrdiff_t table) {
    const fl_matrix *w = to->program->matrix + input;
    const size_t all = at->gates * at->units;
    const size_t V = table < 0 ? w->columns : to->program->matrix[table].rows;
    void *made = fl_take_reals(to, V, vectors_of(at), at->lanes);
    if (table >= 0) {
        size_t count;
        if (__builtin_mul_overflow(w->columns + TOKENS, all, &count) ||
            __builtin_add_overflow(count, TOKENS * w->columns, &count))
            to->arena.used = SIZE_MAX;
        else if (count > to->scratch_count) to->scratch_count = count;
        if (made) multiply_tokens(to, at, input, table, made);
        return made;
    }
    const target t = {.to = to, .reals = made, .at = at, .rows = all, .by_token = 1};
    if (made) put_matrix(&t, input);
    return made;
}
