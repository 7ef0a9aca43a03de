/* stream.c - streams in memory of the caller's: state, scratch memory and the call of each, made
 * once; and states as bytes.
 */
#include <string.h>

#include "arena.h"
#include "call.h"
#include "checksum.h"

struct fl_stream {
    const fl_stream *self;  /* where it lies: a copy elsewhere, or other bytes, are no stream */
    const fl_model *model;
    size_t T, B;
    int begun;              /* 0: it has held inputs, and was not told them */
    int steps;              /* one input, and one output with a row for each step */
    fl_call call;
    fl_rows x, y;           /* of fl_step */
    fl_rows *inputs, *outputs;
    void **states;          /* (B,) */
    void *spare;            /* another state */
    size_t *rows;           /* (outputs, B) of a piece of a call */
    size_t *given;          /* (outputs,) of the pieces before */
};

/* ---- Made ---- */

/* Put a stream's parts into `memory`, or only count. */
static fl_error lay_out_stream(const fl_model *model, const fl_stream_config *config, void *memory,
                               fl_stream **made, size_t *bytes) {
    fl_arena arena = {memory, SIZE_MAX - 1, 0};
    if (!model || !config || !FL_IS_KNOWN(config, prepares) || !config->T || !config->B ||
        !fl_have_threads(config->threads))
        return FL_BAD_ARGUMENT;
    const int prepares = FL_HAS(config, prepares) && config->prepares;
    const fl_program *program = &model->program;
    const size_t B = config->B, T = config->T, state = fl_state_size(model);
    const size_t threads = config->threads ? config->threads->size : 1;
    size_t scratch, rows;
    const fl_error error = fl_scratch_size(model, T, B, threads, &scratch);
    if (error) return error;
    if (__builtin_mul_overflow(program->output_count, B, &rows)) return FL_TOO_LARGE;
    fl_stream *s = fl_take(&arena, 1, sizeof *s);
    fl_rows *inputs = fl_take(&arena, program->input_count, sizeof *inputs);
    fl_rows *outputs = fl_take(&arena, program->output_count, sizeof *outputs);
    size_t *of_piece = fl_take(&arena, rows, sizeof *of_piece);
    size_t *given = fl_take(&arena, program->output_count, sizeof *given);
    void **states = fl_take(&arena, B, sizeof *states);
    void *spare = fl_take(&arena, 1, state);
    /* Each state at a multiple of 64 bytes. */
    const size_t padded = (state + 63) / 64 * 64;
    char *numbers = fl_take(&arena, B, padded);
    void *work = fl_take(&arena, scratch, 1);
    const size_t prepared_bytes = prepares ? fl_prepared_size(model) : 0;
    void **prepared = prepares ? fl_take(&arena, B, sizeof *prepared) : NULL;
    char *blocks = fl_take(&arena, B, prepared_bytes);
    if (arena.used == SIZE_MAX) return FL_TOO_LARGE;
    *bytes = arena.used;
    if (!memory) return FL_OK;
    memset(memory, 0, arena.used);
    s->model = model;
    s->T = T, s->B = B;
    s->inputs = inputs, s->outputs = outputs;
    s->states = states, s->spare = spare;
    s->rows = of_piece, s->given = given;
    for (size_t b = 0; b < B; ++b) states[b] = numbers + b * padded;
    for (size_t b = 0; prepares && b < B; ++b) prepared[b] = blocks + b * prepared_bytes;
    s->call.struct_size = sizeof s->call;
    s->call.B = B;
    s->call.states = states;
    s->call.whole = config->whole;
    s->call.threads = config->threads;
    s->call.prepared = prepared;
    *made = s;
    return fl_scratch_init(model, T, B, threads, work, scratch, &s->call.scratch);
}

fl_error fl_stream_size(const fl_model *model, const fl_stream_config *config, size_t *bytes) {
    if (!bytes) return FL_BAD_ARGUMENT;
    *bytes = 0;
    return lay_out_stream(model, config, NULL, NULL, bytes);
}

static int is_held(const fl_program *program, size_t value) {
    return program->value[value].line < 0;
}

static int has_held(const fl_program *program) {
    for (size_t i = 0; i < program->input_count; ++i)
        if (is_held(program, program->inputs[i])) return 1;
    return 0;
}

/* Whether a line has one row for each step: that of the steps, and what is folded of such a one. */
static int has_row_each_step(const fl_model *model, ptrdiff_t line, int whole) {
    const fl_program *program = &model->program;
    for (size_t i = program->operation_count; i-- > 0 && line > 0;) {
        const fl_kind kind = program->operations[i].kind;
        if (model->courses[i].to != line) continue;
        if (whole || (kind != FL_FOLD && kind != FL_ATTENTION)) return 0;
        line = model->courses[i].from;
    }
    return line == 0;
}

fl_error fl_stream_init(const fl_model *model, const fl_stream_config *config, void *memory,
                        size_t memory_bytes, fl_stream **made) {
    size_t bytes;
    fl_stream *s;
    if (!made) return FL_BAD_ARGUMENT;
    *made = NULL;
    fl_error error = lay_out_stream(model, config, NULL, NULL, &bytes);
    if (error) return error;
    if (!memory || (uintptr_t)memory % FL_ALIGNMENT || memory_bytes < bytes)
        return FL_LITTLE_MEMORY;
    error = lay_out_stream(model, config, memory, &s, &bytes);
    if (error) return error;
    const fl_program *program = &model->program;
    s->self = s;
    s->steps = program->input_count == 1 && program->output_count == 1 && !program->looks_ahead &&
               !is_held(program, program->inputs[0]) &&
               has_row_each_step(model, program->value[program->outputs[0]].line, config->whole);
    if (s->steps) {
        s->x.b = (ptrdiff_t)program->value[program->inputs[0]].count;
        s->y.b = (ptrdiff_t)program->value[program->outputs[0]].count;
    }
    if (!has_held(program)) error = fl_stream_reset(s, NULL);
    if (!error) *made = s;
    return error;
}

/* ---- Run ---- */

/* Aligned first: of what is not, the pointer cannot be read. */
static int is_stream(const fl_stream *s) {
    return s && !((uintptr_t)s % FL_ALIGNMENT) && s->self == s;
}

/* Whether all tokens of T rows of an input are tokens; what is not there, a call refuses. */
static int are_tokens(const fl_stream *s, const fl_rows *rows, const fl_value *value, size_t T) {
    const int64_t *data = rows->data;
    if (!data || (uintptr_t)data % sizeof *data) return 1;
    for (size_t b = 0; b < s->B; ++b) {
        for (size_t t = 0; t < T; ++t) {
            const int64_t *row = data + (ptrdiff_t)t * rows->t + (ptrdiff_t)b * rows->b;
            for (size_t i = 0; i < value->count; ++i)
                if ((uint64_t)row[i] >= value->tokens) return 0;
        }
    }
    return 1;
}

/* Whether all tokens of T steps of `inputs` are, or of the held ones. */
static int have_tokens(const fl_stream *s, const fl_rows *inputs, size_t T, int held) {
    const fl_program *program = &s->model->program;
    for (size_t i = 0; i < program->input_count; ++i) {
        const fl_value *value = program->value + program->inputs[i];
        if (value->tokens && is_held(program, program->inputs[i]) == held &&
            !are_tokens(s, inputs + i, value, held ? 1 : T))
            return 0;
    }
    return 1;
}

fl_error fl_stream_reset(fl_stream *s, const fl_rows *inputs) {
    if (!is_stream(s) || (!inputs && has_held(&s->model->program))) return FL_BAD_ARGUMENT;
    if (inputs && !have_tokens(s, inputs, 1, 1)) return FL_BAD_ARGUMENT;
    s->call.T = s->call.turn = 0;
    s->call.rows = NULL;
    s->call.inputs = inputs ? inputs : s->inputs;
    const fl_error error = fl_begin(s->model, &s->call);
    if (!error) s->begun = 1;
    return error;
}

fl_error fl_step(fl_stream *s, const void *x, void *y) {
    if (!is_stream(s) || !s->steps) return FL_BAD_ARGUMENT;
    s->x.data = (void *)(uintptr_t)x; /* only read */
    s->y.data = y;
    if (!have_tokens(s, &s->x, 1, 0)) return FL_BAD_ARGUMENT;
    s->call.inputs = &s->x;
    s->call.outputs = &s->y;
    s->call.T = 1;
    s->call.rows = NULL;
    return fl_run(s->model, &s->call);
}

fl_error fl_stream_prepare(fl_stream *s) {
    if (!is_stream(s) || !s->begun || !s->call.prepared) return FL_BAD_ARGUMENT;
    s->call.T = 0;
    return fl_prepare(s->model, &s->call);
}

/* Rows from row `first` of each batch row on; `item` is the bytes of a number. */
static fl_rows rows_from(const fl_rows *rows, size_t first, size_t item) {
    fl_rows made = *rows;
    if (made.data) made.data = (char *)made.data + (ptrdiff_t)(first * item) * made.t;
    return made;
}

/* The inputs from step `first` on, and the outputs behind the rows that they have been given: all
 * batch rows as many, as they begin together and have all steps. A held output has one row, which
 * each piece gives again. */
static void point_at(fl_stream *s, const fl_rows *inputs, size_t first, const fl_rows *outputs) {
    const fl_program *program = &s->model->program;
    const size_t real_size = s->model->kernel->real_size;
    for (size_t i = 0; i < program->input_count && inputs; ++i) {
        const fl_value *value = program->value + program->inputs[i];
        if (is_held(program, program->inputs[i])) continue;
        s->inputs[i] = rows_from(inputs + i, first, value->tokens ? sizeof(int64_t) : real_size);
    }
    for (size_t o = 0; o < program->output_count && outputs; ++o) {
        const size_t given = is_held(program, program->outputs[o]) ? 0 : s->given[o];
        s->outputs[o] = rows_from(outputs + o, given, real_size);
    }
}

static void count_piece(fl_stream *s) {
    const fl_program *program = &s->model->program;
    for (size_t o = 0; o < program->output_count; ++o) {
        const size_t before = is_held(program, program->outputs[o]) ? 0 : s->given[o];
        s->given[o] = before + s->rows[o * s->B];
    }
}

/* Begin a call of pieces, none of which has more than s->T steps. */
static fl_error begin_pieces(fl_stream *s) {
    if (!is_stream(s) || !s->begun) return FL_BAD_ARGUMENT;
    for (size_t o = 0; o < s->model->program.output_count; ++o) s->given[o] = 0;
    s->call.inputs = s->inputs;
    s->call.outputs = s->outputs;
    s->call.rows = s->rows;
    return FL_OK;
}

static void tell_rows(const fl_stream *s, size_t *rows) {
    const size_t n = s->model->program.output_count;
    if (rows && n) memcpy(rows, s->given, n * sizeof *rows);
}

fl_error fl_stream_run(fl_stream *s, size_t T, const fl_rows *inputs, const fl_rows *outputs,
                       size_t *rows) {
    fl_error error = begin_pieces(s);
    if (error) return error;
    const fl_program *program = &s->model->program;
    const int writes = T || program->looks_ahead; /* its end is part of the call */
    if (program->looks_ahead && T > s->T) return FL_TOO_LARGE;
    if ((T && program->input_count && !inputs) || (writes && program->output_count && !outputs))
        return FL_BAD_ARGUMENT;
    if (T && !have_tokens(s, inputs, T, 0)) return FL_BAD_ARGUMENT;
    size_t first = 0;
    do {
        s->call.T = T - first < s->T ? T - first : s->T;
        point_at(s, inputs, first, outputs);
        error = fl_run(s->model, &s->call);
        if (error) return error; /* of the first piece, before any step: the others are like it */
        count_piece(s);
        first += s->call.T;
    } while (first < T);
    tell_rows(s, rows);
    return FL_OK;
}

fl_error fl_stream_flush(fl_stream *s, const fl_rows *outputs, size_t *rows) {
    fl_error error = begin_pieces(s);
    if (error) return error;
    if (!outputs && s->model->program.output_count) return FL_BAD_ARGUMENT;
    s->call.T = 0;
    point_at(s, NULL, 0, outputs);
    error = fl_flush(s->model, &s->call);
    if (error) return error;
    count_piece(s);
    tell_rows(s, rows);
    return FL_OK;
}

fl_error fl_stream_count(fl_stream *s, size_t T, int ending, size_t *rows) {
    fl_error error = begin_pieces(s);
    if (error) return error;
    if (!rows) return FL_BAD_ARGUMENT;
    if (T > s->T) return FL_TOO_LARGE;
    s->call.T = T;
    error = fl_count_rows(s->model, &s->call, ending);
    if (error) return error;
    count_piece(s);
    tell_rows(s, rows);
    return FL_OK;
}

/* ---- States as bytes ----
 *
 * Words of 64 bits, the lowest byte first: "flstate" and a 0; the version; the CRC-32 of what
 * follows; the fingerprint of the program; the bytes of a real; B. Then each batch row's parts, as
 * fl_state_read gives them, one behind the other.
 */

enum { STATE_VERSION = 1, STATE_HEAD = 48, STATE_SUMMED_FROM = 24 };

static size_t part_bytes(const fl_model *model, size_t part) {
    const fl_part_shape shape = fl_state_part(&model->program, part);
    return shape.is_count ? sizeof(int64_t) : shape.rows * shape.count * model->kernel->real_size;
}

/* Of one batch row; each part lies in the state, or is a count, so that no sum overflows. */
static size_t row_bytes(const fl_model *model) {
    size_t sum = 0;
    for (size_t i = 0; i < model->program.part_count; ++i) sum += part_bytes(model, i);
    return sum;
}

size_t fl_stream_state_size(const fl_stream *s) {
    return is_stream(s) ? STATE_HEAD + s->B * row_bytes(s->model) : 0;
}

static void put_word(unsigned char *to, uint64_t word) {
    for (int i = 0; i < 8; ++i) to[i] = (unsigned char)(word >> (8 * i));
}

/* All words of the head but the checksum. */
static void put_head(const fl_stream *s, unsigned char *to) {
    memcpy(to, "flstate", 8);
    put_word(to + 8, STATE_VERSION);
    put_word(to + 24, s->model->program.fingerprint);
    put_word(to + 32, s->model->kernel->real_size);
    put_word(to + 40, s->B);
}

fl_error fl_stream_get_state(const fl_stream *s, void *to, size_t bytes) {
    if (!is_stream(s) || !s->begun || !to || bytes != fl_stream_state_size(s))
        return FL_BAD_ARGUMENT;
    unsigned char *at = (unsigned char *)to + STATE_HEAD;
    put_head(s, to);
    for (size_t b = 0; b < s->B; ++b) {
        for (size_t i = 0; i < s->model->program.part_count; ++i) {
            const size_t size = part_bytes(s->model, i);
            const fl_error error = fl_state_read(s->model, s->states[b], i, at, size);
            if (error) return error;
            at += size;
        }
    }
    put_word((unsigned char *)to + 16, fl_checksum(0, (unsigned char *)to + STATE_SUMMED_FROM,
                                                   bytes - STATE_SUMMED_FROM));
    return FL_OK;
}

/* Write a batch row's parts into `state`. */
static fl_error put_parts(const fl_stream *s, const unsigned char *from, void *state) {
    for (size_t i = 0; i < s->model->program.part_count; ++i) {
        const size_t size = part_bytes(s->model, i);
        const fl_error error = fl_state_write(s->model, state, i, from, size);
        if (error) return error;
        from += size;
    }
    return FL_OK;
}

fl_error fl_stream_set_state(fl_stream *s, const void *from, size_t bytes) {
    unsigned char head[STATE_HEAD] = {0};
    if (!is_stream(s) || !s->begun || !from) return FL_BAD_ARGUMENT;
    const unsigned char *given = from, *numbers = given + STATE_HEAD;
    const size_t row = row_bytes(s->model);
    if (bytes != STATE_HEAD + s->B * row) return FL_BAD_STATE;
    put_head(s, head);
    put_word(head + 16, fl_checksum(0, given + STATE_SUMMED_FROM, bytes - STATE_SUMMED_FROM));
    if (memcmp(head, given, STATE_HEAD)) return FL_BAD_STATE;
    /* All of it is tried on another state first, so that a bad one changes nothing. */
    for (size_t b = 0; b < s->B; ++b) {
        memcpy(s->spare, s->states[b], fl_state_size(s->model));
        const fl_error error = put_parts(s, numbers + b * row, s->spare);
        if (error) return error;
    }
    for (size_t b = 0; b < s->B; ++b) {
        put_parts(s, numbers + b * row, s->states[b]);
        if (s->call.prepared) fl_drop(s->call.prepared[b]);
    }
    return FL_OK;
}
