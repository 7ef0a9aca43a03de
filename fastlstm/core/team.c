/* team.c - the worker team: a hand-over, a barrier, and sleep when there is nothing to do.
 *
 * All is made of two operations on counts that only grow and that one thread at a time writes:
 * publish() a value, wait_until() a value is reached. Three counts are waited for: `called` of a
 * worker (by that worker, for its next job), `arrived` of every rank in a barrier (by all the
 * others), and `ended` of the workers at the end of a run (by rank 0).
 *
 * No wake-up is lost: a rank that goes to sleep writes `awaits` and then reads the count; who
 * publishes writes the count and then reads `awaits`. Between the two stands a full fence on either
 * side, so that one of them sees what the other wrote.
 */
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "system.h"
#include "team.h"

#if defined(FL_HAS_THREADS)

enum {
    LINE = 128,  /* two cache lines, which some processors fetch together */
    POLLS = 64   /* between two looks at the clock */
};

/* Who has spun for YIELD_NS may be keeping the core from the rank it waits for, so it offers the
 * core, and if nobody wants it spins for as long again: two ranks that had to share one took 55 us
 * for a barrier without that, and 9 us with it (tests/core/team_driver.c, latency). */
static const uint64_t SPIN_NS = FL_TEAM_SPIN_US * UINT64_C(1000), YIELD_NS = 5000;

/* More barriers than a run has. Who leaves one arrives at all of them. */
static const uint64_t MOST_BARRIERS = UINT64_C(1) << 40;

typedef _Atomic uint64_t count;
typedef const count *count_ptr;

typedef struct {
    /* Written by this rank while it works, read by the others. */
    alignas(LINE) count arrived;   /* barriers, over all runs */
    count ended;                   /* runs that this rank has ended, of those `called` for it */
    _Atomic count_ptr awaits;      /* the count this rank sleeps for, or NULL */
    _Atomic int cpu;               /* where it was when it last looked, or -1 */

    /* Written by rank 0 before it publishes `called`, read by this rank. */
    alignas(LINE) count called;    /* runs that wanted this rank */
    fl_work work;                  /* NULL: return from the thread */
    void *job;
    size_t ranks;
    uint64_t base;                 /* `arrived` of every rank as the run begins */
    uint64_t rounding;             /* fl_rounding() of rank 0 */

    alignas(LINE) fl_gate gate;
    int woken;                     /* under `gate`: sleep no longer, reached or not */
    fl_thread thread;
    fl_team *team;
} fl_rank;

struct fl_team {
    /* 2 * generation of the process + whether the team is taken: what a parent left behind, even
     * amid a run, is not taken in its child. Only who takes the team touches what follows. */
    alignas(LINE) count taken;
    uint64_t generation;           /* that all else here, and the threads, belong to */
    enum { IDLE, STARTED, FAILED } threads;
    uint64_t asked_ns;             /* when the last call came that found a worker asleep */
    size_t size;
    uintptr_t caller;              /* whose processors were looked up last, */
    unsigned calls;                /* and the calls since then */
    fl_gate moving;                /* held while a rank is moved, or `allowed` written */
    fl_processors allowed;         /* the caller's processors; may be none */
    int processors, most;          /* how many those are, and the most that they ever were */
    fl_rank rank[];                /* (size,) */
};

/* Where the rank runs. Written only when it changes: others read the line. */
static int note_cpu(fl_rank *me) {
    const int cpu = fl_this_processor();
    if (atomic_load_explicit(&me->cpu, memory_order_relaxed) != cpu)
        atomic_store_explicit(&me->cpu, cpu, memory_order_relaxed);
    return cpu;
}

static int shares_cpu(fl_rank *me) {
    const int cpu = note_cpu(me);
    for (fl_rank *lower = me->team->rank; lower < me && cpu >= 0; ++lower)
        if (atomic_load_explicit(&lower->cpu, memory_order_relaxed) == cpu) return 1;
    return 0;
}

/* Leave the processor of a lower rank, if there is another. A system may wake a worker where its
 * caller runs, which does not stop for it, and let the two take turns for milliseconds. */
static void step_aside(fl_rank *me) {
    fl_team *const team = me->team;
    if (!shares_cpu(me)) return;
    fl_gate_lock(&team->moving);
    fl_processors others = team->allowed;
    for (fl_rank *lower = team->rank; lower < me; ++lower)
        fl_processors_drop(&others, atomic_load_explicit(&lower->cpu, memory_order_relaxed));
    if (fl_processors_count(&others)) fl_processors_keep_to(&others, NULL);
    fl_gate_unlock(&team->moving);
    note_cpu(me);
}

/* Have all ranks [1, size) run where this thread may. Returns when none runs elsewhere. */
static void follow_caller(fl_team *team) {
    fl_processors now;
    team->caller = fl_this_thread();
    team->calls = 0;
    fl_processors_allowed(&now);
    if (!memcmp(&now, &team->allowed, sizeof now)) return;
    fl_gate_lock(&team->moving);
    team->allowed = now;
    for (size_t r = 1; r < team->size && team->threads == STARTED && fl_processors_count(&now); ++r)
        fl_processors_keep_to(&now, &team->rank[r].thread);
    fl_gate_unlock(&team->moving);
    team->processors = fl_processors_count(&now);
    if (team->processors > team->most) team->most = team->processors;
}

/* The same where its processors may be others than they were. */
static void follow_if_due(fl_team *team, int is_due) {
    const int cpu = note_cpu(team->rank);
    is_due |= ++team->calls >= FL_TEAM_SHORT_CALLS || team->caller != fl_this_thread();
    is_due |= team->processors && cpu >= 0 && !fl_processors_have(&team->allowed, cpu);
    if (is_due) follow_caller(team);
}

/* Whether the caller once had processors for so many ranks, and has no longer. */
static int is_confined(const fl_team *team, size_t ranks) {
    return team->processors < team->most && (size_t)team->processors < ranks;
}

static int sleeps(const fl_rank *rank) {
    return atomic_load_explicit(&rank->awaits, memory_order_relaxed) != NULL;
}

static void wake(fl_rank *rank) {
    fl_gate_lock(&rank->gate);
    if (sleeps(rank) && !rank->woken) {
        rank->woken = 1;
        fl_gate_signal(&rank->gate);
    }
    fl_gate_unlock(&rank->gate);
}

static void wake_if_awaits(fl_rank *rank, count_ptr at) {
    if (atomic_load_explicit(&rank->awaits, memory_order_relaxed) == at) wake(rank);
}

static int reached(count_ptr at, uint64_t value) {
    return atomic_load_explicit(at, memory_order_acquire) >= value;
}

/* The first half of publishing; the other is a wake_if_awaits() of each who may wait for it. */
static void publish(count *at, uint64_t value) {
    atomic_store_explicit(at, value, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
}

static void sleep_until(fl_rank *me, count_ptr at, uint64_t value) {
    fl_gate_lock(&me->gate);
    atomic_store_explicit(&me->awaits, at, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    while (!me->woken && !reached(at, value)) fl_gate_wait(&me->gate);
    me->woken = 0;
    atomic_store_explicit(&me->awaits, NULL, memory_order_relaxed);
    fl_gate_unlock(&me->gate);
}

/* One who is woken before the count is reached spins for another FL_TEAM_SPIN_US. */
static void wait_until(fl_rank *me, count_ptr at, uint64_t value) {
    for (;;) {
        uint64_t end = 0, yield = 0;
        for (unsigned poll = 1;; ++poll) {
            if (reached(at, value)) return;
            fl_relax();
            if (poll % POLLS) continue;
            const uint64_t now = fl_now_ns();
            if (!end) {
                end = now + SPIN_NS;
                yield = now + YIELD_NS;
            }
            if (now >= end) break;
            if (now >= yield) {
                step_aside(me);
                fl_yield();
                yield = now + YIELD_NS;
            }
        }
        sleep_until(me, at, value);
        step_aside(me);
    }
}

static uint64_t arrivals(const fl_rank *rank) {
    return atomic_load_explicit(&rank->arrived, memory_order_relaxed);
}

/* Have this rank count from `base`: it may have sat out runs that had barriers. */
static void begin_at(fl_rank *me, uint64_t base) {
    if (arrivals(me) != base) atomic_store_explicit(&me->arrived, base, memory_order_relaxed);
}

static void work_for_ever(void *given) {
    fl_rank *me = given;
    fl_rank *const all = me->team->rank;
    atomic_store_explicit(&me->awaits, NULL, memory_order_relaxed); /* it has started */
    step_aside(me);
    for (uint64_t call = 1;; ++call) {
        wait_until(me, &me->called, call);
        if (!me->work) return;
        begin_at(me, me->base);
        note_cpu(me);
        fl_round_as(me->rounding);
        me->work(me->job, (size_t)(me - all), me->ranks);
        publish(&me->ended, call);
        wake_if_awaits(all, &me->ended);
    }
}

void fl_team_barrier(fl_team *team, size_t rank, size_t ranks) {
    fl_rank *const all = team->rank, *const me = all + rank;
    const uint64_t value = arrivals(me) + 1;
    publish(&me->arrived, value);
    for (size_t r = 0; r < ranks; ++r)
        if (r != rank) wake_if_awaits(all + r, &me->arrived);
    for (size_t r = 0; r < ranks; ++r)
        if (r != rank) wait_until(me, &all[r].arrived, value);
}

void fl_team_leave(fl_team *team, size_t rank) {
    fl_rank *const all = team->rank, *const me = all + rank;
    publish(&me->arrived, me->base + MOST_BARRIERS);
    for (size_t r = 0; r < me->ranks; ++r)
        if (r != rank) wake_if_awaits(all + r, &me->arrived);
}

/* Give ranks [1, ranks) a job. The workers' lines are written one after the other, then waited for
 * at once: one fence serves them all. */
static void call(fl_team *team, size_t ranks, fl_work work, void *job, uint64_t base) {
    const uint64_t rounding = fl_rounding();
    for (size_t r = 1; r < ranks; ++r) {
        fl_rank *to = team->rank + r;
        const uint64_t calls = atomic_load_explicit(&to->called, memory_order_relaxed);
        to->work = work;
        to->job = job;
        to->ranks = ranks;
        to->base = base;
        to->rounding = rounding;
        atomic_store_explicit(&to->called, calls + 1, memory_order_release);
    }
    atomic_thread_fence(memory_order_seq_cst);
    for (size_t r = 1; r < ranks; ++r) wake_if_awaits(team->rank + r, &team->rank[r].called);
}

static void give_back(fl_team *team) {
    atomic_store_explicit(&team->taken, 2 * team->generation, memory_order_release);
}

void fl_team_run(fl_team *team, size_t ranks, fl_work work, void *job) {
    fl_rank *const me = team->rank;
    /* No rank has arrived at more: rank 0 is in every run, and leaves it if any other does. */
    const uint64_t base = arrivals(me);
    me->base = base;
    me->ranks = ranks;
    call(team, ranks, work, job, base);
    work(job, 0, ranks);
    for (size_t r = 1; r < ranks; ++r) {
        fl_rank *const other = team->rank + r;
        wait_until(me, &other->ended, atomic_load_explicit(&other->called, memory_order_relaxed));
    }
    give_back(team);
}

/* Nothing of what is there is looked at: in a child, it is what some moment of the parent left. */
static void begin(fl_team *team, uint64_t in) {
    for (size_t r = 0; r < team->size; ++r) {
        fl_rank *rank = team->rank + r;
        atomic_store(&rank->arrived, 0);
        atomic_store(&rank->ended, 0);
        atomic_store(&rank->called, 0);
        atomic_store(&rank->cpu, -1);
        atomic_store(&rank->awaits, r ? &rank->called : NULL); /* asleep until it has started */
        fl_gate_init(&rank->gate);
        rank->woken = 0;
        rank->team = team;
    }
    fl_gate_init(&team->moving);
    memset(&team->allowed, 0, sizeof team->allowed);
    team->caller = fl_this_thread();
    team->processors = team->most = 0;
    team->calls = FL_TEAM_SHORT_CALLS;
    team->threads = IDLE;
    team->asked_ns = 0;
    team->generation = in;
}

/* Stop ranks [1, ranks), all of them waiting for a job. */
static void stop(fl_team *team, size_t ranks) {
    call(team, ranks, NULL, NULL, 0);
    for (size_t r = 1; r < ranks; ++r) fl_thread_join(&team->rank[r].thread);
}

/* Start threads [1, size). Failing is remembered: the next call should not try it all again. */
static void start(fl_team *team) {
    size_t r = 1;
    team->threads = FAILED;
    if (fl_watch_forks()) return;
    follow_caller(team);
    while (r < team->size && !fl_thread_start(&team->rank[r].thread, work_for_ever, team->rank + r))
        ++r;
    if (r == team->size) team->threads = STARTED;
    else stop(team, r);
}

/* Whether the team, taken, may run with so many ranks now; if not, whether to have it ready soon
 * is decided here too. */
static int ready(fl_team *team, size_t ranks, int is_long) {
    int asleep = 0;
    if (team->threads == STARTED) {
        for (size_t r = 1; r < ranks; ++r) asleep |= sleeps(team->rank + r);
        follow_if_due(team, is_long || asleep);
        if (is_confined(team, ranks)) return 0;
    }
    if (team->threads == STARTED && (!asleep || is_long)) return 1;
    if (team->threads == FAILED) return 0;
    note_cpu(team->rank);
    if (!is_long) {
        const uint64_t before = team->asked_ns;
        team->asked_ns = fl_now_ns();
        if (team->asked_ns - before >= SPIN_NS) return 0;
    }
    if (team->threads == IDLE)
        start(team);
    else
        for (size_t r = 1; r < ranks; ++r)
            if (sleeps(team->rank + r)) wake(team->rank + r);
    /* One that was put behind this thread gets to leave for another processor. */
    if (!is_long) fl_yield();
    return is_long && team->threads == STARTED;
}

size_t fl_team_take(fl_team *team, size_t wanted, int is_long) {
    const size_t ranks = wanted < team->size ? wanted : team->size;
    if (ranks < 2) return 1;
    const uint64_t in = fl_generation();
    uint64_t taken = atomic_load_explicit(&team->taken, memory_order_relaxed);
    if (taken == 2 * in + 1) return 1;
    if (!atomic_compare_exchange_strong_explicit(&team->taken, &taken, 2 * in + 1,
                                                 memory_order_acquire, memory_order_relaxed))
        return 1;
    if (team->generation != in) begin(team, in);
    if (ready(team, ranks, is_long)) return ranks;
    give_back(team);
    return 1;
}

fl_team *fl_team_new(size_t size) {
    fl_team *team;
    if (size < 2 || size > (SIZE_MAX - sizeof *team) / sizeof *team->rank) return NULL;
    team = fl_memory_take(sizeof *team + size * sizeof *team->rank);
    if (!team) return NULL;
    (void)fl_watch_forks();
    team->size = size;
    begin(team, fl_generation());
    give_back(team);
    return team;
}

void fl_team_free(fl_team *team) {
    if (!team) return;
    if (team->generation == fl_generation()) {
        if (team->threads == STARTED) stop(team, team->size);
        for (size_t r = 0; r < team->size; ++r) fl_gate_end(&team->rank[r].gate);
        fl_gate_end(&team->moving);
    }
    fl_memory_free(team);
}

/* ---- As calls take it ---- */

static size_t take_team(void *team, size_t wanted, int is_long) {
    return fl_team_take(team, wanted, is_long);
}

static void run_team(void *team, size_t ranks, void (*work)(void *, size_t, size_t), void *job) {
    fl_team_run(team, ranks, work, job);
}

static void meet_team(void *team, size_t rank, size_t ranks) { fl_team_barrier(team, rank, ranks); }

static void leave_team(void *team, size_t rank) { fl_team_leave(team, rank); }

fl_threads fl_team_threads(fl_team *team, size_t size) {
    const fl_threads made = {team, take_team, run_team, meet_team, leave_team, size};
    return made;
}

#else
typedef int fl_no_team; /* ISO C forbids an empty translation unit */
#endif
