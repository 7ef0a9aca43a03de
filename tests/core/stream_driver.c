/* stream_driver.c - model files opened, and their streams run, as a request asks for it;
 * tests/core/streamed.py writes what is asked, and reads what is answered.
 *
 * What lies behind the rows of an output, and all of it after an error, must be as it was.
 */
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "driver_words.h"
#include "drivers.h"

enum { MOST_BYTES = 1 << 26, CANARY = 0xa5 };

typedef struct {
    char *file;
    void *program_memory, *model_memory, *stream_memory;
    const fl_program *program;
    const fl_model *model;
    fl_model_config packing;
    fl_stream_config config;
    fl_threads team;
    fl_stream *stream;
} subject;

static size_t real_size(const subject *s) {
    return s->packing.type == FL_FLOAT64 ? sizeof(double) : sizeof(float);
}

/* ---- What is made ---- */

/* A file is at a multiple of 8 bytes, and of no more. */
static fl_error open_file(subject *s, reader *from, char *message, size_t message_bytes) {
    const size_t bytes = read_size(from);
    s->file = take(bytes + 8);
    memcpy(s->file + 8, read_bytes(from, bytes), bytes);
    size_t needed = 1;
    const char *file = s->file + 8;
    fl_error error = fl_open_size(file, bytes, &needed, message, message_bytes);
    if (error && needed) give_up("an error left a size");
    if (!error && needed > MOST_BYTES) error = FL_TOO_LARGE;
    if (error) return error;
    s->program_memory = take(needed);
    if (fl_open(file, bytes, s->program_memory, needed - 1, &s->program, NULL, 0) !=
            FL_LITTLE_MEMORY || s->program)
        give_up("a file takes less memory than it needs");
    error = fl_open(file, bytes, s->program_memory, needed, &s->program, message, message_bytes);
    if (!error == !s->program) give_up("an error left a program");
    return error;
}

static fl_error pack_model(subject *s, char *message, size_t message_bytes) {
    size_t needed = 1;
    fl_error error =
        fl_model_size(s->program, &s->packing, &needed, message, message_bytes);
    if (error && needed) give_up("an error left a size");
    if (!error && needed > MOST_BYTES) error = FL_TOO_LARGE;
    if (error) return error;
    s->model_memory = take(needed);
    if (fl_model_init(s->program, &s->packing, NULL, 0, s->model_memory, needed - 1, &s->model,
                      NULL, 0) == FL_OK)
        give_up("a model takes less memory than it needs");
    error = fl_model_init(s->program, &s->packing, NULL, 0, s->model_memory, needed, &s->model,
                          message, message_bytes);
    if (!error == !s->model) give_up("an error left a model");
    return error;
}

static fl_error make_stream(const subject *s, void **memory, fl_stream **stream) {
    size_t needed = 1;
    fl_error error = fl_stream_size(s->model, &s->config, &needed);
    if (!error && needed > MOST_BYTES) error = FL_TOO_LARGE;
    if (error) return error;
    *memory = take(needed);
    if (fl_stream_init(s->model, &s->config, *memory, needed - 1, stream) != FL_LITTLE_MEMORY ||
        *stream || *(unsigned char *)*memory != CANARY)
        give_up("a stream takes less memory than it needs");
    error = fl_stream_init(s->model, &s->config, *memory, needed, stream);
    if (!error == !*stream) give_up("an error left a stream");
    return error;
}

/* ---- Rows ---- */

static fl_rows rows_of(void *data, size_t T, size_t B, size_t count, int batch_first) {
    fl_rows made = {data, (ptrdiff_t)(B * count), (ptrdiff_t)count};
    if (batch_first) made.t = (ptrdiff_t)count, made.b = (ptrdiff_t)(T * count);
    return made;
}

static size_t item_of(const subject *s, fl_row_shape shape) {
    return shape.tokens ? sizeof(int64_t) : real_size(s);
}

/* T rows of each input that is held, or of each that is not; of others nothing. */
static fl_rows *read_inputs(const subject *s, reader *from, size_t T, int held, int batch_first) {
    const size_t n = fl_count(s->program, FL_COUNT_INPUTS), B = s->config.B;
    fl_rows *inputs = take(n * sizeof *inputs);
    memset(inputs, 0, n * sizeof *inputs);
    for (size_t i = 0; i < n; ++i) {
        const fl_row_shape shape = fl_input_shape(s->program, i);
        if (shape.held != held) continue;
        const size_t bytes = T * B * shape.count * item_of(s, shape);
        if (read_size(from) != bytes) give_up("an input has another size");
        inputs[i] = rows_of(copy_of(read_bytes(from, bytes), bytes), T, B, shape.count,
                            batch_first);
    }
    return inputs;
}

static void free_rows(fl_rows *rows, size_t n) {
    for (size_t i = 0; i < n; ++i) free(rows[i].data);
    free(rows);
}

/* Memory for the rows of each output, and for one more that stays as it is. */
static fl_rows *take_outputs(const subject *s, const size_t *room, int batch_first) {
    const size_t n = fl_count(s->program, FL_COUNT_OUTPUTS), B = s->config.B;
    fl_rows *outputs = take(n * sizeof *outputs);
    for (size_t o = 0; o < n; ++o) {
        const size_t count = fl_output_shape(s->program, o).count, T = room[o] + 1;
        outputs[o] = rows_of(take(T * B * count * real_size(s)), T, B, count, batch_first);
    }
    return outputs;
}

/* The rows that were given, of each batch row; what is behind them is as it was. */
static void write_outputs(const subject *s, FILE *to, const fl_rows *outputs, const size_t *room,
                          const size_t *rows) {
    for (size_t o = 0; o < fl_count(s->program, FL_COUNT_OUTPUTS); ++o) {
        const size_t bytes = fl_output_shape(s->program, o).count * real_size(s);
        if (rows[o] > room[o]) give_up("there are more rows than there is room for");
        write_word(to, (int64_t)rows[o]);
        char *given = take(s->config.B * rows[o] * bytes);
        for (size_t b = 0; b < s->config.B; ++b) {
            for (size_t t = 0; t <= room[o]; ++t) {
                const ptrdiff_t at = (ptrdiff_t)t * outputs[o].t + (ptrdiff_t)b * outputs[o].b;
                const char *row =
                    (const char *)outputs[o].data + at * (ptrdiff_t)real_size(s);
                if (t < rows[o]) memcpy(given + (b * rows[o] + t) * bytes, row, bytes);
                for (size_t i = 0; t >= rows[o] && i < bytes; ++i)
                    if ((unsigned char)row[i] != CANARY) give_up("a row too many was written");
            }
        }
        write_bytes(to, given, s->config.B * rows[o] * bytes);
        free(given);
    }
}

/* ---- Calls ---- */

enum { RESET, RUN, STEP, FLUSH, GET, SET, MOVE, TRY, PREPARE };

static fl_error reset(const subject *s, fl_stream *stream, reader *from) {
    fl_rows *held = read_inputs(s, from, 1, 1, 0);
    const fl_error error = fl_stream_reset(stream, held);
    free_rows(held, fl_count(s->program, FL_COUNT_INPUTS));
    return error;
}

/* Steps, or the end; and how many rows that gives, told before where it can be. */
static fl_error call_stream(const subject *s, size_t kind, size_t T, const fl_rows *inputs,
                            const fl_rows *outputs, size_t *rows) {
    const size_t n = fl_count(s->program, FL_COUNT_OUTPUTS);
    size_t *told = take(n * sizeof *told);
    const int counts = T <= s->config.T;
    fl_error error = FL_OK, counted = FL_OK;
    if (counts) counted = fl_stream_count(s->stream, T, kind == FLUSH, told);
    if (kind == STEP) error = fl_step(s->stream, inputs[0].data, outputs[0].data);
    else if (kind == RUN) error = fl_stream_run(s->stream, T, inputs, outputs, rows);
    else error = fl_stream_flush(s->stream, outputs, rows);
    if (kind == STEP && !error) rows[0] = 1;
    if (!error && counts && (counted || memcmp(rows, told, n * sizeof *told)))
        give_up("a call gave other rows than were counted");
    free(told);
    return error;
}

/* T, whether batch rows come first, the room for rows of each output; then the inputs. */
static void make_call(const subject *s, reader *from, FILE *to, size_t kind) {
    const size_t T = read_size(from), batch_first = read_size(from);
    const size_t n = fl_count(s->program, FL_COUNT_OUTPUTS);
    size_t *room = take(n * sizeof *room), *rows = take(n * sizeof *rows);
    for (size_t o = 0; o < n; ++o) room[o] = read_size(from);
    fl_rows *inputs = kind == FLUSH ? NULL : read_inputs(s, from, T, 0, (int)batch_first);
    fl_rows *outputs = take_outputs(s, room, (int)batch_first);
    const fl_error error = call_stream(s, kind, T, inputs, outputs, rows);
    if (error) memset(rows, 0, n * sizeof *rows);
    write_word(to, error);
    write_outputs(s, to, outputs, room, rows);
    if (inputs) free_rows(inputs, fl_count(s->program, FL_COUNT_INPUTS));
    free_rows(outputs, n);
    free(room), free(rows);
}

static void get_state(const subject *s, FILE *to) {
    const size_t bytes = fl_stream_state_size(s->stream);
    void *state = take(bytes);
    write_word(to, fl_stream_get_state(s->stream, state, bytes));
    write_word(to, (int64_t)bytes);
    write_bytes(to, state, bytes);
    free(state);
}

static void set_state(const subject *s, reader *from, FILE *to) {
    const size_t bytes = read_size(from);
    void *state = copy_of(read_bytes(from, bytes), bytes);
    write_word(to, fl_stream_set_state(s->stream, state, bytes));
    free(state);
}

/* Go on in another stream, whose calls are cut otherwise, and which has the same state. */
static void move_stream(subject *s, reader *from, FILE *to) {
    const size_t bytes = fl_stream_state_size(s->stream);
    void *state = take(bytes), *memory = NULL;
    fl_stream *other = NULL;
    s->config.T = read_size(from);
    fl_error error = fl_stream_get_state(s->stream, state, bytes);
    if (!error) error = make_stream(s, &memory, &other);
    if (!error) error = reset(s, other, from);
    if (!error) error = fl_stream_set_state(other, state, bytes);
    write_word(to, error);
    free(state), free(s->stream_memory);
    s->stream_memory = memory;
    s->stream = other;
}

/* ---- Any file at all ---- */

/* Inputs as they must be, of whatever sizes the model says. */
static fl_rows *make_inputs(const subject *s, size_t T, int *fits) {
    const size_t n = fl_count(s->program, FL_COUNT_INPUTS), B = s->config.B;
    fl_rows *inputs = take(n * sizeof *inputs);
    memset(inputs, 0, n * sizeof *inputs);
    for (size_t i = 0; i < n; ++i) {
        const fl_row_shape shape = fl_input_shape(s->program, i);
        if (shape.count > MOST_BYTES / 8 / (T * B + 1)) *fits = 0;
        if (!*fits) continue;
        void *data = take(T * B * shape.count * item_of(s, shape));
        memset(data, 0, T * B * shape.count * item_of(s, shape));
        inputs[i] = rows_of(data, T, B, shape.count, 0);
    }
    return inputs;
}

static fl_error try_rows(const subject *s, size_t kind, size_t T, const fl_rows *inputs) {
    const size_t n = fl_count(s->program, FL_COUNT_OUTPUTS);
    size_t *room = take(n * sizeof *room), *rows = take(n * sizeof *rows), total = 0;
    fl_error error = fl_stream_count(s->stream, T, kind == FLUSH, room);
    for (size_t o = 0; o < n && !error; ++o) {
        const size_t count = fl_output_shape(s->program, o).count;
        if (room[o] > MOST_BYTES || count > MOST_BYTES) error = FL_TOO_LARGE;
        else total += (room[o] + 1) * count;
        if (total > MOST_BYTES / 8 / s->config.B) error = FL_TOO_LARGE;
    }
    if (!error) {
        fl_rows *outputs = take_outputs(s, room, 0);
        error = call_stream(s, kind, T, inputs, outputs, rows);
        free_rows(outputs, n);
    }
    free(room), free(rows);
    return error;
}

/* A beginning, steps, the end, and the state to and fro. */
static fl_error try_all(const subject *s) {
    const size_t T = s->config.T, n = fl_count(s->program, FL_COUNT_INPUTS);
    int fits = 1;
    fl_rows *inputs = make_inputs(s, T, &fits);
    fl_error error = fits ? fl_stream_reset(s->stream, inputs) : FL_TOO_LARGE;
    if (!error) error = try_rows(s, RUN, T, inputs);
    if (!error) error = try_rows(s, FLUSH, 0, NULL);
    const size_t bytes = fl_stream_state_size(s->stream);
    if (!error && bytes <= MOST_BYTES) {
        void *state = take(bytes);
        error = fl_stream_get_state(s->stream, state, bytes);
        if (!error) error = fl_stream_set_state(s->stream, state, bytes);
        free(state);
    }
    free_rows(inputs, n);
    return error;
}

/* ---- One case ---- */

static void make_calls(subject *s, reader *from, FILE *to) {
    for (size_t left = read_size(from); left; --left) {
        const size_t kind = read_size(from);
        switch (kind) {
        case RESET: write_word(to, reset(s, s->stream, from)); break;
        case GET: get_state(s, to); break;
        case SET: set_state(s, from, to); break;
        case MOVE: move_stream(s, from, to); break;
        case TRY: write_word(to, try_all(s)); break;
        case PREPARE: write_word(to, fl_stream_prepare(s->stream)); break;
        default: make_call(s, from, to, kind);
        }
    }
}

static void write_names(const subject *s, FILE *to) {
    const char *(*const name[])(const fl_program *, size_t) = {fl_input_name, fl_output_name,
                                                              fl_part_name};
    const fl_count_of of[] = {FL_COUNT_INPUTS, FL_COUNT_OUTPUTS, FL_COUNT_PARTS};
    for (int i = 0; i < 3; ++i) {
        const size_t count = fl_count(s->program, of[i]);
        write_word(to, (int64_t)count);
        for (size_t k = 0; k < count; ++k) {
            const size_t bytes = strlen(name[i](s->program, k));
            write_word(to, (int64_t)bytes);
            write_bytes(to, name[i](s->program, k), bytes);
        }
        if (name[i](s->program, count)) give_up("there is a name too many");
    }
}

static void run_case(reader from, FILE *to) {
    char message[512] = "";
    subject s;
    memset(&s, 0, sizeof s);
    fl_error error = open_file(&s, &from, message, sizeof message);
    if (error && !*message && error != FL_TOO_LARGE) give_up("an error says nothing");
    s.packing.struct_size = sizeof s.packing;
    s.packing.type = read_size(&from) ? FL_FLOAT64 : FL_FLOAT32;
    const size_t name = read_size(&from);
    char *isa = take(name + 1);
    memcpy(isa, read_bytes(&from, name), name);
    isa[name] = 0;
    s.packing.isa = name ? isa : NULL;
    s.packing.keeps_tensors = (int)read_size(&from);
    s.config.struct_size = sizeof s.config;
    s.config.T = read_size(&from);
    s.config.B = read_size(&from);
    const size_t threads = read_size(&from);
    s.config.whole = (int)read_size(&from);
    s.config.prepares = (int)read_size(&from);
    if (threads > 1) s.team = begin_team(threads);
    s.config.threads = threads > 1 ? &s.team : NULL;
    if (!error) error = pack_model(&s, message, sizeof message);
    if (!error) error = make_stream(&s, &s.stream_memory, &s.stream);
    write_word(to, error);
    write_word(to, (int64_t)strlen(message));
    write_bytes(to, message, strlen(message));
    if (!error) {
        write_names(&s, to);
        make_calls(&s, &from, to);
        if (from.at != from.end) give_up("a case has words left over");
    }
    end_team(&s.team);
    free(isa), free(s.stream_memory), free(s.model_memory), free(s.program_memory), free(s.file);
}

int run_streams(const char *request, const char *answer) {
    return run_cases(request, answer, run_case);
}
