/* step.c - one step of a program in C, without Python: the time of the core alone.
 *
 *   step PROGRAM COUNT [COUNT ...]
 *       of a program with one input and one output, whose tensors have so many numbers: for each
 *       instruction set of this machine a line, its name and the quartiles of the nanoseconds a
 *       step
 *
 * step.py writes the program and compiles this file with the core.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fastlstm.h"

enum { ROUNDS = 301, MOST_TENSORS = 16, MOST_BYTES = 1 << 20 };

/* Long beside the resolution of the clock, short beside the time slice of a process. */
static const double ROUND_SECONDS = 0.0005;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Zeroed bytes, aligned as the core wants them; the process ends if there is no memory. */
static void *zeros(size_t bytes) {
    const size_t size = (bytes / FL_ALIGNMENT + 1) * FL_ALIGNMENT;
    void *made = aligned_alloc(FL_ALIGNMENT, size);
    if (!made) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    return memset(made, 0, size);
}

/* Uniform in [-1, 1): a linear congruential generator, so that every machine draws the same. */
static float draw(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* (n,) numbers of a trained layer's size. */
static float *drawn(size_t n) {
    float *made = zeros(n * sizeof *made);
    for (size_t i = 0; i < n; ++i) made[i] = 0.1f * draw();
    return made;
}

/* Ends the process with what a call was refused for. */
static void check(fl_error error, const char *message) {
    if (error == FL_OK) return;
    fprintf(stderr, "%s: %s\n", fl_error_text(error), message);
    exit(1);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Quartiles of the nanoseconds a step, over rounds of many steps each. tensors (count,). */
static void time_step(const fl_program *program, const char *isa, const fl_tensor_data *tensors,
                      size_t count, double quartiles[3]) {
    fl_model_config config;
    const fl_model *model;
    fl_scratch *made;
    fl_call call;
    char message[256] = "";
    double took[ROUNDS];
    size_t bytes, room;
    memset(&config, 0, sizeof config);
    config.struct_size = sizeof config;
    config.type = FL_FLOAT32;
    config.isa = isa;
    check(fl_model_size(program, &config, &bytes, message, sizeof message), message);
    void *memory = zeros(bytes);
    check(fl_model_init(program, &config, tensors, count, memory, bytes, &model, message,
                        sizeof message), message);
    check(fl_scratch_size(model, 1, 1, 1, &room), "scratch");
    void *scratch = zeros(room), *state = zeros(fl_state_size(model));
    check(fl_scratch_init(model, 1, 1, 1, scratch, room, &made), "scratch");
    float *x = drawn(fl_input_shape(program, 0).count);
    float *y = zeros(fl_output_shape(program, 0).count * sizeof *y);
    const fl_rows input = {x, 0, 0}, output = {y, 0, 0};
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.B = 1;
    call.inputs = &input;
    call.outputs = &output;
    call.states = &state;
    call.scratch = made;
    check(fl_begin(model, &call), "begin");
    call.T = 1;

    size_t steps = 1;
    for (double start = 0, end = 0; end - start < ROUND_SECONDS; steps *= 2) {
        start = seconds();
        for (size_t i = 0; i < steps; ++i) check(fl_run(model, &call), "run");
        end = seconds();
    }
    for (int r = 0; r < ROUNDS; ++r) {
        const double start = seconds();
        for (size_t i = 0; i < steps; ++i) check(fl_run(model, &call), "run");
        took[r] = (seconds() - start) / (double)steps * 1e9;
    }
    qsort(took, ROUNDS, sizeof *took, ascending);
    for (int q = 0; q < 3; ++q) quartiles[q] = took[(q + 1) * (ROUNDS - 1) / 4];
    free(memory);
    free(scratch);
    free(state);
    free(x);
    free(y);
}

int main(int argc, char **argv) {
    FILE *file = argc > 2 && argc - 2 <= MOST_TENSORS ? fopen(argv[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "expected a program that can be read, and the sizes of its tensors\n");
        return 2;
    }
    char *words = zeros(MOST_BYTES), message[256] = "";
    const size_t size = fread(words, 1, MOST_BYTES, file);
    fclose(file);
    size_t bytes;
    const fl_program *program;
    check(fl_program_size(words, size, &bytes), "size");
    check(fl_program_init(words, size, zeros(bytes), bytes, &program, message, sizeof message),
          message);
    fl_tensor_data tensors[MOST_TENSORS];
    const size_t count = (size_t)argc - 2;
    memset(tensors, 0, sizeof tensors);
    for (size_t i = 0; i < count; ++i) {
        tensors[i].count = strtoul(argv[i + 2], NULL, 10);
        tensors[i].data = drawn(tensors[i].count);
        tensors[i].type = FL_FLOAT32;
    }
    const char *isa;
    for (size_t n = 0; (isa = fl_isa(FL_FLOAT32, n)); ++n) {
        double ns[3];
        time_step(program, isa, tensors, count, ns);
        printf("%s %.2f %.2f %.2f\n", isa, ns[0], ns[1], ns[2]);
        fflush(stdout);
    }
    return 0;
}
