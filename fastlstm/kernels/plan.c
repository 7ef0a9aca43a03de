/* plan.c - a run before it starts: how it is cut into chunks, parts and shares, where its scratch
 * memory goes, and whether a team runs it.
 */
#include <string.h>

#include "fastlstm.h"

/* Input projections held at once: few enough to stay near the core while the weights stream past
 * them, enough rows to share each reading of the input's weights. There are two such parts: one is
 * scanned while the next is made. A chunk has many: its first is not made on the side. */
enum { GATE_BYTES = 64 * 1024, LEAST_GATE_ROWS = 24, PARTS = 16 };

/* Outputs of a chunk of a layer that is wider than any cell's gates: they stay near the core until
 * the next layer reads them. */
enum { BUFFER_BYTES = 256 * 1024 };

/* Rows that a rank has to itself, rather than panels of all rows, if there are so many. */
enum { LEAST_ROWS = 4 };

/* a * b + c, or SIZE_MAX if that or an operand overflows; SIZE_MAX never is a legal size here. */
static size_t checked(size_t a, size_t b, size_t c) {
    size_t product, sum;
    if (a == SIZE_MAX || b == SIZE_MAX || c == SIZE_MAX) return SIZE_MAX;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum))
        return SIZE_MAX;
    return sum;
}

/* Reserve `bytes` at the end of `total`, from a multiple of 64 on. */
static size_t reserve(size_t *total, size_t bytes) {
    size_t at = *total, padded = checked(1, bytes, 63);
    *total = padded == SIZE_MAX ? SIZE_MAX : checked(1, padded / 64 * 64, at);
    return at;
}

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

/* Steps that convolutions add to a sequence. */
static size_t padding_of(const fl_model *model) {
    size_t steps = 0;
    for (size_t l = 0; l < model->n_layers; ++l)
        if (model->layers[l].kind == FL_TIME_CONV)
            steps = checked(1, model->layers[l].convolution.padding_right, steps);
    return steps;
}

/* What the layers of a model need of a cut, in elements. */
typedef struct {
    size_t width[FL_MOST_BUFFERS];  /* of a row of each buffer */
    size_t row;                     /* the widest row of any */
    size_t gates, hidden, variant, patch;
} needs;

static needs needs_of(const fl_model *model, const fl_kernel *kernel) {
    needs made;
    memset(&made, 0, sizeof made);
    for (size_t l = 0; l < model->n_layers; ++l) {
        const fl_layer *layer = model->layers + l;
        const fl_convolution *conv = &layer->convolution;
        if (layer->to < FL_MOST_BUFFERS)
            made.width[layer->to] = largest(made.width[layer->to], layer->output_size);
        if (l + 1 < model->n_layers) made.row = largest(made.row, layer->output_size);
        if (layer->kind == FL_FRAME_CONV || layer->kind == FL_TIME_CONV)
            made.patch = largest(made.patch, checked(conv->kernel_size, conv->channels, 0));
        for (int d = 0; d < layer->directions; ++d) {
            const fl_cell *cell = layer->cell + d;
            const size_t units = cell->gates.panels * kernel->lanes;
            const size_t gates = units * cell->gates.groups;
            made.gates = largest(made.gates, gates);
            if (cell->projection.weights) made.hidden = largest(made.hidden, cell->hidden_size);
            if (cell->variant) made.variant = largest(made.variant, 2 * (gates + units));
        }
    }
    return made;
}

/* One cut, for a given number of ranks that share the panels of B rows. */
static void cut_run(const fl_model *model, const fl_kernel *kernel, size_t T, size_t B,
                    size_t ranks, fl_cut *cut) {
    const size_t real_size = kernel->real_size, pointer = sizeof(void *);
    const needs need = needs_of(model, kernel);
    /* Also without recurrent layers a chunk is bounded: by its widest row, or by the pointers that
     * go with each row. */
    const size_t widest = largest(largest(need.gates, need.row), 4 * 3 * pointer / real_size);
    size_t rows = largest(GATE_BYTES / (widest * real_size), LEAST_GATE_ROWS), steps;
    memset(cut, 0, sizeof *cut);
    steps = largest(rows / B, 1);
    cut->gate_steps = steps < T ? steps : T;
    steps = checked(cut->gate_steps, PARTS, 0);
    if (need.row > need.gates) {
        rows = largest(BUFFER_BYTES / (need.row * real_size), LEAST_GATE_ROWS);
        if (largest(rows / B, 1) < steps) steps = largest(rows / B, 1);
        if (cut->gate_steps > steps) cut->gate_steps = steps;
    }
    cut->chunk = model->looks_ahead || steps > T ? T : steps;
    rows = checked(checked(cut->chunk, 1, model->looks_ahead ? padding_of(model) : 0), B, 0);
    for (int i = FL_BUFFERS; i < FL_MOST_BUFFERS; ++i)
        cut->buffer[i] =
            reserve(&cut->bytes, checked(checked(rows, need.width[i], 0), real_size, 0));
    cut->gates = reserve(
        &cut->bytes, cut->gate_steps > 1
                         ? checked(checked(checked(cut->gate_steps, 2 * B, 0), need.gates, 0),
                                   real_size, 0)
                         : 0);
    cut->hidden = reserve(&cut->bytes, checked(checked(B, need.hidden, 0), real_size, 0));
    cut->variant = reserve(&cut->bytes, checked(checked(B, need.variant, 0), real_size, 0));
    cut->x_rows = reserve(&cut->own_bytes, checked(rows, pointer, 0));
    cut->beside_rows = reserve(&cut->own_bytes, checked(rows, pointer, 0));
    cut->y_rows = reserve(&cut->own_bytes, checked(rows, pointer, 0));
    cut->tokens =
        reserve(&cut->own_bytes, model->takes_tokens ? checked(rows, sizeof(int64_t), 0) : 0);
    cut->cell_rows =
        reserve(&cut->own_bytes, checked(largest(B, FL_POSITIONS), 3 * 6 * pointer, 0));
    cut->patches = reserve(&cut->own_bytes,
                           checked(checked(FL_POSITIONS, need.patch, 0), real_size, 0));
    cut->left = reserve(&cut->own_bytes, checked(4 * sizeof(size_t), B, 0));
    cut->own = reserve(&cut->bytes, checked(ranks, cut->own_bytes, 0));
}

/* What a core does in a nanosecond, about: bytes it reads beyond its first-level cache, and
 * multiply-adds. Only the choice of a number of ranks hangs on them. */
static const double BYTES_A_NS = 100, FMAS_A_NS = 50;

/* A rank pays its way from this much work between two meetings, or in a whole call that it has rows
 * of its own for; a meeting takes up to 300 ns (tests/kernels/team_driver.c, latency). The tests
 * set it to next to nothing, so that every run is shared. */
#ifndef FL_LEAST_NS
#define FL_LEAST_NS 800
#endif

/* How many ranks a run is worth, and how they share it. */
static void share_run(const fl_model *model, const fl_kernel *kernel, size_t T, size_t B,
                      size_t threads, fl_plan *plan) {
    double total = 0, meetings = 0, ranks;
    size_t panels = 0;
    for (size_t l = 0; l < model->n_layers; ++l) {
        const fl_layer *layer = model->layers + l;
        const size_t P = layer->directions ? layer->cell[0].gates.panels : layer->linear.panels;
        const size_t outputs =
            layer->kind == FL_FRAME_CONV ? layer->convolution.out_width * B : B;
        const size_t groups = layer->convolution.groups ? layer->convolution.groups : 1;
        double elements = (double)(layer->linear.panels * groups) * (double)layer->linear.stride;
        for (int d = 0; d < layer->directions; ++d)
            elements += (double)layer->cell[d].gates.panels * (double)layer->cell[d].gates.stride;
        const double read = elements * (double)kernel->real_size / BYTES_A_NS;
        const double computed =
            elements * (double)outputs * (double)kernel->real_size / 4 / FMAS_A_NS;
        total += read > computed ? read : computed;
        meetings += layer->directions;
        if (P > panels) panels = P;
    }
    plan->is_long = total * (double)T >= 1000.0 * FL_TEAM_SPIN_US;
    plan->by_rows = B >= LEAST_ROWS * threads || (B > 1 && panels < threads);
    ranks = plan->by_rows ? total * (double)T : total / (meetings > 1 ? meetings : 1);
    ranks /= FL_LEAST_NS;
    if (ranks > (double)threads) ranks = (double)threads;
    if (!plan->by_rows && ranks > (double)panels) ranks = (double)panels;
    if (plan->by_rows && ranks > (double)B) ranks = (double)B;
    plan->ranks = ranks >= 2 ? (size_t)ranks : 1;
}

size_t fl_next_output(const fl_convolution *a, size_t count) {
    if (count + 1 <= a->first) return a->first - count - 1;
    return (a->stride - (count + 1 - a->first) % a->stride) % a->stride;
}

/* The steps counted in a state, as the kernel would read them. */
static size_t counted(const fl_convolution *a, const fl_kernel *kernel, const void *state) {
    if (!a->has_count || !state) return 0;
    const double count = kernel->real_size == 4 ? (double)((const float *)state)[a->count_offset]
                                                : ((const double *)state)[a->count_offset];
    return count >= 0 && count < (double)(a->first + a->period) ? (size_t)count : 0;
}

size_t fl_output_steps(const fl_model *model, const fl_kernel *kernel, size_t T, int whole,
                       const void *state) {
    for (size_t l = 0; l < model->n_layers; ++l) {
        const fl_layer *layer = model->layers + l;
        const fl_convolution *a = &layer->convolution;
        if (layer->kind == FL_POOL && whole) T = T > 0;
        if (layer->kind != FL_TIME_CONV) continue;
        if (a->padding_right) {
            const size_t padded = checked(1, T, a->padding_right);
            T = T && padded >= a->first ? (padded - a->first) / a->stride + 1 : 0;
        } else {
            const size_t next = fl_next_output(a, counted(a, kernel, state));
            T = next < T ? (T - 1 - next) / a->stride + 1 : 0;
        }
    }
    return T;
}

int fl_plan_run(const fl_model *model, const fl_kernel *kernel, size_t T, size_t B, size_t threads,
                fl_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->ranks = 1;
    if (T == 0 || B == 0) return 0;
    cut_run(model, kernel, T, B, 1, &plan->alone);
    plan->bytes = plan->alone.bytes;
    if (threads > 1) share_run(model, kernel, T, B, threads, plan);
    if (plan->ranks > 1) {
        const size_t rows = plan->by_rows ? (B + plan->ranks - 1) / plan->ranks : B;
        cut_run(model, kernel, T, rows, plan->by_rows ? 1 : plan->ranks, &plan->shared);
        plan->bytes = largest(
            plan->bytes, checked(plan->by_rows ? plan->ranks : 1, plan->shared.bytes, 0));
    }
    return plan->bytes == SIZE_MAX ? -1 : 0;
}

/* A call that a team runs. All ranks read `call`, so none may write to it. */
typedef struct {
    const fl_kernel *kernel;
    const fl_model *model;
    const fl_call *call;
    const char *ran;  /* written by rank 0 */
} shared_call;

static void run_share(void *job, size_t rank, size_t ranks) {
    shared_call *all = job;
    const fl_plan *plan = all->call->plan;
    fl_call mine = *all->call;
    mine.cut = &plan->shared;
    mine.member = rank;
    mine.members = ranks;
    mine.asks = mine.asks && rank == 0;
    if (plan->by_rows) {
        const size_t size = all->kernel->real_size, first = mine.B * rank / ranks;
        const ptrdiff_t x_first = (ptrdiff_t)first * mine.x_b;
        mine.B = mine.B * (rank + 1) / ranks - first;
        if (mine.tokens) mine.tokens += x_first;
        else mine.x = (const char *)mine.x + x_first * (ptrdiff_t)size;
        mine.y = (char *)mine.y + (ptrdiff_t)first * mine.y_b * (ptrdiff_t)size;
        if (mine.lengths) mine.lengths += first;
        mine.state += first;
        if (mine.kept) mine.kept = (char *)mine.kept + first * all->model->state_size * size;
        mine.scratch = (char *)mine.scratch + rank * plan->shared.bytes;
    } else {
        mine.rank = rank;
        mine.ranks = ranks;
    }
    all->kernel->run(all->model, &mine);
    if (rank == 0) all->ran = mine.ran;
    if (mine.watch && __atomic_load_n(&mine.watch->stop, __ATOMIC_ACQUIRE))
        fl_team_leave(mine.team, rank);
}

/* Run a call whose team, if it has one, may be had. */
static void run_all(const fl_kernel *kernel, const fl_model *model, fl_call *call) {
    const fl_plan *plan = call->plan;
    if (call->team && plan->ranks > 1) {
        const size_t ranks = fl_team_take(call->team, plan->ranks, plan->is_long);
        if (ranks > 1) {
            shared_call all = {kernel, model, call, NULL};
            fl_team_run(call->team, ranks, run_share, &all);
            call->turn += call->T;
            call->ran = all.ran;
            return;
        }
    }
    kernel->run(model, call);
}

void fl_run(const fl_kernel *kernel, const fl_model *model, fl_call *call, fl_team *team) {
    fl_watch *watch = call->watch;
    const size_t size = model->state_size * kernel->real_size;
    call->rank = call->member = 0;
    call->ranks = call->members = 1;
    call->team = team;
    call->cut = &call->plan->alone;
    call->asks = watch != NULL;
    if (watch) {
        watch->stop = watch->work = 0;
        watch->at = 1;
    }
    run_all(kernel, model, call);
    call->done = call->T;
    if (!watch || !watch->stop) return;
    call->done = watch->stop - 1;
    for (size_t b = 0; b < call->B && !call->whole; ++b)
        memcpy(call->state[b], (char *)call->kept + b * size, size);
}
