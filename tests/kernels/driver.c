/* driver.c - run a kernel on cases from files, without Python: is its output right, does it touch
 * nothing else, and do the bits stay the same however a run is cut?
 *
 *   driver                           print the kernels this processor can run, "name real_size"
 *   driver [--slack] [--alone] KERNEL CASE...
 *                                    run the cases; print the largest error of each and how teams
 *                                    shared its work; exit status 1 if an error is over its bound
 *                                    or anything else is wrong
 *
 * --slack lets reads go up to a vector too far: QEMU 7.2 loads also those elements of a vector that
 * a masked load leaves out. --alone starts no threads. FL_LEAST_NS of plan.c should be near 0, so
 * that a run is shared however small it is.
 *
 * A case file holds int64 numbers and plain arrays in the order of the calls in read_case() below;
 * tests/test_kernels_c.py writes it. Dimension letters are those of fastlstm.h.
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fastlstm.h"

enum { CANARY = 0xa5, CANARIES = 64, MOST_THREADS = 3 };

static size_t slack = 0; /* bytes between the end of an array and its fence */
static size_t most_threads = MOST_THREADS;
static fl_team *teams[MOST_THREADS + 1]; /* of each size; NULL for 0 and 1 */

/* Ways in which teams shared the runs of a case: by_rows + 2 * (in more than one chunk). */
static const char *const ways[] = {"panels", "rows", "panels in chunks", "rows in chunks"};
static int way_seen[sizeof ways / sizeof *ways];

typedef struct {
    size_t real_size, lanes;
    fl_model model;
    size_t T, B, I, O;
    const char *x;         /* real (T, B, I), or NULL */
    const int64_t *tokens; /* (T, B), or NULL */
    const char *state;     /* real (B, state_size) to start from */
    const double *y_expected;     /* (T, B, O) */
    const double *state_expected; /* (B, state_size) after the run */
    double bound;                 /* on |y - expected| / max(1, largest |expected|) */
} test_case;

static _Noreturn void fail(const char *what) {
    printf("FAILED: %s\n", what);
    exit(1);
}

static void demand(int holds, const char *what) {
    if (!holds) fail(what);
}

/* Whole pages that hold so many bytes behind canaries, less the fence. */
static size_t fenced_size(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (CANARIES + bytes + slack + page - 1) / page * page;
}

/* Memory that ends where a page begins that may not be touched, so that one element too many ends
 * the process; before it lie CANARIES bytes. Only scratch memory is freed: the process is short. */
static char *fenced(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = fenced_size(bytes);
    const int access = PROT_READ | PROT_WRITE;
    char *block = mmap(NULL, size + page, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    demand(block != MAP_FAILED && !mprotect(block + size, page, PROT_NONE), "no memory");
    memset(block, CANARY, size);
    return block + size - slack - bytes;
}

static void free_fenced(char *p, size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = fenced_size(bytes);
    demand(!munmap(p + bytes + slack - size, size + page), "memory cannot be freed");
}

static int all_canaries(const char *p, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        if ((unsigned char)p[i] != CANARY) return 0;
    return 1;
}

static size_t take(FILE *file) {
    int64_t value;
    demand(fread(&value, sizeof value, 1, file) == 1 && value >= 0, "the case file ends early");
    return (size_t)value;
}

/* An array, as its number of elements (none: NULL) and the elements; aligned to 64 bytes. */
static void *take_array(FILE *file, size_t item) {
    const size_t count = take(file);
    char *p;
    if (!count) return NULL;
    p = fenced((count * item + 63) / 64 * 64);
    demand(fread(p, item, count, file) == count, "the case file ends early");
    return p;
}

/* An array that need not be aligned, so that not a byte lies between its end and the fence. */
static char *take_tight(FILE *file, size_t item) {
    const size_t count = take(file);
    char *p = fenced(count * item);
    demand(fread(p, item, count, file) == count, "the case file ends early");
    return p;
}

static fl_panels take_panels(FILE *file, size_t real_size) {
    fl_panels made;
    made.panels = take(file);
    made.groups = take(file);
    made.stride = take(file);
    made.weights = take_array(file, real_size);
    made.bias = take_array(file, real_size);
    return made;
}

static fl_cell take_cell(FILE *file, size_t real_size) {
    fl_cell made;
    made.gates = take_panels(file, real_size);
    made.projection = take_panels(file, real_size);
    made.bias_n = take_array(file, real_size);
    made.table = take_array(file, real_size);
    made.input_rows = take(file);
    made.hidden_size = take(file);
    made.h_size = take(file);
    made.h_offset = take(file);
    made.c_offset = take(file);
    made.y_offset = take(file);
    return made;
}

static test_case read_case(const char *path) {
    test_case made;
    FILE *file = fopen(path, "rb");
    demand(file != NULL, "the case file cannot be opened");
    memset(&made, 0, sizeof made);
    made.real_size = take(file);
    made.lanes = take(file);
    made.model.n_layers = take(file);
    made.model.state_size = take(file);
    made.model.takes_tokens = (int)take(file);
    fl_layer *layers = (fl_layer *)(void *)fenced(made.model.n_layers * sizeof *layers);
    made.model.layers = layers;
    for (size_t l = 0; l < made.model.n_layers; ++l) {
        memset(layers + l, 0, sizeof *layers);
        layers[l].kind = (fl_kind)take(file);
        layers[l].function = (fl_function)take(file);
        layers[l].input_size = take(file);
        layers[l].output_size = take(file);
        layers[l].table = take_array(file, made.real_size);
        layers[l].linear = take_panels(file, made.real_size);
        layers[l].directions = (int)take(file);
        for (int d = 0; d < layers[l].directions; ++d)
            layers[l].cell[d] = take_cell(file, made.real_size);
    }
    made.I = layers[0].input_size;
    made.O = layers[made.model.n_layers - 1].output_size;
    made.T = take(file);
    made.B = take(file);
    if (made.model.takes_tokens)
        made.tokens = (const int64_t *)(void *)take_tight(file, sizeof(int64_t));
    else
        made.x = take_tight(file, made.real_size);
    made.state = take_tight(file, made.real_size);
    made.y_expected = (const double *)(void *)take_tight(file, sizeof(double));
    made.state_expected = (const double *)(void *)take_tight(file, sizeof(double));
    const double *bound = (const double *)(void *)take_tight(file, sizeof(double));
    made.bound = *bound;
    demand(fgetc(file) == EOF && !fclose(file), "the case file is longer than the case");
    return made;
}

/* The outputs and states of one way to run a case. */
typedef struct {
    char *y;          /* real, row (t, b) at t * y_t + b * y_b: rows have canaries between them */
    size_t y_t, y_b;
    char **state;     /* (B,) pointers to real (state_size,), each fenced by itself */
} result;

static result new_result(const test_case *a) {
    result made;
    made.y_b = a->O + 1;
    made.y_t = a->B * made.y_b + 2;
    made.y = fenced(((a->T - 1) * made.y_t + (a->B - 1) * made.y_b + a->O) * a->real_size);
    made.state = (char **)(void *)fenced(a->B * sizeof(char *));
    const size_t size = a->model.state_size * a->real_size;
    for (size_t b = 0; b < a->B; ++b) {
        made.state[b] = fenced(size);
        memcpy(made.state[b], a->state + b * size, size);
    }
    return made;
}

/* fl_gemm of floats and of doubles, as plain as can be. */
#define GEMM(name, real)                                                                        \
    static void name(size_t rows, size_t outputs, size_t inputs, const void *x, size_t x_stride, \
                     const void *w, void *y, size_t y_stride) {                                 \
        for (size_t r = 0; r < rows; ++r)                                                       \
            for (size_t k = 0; k < inputs; ++k)                                                 \
                for (size_t o = 0; o < outputs; ++o)                                            \
                    ((real *)y)[r * y_stride + o] +=                                            \
                        ((const real *)x)[r * x_stride + k] * ((const real *)w)[k * outputs + o]; \
    }
GEMM(gemm_of_floats, float)
GEMM(gemm_of_doubles, double)

/* Run steps [t, t + steps) of rows [b, b + rows), on a team where there is one of that size. */
static void run(const fl_kernel *kernel, const test_case *a, result *to, size_t t, size_t steps,
                size_t b, size_t rows, size_t threads, fl_gemm gemm) {
    fl_plan plan;
    fl_call call;
    demand(!fl_plan_run(&a->model, kernel, steps, rows, threads, &plan), "no plan");
    demand(plan.bytes % 64 == 0 && plan.ranks <= threads, "a plan of odd size or too many ranks");
    plan.is_long = 1; /* or a team that sleeps is left asleep */
    if (plan.ranks > 1) way_seen[plan.by_rows + 2 * (steps > plan.shared.chunk)] = 1;
    char *scratch = fenced(plan.bytes);
    memset(&call, 0, sizeof call);
    call.T = steps;
    call.B = rows;
    if (a->tokens) {
        call.tokens = a->tokens + t * a->B + b;
        call.x_t = (ptrdiff_t)a->B;
        call.x_b = 1;
    } else {
        call.x = a->x + (t * a->B + b) * a->I * a->real_size;
        call.x_t = (ptrdiff_t)(a->B * a->I);
        call.x_b = (ptrdiff_t)a->I;
    }
    call.y = to->y + (t * to->y_t + b * to->y_b) * a->real_size;
    call.y_t = (ptrdiff_t)to->y_t;
    call.y_b = (ptrdiff_t)to->y_b;
    call.state = (void *const *)(void *)(to->state + b);
    call.plan = &plan;
    call.scratch = scratch;
    call.gemm = gemm;
    call.turn = t;
    fl_run(kernel, &a->model, &call, teams[threads]);
    demand(call.ran && !strcmp(call.ran, kernel->name), "another kernel ran");
    demand(call.turn == t + steps, "the steps were not counted");
    demand(all_canaries(scratch - CANARIES, CANARIES), "bytes before the scratch memory changed");
    free_fenced(scratch, plan.bytes);
    /* Volatile, so that the processor and not the compiler divides: a denormal, if not flushed. */
    volatile float least = FLT_MIN;
    least /= 2;
    demand(least > 0, "the caller's floating-point mode was not restored");
}

static void check_canaries(const test_case *a, const result *r) {
    const size_t row = a->O * a->real_size, b_step = r->y_b * a->real_size;
    const size_t t_step = r->y_t * a->real_size;
    demand(all_canaries(r->y - CANARIES, CANARIES), "bytes before y changed");
    for (size_t t = 0; t < a->T; ++t) {
        for (size_t b = 0; b < a->B; ++b) {
            const int last = t + 1 == a->T && b + 1 == a->B;
            const char *end = r->y + t * t_step + b * b_step + row;
            const char *next = b + 1 < a->B ? r->y + t * t_step + (b + 1) * b_step
                                            : r->y + (t + 1) * t_step;
            demand(last || all_canaries(end, (size_t)(next - end)),
                   "bytes between rows of y changed");
        }
    }
    for (size_t b = 0; b < a->B; ++b)
        demand(all_canaries(r->state[b] - CANARIES, CANARIES), "bytes before a state changed");
}

static double at(const char *reals, size_t i, size_t real_size) {
    return real_size == 4 ? (double)((const float *)(const void *)reals)[i]
                          : ((const double *)(const void *)reals)[i];
}

/* Largest error of n reals, whose scale is at least 1. A NaN or infinity must be where expected. */
static double largest_error(const char *y, size_t real_size, const double *expected, size_t n,
                            double scale) {
    double most = 0;
    for (size_t i = 0; i < n; ++i) {
        const double given = at(y, i, real_size), error = fabs(given - expected[i]);
        if (isnan(expected[i]) ? isnan(given) : given == expected[i]) continue;
        if (!(error / scale <= most)) most = isfinite(error) ? error / scale : INFINITY;
    }
    return most;
}

static double scale_of(const double *expected, size_t n) {
    double most = 1;
    for (size_t i = 0; i < n; ++i)
        if (isfinite(expected[i]) && fabs(expected[i]) > most) most = fabs(expected[i]);
    return most;
}

static double error_of(const test_case *a, const result *r) {
    const size_t S = a->model.state_size;
    const double y_scale = scale_of(a->y_expected, a->T * a->B * a->O);
    const double state_scale = scale_of(a->state_expected, a->B * S);
    double most = 0;
    for (size_t t = 0; t < a->T; ++t)
        for (size_t b = 0; b < a->B; ++b)
            most = fmax(most, largest_error(r->y + (t * r->y_t + b * r->y_b) * a->real_size,
                                            a->real_size, a->y_expected + (t * a->B + b) * a->O,
                                            a->O, y_scale));
    for (size_t b = 0; b < a->B; ++b)
        most = fmax(most, largest_error(r->state[b], a->real_size, a->state_expected + b * S, S,
                                        state_scale));
    return most;
}

/* The same bits; where both are NaN, their payloads may differ. */
static int same(const char *p, const char *q, size_t n, size_t real_size) {
    for (size_t i = 0; i < n; ++i)
        if (memcmp(p + i * real_size, q + i * real_size, real_size) &&
            !(isnan(at(p, i, real_size)) && isnan(at(q, i, real_size))))
            return 0;
    return 1;
}

static void demand_same(const test_case *a, const result *p, const result *q, const char *what) {
    for (size_t t = 0; t < a->T; ++t)
        for (size_t b = 0; b < a->B; ++b) {
            const size_t first = (t * p->y_t + b * p->y_b) * a->real_size;
            demand(same(p->y + first, q->y + first, a->O, a->real_size), what);
        }
    for (size_t b = 0; b < a->B; ++b)
        demand(same(p->state[b], q->state[b], a->model.state_size, a->real_size), what);
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Scratch memory that a run of any length needs at most if its layers all go one way: 64 KB of the
 * widest row, or 24 rows or one step, make a part; 16 parts make a chunk. */
static size_t most_bytes(const test_case *a, size_t B, size_t ranks) {
    size_t gates = 0, hidden = 0, between = 0, widest = 1;
    for (size_t l = 0; l < a->model.n_layers; ++l) {
        const fl_layer *layer = a->model.layers + l;
        if (l + 1 < a->model.n_layers) between = larger(between, layer->output_size);
        for (int d = 0; d < layer->directions; ++d) {
            const fl_panels *matrix = &layer->cell[d].gates;
            gates = larger(gates, matrix->panels * matrix->groups * a->lanes);
            hidden = larger(hidden, layer->cell[d].hidden_size);
        }
    }
    widest = larger(larger(gates, between), 1) * a->real_size;
    const size_t part = larger(larger(64 * 1024 / widest, 24), B), rows = 16 * part;
    const size_t shared = (2 * rows * between + 2 * part * gates + B * hidden) * a->real_size;
    const size_t own = rows * (2 * sizeof(void *) + 8) + larger(B, 6) * 12 * sizeof(void *);
    return shared + ranks * own + (4 + ranks * 4) * 64;
}

/* What a plan says of memory, for every number of threads. */
static void check_plans(const fl_kernel *kernel, const test_case *a, int streams) {
    const size_t lengths[] = {1000, 1000000, 1000000000};
    for (size_t threads = 1; threads <= MOST_THREADS; ++threads) {
        fl_plan plan[3], alone;
        for (int i = 0; i < 3; ++i) {
            const fl_plan *p = plan + i;
            const size_t T = lengths[i];
            demand(!fl_plan_run(&a->model, kernel, T, a->B, threads, plan + i) &&
                       !fl_plan_run(&a->model, kernel, T, a->B, 1, &alone),
                   "no plan of a long run");
            demand(!memcmp(&alone.alone, &p->alone, sizeof alone.alone) && alone.ranks == 1 &&
                       alone.bytes == alone.alone.bytes,
                   "a run alone is cut differently where there are threads");
            const size_t shares = p->ranks == 1 ? 0 : p->by_rows ? p->ranks : 1;
            demand(p->bytes == larger(p->alone.bytes, shares * p->shared.bytes),
                   "a plan's bytes are not those of the larger of both ways");
            if (!streams) continue;
            const size_t rows = p->by_rows ? (a->B + p->ranks - 1) / p->ranks : a->B;
            const size_t bound = p->by_rows ? p->ranks * most_bytes(a, rows, 1)
                                            : most_bytes(a, a->B, p->ranks);
            demand(p->bytes <= larger(bound, most_bytes(a, a->B, 1)),
                   "the scratch memory is more than a chunk needs");
        }
        if (!streams) continue;
        const size_t chunk = larger(plan[2].alone.chunk, plan[2].shared.chunk);
        for (int i = 0; i < 2; ++i)
            demand(plan[i].bytes == plan[2].bytes || (lengths[i] < chunk && !i),
                   "the scratch memory grows with the length of a run");
        demand(plan[0].bytes <= plan[2].bytes, "a short run needs more memory than a long one");
    }
}

static double check_case(const fl_kernel *kernel, const test_case *a) {
    const fl_gemm gemm = a->real_size == 4 ? gemm_of_floats : gemm_of_doubles;
    result whole = new_result(a);
    double error;
    fl_plan plan;
    int streams = 1;
    for (size_t l = 0; l < a->model.n_layers; ++l) streams &= a->model.layers[l].directions < 2;
    run(kernel, a, &whole, 0, a->T, 0, a->B, 1, NULL);
    check_canaries(a, &whole);
    error = error_of(a, &whole);
    for (size_t threads = 1; threads <= most_threads; ++threads) {
        result shared = new_result(a), steps = new_result(a), blas = new_result(a);
        if (threads > 1) {
            run(kernel, a, &shared, 0, a->T, 0, a->B, threads, NULL);
            check_canaries(a, &shared);
            demand_same(a, &whole, &shared, "a team gives other bits than one thread");
        }
        for (size_t t = 0; streams && t < a->T; ++t)
            run(kernel, a, &steps, t, 1, 0, a->B, threads, NULL);
        if (streams) {
            check_canaries(a, &steps);
            demand_same(a, &whole, &steps, "step by step gives other bits than the whole run");
        }
        run(kernel, a, &blas, 0, a->T, 0, a->B, threads, gemm);
        check_canaries(a, &blas);
        error = fmax(error, error_of(a, &blas));
    }
    result alone = new_result(a);
    for (size_t b = 0; b < a->B; ++b) run(kernel, a, &alone, 0, a->T, b, 1, 1, NULL);
    check_canaries(a, &alone);
    demand_same(a, &whole, &alone, "a row alone gives other bits than in the batch");
    for (size_t threads = 1; threads <= MOST_THREADS; ++threads)
        demand(fl_plan_run(&a->model, kernel, 2, SIZE_MAX / 4, threads, &plan) == -1,
               "a plan of more memory than there can be was made");
    check_plans(kernel, a, streams);
    return error;
}

static void nothing(void *job, size_t rank, size_t ranks) { (void)job, (void)rank, (void)ranks; }

/* That teams run at all: a call that could not have one would go on alone. */
static void check_teams(void) {
    for (size_t threads = 2; threads <= most_threads; ++threads) {
        demand(fl_team_take(teams[threads], threads, 1) == threads, "a team cannot be had");
        fl_team_run(teams[threads], threads, nothing, NULL);
    }
}

int main(int argc, char **argv) {
    int over = 0, next = 1;
    if (argc == 1)
        for (const fl_kernel *const *k = fl_kernels; *k; ++k)
            if (fl_find((*k)->name, (*k)->real_size))
                printf("%s %zu\n", (*k)->name, (*k)->real_size);
    for (; next < argc && argv[next][0] == '-'; ++next) {
        demand(!strcmp(argv[next], "--slack") || !strcmp(argv[next], "--alone"), "no such option");
        if (!strcmp(argv[next], "--slack")) slack = 64;
        else most_threads = 1;
    }
    if (next == argc) return 0;
    for (size_t threads = 2; threads <= most_threads; ++threads)
        demand((teams[threads] = fl_team_new(threads)) != NULL, "no team");
    check_teams();
    for (int i = next + 1; i < argc; ++i) {
        printf("%s %s: ", argv[next], argv[i]);
        fflush(stdout);
        const test_case a = read_case(argv[i]);
        const fl_kernel *kernel = fl_find(argv[next], a.real_size);
        demand(kernel && kernel->lanes == a.lanes, "no such kernel here for the case's lanes");
        memset(way_seen, 0, sizeof way_seen);
        const double error = check_case(kernel, &a);
        const int good = error <= a.bound;
        printf("largest error %.2e, bound %.2e%s", error, a.bound, good ? "" : " FAILED");
        for (size_t w = 0; w < sizeof ways / sizeof *ways; ++w)
            if (way_seen[w]) printf("; by %s", ways[w]);
        printf("\n");
        over |= !good;
    }
    check_teams();
    for (size_t threads = 2; threads <= most_threads; ++threads) fl_team_free(teams[threads]);
    return over;
}
