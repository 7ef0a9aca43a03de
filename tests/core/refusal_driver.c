/* refusal_driver.c - arguments that must be refused, one after the other, and files of which a bit
 * or the end is another. A line for each that was not refused as it must be.
 */
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "driver_words.h"
#include "drivers.h"

static int failures;

static void expect(int holds, const char *what, int line) {
    if (holds) return;
    ++failures;
    printf("refusal_driver.c:%d: %s\n", line, what);
}

#define EXPECT(condition) expect(condition, #condition, __LINE__)

/* A file, and all that is made of it: of one batch row, and pieces of 4 steps. */
typedef struct {
    char *file;
    size_t bytes, program_bytes, model_bytes, stream_bytes;
    void *program_memory, *model_memory, *stream_memory;
    const fl_program *program;
    const fl_model *model;
    fl_model_config packing;
    fl_stream_config config;
    fl_stream *stream;
} subject;

static int is_canary(const void *memory, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        if (((const unsigned char *)memory)[i] != 0xa5) return 0;
    return 1;
}

static subject make(const char *path) {
    subject s;
    memset(&s, 0, sizeof s);
    s.file = read_file(path, &s.bytes);
    EXPECT(!fl_open_size(s.file, s.bytes, &s.program_bytes, NULL, 0));
    s.program_memory = take(s.program_bytes);
    EXPECT(!fl_open(s.file, s.bytes, s.program_memory, s.program_bytes, &s.program, NULL, 0));
    s.packing.struct_size = sizeof s.packing;
    EXPECT(!fl_model_size(s.program, &s.packing, &s.model_bytes, NULL, 0));
    s.model_memory = take(s.model_bytes);
    EXPECT(!fl_model_init(s.program, &s.packing, NULL, 0, s.model_memory, s.model_bytes, &s.model,
                          NULL, 0));
    s.config.struct_size = sizeof s.config;
    s.config.T = 4;
    s.config.B = 1;
    EXPECT(!fl_stream_size(s.model, &s.config, &s.stream_bytes));
    s.stream_memory = take(s.stream_bytes);
    EXPECT(!fl_stream_init(s.model, &s.config, s.stream_memory, s.stream_bytes, &s.stream));
    return s;
}

static void unmake(subject *s) {
    free(s->stream_memory), free(s->model_memory), free(s->program_memory), free(s->file);
}

/* ---- Files ---- */

static void refuse_files(const subject *s) {
    const fl_program *made = s->program;
    void *memory = take(s->program_bytes + 64);
    char message[64];
    size_t size = 1;
    EXPECT(fl_open_size(NULL, s->bytes, &size, NULL, 0) == FL_BAD_ARGUMENT && !size);
    EXPECT(fl_open_size(s->file, s->bytes, NULL, NULL, 0) == FL_BAD_ARGUMENT);
    EXPECT(fl_open_size(s->file + 4, s->bytes - 4, &size, message, sizeof message) ==
           FL_BAD_ARGUMENT);
    EXPECT(strstr(message, "multiple of 8") != NULL);
    EXPECT(fl_open_size("", 0, &size, NULL, 0) != FL_OK);
    EXPECT(fl_open(s->file, s->bytes, memory, s->program_bytes, NULL, NULL, 0) ==
           FL_BAD_ARGUMENT);
    EXPECT(fl_open(NULL, s->bytes, memory, s->program_bytes, &made, NULL, 0) == FL_BAD_ARGUMENT);
    EXPECT(!made);
    EXPECT(fl_open(s->file, s->bytes, NULL, s->program_bytes, &made, NULL, 0) ==
           FL_LITTLE_MEMORY);
    EXPECT(fl_open(s->file, s->bytes, memory, s->program_bytes - 1, &made, NULL, 0) ==
           FL_LITTLE_MEMORY);
    for (size_t off = 1; off < 64; off *= 2)
        EXPECT(fl_open(s->file, s->bytes, (char *)memory + off, s->program_bytes, &made, message,
                       sizeof message) == FL_LITTLE_MEMORY);
    EXPECT(*message && !made);
    EXPECT(is_canary(memory, s->program_bytes + 64));
    /* What there is room for of a message, with a 0 behind it, and no more. */
    memset(message, 0xa5, sizeof message);
    EXPECT(fl_open_size(s->file, s->bytes - 1, &size, message, 9) == FL_BAD_PROGRAM);
    EXPECT(strlen(message) == 8 && is_canary(message + 9, sizeof message - 9));
    memset(message, 0xa5, sizeof message);
    EXPECT(fl_open_size(s->file, s->bytes - 1, &size, message, 0) == FL_BAD_PROGRAM);
    EXPECT(is_canary(message, sizeof message));
    free(memory);
}

/* ---- Models ---- */

static fl_error size_with(const subject *s, fl_model_config config) {
    size_t size = 1;
    const fl_error error = fl_model_size(s->program, &config, &size, NULL, 0);
    EXPECT(!error == (size > 0));
    return error;
}

static void refuse_models(const subject *s) {
    fl_model_config other = s->packing;
    const fl_model *made = s->model;
    void *memory = take(s->model_bytes + 64);
    fl_tensor_data one;
    size_t size = 1;
    memset(&one, 0, sizeof one);
    EXPECT(fl_model_size(NULL, &other, &size, NULL, 0) == FL_BAD_ARGUMENT && !size);
    EXPECT(fl_model_size(s->program, NULL, &size, NULL, 0) == FL_BAD_ARGUMENT);
    EXPECT(fl_model_size(s->program, &other, NULL, NULL, 0) == FL_BAD_ARGUMENT);
    for (int less = -8; less <= 8; less += 8) {
        other.struct_size = sizeof other + (size_t)less;
        EXPECT(size_with(s, other) == (less ? FL_BAD_ARGUMENT : FL_OK));
    }
    other = s->packing;
    other.type = (fl_type)7;
    EXPECT(size_with(s, other) == FL_BAD_ARGUMENT);
    other = s->packing;
    other.isa = "abacus";
    EXPECT(size_with(s, other) == FL_NO_KERNEL);
    EXPECT(fl_model_init(s->program, &other, NULL, 0, memory, s->model_bytes, &made, NULL, 0) ==
           FL_NO_KERNEL && !made);
    other = s->packing;
#define INIT(program, config, memory, bytes, made) \
    fl_model_init(program, config, NULL, 0, memory, bytes, made, NULL, 0)
    EXPECT(INIT(NULL, &other, memory, s->model_bytes, &made) == FL_BAD_ARGUMENT && !made);
    EXPECT(INIT(s->program, NULL, memory, s->model_bytes, &made) == FL_BAD_ARGUMENT);
    EXPECT(INIT(s->program, &other, memory, s->model_bytes, NULL) == FL_BAD_ARGUMENT);
    EXPECT(INIT(s->program, &other, NULL, s->model_bytes, &made) == FL_LITTLE_MEMORY);
    EXPECT(INIT(s->program, &other, memory, s->model_bytes - 1, &made) == FL_LITTLE_MEMORY);
    for (size_t off = 1; off < 64; off *= 2)
        EXPECT(INIT(s->program, &other, (char *)memory + off, s->model_bytes, &made) ==
               FL_LITTLE_MEMORY);
#undef INIT
    EXPECT(fl_model_init(s->program, &other, &one, 1, memory, s->model_bytes, &made, NULL, 0) ==
           FL_BAD_TENSORS && !made);
    EXPECT(fl_model_init(s->program, &other, NULL, 99, memory, s->model_bytes, &made, NULL, 0) ==
           FL_BAD_TENSORS);
    /* The tensors are float32, and cannot stay as they are in a model of float64. */
    other.type = FL_FLOAT64;
    other.keeps_tensors = 1;
    if (size_with(s, other) == FL_OK)
        EXPECT(fl_model_init(s->program, &other, NULL, 0, memory, s->model_bytes, &made, NULL,
                             0) == FL_BAD_TENSORS);
    EXPECT(is_canary(memory, s->model_bytes + 64));
    free(memory);
}

/* ---- Streams ---- */

static fl_error stream_with(const subject *s, fl_stream_config config) {
    size_t size = 1;
    const fl_error error = fl_stream_size(s->model, &config, &size);
    EXPECT(!error == (size > 0));
    return error;
}

static void refuse_configs(const subject *s) {
    void *memory = take(s->stream_bytes + 64);
    fl_stream_config other = s->config;
    fl_stream *made = s->stream;
    fl_threads threads = {NULL, NULL, NULL, NULL, NULL, 2};
    size_t size = 1;
    EXPECT(fl_stream_size(NULL, &other, &size) == FL_BAD_ARGUMENT && !size);
    EXPECT(fl_stream_size(s->model, NULL, &size) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_size(s->model, &other, NULL) == FL_BAD_ARGUMENT);
    /* Without its last field it is the config of an older header. */
    for (int more = -16; more <= 8; more += 8) {
        other.struct_size = sizeof other + (size_t)more;
        EXPECT(stream_with(s, other) == (more > 0 || more < -8 ? FL_BAD_ARGUMENT : FL_OK));
    }
    other = s->config;
    other.T = 0;
    EXPECT(stream_with(s, other) == FL_BAD_ARGUMENT);
    other = s->config;
    other.B = 0;
    EXPECT(stream_with(s, other) == FL_BAD_ARGUMENT);
    for (int shift = 1; shift <= 8; ++shift) {
        other.B = SIZE_MAX >> shift;
        EXPECT(stream_with(s, other) == FL_TOO_LARGE);
    }
    other = s->config;
    other.threads = &threads; /* which have no functions */
    EXPECT(stream_with(s, other) == FL_BAD_ARGUMENT);
#if defined(FL_HAS_THREADS)
    threads = fl_team_threads(NULL, 0);
    EXPECT(stream_with(s, other) == FL_BAD_ARGUMENT);
#endif
    other = s->config;
    EXPECT(fl_stream_init(s->model, &other, memory, s->stream_bytes, NULL) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_init(NULL, &other, memory, s->stream_bytes, &made) == FL_BAD_ARGUMENT);
    EXPECT(!made);
    EXPECT(fl_stream_init(s->model, NULL, memory, s->stream_bytes, &made) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_init(s->model, &other, NULL, s->stream_bytes, &made) == FL_LITTLE_MEMORY);
    EXPECT(fl_stream_init(s->model, &other, memory, s->stream_bytes - 1, &made) ==
           FL_LITTLE_MEMORY);
    for (size_t off = 1; off < 64; off *= 2)
        EXPECT(fl_stream_init(s->model, &other, (char *)memory + off, s->stream_bytes, &made) ==
               FL_LITTLE_MEMORY);
    EXPECT(is_canary(memory, s->stream_bytes + 64));
    free(memory);
}

/* One input and one output, neither of more than 64 numbers. */
static void refuse_calls(const subject *s) {
    float x[8 * 64] = {0}, y[8 * 64];
    char *state = take(fl_stream_state_size(s->stream));
    const size_t state_bytes = fl_stream_state_size(s->stream);
    fl_rows in = {x, 64, 0}, out = {y, 64, 0}, none = {NULL, 64, 0};
    fl_rows askew = {(char *)y + 1, 64, 0};
    size_t rows = 99;
    fl_stream *const t = s->stream;
    fl_stream *copy = copy_of(t, s->stream_bytes);
    memset(y, 0xa5, sizeof y);
    EXPECT(fl_step(NULL, x, y) == FL_BAD_ARGUMENT);
    EXPECT(fl_step(t, NULL, y) == FL_BAD_ARGUMENT);
    EXPECT(fl_step(t, x, NULL) == FL_BAD_ARGUMENT);
    EXPECT(fl_step(t, (char *)x + 2, y) == FL_BAD_ARGUMENT);
    EXPECT(fl_step(t, x, (char *)y + 2) == FL_BAD_ARGUMENT);
    EXPECT(fl_step(copy, x, y) == FL_BAD_ARGUMENT);
    EXPECT(fl_step((fl_stream *)(void *)((char *)copy + 4), x, y) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(NULL, 1, &in, &out, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(copy, 1, &in, &out, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(t, 1, NULL, &out, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(t, 1, &in, NULL, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(t, 6, &none, &out, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(t, 6, &in, &none, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(t, 6, &in, &askew, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_flush(NULL, &out, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_flush(copy, &out, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_flush(t, NULL, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_flush(t, &none, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_count(NULL, 1, 0, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_count(copy, 1, 0, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_count(t, 1, 0, NULL) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_count(t, 1, 1, &rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_count(t, 5, 0, &rows) == FL_TOO_LARGE);
    EXPECT(fl_stream_reset(NULL, NULL) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_reset(copy, NULL) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_state_size(NULL) == 0 && fl_stream_state_size(copy) == 0);
    EXPECT(fl_stream_get_state(NULL, state, state_bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_get_state(copy, state, state_bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_get_state(t, NULL, state_bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_get_state(t, state, state_bytes - 1) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_get_state(t, state, state_bytes + 1) == FL_BAD_ARGUMENT);
    EXPECT(is_canary(state, state_bytes) && is_canary(y, sizeof y) && rows == 99);
    EXPECT(!memcmp(copy, t, sizeof(void *)) && !fl_stream_get_state(t, state, state_bytes));
    EXPECT(fl_stream_set_state(NULL, state, state_bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_set_state(copy, state, state_bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_set_state(t, NULL, state_bytes) == FL_BAD_ARGUMENT);
    /* A state with any bit another is refused, and changes nothing. */
    char *again = take(state_bytes);
    EXPECT(!fl_step(t, x, y) && !fl_stream_get_state(t, again, state_bytes));
    for (size_t bit = 0; bit < 8 * state_bytes; ++bit) {
        state[bit / 8] ^= (char)(1 << bit % 8);
        EXPECT(fl_stream_set_state(t, state, state_bytes) == FL_BAD_STATE);
        state[bit / 8] ^= (char)(1 << bit % 8);
    }
    for (size_t bytes = 0; bytes < state_bytes; ++bytes)
        EXPECT(fl_stream_set_state(t, state, bytes) == FL_BAD_STATE);
    EXPECT(!fl_stream_get_state(t, state, state_bytes) && !memcmp(state, again, state_bytes));
    free(state), free(again), free(copy);
}

/* What has held inputs does not run before it was told them. */
static void refuse_before_reset(const subject *s) {
    float x[64] = {0}, y[64];
    fl_rows inputs[8], outputs[8];
    size_t rows[8];
    EXPECT(fl_count(s->program, FL_COUNT_INPUTS) <= 8);
    EXPECT(fl_count(s->program, FL_COUNT_OUTPUTS) <= 8);
    for (int i = 0; i < 8; ++i) {
        inputs[i] = (fl_rows){x, 8, 0};
        outputs[i] = (fl_rows){y, 8, 0};
    }
    memset(y, 0xa5, sizeof y);
    const size_t bytes = fl_stream_state_size(s->stream);
    char *state = take(bytes);
    EXPECT(fl_stream_run(s->stream, 1, inputs, outputs, rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_flush(s->stream, outputs, rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_count(s->stream, 1, 0, rows) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_get_state(s->stream, state, bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_set_state(s->stream, state, bytes) == FL_BAD_ARGUMENT);
    EXPECT(fl_step(s->stream, x, y) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_reset(s->stream, NULL) == FL_BAD_ARGUMENT);
    inputs[0].data = inputs[1].data = NULL;
    EXPECT(fl_stream_reset(s->stream, inputs) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(s->stream, 1, inputs, outputs, rows) == FL_BAD_ARGUMENT);
    inputs[0].data = inputs[1].data = x;
    EXPECT(is_canary(y, sizeof y) && is_canary(state, bytes));
    EXPECT(!fl_stream_reset(s->stream, inputs));
    EXPECT(!fl_stream_run(s->stream, 1, inputs, outputs, rows));
    free(state);
}

/* What looks ahead gives rows without steps, too, and not to where a call before had its outputs. */
static void refuse_without_outputs(const subject *s) {
    float x[4 * 64] = {0}, y[4 * 64];
    fl_rows in = {x, 64, 0}, out = {y, 64, 0};
    size_t rows = 0;
    EXPECT(fl_count(s->program, FL_COUNT_AHEAD) == 1);
    EXPECT(!fl_stream_run(s->stream, 3, &in, &out, &rows) && rows == 3);
    memset(y, 0xa5, sizeof y);
    EXPECT(fl_stream_run(s->stream, 0, NULL, NULL, NULL) == FL_BAD_ARGUMENT);
    EXPECT(fl_stream_run(s->stream, 5, &in, &out, &rows) == FL_TOO_LARGE);
    EXPECT(fl_step(s->stream, x, y) == FL_BAD_ARGUMENT);
    EXPECT(is_canary(y, sizeof y));
    EXPECT(!fl_stream_run(s->stream, 0, NULL, &out, &rows) && rows == 0);
}

/* ---- Rows that start anew within a call ---- */

/* A call of two steps of a model with no more than 8 inputs and outputs. */
typedef struct {
    float x[2 * 64], y[2 * 64];
    fl_rows inputs[8], outputs[8];
    void *state, *states[1], *scratch;
    fl_call call;
} two_steps;

static void make_steps(const subject *s, two_steps *made) {
    size_t bytes = 0;
    memset(made, 0, sizeof *made);
    for (int i = 0; i < 8; ++i) {
        made->inputs[i] = (fl_rows){made->x, 64, 0};
        made->outputs[i] = (fl_rows){made->y, 64, 0};
    }
    memset(made->y, 0xa5, sizeof made->y);
    made->states[0] = made->state = take(fl_state_size(s->model));
    EXPECT(!fl_scratch_size(s->model, 2, 1, 1, &bytes));
    made->scratch = take(bytes);
    made->call.struct_size = sizeof made->call;
    made->call.B = 1;
    made->call.inputs = made->inputs;
    made->call.outputs = made->outputs;
    made->call.states = made->states;
    EXPECT(!fl_scratch_init(s->model, 2, 1, 1, made->scratch, bytes, &made->call.scratch));
    EXPECT(!fl_begin(s->model, &made->call));
    made->call.T = 2;
}

static void unmake_steps(two_steps *made) { free(made->state), free(made->scratch); }

/* The call in a struct of another size, behind which there is nothing. */
static fl_error run_in(const subject *s, fl_call call, size_t bytes) {
    const size_t room = bytes < sizeof bytes ? sizeof bytes : bytes;
    call.struct_size = bytes;
    fl_call *other = take(room);
    memcpy(other, &call, room < sizeof call ? room : sizeof call);
    const fl_error error = fl_run(s->model, other);
    free(other);
    return error;
}

/* Whatever is not 0 is a reset; a struct of an older header has none. */
static void refuse_sizes(const subject *s) {
    const unsigned char resets[] = {0, 1}, others[] = {0, 0x80}, none[] = {0, 0};
    two_steps t;
    float y[4][2 * 64];
    make_steps(s, &t);
    const size_t sizes[] = {sizeof t.call, sizeof t.call, sizeof t.call, offsetof(fl_call, resets)};
    const unsigned char *const given[] = {resets, others, none, resets};
    for (int i = 0; i < 4; ++i) {
        t.call.T = 0;
        EXPECT(!fl_begin(s->model, &t.call));
        t.call.T = 2;
        t.call.resets = given[i];
        EXPECT(!run_in(s, t.call, sizes[i]));
        memcpy(y[i], t.y, sizeof t.y);
    }
    EXPECT(!memcmp(y[0], y[1], sizeof t.y) && !memcmp(y[2], y[3], sizeof t.y));
    EXPECT(memcmp(y[0], y[2], sizeof t.y));
    EXPECT(!run_in(s, t.call, offsetof(fl_call, prepared)));
    memset(t.y, 0xa5, sizeof t.y);
    const size_t wrong[] = {0, 8, offsetof(fl_call, rows), offsetof(fl_call, prepared) + 1,
                            sizeof t.call - 1, sizeof t.call + sizeof(void *)};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i)
        EXPECT(run_in(s, t.call, wrong[i]) == FL_BAD_ARGUMENT);
    EXPECT(is_canary(t.y, sizeof t.y));
    unmake_steps(&t);
}

/* A row needs what is held where it starts anew, and only there. */
static void refuse_without_held(const subject *s) {
    const unsigned char none[] = {0, 0};
    two_steps t;
    size_t rows[8];
    make_steps(s, &t);
    for (int i = 0; i < 8; ++i)
        if (fl_input_shape(s->program, (size_t)i).held) t.inputs[i].data = NULL;
    t.call.rows = rows;
    t.call.resets = none;
    EXPECT(fl_run(s->model, &t.call) == FL_BAD_ARGUMENT);
    EXPECT(fl_count_rows(s->model, &t.call, 0) == FL_BAD_ARGUMENT);
    EXPECT(is_canary(t.y, sizeof t.y));
    t.call.resets = NULL;
    EXPECT(!fl_count_rows(s->model, &t.call, 0) && !fl_run(s->model, &t.call));
    unmake_steps(&t);
}

/* Rows before a reset would see those behind it. */
static void refuse_ahead(const subject *s) {
    const unsigned char none[] = {0, 0};
    two_steps t;
    size_t rows[8];
    make_steps(s, &t);
    t.call.rows = rows;
    t.call.resets = none;
    EXPECT(fl_run(s->model, &t.call) == FL_BAD_ARGUMENT);
    EXPECT(fl_count_rows(s->model, &t.call, 0) == FL_BAD_ARGUMENT);
    EXPECT(is_canary(t.y, sizeof t.y));
    unmake_steps(&t);
}

/* ---- What is asked of NULL ---- */

static void ask_nothing(void) {
    const fl_row_shape shape = fl_input_shape(NULL, 0), other = fl_output_shape(NULL, 0);
    fl_loaded loaded;
    fl_stream *stream = (fl_stream *)&loaded;
    EXPECT(!fl_input_name(NULL, 0) && !fl_output_name(NULL, 0) && !fl_part_name(NULL, 0));
    EXPECT(!fl_count(NULL, FL_COUNT_INPUTS) && !fl_model_isa(NULL) && !fl_model_program(NULL));
    EXPECT(!shape.count && !other.count && !fl_state_part(NULL, 0).rows && !fl_state_size(NULL));
    EXPECT(*fl_error_text((fl_error)99) && fl_abi() == FL_ABI);
    EXPECT(fl_begin(NULL, NULL) && fl_run(NULL, NULL) && fl_flush(NULL, NULL));
    EXPECT(fl_load(NULL, NULL, &loaded, NULL, 0) == FL_BAD_ARGUMENT && !loaded.model);
    EXPECT(fl_load("", NULL, NULL, NULL, 0) == FL_BAD_ARGUMENT);
    EXPECT(fl_load("/nowhere/at/all", NULL, &loaded, NULL, 0) == FL_NO_FILE && !loaded.file);
    EXPECT(fl_load_bytes(NULL, 0, NULL, &loaded, NULL, 0) == FL_BAD_ARGUMENT && !loaded.model);
    EXPECT(fl_stream_new(NULL, NULL, &stream) == FL_BAD_ARGUMENT && !stream);
    EXPECT(fl_stream_new(NULL, NULL, NULL) == FL_BAD_ARGUMENT);
    fl_unload(NULL);
    fl_stream_free(NULL);
}

int refuse_arguments(const char *plain, const char *held, const char *ahead) {
    subject s = make(plain);
    refuse_files(&s);
    refuse_models(&s);
    refuse_configs(&s);
    refuse_calls(&s);
    refuse_sizes(&s);
    unmake(&s);
    s = make(held);
    refuse_before_reset(&s);
    refuse_without_held(&s);
    unmake(&s);
    s = make(ahead);
    refuse_without_outputs(&s);
    refuse_ahead(&s);
    unmake(&s);
    ask_nothing();
    return failures != 0;
}

/* ---- Changed files ---- */

/* Refused by both functions, and of memory that lies in its way nothing is written. */
static void refuse_bytes(const char *file, size_t bytes, void *memory, size_t room) {
    const fl_program *program = NULL;
    size_t size;
    EXPECT(fl_open_size(file, bytes, &size, NULL, 0) != FL_OK && !size);
    EXPECT(fl_open(file, bytes, memory, room, &program, NULL, 0) != FL_OK && !program);
}

int refuse_changes(const char *path) {
    size_t bytes, room;
    char *file = read_file(path, &bytes);
    EXPECT(!fl_open_size(file, bytes, &room, NULL, 0));
    void *memory = take(room);
    for (size_t bit = 0; bit < 8 * bytes; ++bit) {
        file[bit / 8] ^= (char)(1 << bit % 8);
        refuse_bytes(file, bytes, memory, room);
        file[bit / 8] ^= (char)(1 << bit % 8);
    }
    for (size_t less = 0; less < bytes; ++less) {
        char *cut = copy_of(file, less);
        refuse_bytes(cut, less, memory, room);
        free(cut);
    }
    char *longer = take(bytes + 1);
    memcpy(longer, file, bytes);
    refuse_bytes(longer, bytes + 1, memory, room);
    EXPECT(is_canary(memory, room));
    free(file), free(memory), free(longer);
    return failures != 0;
}
