/* step.c - one step of an LSTM in C, without Python: the time of the kernel alone.
 *
 *   step I H [I H ...]   a line for each size and each instruction set of this machine:
 *                        kernel I H and the quartiles of the nanoseconds a step
 *
 * step.py compiles it with the kernels. Dimension letters are those of fastlstm.h.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fastlstm.h"

enum { GATES = 4, ROUNDS = 301 };

/* Long beside the resolution of the clock, short beside the time slice of a process. */
static const double ROUND_SECONDS = 0.0005;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* n zeros, 64-byte aligned; the process ends if there is no memory. */
static float *zeros(size_t n) {
    float *made = aligned_alloc(64, (n * sizeof *made + 63) / 64 * 64);
    if (!made) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    memset(made, 0, n * sizeof *made);
    return made;
}

/* Uniform in [-1, 1): a linear congruential generator, so that every machine draws the same. */
static float draw(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* Panels (P, K, G, L) with K = I + H: real outputs are drawn, the padding stays zero. */
static fl_panels draw_panels(size_t I, size_t H, size_t L) {
    fl_panels made;
    const size_t P = (H + L - 1) / L, K = I + H;
    float *weights = zeros(P * K * GATES * L), *bias = zeros(P * GATES * L);
    for (size_t p = 0; p < P; ++p)
        for (size_t k = 0; k <= K; ++k)
            for (size_t g = 0; g < GATES; ++g)
                for (size_t l = 0; l < L && p * L + l < H; ++l) {
                    float *row = k < K ? weights + ((p * K + k) * GATES + g) * L
                                       : bias + (p * GATES + g) * L;
                    row[l] = 0.1f * draw();
                }
    memset(&made, 0, sizeof made);
    made.weights = weights;
    made.bias = bias;
    made.stride = K * GATES * L;
    made.panels = P;
    made.groups = GATES;
    made.last_groups = GATES;
    return made;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Quartiles of the nanoseconds a step, over rounds of many steps each. */
static int time_step(const fl_kernel *kernel, size_t I, size_t H, double quartiles[3]) {
    fl_layer layer;
    fl_model model;
    fl_plan plan;
    fl_call call;
    double took[ROUNDS];
    memset(&layer, 0, sizeof layer);
    layer.kind = FL_LSTM;
    layer.from = FL_INPUT;
    layer.to = FL_OUTPUT;
    layer.input_size = I;
    layer.output_size = H;
    layer.directions = 1;
    layer.cell[0].gates = draw_panels(I, H, kernel->lanes);
    layer.cell[0].input_rows = I;
    layer.cell[0].hidden_size = layer.cell[0].h_size = layer.cell[0].c_offset = H;
    memset(&model, 0, sizeof model);
    model.layers = &layer;
    model.n_layers = 1;
    model.state_size = 2 * H;
    if (fl_plan_run(&model, kernel, 1, 1, 1, &plan)) return -1;
    float *x = zeros(I), *y = zeros(H), *state = zeros(2 * H), *scratch = zeros(plan.bytes / 4 + 1);
    void *const states[1] = {state};
    for (size_t i = 0; i < I; ++i) x[i] = draw();
    memset(&call, 0, sizeof call);
    call.T = call.B = 1;
    call.x = x;
    call.x_t = call.x_b = (ptrdiff_t)I;
    call.y = y;
    call.y_t = call.y_b = (ptrdiff_t)H;
    call.state = states;
    call.plan = &plan;
    call.scratch = scratch;

    size_t steps = 1;
    for (double start = 0, end = 0; end - start < ROUND_SECONDS; steps *= 2) {
        start = seconds();
        for (size_t i = 0; i < steps; ++i) fl_run(kernel, &model, &call, NULL);
        end = seconds();
    }
    for (int r = 0; r < ROUNDS; ++r) {
        const double start = seconds();
        for (size_t i = 0; i < steps; ++i) fl_run(kernel, &model, &call, NULL);
        took[r] = (seconds() - start) / (double)steps * 1e9;
    }
    qsort(took, ROUNDS, sizeof *took, ascending);
    for (int q = 0; q < 3; ++q) quartiles[q] = took[(q + 1) * (ROUNDS - 1) / 4];
    free((void *)layer.cell[0].gates.weights);
    free((void *)layer.cell[0].gates.bias);
    free(x);
    free(y);
    free(state);
    free(scratch);
    return call.ran && !strcmp(call.ran, kernel->name) ? 0 : -1;
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const size_t I = strtoul(argv[i], NULL, 10), H = strtoul(argv[i + 1], NULL, 10);
        if (I == 0 || H == 0) {
            fprintf(stderr, "%s %s: sizes are positive\n", argv[i], argv[i + 1]);
            return 2;
        }
        for (const fl_kernel *const *k = fl_kernels; *k; ++k) {
            double ns[3];
            if ((*k)->real_size != sizeof(float) || !fl_find((*k)->name, sizeof(float))) continue;
            if (time_step(*k, I, H, ns)) {
                fprintf(stderr, "%s could not run\n", (*k)->name);
                return 1;
            }
            printf("%s %zu %zu %.2f %.2f %.2f\n", (*k)->name, I, H, ns[0], ns[1], ns[2]);
            fflush(stdout);
        }
    }
    return 0;
}
