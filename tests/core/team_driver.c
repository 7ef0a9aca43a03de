/* team_driver.c - stress the worker team, without Python.
 *
 *   team_driver CHECK    one of the checks in the table at the end; exit status 1 and a message if
 *                        it fails; takes a second or less
 *   team_driver latency  print what a run and a barrier of two ranks cost, several times
 *
 * Shared arrays are plain, so that ThreadSanitizer sees whether the team orders memory.
 */
#define _GNU_SOURCE /* sched_getaffinity */
#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "system.h"
#include "team.h"

enum { MOST_RANKS = 8 };

static const int64_t US = 1000, MS = 1000 * 1000; /* ns */

/* How long a check goes on with its rounds (ns). All of them take far less where every rank has a
 * processor, but on a machine that is busy with other programs each hand-over waits for one. */
static const int64_t ENOUGH = (int64_t)800 * 1000 * 1000;

/* Called from any thread of a process that may be a child, hence no exit handlers. */
static _Noreturn void fail(const char *what) {
    printf("FAILED: %s\n", what);
    fflush(stdout);
    _exit(1);
}

static void demand(int holds, const char *what) {
    if (!holds) fail(what);
}

static int64_t clock_ns(clockid_t which) {
    struct timespec t;
    demand(!clock_gettime(which, &t), "no clock");
    return (int64_t)t.tv_sec * 1000 * MS + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void sleep_ns(int64_t ns) {
    const struct timespec t = {ns / (1000 * MS), ns % (1000 * MS)};
    nanosleep(&t, NULL);
}

static void spin_ns(int64_t ns) {
    for (const int64_t end = now_ns() + ns; now_ns() < end;) continue;
}

static uint64_t next_random(uint64_t *state) { /* xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int cores(void) {
    fl_processors allowed;
    fl_processors_allowed(&allowed);
    return fl_processors_count(&allowed); /* 0: the system does not say */
}

static fl_team *new_team(size_t size) {
    fl_team *team = fl_team_new(size);
    demand(team != NULL, "no memory for a team");
    return team;
}

/* A job that sees whether all ranks take part, once, and whether a barrier holds them together. */
typedef struct {
    fl_team *team;          /* NULL: the work of one rank alone */
    size_t steps;
    uint64_t part[2][MOST_RANKS];
    size_t ran[MOST_RANKS]; /* how often each rank has run */
    size_t ranks[MOST_RANKS]; /* what each was told their number is */
} rounds;

/* Every rank writes its part, then reads all parts; the two halves of `part` take turns, so that
 * one barrier a step is enough. */
static void do_rounds(void *given, size_t rank, size_t ranks) {
    rounds *job = given;
    for (uint64_t step = 0; step < job->steps; ++step) {
        uint64_t *part = job->part[step % 2];
        part[rank] = 1000 * step + rank;
        if (job->team) fl_team_barrier(job->team, rank, ranks);
        for (uint64_t r = 0; r < ranks; ++r)
            demand(part[r] == 1000 * step + r, "a barrier let a rank through too early");
    }
    job->ran[rank] += 1;
    job->ranks[rank] = ranks;
}

static void check_rounds(const rounds *job, size_t ranks) {
    for (size_t r = 0; r < MOST_RANKS; ++r) {
        demand(job->ran[r] == (r < ranks), "a rank did not run once, or one too many ran");
        demand(r >= ranks || job->ranks[r] == ranks, "a rank was told another number of ranks");
    }
}

/* One call as an engine makes it; how many ranks it had. */
static size_t run_rounds(fl_team *team, size_t wanted, int is_long, size_t steps) {
    rounds job;
    memset(&job, 0, sizeof job);
    job.steps = steps;
    const size_t ranks = fl_team_take(team, wanted, is_long);
    demand(ranks == 1 || ranks == wanted, "neither one rank nor all that are wanted");
    if (ranks > 1) {
        job.team = team;
        fl_team_run(team, ranks, do_rounds, &job);
    } else {
        do_rounds(&job, 0, 1);
    }
    check_rounds(&job, ranks);
    return ranks;
}

static void run_with_all(fl_team *team, size_t wanted, size_t steps) {
    demand(run_rounds(team, wanted, 1, steps) == wanted, "a long call did not get the team");
}

/* Thousands of barriers a run where every rank has a core, else as many as a fifth of a second takes. */
static void barriers(void) {
    static const size_t all[] = {2, 3, 4, 8};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
        fl_team *team = new_team(all[i]);
        const size_t steps = all[i] <= (size_t)cores() ? 5000 : 100;
        const int64_t end = now_ns() + 200 * MS;
        for (int run = 0; run < 20 && now_ns() < end; ++run) run_with_all(team, all[i], steps);
        fl_team_free(team);
    }
}

/* About 0, 20, 60 or 200 us. */
static int64_t some_pause(uint64_t *state) {
    const int64_t about[] = {0, 20 * US, 60 * US, 200 * US};
    const int64_t pause = about[next_random(state) % 4];
    return pause ? pause - 15 * US + (int64_t)(next_random(state) % (30 * US)) : 0;
}

/* Pauses that let workers fall asleep just as the next job comes, and changing numbers of ranks. */
static void parking(void) {
    enum { SIZE = 4 };
    fl_team *team = new_team(SIZE);
    uint64_t state = 88172645463325252u;
    for (const int64_t end = now_ns() + 500 * MS; now_ns() < end;) {
        const uint64_t draw = next_random(&state);
        const size_t wanted = 2 + draw % (SIZE - 1), steps = draw / 8 % 4;
        if (draw / 32 % 2)
            run_with_all(team, wanted, steps);
        else
            (void)run_rounds(team, wanted, 0, steps);
        if (draw / 64 % 64 == 0)
            sleep_ns(3 * MS);
        else if (draw / 4096 % 4)
            spin_ns(some_pause(&state));
        else
            sleep_ns(some_pause(&state));
    }
    /* Again and again the next job comes within a microsecond or two of falling asleep. */
    for (const int64_t end = now_ns() + 250 * MS; now_ns() < end;) {
        run_with_all(team, 2, 0);
        spin_ns(FL_TEAM_SPIN_US * US - 2 * US + (int64_t)(next_random(&state) % (8 * US)));
    }
    demand(fl_team_take(team, 1, 1) == 1 && fl_team_take(team, 0, 1) == 1, "one rank is no team");
    demand(fl_team_take(team, 100, 1) == SIZE, "more ranks than there are");
    rounds job;
    memset(&job, 0, sizeof job);
    job.team = team;
    fl_team_run(team, SIZE, do_rounds, &job);
    check_rounds(&job, SIZE);
    fl_team_free(team);
}

enum { CALLERS = 4, CALLS = 10000 };

typedef struct {
    fl_team *team;
    size_t alone, shared;
} caller;

static atomic_int callers_inside;

static void do_exclusively(void *given, size_t rank, size_t ranks) {
    /* Relaxed, so that it orders nothing that the team itself should. */
    if (rank == 0)
        demand(!atomic_fetch_add_explicit(&callers_inside, 1, memory_order_relaxed),
               "two runs of one team at once");
    do_rounds(given, rank, ranks);
    if (rank == 0) atomic_fetch_sub_explicit(&callers_inside, 1, memory_order_relaxed);
}

static void *make_calls(void *given) {
    caller *me = given;
    const int64_t end = now_ns() + 700 * MS;
    for (int call = 0; call < CALLS && now_ns() < end; ++call) {
        rounds job;
        memset(&job, 0, sizeof job);
        job.steps = 2;
        const size_t wanted = 2 + (size_t)call % 2;
        const size_t ranks = fl_team_take(me->team, wanted, call % 3 != 0);
        demand(ranks == 1 || ranks == wanted, "neither one rank nor all that are wanted");
        if (ranks > 1) {
            job.team = me->team;
            fl_team_run(me->team, ranks, do_exclusively, &job);
        } else {
            do_rounds(&job, 0, 1);
        }
        check_rounds(&job, ranks);
        *(ranks > 1 ? &me->shared : &me->alone) += 1;
    }
    return NULL;
}

/* Several threads that want one team. */
static void callers(void) {
    pthread_t thread[CALLERS];
    caller each[CALLERS];
    size_t shared = 0, alone = 0;
    fl_team *team = new_team(3);
    memset(each, 0, sizeof each);
    for (int i = 0; i < CALLERS; ++i) {
        each[i].team = team;
        demand(!pthread_create(thread + i, NULL, make_calls, each + i), "no thread");
    }
    for (int i = 0; i < CALLERS; ++i) {
        pthread_join(thread[i], NULL);
        shared += each[i].shared;
        alone += each[i].alone;
    }
    demand(shared > 0 && alone > 0, "the callers did not compete");
    run_with_all(team, 3, 10);
    fl_team_free(team);
}

/* Teams that come and go: never started, spinning, asleep. */
static void lifetimes(void) {
    demand(!fl_team_new(0) && !fl_team_new(1) && !fl_team_new(SIZE_MAX), "a team of no size");
    fl_team_free(NULL);
    for (int i = 0; i < 1000; ++i) fl_team_free(new_team(2 + (size_t)i % 7));
    const int64_t end = now_ns() + ENOUGH;
    for (int i = 0; i < 200 && now_ns() < end; ++i) {
        fl_team *team = new_team(2 + (size_t)i % 3);
        run_with_all(team, 2, 3);
        if (i % 4 == 0) sleep_ns(MS);
        fl_team_free(team);
    }
    /* A burst that only has the threads started, and a team is freed that never ran. */
    for (int i = 0; i < 50; ++i) {
        fl_team *team = new_team(3);
        demand(fl_team_take(team, 3, 0) == 1 && fl_team_take(team, 1, 0) == 1, "not yet started");
        if (fl_team_take(team, 3, 0) == 3) {
            rounds job;
            memset(&job, 0, sizeof job);
            fl_team_run(team, 3, do_rounds, &job);
        }
        fl_team_free(team);
    }
}

static int by_size(const void *p, const void *q) {
    const double a = *(const double *)p, b = *(const double *)q;
    return (a > b) - (a < b);
}

enum { BATCHES = 101, BATCH = 100 };

typedef struct {
    fl_team *team;
    double ns[BATCHES];
} timing;

static void time_barriers(void *given, size_t rank, size_t ranks) {
    timing *job = given;
    for (int i = 0; i < BATCHES; ++i) {
        const int64_t begun = rank ? 0 : now_ns();
        for (int k = 0; k < BATCH; ++k) fl_team_barrier(job->team, rank, ranks);
        if (!rank) job->ns[i] = (double)(now_ns() - begun) / BATCH;
    }
}

static void nothing(void *given, size_t rank, size_t ranks) {
    (void)given;
    (void)rank;
    (void)ranks;
}

static double median(double *ns) {
    qsort(ns, BATCHES, sizeof *ns, by_size);
    return ns[BATCHES / 2];
}

/* The median of runs that begin `gap` ns after the one before; if there is a gap, each is timed by
 * itself, with the clock's own 20 to 30 ns. */
static double time_runs(timing *job, int64_t gap) {
    const int batch = gap ? 1 : BATCH;
    for (int i = 0; i < BATCHES; ++i) {
        if (gap) spin_ns(gap);
        const int64_t begun = now_ns();
        for (int k = 0; k < batch; ++k) {
            demand(fl_team_take(job->team, 2, 1) == 2, "a long call did not get the team");
            fl_team_run(job->team, 2, nothing, NULL);
        }
        job->ns[i] = (double)(now_ns() - begun) / batch;
    }
    return median(job->ns);
}

static void latency(void) {
    timing job;
    job.team = new_team(2);
    for (int repeat = 0; repeat < 5; ++repeat) {
        run_with_all(job.team, 2, 1);
        printf("take and empty run %4.0f ns", time_runs(&job, 0));
        printf(", 20 us after the last %4.0f ns", time_runs(&job, 20 * US));
        printf(", when asleep %5.0f ns", time_runs(&job, 200 * US));
        run_with_all(job.team, 2, 1);
        demand(fl_team_take(job.team, 2, 1) == 2, "a long call did not get the team");
        fl_team_run(job.team, 2, time_barriers, &job);
        printf(", barrier %4.0f ns (medians)\n", median(job.ns));
    }
    fl_team_free(job.team);
}

/* Ranks of which one leaves at some step, and the others at the next barrier that shows it. */
typedef struct {
    fl_team *team;
    size_t leaver, at;
    atomic_size_t left;
} leaving;

static void do_leave(void *given, size_t rank, size_t ranks) {
    leaving *job = given;
    for (size_t step = 0; !atomic_load(&job->left); ++step) {
        if (rank == job->leaver && step == job->at) atomic_store(&job->left, 1);
        else fl_team_barrier(job->team, rank, ranks);
    }
    fl_team_leave(job->team, rank);
}

/* No barrier waits for who has left, and the next run is as if nobody had. */
static void leave(void) {
    fl_team *team = new_team(3);
    const int64_t end = now_ns() + ENOUGH;
    for (size_t i = 0; i < 600 && now_ns() < end; ++i) {
        leaving job = {team, i % 3, i / 3 % 7, 0};
        if (i % 50 == 0) sleep_ns(MS);
        const size_t ranks = i % 5 ? 3 : 2;
        demand(fl_team_take(team, ranks, 1) == ranks, "a long call did not get the team");
        job.leaver %= ranks;
        fl_team_run(team, ranks, do_leave, &job);
        run_with_all(team, 2 + i % 2, 20);
    }
    fl_team_free(team);
}

/* How a rank rounds 1 / 3 and -1 / 3: the four modes give four pairs. */
typedef struct {
    float third[3][2];
} quotients;

static void divide(void *given, size_t rank, size_t ranks) {
    volatile float one = 1, three = 3;
    (void)ranks;
    ((quotients *)given)->third[rank][0] = one / three;
    ((quotients *)given)->third[rank][1] = -one / three;
}

/* Every rank rounds as its caller does in each call, whatever it did in the one before. */
static void rounding(void) {
    const int modes[] = {FE_UPWARD, FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_DOWNWARD};
    fl_team *team = new_team(3);
    quotients found[5];
    const int64_t end = now_ns() + ENOUGH;
    for (size_t i = 0; i < 5 || (i < 500 && now_ns() < end); ++i) {
        quotients *here = found + i % 5;
        demand(!fesetround(modes[i % 5]), "no such rounding");
        demand(fl_team_take(team, 3, 1) == 3, "a long call did not get the team");
        fl_team_run(team, 3, divide, here);
        for (size_t r = 1; r < 3; ++r)
            demand(!memcmp(here->third[r], here->third[0], sizeof here->third[0]),
                   "a rank rounds otherwise than its caller");
    }
    demand(!fesetround(FE_TONEAREST), "no such rounding");
    for (size_t i = 0; i < 4; ++i)
        for (size_t j = 0; j < i; ++j)
            demand(memcmp(found[i].third[0], found[j].third[0], sizeof found[i].third[0]),
                   "two modes round alike");
    fl_team_free(team);
}

#if defined(__linux__)
#include "team_on_linux.h"
#endif

static const struct {
    const char *name;
    void (*check)(void);
} checks[] = {
    {"barriers", barriers}, {"parking", parking},   {"callers", callers}, {"lifetimes", lifetimes},
    {"leave", leave},       {"rounding", rounding}, {"latency", latency},
#if defined(__linux__)
    {"bursts", bursts},     {"forks", forks},       {"idle", idle},       {"signals", signals},
    {"starting", starting}, {"apart", apart},       {"affinity", affinity},
#endif
};

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof checks / sizeof *checks; ++i) {
        if (argc != 2 || strcmp(argv[1], checks[i].name)) continue;
        checks[i].check();
        return 0;
    }
    printf("FAILED: not one of the checks\n");
    return 1;
}
