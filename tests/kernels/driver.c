/* driver.c - run a kernel on cases from files, without Python: is its output right, does it touch
 * nothing else, and do the bits stay the same however a run is cut?
 *
 *   driver                           print the kernels this processor can run, "name real_size"
 *   driver [--slack] [--alone] KERNEL CASE...
 *                                    run the cases; print the largest error of each and how teams
 *                                    shared its work; exit status 1 if an error is over its bound
 *                                    or anything else is wrong
 *   driver [--slack] --bits KERNEL CASE...
 *                                    print only a digest of the bits that each case gives, so that
 *                                    those of two kernels can be compared
 *
 * --slack lets reads go up to a vector too far: QEMU 7.2 loads also those elements of a vector that
 * a masked load leaves out. --alone starts no threads. FL_LEAST_NS of plan.c should be near 0, so
 * that a run is shared however small it is.
 *
 * Dimension letters are those of fastlstm.h.
 */
#include "cases.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>

enum { MOST_THREADS = 3 };

static size_t most_threads = MOST_THREADS;
static fl_team *teams[MOST_THREADS + 1]; /* of each size; NULL for 0 and 1 */

/* Ways in which teams shared the runs of a case: by_rows + 2 * (in more than one chunk). */
static const char *const ways[] = {"panels", "rows", "panels in chunks", "rows in chunks"};
static int way_seen[sizeof ways / sizeof *ways];

/* The outputs and states of one way to run a case. */
typedef struct {
    size_t steps;     /* T' */
    char *y;          /* real, row (t, b) at t * y_t + b * y_b: rows have canaries between them */
    size_t y_t, y_b;
    char **state;     /* (B,) pointers to real (state_size,), each fenced by itself */
    int *unwritten;   /* (B,) rows of y, from the last one back, that must be left alone */
} result;

static result new_result(const test_case *a, size_t steps) {
    result made;
    made.steps = steps;
    made.y_b = a->O + 1;
    made.y_t = a->B * made.y_b + 2;
    made.y = fenced(
        steps ? ((steps - 1) * made.y_t + (a->B - 1) * made.y_b + a->O) * a->real_size : 0);
    made.state = (char **)(void *)fenced(a->B * sizeof(char *));
    made.unwritten = (int *)(void *)fenced(a->B * sizeof(int));
    memset(made.unwritten, 0, a->B * sizeof(int));
    const size_t size = a->model.state_size * a->real_size;
    for (size_t b = 0; b < a->B; ++b) {
        made.state[b] = fenced(size);
        memcpy(made.state[b], a->state + b * size, size);
    }
    return made;
}

static void free_result(const test_case *a, result *r) {
    const size_t last = r->steps ? ((r->steps - 1) * r->y_t + (a->B - 1) * r->y_b + a->O) : 0;
    free_fenced(r->y, last * a->real_size);
    for (size_t b = 0; b < a->B; ++b)
        free_fenced(r->state[b], a->model.state_size * a->real_size);
    free_fenced((char *)r->state, a->B * sizeof(char *));
    free_fenced((char *)r->unwritten, a->B * sizeof(int));
}

static char *row_of(const test_case *a, const result *r, size_t t, size_t b) {
    return r->y + (t * r->y_t + b * r->y_b) * a->real_size;
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

/* A part of a case to run: steps [t, t + steps) of rows [b, b + rows). */
typedef struct {
    size_t t, steps, b, rows;
    int whole;               /* the sequence ends here */
    const size_t *lengths;   /* (rows,), or NULL */
    size_t threads;
    fl_gemm gemm;
} part;

static part whole_case(const test_case *a, size_t threads) {
    const part made = {0, a->T, 0, a->B, 1, NULL, threads, NULL};
    return made;
}

/* What asks a run whether it goes on, and where that keeps its states. NULL: nothing. */
static fl_watch *watch;
static char *kept;
static size_t done; /* steps of the last run */

/* Run a part, on a team where there is one of that size, into the rows of `to` from row `out` on;
 * how many those are. */
static size_t run(const fl_kernel *kernel, const test_case *a, result *to, size_t out, part p) {
    fl_plan plan;
    fl_call call;
    const size_t outputs =
        fl_output_steps(&a->model, kernel, p.steps, p.whole, to->state[p.b]);
    demand(out + outputs <= to->steps, "more rows come than there is room for");
    demand(!fl_plan_run(&a->model, kernel, p.steps, p.rows, p.threads, &plan), "no plan");
    demand(plan.bytes % 64 == 0 && plan.ranks <= p.threads, "a plan of odd size or too many ranks");
    plan.is_long = 1; /* or a team that sleeps is left asleep */
    if (plan.ranks > 1) way_seen[plan.by_rows + 2 * (p.steps > plan.shared.chunk)] = 1;
    char *scratch = fenced(plan.bytes);
    memset(&call, 0, sizeof call);
    call.T = p.steps;
    call.B = p.rows;
    if (a->tokens) {
        call.tokens = a->tokens + p.t * a->B + p.b;
        call.x_t = (ptrdiff_t)a->B;
        call.x_b = 1;
    } else {
        call.x = a->x + (p.t * a->B + p.b) * a->I * a->real_size;
        call.x_t = (ptrdiff_t)(a->B * a->I);
        call.x_b = (ptrdiff_t)a->I;
    }
    call.y = row_of(a, to, out, p.b);
    call.y_t = (ptrdiff_t)to->y_t;
    call.y_b = (ptrdiff_t)to->y_b;
    call.lengths = p.lengths;
    call.whole = p.whole;
    call.state = (void *const *)(void *)(to->state + p.b);
    call.plan = &plan;
    call.scratch = scratch;
    call.gemm = p.gemm;
    call.turn = p.t;
    call.watch = watch;
    call.kept = kept;
    fl_run(kernel, &a->model, &call, teams[p.threads]);
    done = call.done;
    demand(watch || done == p.steps, "a run that nothing stops was cut short");
    demand(call.ran && !strcmp(call.ran, kernel->name), "another kernel ran");
    demand(call.turn == p.t + p.steps, "the steps were not counted");
    demand(all_canaries(scratch - CANARIES, CANARIES), "bytes before the scratch memory changed");
    free_fenced(scratch, plan.bytes);
    /* Volatile, so that the processor and not the compiler divides: a denormal, if not flushed. */
    volatile float least = FLT_MIN;
    least /= 2;
    demand(least > 0, "the caller's floating-point mode was not restored");
    return outputs;
}

static void check_canaries(const test_case *a, const result *r) {
    const size_t row = a->O * a->real_size;
    demand(all_canaries(r->y - CANARIES, CANARIES), "bytes before y changed");
    for (size_t t = 0; t < r->steps; ++t) {
        for (size_t b = 0; b < a->B; ++b) {
            const int last = t + 1 == r->steps && b + 1 == a->B;
            const char *first = row_of(a, r, t, b), *end = first + row;
            const char *next = b + 1 < a->B ? row_of(a, r, t, b + 1) : row_of(a, r, t + 1, 0);
            demand(last || all_canaries(end, (size_t)(next - end)),
                   "bytes between rows of y changed");
            demand(t + (size_t)r->unwritten[b] < r->steps || all_canaries(first, row),
                   "a row behind the length of its sequence was written");
        }
    }
    for (size_t b = 0; b < a->B; ++b)
        demand(all_canaries(r->state[b] - CANARIES, CANARIES), "bytes before a state changed");
}

static double at(const char *reals, size_t i, size_t real_size) {
    return real_size == 4 ? (double)((const float *)(const void *)reals)[i]
                          : ((const double *)(const void *)reals)[i];
}

static void put(char *reals, size_t i, size_t real_size, double value) {
    if (real_size == 4) ((float *)(void *)reals)[i] = (float)value;
    else ((double *)(void *)reals)[i] = value;
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

static double error_of(const test_case *a, const result *r, const expectation *expected) {
    const size_t S = a->model.state_size;
    const double y_scale = scale_of(expected->y, r->steps * a->B * a->O);
    const double state_scale = scale_of(expected->state, a->B * S);
    double most = 0;
    for (size_t b = 0; b < a->B; ++b) {
        for (size_t t = 0; t + (size_t)r->unwritten[b] < r->steps; ++t)
            most = fmax(most, largest_error(row_of(a, r, t, b), a->real_size,
                                            expected->y + (t * a->B + b) * a->O, a->O, y_scale));
        most = fmax(most, largest_error(r->state[b], a->real_size, expected->state + b * S, S,
                                        state_scale));
    }
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

static void demand_same_row(const test_case *a, const result *p, const result *q, size_t b,
                            const char *what) {
    for (size_t t = 0; t < p->steps; ++t)
        demand(same(row_of(a, p, t, b), row_of(a, q, t, b), a->O, a->real_size), what);
    demand(same(p->state[b], q->state[b], a->model.state_size, a->real_size), what);
}

static void demand_same(const test_case *a, const result *p, const result *q, const char *what) {
    for (size_t b = 0; b < a->B; ++b) demand_same_row(a, p, q, b, what);
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Scratch memory that a run of any length needs at most, if it does not need the whole sequence:
 * 64 KB of the widest row, or 24 rows or one step, make a part; 16 parts make a chunk. */
static size_t most_bytes(const test_case *a, size_t B, size_t ranks) {
    size_t gates = 0, hidden = 0, variant = 0, patch = 0, between = 0, widest = 1;
    size_t width[FL_MOST_BUFFERS] = {0}, buffers = 0;
    for (size_t l = 0; l < a->model.n_layers; ++l) {
        const fl_layer *layer = a->model.layers + l;
        const fl_convolution *convolution = &layer->convolution;
        width[layer->to] = larger(width[layer->to], layer->output_size);
        if (l + 1 < a->model.n_layers) between = larger(between, layer->output_size);
        patch = larger(patch, convolution->kernel_size * convolution->channels);
        for (int d = 0; d < layer->directions; ++d) {
            const fl_cell *cell = layer->cell + d;
            const size_t units = cell->gates.panels * a->lanes, all = units * cell->gates.groups;
            gates = larger(gates, all);
            hidden = larger(hidden, cell->hidden_size);
            if (cell->variant) variant = larger(variant, 2 * (all + units));
        }
    }
    for (size_t i = FL_BUFFERS; i < FL_MOST_BUFFERS; ++i) buffers += width[i];
    widest = larger(larger(gates, between), 1) * a->real_size;
    const size_t rows_of_part = larger(larger(64 * 1024 / widest, 24), B), rows = 16 * rows_of_part;
    const size_t shared =
        (rows * buffers + 2 * rows_of_part * gates + B * (hidden + variant)) * a->real_size;
    const size_t own = rows * (3 * sizeof(void *) + 8) + larger(B, 24) * 18 * sizeof(void *) +
                       24 * patch * a->real_size + 3 * B * sizeof(size_t);
    return shared + ranks * own + (10 + ranks * 7) * 64;
}

/* What a plan says of memory, for every number of threads. */
static void check_plans(const fl_kernel *kernel, const test_case *a) {
    const size_t lengths[] = {1000, 1000000, 1000000000};
    const int streams = !a->model.looks_ahead;
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
    for (size_t threads = 1; threads <= MOST_THREADS; ++threads) {
        fl_plan plan;
        demand(fl_plan_run(&a->model, kernel, 2, SIZE_MAX / 4, threads, &plan) == -1,
               "a plan of more memory than there can be was made");
    }
}

/* A stream in blocks of so many steps; of a model that pools, the last row is that of the whole. */
static result streamed(const fl_kernel *kernel, const test_case *a, size_t block, size_t threads) {
    result made = new_result(a, a->streamed.steps);
    size_t out = 0;
    for (size_t t = 0; t < a->T; t += block) {
        part p = {t, a->T - t < block ? a->T - t : block, 0, a->B, 0, NULL, threads, NULL};
        out += run(kernel, a, &made, out, p);
    }
    demand(out == made.steps, "a stream gives another number of rows");
    check_canaries(a, &made);
    return made;
}

static double check_streams(const fl_kernel *kernel, const test_case *a, const result *whole) {
    result at_once = streamed(kernel, a, a->T, 1);
    for (size_t b = 0; b < a->B; ++b)
        demand(!whole->steps || same(row_of(a, whole, whole->steps - 1, b),
                                     row_of(a, &at_once, at_once.steps - 1, b), a->O,
                                     a->real_size),
               "a stream gives other bits than the whole run");
    if (!a->model.pools) demand_same(a, whole, &at_once, "a stream gives other bits than a run");
    for (size_t threads = 1; threads <= most_threads; ++threads) {
        result steps = streamed(kernel, a, 1, threads), blocks = streamed(kernel, a, 3, threads);
        demand_same(a, &at_once, &steps, "step by step gives other bits than the whole run");
        demand_same(a, &at_once, &blocks, "blocks give other bits than the whole run");
        free_result(a, &steps);
        free_result(a, &blocks);
    }
    return error_of(a, &at_once, &a->streamed);
}

/* Rows of various lengths, each of which gives what it gives alone. */
static double check_lengths(const fl_kernel *kernel, const test_case *a) {
    result alone = new_result(a, a->whole.steps);
    double error = 0;
    for (size_t b = 0; b < a->B; ++b) {
        part p = {0, a->lengths[b], b, 1, 1, NULL, 1, NULL};
        const size_t out = p.steps ? run(kernel, a, &alone, 0, p) : 0;
        alone.unwritten[b] = (int)(alone.steps - out);
    }
    for (size_t threads = 1; threads <= most_threads; ++threads) {
        result both = new_result(a, a->whole.steps);
        part p = whole_case(a, threads);
        p.lengths = a->lengths;
        run(kernel, a, &both, 0, p);
        memcpy(both.unwritten, alone.unwritten, a->B * sizeof(int));
        check_canaries(a, &both);
        demand_same(a, &alone, &both, "a row of its own length gives other bits than alone");
        error = fmax(error, error_of(a, &both, &a->cut_short));
    }
    return error;
}

/* Rows that have read different numbers of steps, as the streams of a pool have: each goes on as it
 * does alone. */
static void check_phases(const fl_kernel *kernel, const test_case *a) {
    const size_t size = a->model.state_size * a->real_size;
    result begun = new_result(a, a->streamed.steps);
    size_t most = 0, *lengths = (size_t *)(void *)fenced(a->B * sizeof(size_t));
    for (size_t b = 0; b < a->B; ++b) {
        part p = {0, b % 4 < a->T ? b % 4 : a->T, b, 1, 0, NULL, 1, NULL};
        if (p.steps) run(kernel, a, &begun, 0, p);
        most = larger(most, fl_output_steps(&a->model, kernel, a->T, 0, begun.state[b]));
        lengths[b] = a->T;
    }
    result alone = new_result(a, most);
    for (size_t b = 0; b < a->B; ++b) {
        part p = {0, a->T, b, 1, 0, NULL, 1, NULL};
        memcpy(alone.state[b], begun.state[b], size);
        alone.unwritten[b] = (int)(most - run(kernel, a, &alone, 0, p));
    }
    for (size_t threads = 1; threads <= most_threads; ++threads) {
        result both = new_result(a, most);
        part p = {0, a->T, 0, a->B, 0, lengths, threads, NULL};
        for (size_t b = 0; b < a->B; ++b) memcpy(both.state[b], begun.state[b], size);
        run(kernel, a, &both, 0, p);
        memcpy(both.unwritten, alone.unwritten, a->B * sizeof(int));
        check_canaries(a, &both);
        demand_same(a, &alone, &both, "a row of its own phase gives other bits than alone");
        free_result(a, &both);
    }
    free_fenced((char *)lengths, a->B * sizeof(size_t));
    free_result(a, &alone);
    free_result(a, &begun);
}

/* Every row of the case with the same odd count in its state, or with what that is to be taken as;
 * number `i` of them. */
static result with_count(const fl_kernel *kernel, const test_case *a, size_t i, int whole,
                         int taken) {
    static const double odd[] = {NAN,   INFINITY, -INFINITY, -1,     -0.5,
                                 0.5, 1e300,    0x1p24,    0x1p31, 0x1p63};
    const size_t n = sizeof odd / sizeof *odd;
    result counted = new_result(a, 0), made;
    for (size_t c = 0; c < a->n_counters; ++c) {
        const counter *k = a->counters + c;
        double count = i < n ? odd[i] : i == n ? k->bound : k->bound - 0.5;
        for (size_t b = 0; b < a->B; ++b) {
            put(counted.state[b], k->offset, a->real_size, count);
            count = at(counted.state[b], k->offset, a->real_size);
            if (!taken) continue;
            count = count >= 0 && count < k->bound ? floor(count) : 0;
            put(counted.state[b], k->offset, a->real_size, count);
        }
    }
    made = new_result(a, fl_output_steps(&a->model, kernel, a->T, whole, counted.state[0]));
    for (size_t b = 0; b < a->B; ++b)
        memcpy(made.state[b], counted.state[b], a->model.state_size * a->real_size);
    free_result(a, &counted);
    return made;
}

enum { ODD_COUNTS = 12 };

/* A state may hold anything: what does not count steps counts as none, and nothing else happens. */
static void check_counters(const fl_kernel *kernel, const test_case *a) {
    for (size_t i = 0; i < ODD_COUNTS; ++i) {
        const int whole = a->model.looks_ahead || i % 2;
        result taken = with_count(kernel, a, i, whole, 1);
        part p = whole_case(a, 1);
        p.whole = whole;
        run(kernel, a, &taken, 0, p);
        for (p.threads = 1; p.threads <= most_threads; ++p.threads) {
            result given = with_count(kernel, a, i, whole, 0);
            run(kernel, a, &given, 0, p);
            check_canaries(a, &given);
            demand(given.steps == taken.steps, "an odd count gives another number of rows");
            demand_same(a, &given, &taken, "an odd count is not taken for none");
            free_result(a, &given);
        }
        free_result(a, &taken);
    }
}

/* `fl_watch.ask`: stop when asked for the last time that is left. */
static int count_down(void *given) {
    size_t *left = given;
    return *left && !--*left;
}

/* A run that stops at every so many questions, alone and on teams: a whole sequence just ends, and
 * the rows of a stream are as after as many steps as the call says. */
static void check_stops(const fl_kernel *kernel, const test_case *a) {
    const size_t size = a->model.state_size * a->real_size, B = a->B;
    const int whole = a->model.looks_ahead;
    const size_t outputs = whole ? a->whole.steps : a->streamed.steps;
    kept = fenced(B * size);
    for (size_t threads = 1; threads <= most_threads; ++threads) {
        int goes_on = 1;
        for (size_t asks = 1; goes_on; asks = 7 * asks + 1) {
            size_t left = asks;
            fl_watch asked;
            memset(&asked, 0, sizeof asked);
            asked.ask = count_down;
            asked.who = &left;
            result stopped = new_result(a, outputs);
            part p = {0, a->T, 0, B, whole, NULL, threads, NULL};
            watch = &asked;
            run(kernel, a, &stopped, 0, p);
            watch = NULL;
            goes_on = !left;
            demand(done <= a->T && goes_on == (asked.stop != 0), "a run did not stop when told");
            demand(goes_on || done == a->T, "a run stopped that was not told to");
            demand(all_canaries(kept - CANARIES, CANARIES), "bytes before the kept states changed");
            if (!whole) {
                result begun = new_result(a, outputs);
                p.steps = done;
                p.threads = 1;
                const size_t out = done ? run(kernel, a, &begun, 0, p) : 0;
                for (size_t b = 0; b < B; ++b) {
                    demand(same(stopped.state[b], begun.state[b], a->model.state_size,
                                a->real_size),
                           "a run that stopped is not in the state after its steps");
                    for (size_t t = 0; t < out; ++t)
                        demand(same(row_of(a, &stopped, t, b), row_of(a, &begun, t, b), a->O,
                                    a->real_size),
                               "a run that stopped gave other rows");
                }
                p.t = done;
                p.steps = a->T - done;
                p.threads = threads;
                if (p.steps) run(kernel, a, &stopped, out, p);
                check_canaries(a, &stopped);
                free_result(a, &begun);
            }
            free_result(a, &stopped);
        }
    }
    free_fenced(kept, B * size);
    kept = NULL;
}

static double check_case(const fl_kernel *kernel, const test_case *a) {
    result whole = new_result(a, a->whole.steps);
    double error;
    demand(run(kernel, a, &whole, 0, whole_case(a, 1)) == whole.steps, "another number of rows");
    check_canaries(a, &whole);
    error = error_of(a, &whole, &a->whole);
    for (size_t threads = 1; threads <= most_threads; ++threads) {
        result shared = new_result(a, whole.steps), blas = new_result(a, whole.steps);
        part p = whole_case(a, threads);
        if (threads > 1) {
            run(kernel, a, &shared, 0, p);
            check_canaries(a, &shared);
            demand_same(a, &whole, &shared, "a team gives other bits than one thread");
        }
        p.gemm = a->real_size == 4 ? gemm_of_floats : gemm_of_doubles;
        run(kernel, a, &blas, 0, p);
        check_canaries(a, &blas);
        error = fmax(error, error_of(a, &blas, &a->whole));
    }
    result alone = new_result(a, whole.steps);
    for (size_t b = 0; b < a->B; ++b) {
        part p = {0, a->T, b, 1, 1, NULL, 1, NULL};
        run(kernel, a, &alone, 0, p);
    }
    check_canaries(a, &alone);
    demand_same(a, &whole, &alone, "a row alone gives other bits than in the batch");
    if (!a->model.looks_ahead) {
        error = fmax(error, check_streams(kernel, a, &whole));
        check_phases(kernel, a);
    }
    if (a->lengths) error = fmax(error, check_lengths(kernel, a));
    if (a->n_counters) check_counters(kernel, a);
    check_stops(kernel, a);
    check_plans(kernel, a);
    return error;
}

/* FNV-1a of n reals, of which every NaN counts as the same. */
static uint64_t digest(uint64_t hash, const char *reals, size_t n, size_t real_size) {
    for (size_t i = 0; i < n; ++i) {
        const int is_nan = isnan(at(reals, i, real_size));
        for (size_t j = 0; j < real_size; ++j) {
            hash ^= is_nan ? 0xff : (unsigned char)reals[i * real_size + j];
            hash *= 0x100000001b3u;
        }
    }
    return hash;
}

static uint64_t digest_of(uint64_t hash, const test_case *a, const result *r) {
    for (size_t b = 0; b < a->B; ++b) {
        for (size_t t = 0; t + (size_t)r->unwritten[b] < r->steps; ++t)
            hash = digest(hash, row_of(a, r, t, b), a->O, a->real_size);
        hash = digest(hash, r->state[b], a->model.state_size, a->real_size);
    }
    return hash;
}

/* Of the whole batch, of each row alone, and of a stream in blocks of three steps. */
static uint64_t bits_of_case(const fl_kernel *kernel, const test_case *a) {
    result whole = new_result(a, a->whole.steps), alone = new_result(a, a->whole.steps);
    uint64_t hash = 0xcbf29ce484222325u;
    run(kernel, a, &whole, 0, whole_case(a, 1));
    hash = digest_of(hash, a, &whole);
    for (size_t b = 0; b < a->B; ++b) {
        part p = {0, a->lengths ? a->lengths[b] : a->T, b, 1, 1, NULL, 1, NULL};
        const size_t out = p.steps ? run(kernel, a, &alone, 0, p) : 0;
        alone.unwritten[b] = (int)(alone.steps - out);
    }
    hash = digest_of(hash, a, &alone);
    if (a->model.looks_ahead) return hash;
    const result stream = streamed(kernel, a, 3, 1);
    return digest_of(hash, a, &stream);
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
    int over = 0, next = 1, bits = 0;
    if (argc == 1)
        for (const fl_kernel *const *k = fl_kernels; *k; ++k)
            if (fl_find((*k)->name, (*k)->real_size))
                printf("%s %zu\n", (*k)->name, (*k)->real_size);
    for (; next < argc && argv[next][0] == '-'; ++next) {
        const char *option = argv[next];
        demand(!strcmp(option, "--slack") || !strcmp(option, "--alone") ||
                   !strcmp(option, "--bits"),
               "no such option");
        if (!strcmp(option, "--slack")) slack = 64;
        else most_threads = 1;
        bits |= !strcmp(option, "--bits");
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
        if (bits) {
            printf("bits %016" PRIx64 "\n", bits_of_case(kernel, &a));
            continue;
        }
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
