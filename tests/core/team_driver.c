/* team_driver.c - stress the worker team, without Python.
 *
 *   team_driver CHECK    one of the checks in the table at the end; exit status 1 and a message if
 *                        it fails; takes a second or less
 *   team_driver latency  print what a run and a barrier of two ranks cost, several times
 *
 * Shared arrays are plain, so that ThreadSanitizer sees whether the team orders memory.
 */
#define _GNU_SOURCE /* sched_getaffinity */
#include <dirent.h>
#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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
    cpu_set_t set;
    demand(!sched_getaffinity(0, sizeof set, &set), "no affinity mask");
    return CPU_COUNT(&set);
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

/* Whether a thread is running, or would if it had a processor: proc(5), `state` in stat. */
static int is_awake(const char *task) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%.20s/stat", task);
    FILE *file = fopen(path, "r");
    if (!file) return 0; /* it has just ended */
    const size_t length = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[length] = 0;
    const char *name_end = strrchr(line, ')');
    return name_end && name_end[1] && name_end[2] == 'R';
}

/* Return when this thread is the only one of the process that is awake. */
static void await_sleep(void) {
    for (int awake = 2; awake > 1;) {
        DIR *tasks = opendir("/proc/self/task");
        demand(tasks != NULL, "no /proc");
        awake = 0;
        for (const struct dirent *entry; (entry = readdir(tasks));)
            if (entry->d_name[0] != '.') awake += is_awake(entry->d_name);
        closedir(tasks);
        if (awake > 1) sched_yield();
    }
}

/* Short calls that are far apart work alone; a burst of them gets the team. */
static void bursts(void) {
    fl_team *team = new_team(2);
    for (int run = 0; run < 2; ++run) {
        for (int i = 0; i < 10; ++i) {
            sleep_ns(2 * MS);
            await_sleep();
            demand(run_rounds(team, 2, 0, 1) == 1, "a short call that came alone had the team");
        }
        const int64_t end = now_ns() + 30000 * MS;
        while (cores() > 1 && run_rounds(team, 2, 0, 1) == 1)
            demand(now_ns() < end, "a burst of short calls never had the team");
        run_with_all(team, 2, 1);
    }
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

typedef struct {
    fl_team *team;
    atomic_int stop;
} background;

static void *run_on(void *given) {
    background *me = given;
    for (unsigned i = 0; !atomic_load(&me->stop); ++i) {
        run_rounds(me->team, 3, 1, 3);
        if (i % 16 == 0) sleep_ns(100 * US); /* some forks shall find the team asleep */
    }
    return NULL;
}

static void expect_good_end(pid_t child) {
    int status = 0;
    demand(child > 0 && waitpid(child, &status, 0) == child, "no child");
    demand(WIFEXITED(status) && !WEXITSTATUS(status), "a child failed");
}

/* What a child does with the team of its parent; `deeper` more generations follow. */
static void be_a_child(fl_team *team, int takes, int deeper) {
    alarm(20); /* rather than to wait for ever for threads that are not here */
    if (takes) {
        for (int i = 0; i < 5; ++i) run_with_all(team, 3, 5);
        sleep_ns(MS);
        run_with_all(team, 2, 5);
    }
    if (deeper) {
        const pid_t child = fork();
        if (child) {
            expect_good_end(child);
            run_with_all(team, 3, 5);
        } else {
            be_a_child(team, 1, deeper - 1);
            _exit(0);
        }
    }
    fl_team_free(team);
}

/* fork() while another thread is within runs: parent and child both go on. */
static void forks(void) {
    background other;
    pthread_t thread;
    other.team = new_team(3);
    atomic_init(&other.stop, 0);
    demand(!pthread_create(&thread, NULL, run_on, &other), "no thread");
    const int64_t end = now_ns() + ENOUGH;
    for (int i = 0; i < 40 && now_ns() < end; ++i) {
        const pid_t child = fork();
        if (!child) {
            be_a_child(other.team, i % 4 != 0, i % 5 == 0 ? 2 : 0);
            _exit(0);
        }
        expect_good_end(child);
        (void)run_rounds(other.team, 3, 1, 1);
        sleep_ns(i * 10 * US);
    }
    atomic_store(&other.stop, 1);
    pthread_join(thread, NULL);
    run_with_all(other.team, 3, 10);
    fl_team_free(other.team);
}

/* How often threads of this process gave up their core to wait. */
static long times_slept(void) {
    struct rusage usage;
    demand(!getrusage(RUSAGE_SELF, &usage), "no usage");
    return usage.ru_nvcsw;
}

enum { CALLS_NOW_AND_THEN = 20 };

/* Nothing spins long after a run, and calls now and then wake nobody. */
static void idle(void) {
    fl_team *team = new_team(4);
    run_with_all(team, 4, 10);
    await_sleep();
    int64_t used = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    sleep_ns(50 * MS);
    used = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - used;
    demand(used < 20 * MS, "the workers of an idle team used the processor");
    used = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    const long before = times_slept();
    for (int i = 0; i < CALLS_NOW_AND_THEN; ++i) {
        sleep_ns(10 * MS);
        demand(run_rounds(team, 4, 0, 1) == 1, "a short call had a team that slept");
    }
    used = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - used;
    demand(used < 20 * MS, "calls now and then kept the team awake");
    /* Once for each sleep_ns(); each of three workers as often, had they been woken. */
    demand(times_slept() - before < 2 * CALLS_NOW_AND_THEN, "calls now and then woke the workers");
    fl_team_free(team);
}

/* Where the ranks of a run were as it ended. */
typedef struct {
    fl_team *team;
    int cpu[2];
} places;

static void do_places(void *given, size_t rank, size_t ranks) {
    places *job = given;
    for (int i = 0; i < 200; ++i) fl_team_barrier(job->team, rank, ranks);
    job->cpu[rank] = sched_getcpu();
}

/* A worker that is woken where its caller runs moves away, if there is another processor. Half of
 * the runs may end otherwise: the system moves threads too. */
static void apart(void) {
    enum { RUNS = 60 };
    cpu_set_t allowed;
    int together = 0;
    demand(!sched_getaffinity(0, sizeof allowed, &allowed), "no affinity");
    places job = {new_team(2), {0, 0}};
    for (int i = 0; i < RUNS; ++i) {
        sleep_ns(i % 2 ? MS : 5 * MS);
        demand(fl_team_take(job.team, 2, 1) == 2, "a long call did not get the team");
        fl_team_run(job.team, 2, do_places, &job);
        together += job.cpu[0] == job.cpu[1];
    }
    demand(CPU_COUNT(&allowed) < 2 || together < RUNS / 2, "ranks shared a processor");
    fl_team_free(job.team);
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

static pthread_t main_thread;
static atomic_int handled, handled_elsewhere;

static void handle(int number) {
    (void)number;
    atomic_fetch_add(pthread_equal(pthread_self(), main_thread) ? &handled : &handled_elsewhere, 1);
}

/* Signals go to threads of the caller's program, even if those have them blocked just now. */
static void signals(void) {
    enum { SIGNALS = 100 };
    struct sigaction action;
    sigset_t set, now;
    memset(&action, 0, sizeof action);
    action.sa_handler = handle;
    demand(!sigaction(SIGUSR1, &action, NULL), "no handler");
    main_thread = pthread_self();
    fl_team *team = new_team(3);
    run_with_all(team, 3, 3);
    demand(!pthread_sigmask(SIG_SETMASK, NULL, &now), "no mask");
    for (int number = 1; number < 32; ++number)
        demand(!sigismember(&now, number), "the caller's signals stayed blocked");
    int sent = 0;
    for (const int64_t end = now_ns() + ENOUGH; sent < SIGNALS && now_ns() < end;) {
        kill(getpid(), SIGUSR1);
        run_with_all(team, 3, 3);
        demand(atomic_load(&handled) == ++sent, "a signal was not handled");
    }
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    const int64_t end = now_ns() + ENOUGH;
    for (int i = 1; i <= SIGNALS && now_ns() < end; ++i) {
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        kill(getpid(), SIGUSR1);
        run_with_all(team, 3, 3);
        if (i % 8 == 0) sleep_ns(MS);
        demand(!sigpending(&now) && sigismember(&now, SIGUSR1), "a worker took the signal");
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        run_with_all(team, 3, 1);
        demand(atomic_load(&handled) == sent + i, "a blocked signal got lost");
    }
    demand(!atomic_load(&handled_elsewhere), "a handler ran in a worker thread");
    fl_team_free(team);
}

/* Threads of this process, after those that have been joined had a moment to go. */
static int threads(int expected) {
    int found = 0;
    for (int attempt = 0; attempt < 1000 && found != expected; ++attempt) {
        DIR *tasks = opendir("/proc/self/task");
        demand(tasks != NULL, "no /proc");
        found = 0;
        for (const struct dirent *entry; (entry = readdir(tasks));)
            found += entry->d_name[0] != '.';
        closedir(tasks);
        if (found != expected) sleep_ns(MS);
    }
    return found;
}

/* With memory for the stacks of some of the workers only. */
static void starting(void) {
    struct rlimit limit, before;
    long long pages = 0;
    fl_team *team = new_team(64);
    FILE *file = fopen("/proc/self/statm", "r");
    demand(file && fscanf(file, "%lld", &pages) == 1 && !fclose(file), "no /proc");
    demand(!getrlimit(RLIMIT_AS, &before), "no limit");
    limit = before;
    limit.rlim_cur = (rlim_t)(pages * sysconf(_SC_PAGESIZE)) + 4 * 1024 * 1024;
    demand(!setrlimit(RLIMIT_AS, &limit), "the limit could not be set");
    demand(fl_team_take(team, 64, 1) == 1, "a team of 64 started within 4 MB");
    demand(!setrlimit(RLIMIT_AS, &before), "the limit could not be lifted");
    demand(threads(1) == 1, "threads stayed though not all could be started");
    demand(fl_team_take(team, 2, 1) == 1, "starting was tried again");
    demand(threads(1) == 1, "starting was tried again");
    const pid_t child = fork();
    if (!child) {
        alarm(20);
        run_with_all(team, 8, 1);
        demand(threads(64) == 64, "the child did not start the threads");
        fl_team_free(team);
        _exit(0);
    }
    expect_good_end(child);
    fl_team_free(team);
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

typedef struct {
    cpu_set_t may[2];
} affinities;

static void note_affinities(void *given, size_t rank, size_t ranks) {
    (void)ranks;
    demand(!sched_getaffinity(0, sizeof(cpu_set_t), &((affinities *)given)->may[rank]),
           "no affinity mask");
}

/* Whether a worker was allowed to run only where its caller is; -1: the caller ran alone. */
static int ran_within(fl_team *team, int is_long) {
    affinities found;
    cpu_set_t both;
    if (fl_team_take(team, 2, is_long) < 2) return -1;
    fl_team_run(team, 2, note_affinities, &found);
    CPU_AND(&both, &found.may[0], &found.may[1]);
    return CPU_EQUAL(&both, &found.may[1]);
}

static void *run_confined(void *given) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    demand(!sched_setaffinity(0, sizeof one, &one), "the affinity cannot be set");
    for (int i = 0; i < 3000; ++i)
        demand(ran_within(given, i % 3 == 0) != 0, "a worker ran outside this thread's affinity");
    return NULL;
}

/* Workers run where the caller may, as its affinity changes and as callers change; a short call in
 * a row of such looks that up now and then only. */
static void affinity(void) {
    cpu_set_t all;
    demand(!sched_getaffinity(0, sizeof all, &all), "no affinity mask");
    fl_team *team = new_team(2);
    demand(ran_within(team, 1) == 1, "a long call did not get the team");
    if (CPU_COUNT(&all) > 1) {
        for (int round = 0; round < 20; ++round) {
            cpu_set_t one;
            size_t cpu = 0, nth = (size_t)round % (size_t)CPU_COUNT(&all);
            for (; !CPU_ISSET(cpu, &all) || nth; ++cpu) nth -= CPU_ISSET(cpu, &all) != 0;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            demand(!sched_setaffinity(0, sizeof one, &one), "the affinity cannot be set");
            int within = 1;
            for (int i = 0; i < FL_TEAM_SHORT_CALLS; ++i) within = ran_within(team, 0);
            demand(within != 0, "workers did not follow after many short calls");
            demand(ran_within(team, 1) == -1, "two ranks share the only processor left");
            demand(!sched_setaffinity(0, sizeof all, &all), "the affinity cannot be set");
            demand(ran_within(team, 1) == 1, "a team is not had again with its processors");
        }
    }
    for (int i = 0; i < 3; ++i) {
        pthread_t other;
        demand(!pthread_create(&other, NULL, run_confined, team), "no thread");
        demand(!pthread_join(other, NULL), "no join");
        demand(ran_within(team, 1) == 1, "a team is not had again by the first caller");
    }
    fl_team_free(team);
}

static const struct {
    const char *name;
    void (*check)(void);
} checks[] = {
    {"barriers", barriers}, {"parking", parking},   {"bursts", bursts},
    {"callers", callers},   {"forks", forks},       {"idle", idle},
    {"lifetimes", lifetimes}, {"signals", signals}, {"starting", starting},
    {"apart", apart},       {"leave", leave},       {"rounding", rounding},
    {"affinity", affinity}, {"latency", latency},
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
