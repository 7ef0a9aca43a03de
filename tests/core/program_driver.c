/* program_driver.c - run programs as a file asks for it: many of them, on any instruction set, in
 * any pieces; tests/core/programs.py writes what is asked, and reads what is answered.
 *
 *   program_driver kernels               print what can run here: a name and the bytes of a real
 *   program_driver vocabulary            print what a program can say
 *   program_driver run REQUEST ANSWER
 *   program_driver streams REQUEST ANSWER            stream_driver.c
 *   program_driver arguments PLAIN HELD AHEAD
 *   program_driver changes FILE                      both refusal_driver.c
 *
 * Requests and answers are 64-bit words of this machine's byte order; bytes are filled up to whole words.
 * Everything that a model is given is as large as it must be and no larger, so that a sanitizer
 * sees what goes beyond it.
 */
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "system.h"
#include "driver_words.h"
#include "drivers.h"

/* ---- One case ---- */

typedef struct {
    const fl_program *program;
    const fl_model *model;
    void *program_memory, *model_memory;
    fl_tensor_data *tensors;
    size_t tensor_count, real_size, B, threads;
    void **states;  /* (B,) */
    void **blocks, **prepared;  /* (B,) what fl_prepare makes, and which of them calls are given */
    fl_threads team;
} subject;

/* What stops a call: the question of this number, from 1; 0: none does. */
typedef struct {
    int64_t at, asked;
} stopper;

static int stop(void *who) {
    stopper *one = who;
    return ++one->asked == one->at;
}

static fl_error open_program(subject *s, reader *from, char *message, size_t message_bytes) {
    const size_t bytes = read_size(from);
    void *program = copy_of(read_bytes(from, bytes), bytes);
    size_t needed = 0;
    fl_error error = fl_program_size(program, bytes, &needed);
    /* What is wrong, only the other function says. */
    s->program_memory = take(needed);
    if (!error && fl_program_init(program, bytes, s->program_memory, needed - 1, &s->program, NULL,
                                  0) != FL_LITTLE_MEMORY)
        give_up("a program takes less memory than it needs");
    const fl_error made = fl_program_init(program, bytes, s->program_memory, needed, &s->program,
                                          message, message_bytes);
    if (error && made != error) give_up("the two functions of a program disagree");
    free(program);
    return made;
}

static fl_error open_model(subject *s, reader *from, char *message, size_t message_bytes) {
    const size_t type = read_size(from), name = read_size(from);
    char *isa = take(name + 1);
    memcpy(isa, read_bytes(from, name), name);
    isa[name] = 0;
    fl_model_config config = {sizeof config, type ? FL_FLOAT64 : FL_FLOAT32, name ? isa : NULL, 0};
    const size_t most = read_size(from);
    s->real_size = type ? sizeof(double) : sizeof(float);
    s->tensor_count = read_size(from);
    s->tensors = take(s->tensor_count * sizeof *s->tensors);
    /* Of models with an odd number of tensors that may stay where they are, they do. */
    config.keeps_tensors = s->tensor_count % 2 != 0;
    for (size_t i = 0; i < s->tensor_count; ++i) {
        fl_tensor_data *one = s->tensors + i;
        memset(one, 0, sizeof *one);
        static const size_t sizes[] = {4, 8, 2, 2, 1}; /* of each fl_type */
        one->type = (fl_type)read_size(from);
        one->count = read_size(from);
        const size_t bytes = one->count * sizes[one->type];
        one->data = copy_of(read_bytes(from, bytes), bytes);
        if (one->type <= FL_FLOAT64 && one->type != config.type) config.keeps_tensors = 0;
    }
    if (!s->program) {
        free(isa);
        return FL_BAD_PROGRAM;
    }
    size_t needed = 0;
    fl_error error = fl_model_size(s->program, &config, &needed, message, message_bytes);
    if (!error && needed > most) {
        snprintf(message, message_bytes, "the model takes %zu bytes", needed);
        error = FL_TOO_LARGE;
    }
    if (!error) {
        s->model_memory = take(needed);
        error = fl_model_init(s->program, &config, s->tensors, s->tensor_count, s->model_memory,
                              needed - 1, &s->model, message, message_bytes);
        if (error == FL_OK) give_up("a model takes less memory than it needs");
        error = fl_model_init(s->program, &config, s->tensors, s->tensor_count, s->model_memory,
                              needed, &s->model, message, message_bytes);
    }
    free(isa);
    return error;
}

/* ---- Calls ---- */

/* Where the rows of a call lie: (T, B, count), or (B, T, count). */
static fl_rows rows_of(void *data, size_t T, size_t B, size_t count, int batch_first) {
    fl_rows made = {data, (ptrdiff_t)(B * count), (ptrdiff_t)count};
    if (batch_first) made.t = (ptrdiff_t)count, made.b = (ptrdiff_t)(T * count);
    return made;
}

/* T rows of each input that is not held, or of each that is; the others stay as they are. */
static void read_inputs(const subject *s, reader *from, size_t T, int held, int batch_first,
                        fl_rows *inputs) {
    for (size_t i = 0; i < fl_count(s->program, FL_COUNT_INPUTS); ++i) {
        const fl_row_shape shape = fl_input_shape(s->program, i);
        const size_t item = shape.tokens ? sizeof(int64_t) : s->real_size;
        const size_t bytes = T * s->B * shape.count * item;
        if (shape.held != held) continue;
        if (read_size(from) != bytes) give_up("an input has another size");
        inputs[i] = rows_of(copy_of(read_bytes(from, bytes), bytes), T, s->B, shape.count,
                            batch_first);
    }
}

static void free_rows(fl_rows *rows, size_t n) {
    for (size_t i = 0; i < n; ++i) free(rows[i].data);
    free(rows);
}

static size_t most_rows(const subject *s, const size_t *rows, size_t output) {
    size_t most = 0;
    for (size_t b = 0; b < s->B; ++b)
        if (rows[output * s->B + b] > most) most = rows[output * s->B + b];
    return most;
}

/* Memory for the rows that a call will give. */
static fl_rows *take_outputs(const subject *s, const size_t *rows, size_t *capacities,
                             int batch_first) {
    const size_t n = fl_count(s->program, FL_COUNT_OUTPUTS);
    fl_rows *outputs = take(n * sizeof *outputs);
    for (size_t o = 0; o < n; ++o) {
        const size_t count = fl_output_shape(s->program, o).count;
        capacities[o] = most_rows(s, rows, o);
        outputs[o] = rows_of(take(capacities[o] * s->B * count * s->real_size), capacities[o],
                             s->B, count, batch_first);
    }
    return outputs;
}

/* For each output and batch row how many rows there are, and those. */
static void write_outputs(const subject *s, FILE *to, const fl_rows *outputs, const size_t *rows) {
    for (size_t o = 0; o < fl_count(s->program, FL_COUNT_OUTPUTS); ++o) {
        const size_t bytes = fl_output_shape(s->program, o).count * s->real_size;
        for (size_t b = 0; b < s->B; ++b) {
            write_word(to, (int64_t)rows[o * s->B + b]);
            for (size_t t = 0; t < rows[o * s->B + b]; ++t)
                write_bytes(to, (const char *)outputs[o].data +
                                    ((ptrdiff_t)t * outputs[o].t + (ptrdiff_t)b * outputs[o].b) *
                                        (ptrdiff_t)s->real_size,
                            bytes);
        }
    }
}

enum { BEGIN, RUN, FLUSH, PARTS, SET_PART, STATE, SET_STATE, TRY, PREPARE };

/* T, whole, batch_first, stop_at, whether there are lengths, and those, and resets, and those; then
 * the inputs, and of a call with resets the held ones. */
static void make_call(const subject *s, reader *from, FILE *to, size_t kind) {
    const size_t T = read_size(from), whole = read_size(from), batch_first = read_size(from);
    stopper asks = {read_word(from), 0};
    const size_t has_lengths = read_size(from), n = fl_count(s->program, FL_COUNT_OUTPUTS);
    size_t *lengths = take(s->B * sizeof *lengths), *rows = take(n * s->B * sizeof *rows);
    size_t *again = take(n * s->B * sizeof *again), *capacities = take(n * sizeof *capacities);
    for (size_t b = 0; has_lengths && b < s->B; ++b) lengths[b] = read_size(from);
    const size_t has_resets = read_size(from), flags = has_resets ? T * s->B : 0;
    unsigned char *resets = copy_of(read_bytes(from, flags), flags);
    fl_call call;
    size_t bytes = 0;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.T = T;
    call.B = s->B;
    call.states = s->states;
    call.lengths = has_lengths ? lengths : NULL;
    call.whole = (int)whole;
    call.threads = s->threads > 1 ? &s->team : NULL;
    call.stop = asks.at ? stop : NULL;
    call.who = &asks;
    call.rows = rows;
    call.prepared = s->prepared;
    call.resets = has_resets ? resets : NULL;
    const size_t input_count = fl_count(s->program, FL_COUNT_INPUTS);
    fl_rows *inputs = take(input_count * sizeof *inputs), *outputs = NULL;
    memset(inputs, 0, input_count * sizeof *inputs);
    if (kind == RUN) read_inputs(s, from, T, 0, (int)batch_first, inputs);
    if (kind == BEGIN || has_resets) read_inputs(s, from, 1, 1, (int)batch_first, inputs);
    call.inputs = kind == FLUSH ? NULL : inputs;
    void *scratch = NULL;
    fl_error error = fl_scratch_size(s->model, T, s->B, s->threads, &bytes);
    if (!error) {
        scratch = take(bytes);
        error = fl_scratch_init(s->model, T, s->B, s->threads, scratch, bytes, &call.scratch);
    }
    if (!error && kind == BEGIN) error = fl_begin(s->model, &call);
    if (!error && kind != BEGIN) {
        error = fl_count_rows(s->model, &call, kind == FLUSH);
        outputs = take_outputs(s, rows, capacities, (int)batch_first);
        call.outputs = outputs;
        call.rows = again;
        if (!error) error = kind == RUN ? fl_run(s->model, &call) : fl_flush(s->model, &call);
        if (!error && memcmp(rows, again, n * s->B * sizeof *rows))
            give_up("a call gave other rows than were counted");
    }
    write_word(to, error);
    if (kind != BEGIN) {
        write_word(to, (int64_t)call.steps_done);
        if (error && error != FL_STOPPED) memset(again, 0, n * s->B * sizeof *again);
        write_outputs(s, to, outputs, again);
    }
    free_rows(inputs, input_count);
    if (outputs) free_rows(outputs, n);
    free(scratch), free(lengths), free(rows), free(again), free(capacities), free(resets);
}

static size_t part_bytes(const subject *s, size_t part) {
    const fl_part_shape shape = fl_state_part(s->program, part);
    return shape.is_count ? sizeof(int64_t) : shape.rows * shape.count * s->real_size;
}

static void tell_parts(const subject *s, FILE *to) {
    for (size_t p = 0; p < fl_count(s->program, FL_COUNT_PARTS); ++p) {
        const fl_part_shape shape = fl_state_part(s->program, p);
        void *part = take(part_bytes(s, p));
        write_word(to, shape.is_count);
        write_word(to, (int64_t)shape.rows);
        write_word(to, (int64_t)shape.count);
        for (size_t b = 0; b < s->B; ++b) {
            write_word(to, fl_state_read(s->model, s->states[b], p, part, part_bytes(s, p)));
            write_bytes(to, part, part_bytes(s, p));
        }
        free(part);
    }
}

/* The number of a part, and its numbers for each stream. */
static void set_part(const subject *s, reader *from, FILE *to) {
    const size_t part = read_size(from), bytes = read_size(from);
    fl_error error = FL_OK;
    for (size_t b = 0; b < s->B; ++b) {
        void *numbers = copy_of(read_bytes(from, bytes), bytes);
        const fl_error one = fl_state_write(s->model, s->states[b], part, numbers, bytes);
        fl_drop(s->prepared[b]);
        if (one) error = one;
        free(numbers);
    }
    write_word(to, error);
}

/* ---- Before the input ---- */

/* Change all that was made, each number otherwise, so that who reads it gives other rows. */
static void spoil_prepared(const subject *s) {
    const size_t n = fl_prepared_size(s->model) / s->real_size, first = FL_ALIGNMENT / s->real_size;
    for (size_t b = 0; b < s->B; ++b)
        for (size_t i = first; s->prepared[b] && i < n; ++i)
            if (s->real_size == sizeof(float)) ((float *)s->prepared[b])[i] += (float)(i % 7 + 1);
            else ((double *)s->prepared[b])[i] += (double)(i % 7 + 1);
}

/* Of each batch row whether it has memory for it; then whether to spoil what was made. What is made
 * is not made again. */
static void prepare(const subject *s, reader *from, FILE *to) {
    fl_call call;
    size_t bytes = 0;
    for (size_t b = 0; b < s->B; ++b) {
        const size_t has = read_size(from) && fl_prepared_size(s->model);
        if (!has) fl_drop(s->prepared[b]);
        s->prepared[b] = has ? s->blocks[b] : NULL;
    }
    const size_t spoils = read_size(from);
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.B = s->B;
    call.states = s->states;
    call.prepared = s->prepared;
    call.threads = s->threads > 1 ? &s->team : NULL;
    fl_error error = fl_scratch_size(s->model, 1, s->B, s->threads, &bytes);
    void *scratch = take(bytes);
    if (!error) error = fl_scratch_init(s->model, 1, s->B, s->threads, scratch, bytes, &call.scratch);
    if (!error) error = fl_prepare(s->model, &call);
    if (spoils) spoil_prepared(s);
    if (!error && spoils) error = fl_prepare(s->model, &call);
    write_word(to, error);
    free(scratch);
}

/* ---- Any program at all ---- */

enum { MOST_BYTES = 1 << 26, MOST_ROWS = 1 << 12, MOST_QUESTIONS = 20000 };

/* Inputs that are what they must be, whatever the program says that is: as many numbers. */
static fl_rows *make_inputs(const subject *s, size_t T, int *fits) {
    const size_t n = fl_count(s->program, FL_COUNT_INPUTS);
    fl_rows *inputs = take(n * sizeof *inputs);
    memset(inputs, 0, n * sizeof *inputs);
    for (size_t i = 0; i < n; ++i) {
        const fl_row_shape shape = fl_input_shape(s->program, i);
        const size_t rows = shape.held ? 1 : T, count = rows * s->B * shape.count;
        if (shape.count > MOST_BYTES / 8 / (T * s->B + 1)) *fits = 0;
        if (!*fits) continue;
        void *data = take(count * (shape.tokens ? sizeof(int64_t) : s->real_size));
        for (size_t k = 0; k < count; ++k) {
            const double number = (double)(k * 2654435761u % 1000) / 250 - 2;
            if (shape.tokens) ((int64_t *)data)[k] = (int64_t)(k * 2654435761u % shape.tokens);
            else if (s->real_size == sizeof(float)) ((float *)data)[k] = (float)number;
            else ((double *)data)[k] = number;
        }
        inputs[i] = rows_of(data, rows, s->B, shape.count, 0);
    }
    return inputs;
}

static int outputs_fit(const subject *s, const size_t *rows) {
    size_t total = 0;
    for (size_t o = 0; o < fl_count(s->program, FL_COUNT_OUTPUTS); ++o) {
        const size_t most = most_rows(s, rows, o);
        if (most > MOST_ROWS) return 0;
        total += most * fl_output_shape(s->program, o).count;
    }
    return total <= MOST_BYTES / 8 / s->B;
}

/* Count what a call gives, have memory for it, and make it. */
static fl_error try_call(const subject *s, fl_call *call, int ending) {
    const size_t n = fl_count(s->program, FL_COUNT_OUTPUTS);
    size_t *rows = take(n * s->B * sizeof *rows), *capacities = take(n * sizeof *capacities);
    size_t *again = take(n * s->B * sizeof *again);
    call->rows = rows;
    fl_error error = fl_count_rows(s->model, call, ending);
    if (!error && !outputs_fit(s, rows)) error = FL_TOO_LARGE;
    if (!error) {
        fl_rows *outputs = take_outputs(s, rows, capacities, 0);
        stopper asks = {MOST_QUESTIONS, 0};
        call->outputs = outputs;
        call->rows = again;
        call->stop = stop;
        call->who = &asks;
        error = ending ? fl_flush(s->model, call) : fl_run(s->model, call);
        if (!error && memcmp(rows, again, n * s->B * sizeof *rows))
            give_up("a call gave other rows than were counted");
        free_rows(outputs, n);
    }
    free(rows), free(again), free(capacities);
    return error;
}

/* States that no call leaves behind, from which it must not go beyond its memory either. */
static void spoil_states(const subject *s, size_t seed) {
    const double odd[] = {-1, 1e30, 0.5, 3, 65536, -0.0, 1.0 / 3, 16777215};
    for (size_t b = 0; b < s->B; ++b)
        for (size_t i = 0; i < fl_count(s->program, FL_COUNT_STATE); ++i) {
            double number = odd[(i * 2654435761u + b + seed) / 7 % 8];
            if ((i + seed) % 13 == 0) number = NAN;
            if (s->real_size == sizeof(float)) ((float *)s->states[b])[i] = (float)number;
            else ((double *)s->states[b])[i] = number;
        }
}

/* All that can be called, twice: from the states of the beginning, and from spoilt ones. Of one in
 * three a few rows start anew within the call. */
static void try_all(const subject *s, reader *from, FILE *to) {
    const size_t T = read_size(from), seed = read_size(from);
    unsigned char *resets = take(T * s->B);
    for (size_t i = 0; i < T * s->B; ++i)
        resets[i] = (i * 2654435761u + seed) / 7 % 4 ? 0 : (unsigned char)(i % 255 + 1);
    int fits = 1;
    size_t bytes = 0;
    void *scratch = NULL;
    fl_call call;
    memset(&call, 0, sizeof call);
    fl_rows *inputs = make_inputs(s, T, &fits);
    fl_error error = fl_scratch_size(s->model, T, s->B, s->threads, &bytes);
    if (!error && (!fits || bytes > MOST_BYTES)) error = FL_TOO_LARGE;
    if (!error) {
        scratch = take(bytes);
        error = fl_scratch_init(s->model, T, s->B, s->threads, scratch, bytes, &call.scratch);
    }
    for (int spoilt = 0; spoilt < 2 && !error; ++spoilt) {
        call.struct_size = sizeof call;
        call.T = 0;
        call.B = s->B;
        call.states = s->states;
        call.threads = s->threads > 1 ? &s->team : NULL;
        call.inputs = inputs;
        call.whole = (int)(seed % 2);
        call.resets = seed % 3 || fl_count(s->program, FL_COUNT_AHEAD) ? NULL : resets;
        if (!spoilt) error = fl_begin(s->model, &call);
        else spoil_states(s, seed);
        call.T = T;
        if (!error) error = try_call(s, &call, 0);
        call.T = 0;
        if (!error) error = try_call(s, &call, 1);
    }
    write_word(to, error);
    free_rows(inputs, fl_count(s->program, FL_COUNT_INPUTS));
    free(scratch), free(resets);
}

static void make_calls(const subject *s, reader *from, FILE *to) {
    const size_t bytes = fl_state_size(s->model);
    for (size_t left = read_size(from); left; --left) {
        const size_t kind = read_size(from);
        switch (kind) {
        case PARTS: tell_parts(s, to); break;
        case TRY: try_all(s, from, to); break;
        case PREPARE: prepare(s, from, to); break;
        case SET_PART: set_part(s, from, to); break;
        case STATE:
            for (size_t b = 0; b < s->B; ++b) write_bytes(to, s->states[b], bytes);
            break;
        case SET_STATE:
            for (size_t b = 0; b < s->B; ++b) {
                memcpy(s->states[b], read_bytes(from, bytes), bytes);
                fl_drop(s->prepared[b]);
            }
            break;
        default: make_call(s, from, to, kind);
        }
    }
}

static void run_case(reader from, FILE *to) {
    char message[512] = "";
    subject s;
    memset(&s, 0, sizeof s);
    fl_error error = open_program(&s, &from, message, sizeof message);
    const fl_error packed =
        open_model(&s, &from, error ? NULL : message, error ? 0 : sizeof message);
    if (!error) error = packed;
    write_word(to, error);
    write_word(to, (int64_t)strlen(message));
    write_bytes(to, message, strlen(message));
    write_word(to, error ? 0 : (int64_t)fl_state_size(s.model));
    if (!error) {
        s.B = read_size(&from);
        s.threads = read_size(&from);
        s.states = take(s.B * sizeof *s.states);
        s.blocks = take(s.B * sizeof *s.blocks);
        s.prepared = take(s.B * sizeof *s.prepared);
        for (size_t b = 0; b < s.B; ++b) {
            s.states[b] = take(fl_state_size(s.model));
            s.blocks[b] = take(fl_prepared_size(s.model));
            memset(s.blocks[b], 0, fl_prepared_size(s.model));
            s.prepared[b] = NULL;
        }
        if (s.threads > 1) s.team = begin_team(s.threads);
        make_calls(&s, &from, to);
        if (from.at != from.end) give_up("a case has words left over");
        for (size_t b = 0; b < s.B; ++b) free(s.states[b]), free(s.blocks[b]);
        end_team(&s.team);
    }
    for (size_t i = 0; i < s.tensor_count; ++i) free((void *)(uintptr_t)s.tensors[i].data);
    free(s.blocks), free(s.prepared);
    free(s.tensors), free(s.states), free(s.program_memory), free(s.model_memory);
}

/* ---- All of them ---- */

static int print_kernels(void) {
    for (int type = 0; type < 2; ++type)
        for (size_t i = 0; fl_isa(type ? FL_FLOAT64 : FL_FLOAT32, i); ++i)
            printf("%s %d\n", fl_isa(type ? FL_FLOAT64 : FL_FLOAT32, i), type ? 8 : 4);
    return 0;
}

static int print_vocabulary(void) {
    const size_t bytes = fl_vocabulary(NULL, 0) + 1;
    char *text = take(bytes);
    fl_vocabulary(text, bytes);
    fputs(text, stdout);
    free(text);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "kernels")) return print_kernels();
    if (argc == 2 && !strcmp(argv[1], "vocabulary")) return print_vocabulary();
    if (argc == 4 && !strcmp(argv[1], "run")) return run_cases(argv[2], argv[3], run_case);
    if (argc == 4 && !strcmp(argv[1], "streams")) return run_streams(argv[2], argv[3]);
    if (argc == 5 && !strcmp(argv[1], "arguments"))
        return refuse_arguments(argv[2], argv[3], argv[4]);
    if (argc == 3 && !strcmp(argv[1], "changes")) return refuse_changes(argv[2]);
    give_up("these words are unknown");
    return 2;
}
