/* ticks.c - the same steps as a program in C makes them, of a model that Python has made: the engine
 * of the fastlstm that is installed, by its table of functions. ticks.py compiles and loads it.
 *
 * A tick is one step, from its input at hand to its output at hand. What is before is not part of its
 * time: the input is put where the step reads it, and what needs no input is prepared if that is
 * asked for.
 */
#define _POSIX_C_SOURCE 200809L
#include <fastlstm_api.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    PyObject *held;       /* keeps the model */
    fl_team *team;        /* NULL: the caller alone */
    fl_threads threads;
    fl_stream *stream;
    size_t T, inputs, outputs;
    float *x;             /* (T, inputs), which are the inputs of ticks in turn */
    float *now;           /* (inputs,) where a tick reads it */
    float *y;             /* (T, outputs) */
} ticks;

static int64_t nanoseconds(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

/* Uniform in [-1, 1): a linear congruential generator, so that every machine draws the same. */
static float draw(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

void free_ticks(ticks *t) {
    if (!t) return;
    fl_stream_free(t->stream);
    fl_team_free(t->team);
    free(t->x);
    free(t->now);
    free(t->y);
    Py_XDECREF(t->held);
    free(t);
}

/* A stream of a fastlstm.Model of float32, of one input and one output, and T rows for it. NULL with an
 * exception set: there is none. With the GIL held. */
ticks *new_ticks(PyObject *model, size_t T, size_t threads) {
    if (!fl_table && fl_import()) return NULL;
    ticks *t = calloc(1, sizeof *t);
    if (!t) return (ticks *)PyErr_NoMemory();
    t->held = fl_hold(model);
    const fl_model *held = t->held ? fl_model_of(t->held) : NULL;
    if (!held) {
        free_ticks(t);
        return NULL;
    }
    fl_stream_config room = {.struct_size = sizeof room, .T = T, .B = 1, .prepares = 1};
    if (threads > 1 && (t->team = fl_team_new(threads))) {
        t->threads = fl_team_threads(t->team, threads);
        room.threads = &t->threads;
    }
    const fl_error error = fl_stream_new(held, &room, &t->stream);
    if (error) {
        PyErr_Format(PyExc_RuntimeError, "a stream of %zu thread(s): %s", threads,
                     fl_error_text(error));
        free_ticks(t);
        return NULL;
    }
    t->T = T;
    t->inputs = fl_input_shape(fl_model_program(held), 0).count;
    t->outputs = fl_output_shape(fl_model_program(held), 0).count;
    t->x = malloc(T * t->inputs * sizeof *t->x);
    t->now = calloc(t->inputs, sizeof *t->now);
    t->y = calloc(T * t->outputs, sizeof *t->y);
    if (!t->x || !t->now || !t->y || (threads > 1 && !t->team)) {
        free_ticks(t);
        return (ticks *)PyErr_NoMemory();
    }
    for (size_t i = 0; i < T * t->inputs; ++i) t->x[i] = draw();
    return t;
}

/* Nanoseconds of each of `count` ticks in took (count,), the reading of the clock among them, and of
 * all together, or -1: a call was refused. */
int64_t each_tick(ticks *t, size_t count, int prepared, int64_t *took) {
    int refused = 0;
    int64_t all = 0;
    for (size_t i = 0; i < count; ++i) {
        memcpy(t->now, t->x + i % t->T * t->inputs, t->inputs * sizeof *t->x);
        if (prepared) refused |= fl_stream_prepare(t->stream);
        const int64_t start = nanoseconds();
        refused |= fl_step(t->stream, t->now, t->y);
        all += took[i] = nanoseconds() - start;
    }
    return refused ? -1 : all;
}

/* The same number of steps without a look at the clock. Not 0: one was refused. */
int steps(ticks *t, size_t count) {
    int refused = 0;
    for (size_t i = 0; i < count; ++i) refused |= fl_step(t->stream, t->now, t->y);
    return refused;
}

/* Nanoseconds of each of `count` windows of T steps, every one from where a sequence starts. */
int64_t each_window(ticks *t, size_t count, int64_t *took) {
    const fl_rows in = {t->x, (ptrdiff_t)t->inputs, 0}, out = {t->y, (ptrdiff_t)t->outputs, 0};
    int refused = 0;
    int64_t all = 0;
    for (size_t i = 0; i < count; ++i) {
        const int64_t start = nanoseconds();
        refused |= fl_stream_reset(t->stream, NULL);
        refused |= fl_stream_run(t->stream, t->T, &in, &out, NULL);
        all += took[i] = nanoseconds() - start;
    }
    return refused ? -1 : all;
}
