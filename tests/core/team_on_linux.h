/* team_on_linux.h - the checks of team_driver.c that look at processes, signals and processors. A part
 * of that file.
 */
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

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
