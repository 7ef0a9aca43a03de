/* cut.c - a call before it starts: how it is cut into chunks and shares, where its scratch memory
 * goes, and whether threads share it.
 */
#include <string.h>

#include "call.h"
#include "scratch.h"

/* Chunks have so many times the steps whose input projections are made together: the first of them
 * are not made on the side of others. */
enum { PARTS = 16 };

/* Rows of a chunk of the widest buffer, if it is wider than any cell's gates: they stay near the core
 * until the next operation reads them. */
enum { BUFFER_BYTES = 256 * 1024, LEAST_ROWS = 24 };

/* Rows that a rank has to itself, rather than panels of all rows, if there are so many. */
enum { LEAST_ROWS_OF_A_RANK = 4 };

/* Reserve `bytes` at the end of `total`, from a multiple of 64 on. */
static size_t reserve(size_t *total, size_t bytes) {
    const size_t at = *total, padded = fl_checked(1, bytes, 63);
    *total = padded == SIZE_MAX ? SIZE_MAX : fl_checked(1, padded / 64 * 64, at);
    return at;
}

/* The bound of the rows that operation i runs over; that of held values is the one of line 0. */
static fl_bound step_bound(const fl_model *model, size_t i) {
    const ptrdiff_t on = model->courses[i].on;
    return model->bounds[on < 0 ? 0 : on];
}

/* Numbers of a step's input projection of the widest cell, and of the widest buffer. */
static size_t widest_gates(const fl_model *model) {
    size_t widest = 0;
    for (size_t i = 0; i < model->program.operation_count; ++i) {
        const fl_panels *gates = &model->packed[i].recurrent.gates;
        if (model->program.operations[i].kind == FL_RECURRENT)
            widest = fl_most(widest, gates->panels * gates->groups * model->kernel->lanes);
    }
    return widest;
}
static size_t widest_buffer(const fl_model *model) {
    size_t widest = 0;
    for (size_t i = 0; i < model->program.buffers; ++i)
        widest = fl_most(widest, model->rooms[i + 1].each - model->rooms[i].each);
    return widest;
}

/* Steps of a chunk of B batch rows. */
static size_t steps_of_chunk(const fl_model *model, size_t T, size_t B) {
    const size_t gates = widest_gates(model), row = widest_buffer(model);
    const size_t real_size = model->kernel->real_size, widest = fl_most(fl_most(gates, row), 16);
    size_t steps = fl_checked(fl_most(fl_gate_rows(widest, real_size) / B, 1), PARTS, 0);
    if (model->program.looks_ahead || T < 1) return fl_most(T, 1);
    if (row > gates) {
        const size_t rows = fl_most(BUFFER_BYTES / (row * real_size), LEAST_ROWS);
        const size_t fewer = fl_most(rows / B, 1);
        if (fewer < steps) steps = fewer;
    }
    return steps < T ? steps : T;
}

/* What operation i needs while it runs. */
static fl_need need_of(const fl_model *model, size_t i, fl_extent extent, size_t chunk) {
    const fl_operation *op = model->program.operations + i;
    const fl_packed *packed = model->packed + i;
    const fl_need none = {0, 0};
    switch (op->kind) {
    case FL_PRODUCT: return fl_product_need(&op->product, &packed->product, &extent);
    case FL_ATTENTION:
        return fl_attention_need(model->program.value[op->attention.scores].count, &extent);
    case FL_RECURRENT:
        extent.rows = fl_most_rows(step_bound(model, i), chunk);
        return fl_recurrent_need(&op->recurrent, &packed->recurrent, &extent);
    default: return none;
    }
}

/* One cut, for a given number of ranks that share the panels of B rows. */
static void cut_call(const fl_model *model, size_t T, size_t B, size_t ranks, fl_cut *cut) {
    const fl_program *program = &model->program;
    const size_t real_size = model->kernel->real_size;
    const size_t counted = fl_checked(1, program->lines, program->output_count);
    const fl_room room = model->rooms[program->buffers];
    const fl_extent extent = {model->kernel->lanes, real_size, B, 0};
    fl_need most = {0, 0};
    memset(cut, 0, sizeof *cut);
    cut->chunk = steps_of_chunk(model, T, B);
    for (size_t i = 0; i < program->operation_count; ++i) {
        const fl_need need = need_of(model, i, extent, cut->chunk);
        most.shared = fl_most(most.shared, need.shared);
        most.own = fl_most(most.own, need.own);
    }
    reserve(&cut->bytes,
            fl_checked(fl_checked(fl_checked(cut->chunk, room.each, room.more), B, 0), real_size, 0));
    cut->shared = reserve(&cut->bytes, most.shared);
    cut->kept = reserve(&cut->bytes, fl_checked(fl_checked(program->state_size, B, 0), real_size, 0));
    cut->states = reserve(&cut->bytes, fl_checked(B, sizeof(void *), 0));
    cut->counts = reserve(&cut->own_bytes, fl_checked(fl_checked(counted, B, 0), sizeof(size_t), 0));
    cut->lines =
        reserve(&cut->own_bytes, fl_checked(fl_checked(1, counted, 1), sizeof(line_rows), 0));
    cut->work = reserve(&cut->own_bytes, most.own);
    cut->own = reserve(&cut->bytes, fl_checked(ranks, cut->own_bytes, 0));
}

/* What a core does in a nanosecond, about: multiply-adds, and bytes it reads of a second-level cache
 * and of what lies behind it. Only the choice of a number of ranks hangs on them. */
static const double FMAS_A_NS = 50, BYTES_A_NS = 100, FAR_BYTES_A_NS = 40;
static const double NEAR_BYTES = 1 << 20;

/* A rank pays its way from this much work between two meetings, or in a whole call that it has rows
 * of its own for; a meeting takes up to 300 ns (tests/core/team_driver.c, latency). The tests
 * set it to next to nothing, so that every run is shared. */
#ifndef FL_LEAST_NS
#define FL_LEAST_NS 800
#endif

/* Work that lasts longer than a waiting thread spins before it sleeps, in nanoseconds, is worth waking
 * one. The tests set it to 0, so that every shared run waits for its threads. */
#ifndef FL_LONG_NS
#define FL_LONG_NS 50000
#endif

/* What an operation takes a step, of B rows: the elements of its matrices, how often each of them is
 * multiplied, and its panels. */
typedef struct {
    double elements, times;
    size_t panels, meetings;
} effort;

static double rate_of(const fl_model *model, size_t i) {
    const fl_bound bound = step_bound(model, i);
    return (double)bound.factor / (double)bound.divisor;
}

static effort effort_of(const fl_model *model, size_t i, size_t B) {
    const fl_operation *op = model->program.operations + i;
    const fl_packed *packed = model->packed + i;
    effort made = {0, 0, 0, 0};
    if (op->kind == FL_PRODUCT) {
        const fl_panels *panels = packed->product.panels;
        made.panels = panels->panels;
        made.elements =
            (double)packed->product.groups * (double)panels->panels * (double)panels->stride;
        made.times = (double)op->product.positions * rate_of(model, i);
    } else if (op->kind == FL_RECURRENT) {
        const fl_cell *cell = &packed->recurrent;
        made.panels = cell->gates.panels;
        made.elements = (double)cell->gates.panels * (double)cell->gates.stride;
        if (cell->projection.weights)
            made.elements += (double)cell->projection.panels * (double)cell->projection.stride;
        made.times = (double)op->recurrent.positions * (double)op->recurrent.steps *
                     rate_of(model, i);
        made.meetings = op->recurrent.along_positions ? op->recurrent.steps : 1;
    } else if (op->kind == FL_MATMUL) {
        made.elements = (double)op->matmul.n * (double)op->matmul.k * (double)op->matmul.p;
        made.times = (double)op->matmul.places.count / 2 * rate_of(model, i);
    }
    made.times *= (double)B;
    return made;
}

/* How long reading a byte takes, if a step reads so many. */
static double ns_of_byte(double bytes) {
    const double near = bytes < NEAR_BYTES ? bytes : NEAR_BYTES;
    return bytes > 0 ? (near / BYTES_A_NS + (bytes - near) / FAR_BYTES_A_NS) / bytes : 0;
}

/* How many ranks a call is worth, and how they share it. */
static void share_call(const fl_model *model, size_t T, size_t B, size_t threads, fl_plan *plan) {
    const double real_size = (double)model->kernel->real_size;
    double elements = 0, total = 0, meetings = 0, ranks;
    size_t panels = 0;
    for (size_t i = 0; i < model->program.operation_count; ++i)
        elements += effort_of(model, i, B).elements;
    const double byte_ns = ns_of_byte(elements * real_size);
    for (size_t i = 0; i < model->program.operation_count; ++i) {
        const effort each = effort_of(model, i, B);
        const double read = each.elements * real_size * byte_ns;
        const double computed = each.elements * each.times * real_size / 4 / FMAS_A_NS;
        total += read > computed ? read : computed;
        meetings += (double)each.meetings;
        panels = fl_most(panels, each.panels);
    }
    plan->is_long = total * (double)T >= FL_LONG_NS;
    plan->by_rows = B >= LEAST_ROWS_OF_A_RANK * threads || (B > 1 && panels < threads);
    ranks = plan->by_rows ? total * (double)T : total / (meetings > 1 ? meetings : 1);
    ranks /= FL_LEAST_NS;
    if (ranks > (double)threads) ranks = (double)threads;
    if (!plan->by_rows && ranks > (double)panels) ranks = (double)panels;
    if (plan->by_rows && ranks > (double)B) ranks = (double)B;
    plan->ranks = ranks >= 2 ? (size_t)ranks : 1;
}

int fl_plan_call(const fl_model *model, size_t T, size_t B, size_t threads, fl_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->ranks = 1;
    if (B == 0) return 0;
    cut_call(model, T, B, 1, &plan->alone);
    plan->bytes = plan->alone.bytes;
    if (threads > 1 && T) share_call(model, T, B, threads, plan);
    if (plan->ranks > 1) {
        const size_t rows = plan->by_rows ? (B + plan->ranks - 1) / plan->ranks : B;
        cut_call(model, T, rows, plan->by_rows ? 1 : plan->ranks, &plan->shared);
        plan->bytes = fl_most(
            plan->bytes, fl_checked(plan->by_rows ? plan->ranks : 1, plan->shared.bytes, 0));
    }
    return plan->bytes == SIZE_MAX ? -1 : 0;
}

/* ---- Running ---- */

/* A call that threads share. All ranks read it, so none may write to it. */
typedef struct {
    const fl_running *call;
    const fl_plan *plan;
} shared_call;

/* The first batch row of a rank that has rows to itself. */
static size_t first_row_of(const fl_running *call, size_t rank, size_t ranks) {
    return call->B * rank / ranks;
}

static void run_share(void *job, size_t rank, size_t ranks) {
    const shared_call *all = job;
    fl_running mine = *all->call;
    mine.cut = &all->plan->shared;
    mine.member = rank;
    mine.members = ranks;
    mine.asks = mine.watch && rank == 0;
    if (all->plan->by_rows) {
        const size_t first = first_row_of(all->call, rank, ranks);
        mine.B = first_row_of(all->call, rank + 1, ranks) - first;
        mine.first_row = first;
        mine.states += first;
        if (mine.prepared) mine.prepared += first;
        if (mine.lengths) mine.lengths += first;
        if (mine.given) mine.given += first;
        mine.scratch = (char *)mine.scratch + rank * mine.cut->bytes;
    } else {
        mine.rank = rank;
        mine.ranks = ranks;
    }
    mine.model->kernel->run(&mine);
    if (mine.watch && __atomic_load_n(&mine.watch->stop, __ATOMIC_ACQUIRE))
        mine.threads->leave(mine.threads->team, rank);
}

/* Put the states of rows [first, end) back to where the chunk began that was given up. */
static void put_back(const fl_running *call, const fl_cut *cut, const void *scratch, size_t first,
                     size_t end) {
    const size_t size = call->model->program.state_size * call->model->kernel->real_size;
    for (size_t b = first; b < end; ++b)
        memcpy(call->states[b], (const char *)scratch + cut->kept + (b - first) * size, size);
}

static void set_alone(fl_running *call, const fl_plan *plan) {
    call->cut = &plan->alone;
    call->first_row = call->rank = call->member = 0;
    call->ranks = call->members = 1;
    call->asks = call->watch != NULL;
    if (!call->watch) return;
    call->watch->stop = call->watch->work = 0;
    call->watch->at = 1;
}

void fl_begin_alone(fl_running *call, const fl_plan *plan) {
    set_alone(call, plan);
    call->model->kernel->begin(call);
}

void fl_count_alone(fl_running *call, const fl_plan *plan) {
    set_alone(call, plan);
    call->model->kernel->count(call);
}

void fl_share(fl_running *call, const fl_plan *plan) {
    const fl_threads *threads = call->threads;
    const fl_watch *watch = call->watch;
    size_t ranks = 1;
    set_alone(call, plan);
    if (threads && plan->ranks > 1 && !call->ending)
        ranks = threads->take(threads->team, plan->ranks, plan->is_long);
    if (ranks > 1) {
        shared_call all = {call, plan};
        threads->run(threads->team, ranks, run_share, &all);
    } else {
        call->model->kernel->run(call);
    }
    call->done = call->T;
    if (!watch || !watch->stop) return;
    call->done = watch->stop - 1;
    if (call->ending) return;
    const size_t parts = ranks > 1 && plan->by_rows ? ranks : 1;
    const fl_cut *cut = ranks > 1 ? &plan->shared : &plan->alone;
    for (size_t i = 0; i < parts; ++i)
        put_back(call, cut, (const char *)call->scratch + i * cut->bytes,
                 first_row_of(call, i, parts), first_row_of(call, i + 1, parts));
}
