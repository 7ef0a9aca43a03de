/* realtime.c - what a thread that must not be late asks of a model's steps; tools/realtime.py builds
 * it with a folder that `fastlstm export` wrote. The model has one input and one output, which has a
 * row for each step.
 *
 *   realtime calls STEPS              allocations, locks and system calls, of so many steps by fl_step
 *                                     and as many in blocks by fl_stream_run
 *   realtime times SAMPLES CPU RATE   how long blocks take, in nanoseconds
 *   realtime steps KIND STEPS [ISA]   only steps, for a tool that counts instructions
 *
 * Allocations and locks are counted where the C library has them, by functions of the same names that
 * stand before its own. System calls are counted by the kernel (seccomp): each of the thread's traps.
 */
#define _GNU_SOURCE /* RTLD_NEXT, processors of a thread, names of registers */
#include <dlfcn.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fastlstm_host.h"
#include "model.h"

enum { BLOCK = 64, PERIOD = 64 * BLOCK, ANSWER = 77 };

/* ---- What is counted ---- */

typedef struct {
    long allocations, locks, calls;
} counts;

static volatile counts counted;

/* The C library's own names for what stands here in front of it. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

void *malloc(size_t n) { ++counted.allocations; return __libc_malloc(n); }
void *calloc(size_t n, size_t size) { ++counted.allocations; return __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { ++counted.allocations; return __libc_realloc(p, n); }
void *memalign(size_t at, size_t n) { ++counted.allocations; return __libc_memalign(at, n); }
void *aligned_alloc(size_t at, size_t n) { ++counted.allocations; return __libc_memalign(at, n); }
void free(void *p) { ++counted.allocations; __libc_free(p); }
int posix_memalign(void **p, size_t at, size_t n) {
    ++counted.allocations;
    *p = __libc_memalign(at, n);
    return *p ? 0 : ENOMEM;
}

#define LOCK(name, type)                                    \
    int name(type *of) {                                    \
        static int (*next)(type *);                         \
        ++counted.locks;                                    \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name); \
        return next(of);                                    \
    }
LOCK(pthread_mutex_lock, pthread_mutex_t)
LOCK(pthread_mutex_trylock, pthread_mutex_t)
LOCK(pthread_rwlock_rdlock, pthread_rwlock_t)
LOCK(pthread_rwlock_wrlock, pthread_rwlock_t)
LOCK(pthread_spin_lock, pthread_spinlock_t)
LOCK(pthread_cond_signal, pthread_cond_t)
LOCK(pthread_cond_broadcast, pthread_cond_t)
LOCK(sem_wait, sem_t)
LOCK(sem_post, sem_t)

/* A call that trapped is not made. */
static void count_call(int number) {
    (void)number;
    ++counted.calls;
}

#if defined(__x86_64__)
enum { ARCHITECTURE = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { ARCHITECTURE = AUDIT_ARCH_AARCH64 };
#else
#error "of this processor it is not known how its system calls are numbered"
#endif

#define AT(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define SAME(number, past) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, past)

/* From here on every system call traps, but the end, the way back from a signal, and what is
 * written as the answer. Not 0: the kernel cannot. */
static int watch_calls(void) {
    struct sock_filter words[] = {
        AT(arch), SAME(ARCHITECTURE, 7),
        AT(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 3, 0),
        SAME(SYS_write, 3), AT(args[0]), SAME(ANSWER, 1),
        ALLOW,
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    const struct sock_fprog program = {sizeof words / sizeof *words, words};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = count_call;
    if (dup2(STDOUT_FILENO, ANSWER) < 0 || sigaction(SIGSYS, &action, NULL)) return -1;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

/* ---- Inputs ---- */

typedef enum { NOISE, SILENCE, DENORMALS, NANS, INFINITIES, KINDS } kind;

static const char *const NAMES[] = {"noise", "silence", "denormals", "nan", "infinity"};

/* PERIOD rows of an input. */
static float *make_rows(kind of, size_t count) {
    float *x = calloc(PERIOD * count, sizeof *x);
    uint32_t state = 1;
    for (size_t i = 0; x && i < PERIOD * count; ++i) {
        state = state * 1664525u + 1013904223u;
        const float noise = (float)(state >> 8) / (float)(1 << 23) - 1;
        switch (of) {
        case NOISE: x[i] = noise; break;
        case DENORMALS: x[i] = noise * 1e-39f; break;
        case NANS: x[i] = NAN; break;
        case INFINITIES: x[i] = noise < 0 ? -INFINITY : INFINITY; break;
        default: break;
        }
    }
    return x;
}

/* ---- Runs ---- */

typedef struct {
    fl_loaded loaded;
    fl_stream *stream;
    size_t inputs, outputs;
    float *y;  /* (PERIOD, outputs) */
} subject;

static int fail(const char *what, const char *why) {
    fprintf(stderr, "realtime: %s: %s\n", what, why);
    return 1;
}

static int make(subject *s, const char *isa) {
    const fl_model_config how = {.struct_size = sizeof how, .type = FL_FLOAT32, .isa = isa};
    const fl_stream_config room = {.struct_size = sizeof room, .T = BLOCK, .B = 1};
    char message[256] = "";
    fl_error error =
        fl_load_bytes(MODEL, MODEL_BYTES, &how, &s->loaded, message, sizeof message);
    if (error) return fail("the model", *message ? message : fl_error_text(error));
    error = fl_stream_new(s->loaded.model, &room, &s->stream);
    if (error) return fail("the stream", fl_error_text(error));
    const fl_program *program = fl_model_program(s->loaded.model);
    s->inputs = fl_input_shape(program, 0).count;
    s->outputs = fl_output_shape(program, 0).count;
    s->y = calloc(PERIOD * s->outputs, sizeof *s->y);
    float *x = make_rows(NOISE, s->inputs);
    if (!x || !s->y) return fail("the rows", "there is no memory");
    error = fl_step(s->stream, x, s->y);
    free(x);
    if (error) return fail("a step", fl_error_text(error));
    error = fl_stream_reset(s->stream, NULL);
    return error ? fail("a reset", fl_error_text(error)) : 0;
}

/* Steps one by one, of PERIOD rows again and again. */
static int run_steps(const subject *s, const float *x, size_t steps) {
    int failed = 0;
    for (size_t t = 0; t < steps; ++t) {
        const size_t at = t % PERIOD;
        failed |= fl_step(s->stream, x + at * s->inputs, s->y + at * s->outputs);
    }
    return failed;
}

static int run_block(const subject *s, const float *x, size_t block) {
    const size_t at = block % (PERIOD / BLOCK) * BLOCK;
    const fl_rows in = {(void *)(uintptr_t)(x + at * s->inputs), (ptrdiff_t)s->inputs, 0};
    const fl_rows out = {s->y + at * s->outputs, (ptrdiff_t)s->outputs, 0};
    return fl_stream_run(s->stream, BLOCK, &in, &out, NULL);
}

static counts since(counts before) {
    const counts made = {counted.allocations - before.allocations, counted.locks - before.locks,
                         counted.calls - before.calls};
    return made;
}

static int count_calls(subject *s, size_t steps) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    char text[512];
    float *x = make_rows(NOISE, s->inputs);
    pthread_mutex_lock(&lock); /* once before, as it is looked up then */
    pthread_mutex_unlock(&lock);
    free(malloc(64));
    if (!x || watch_calls()) return fail("system calls", "the kernel cannot count them");
    counts before = counted;
    int failed = run_steps(s, x, steps);
    const counts stepped = since(before);
    before = counted;
    for (size_t block = 0; block < steps / BLOCK; ++block) failed |= run_block(s, x, block);
    const counts run = since(before);
    /* What the counters see of one of each. */
    before = counted;
    void *volatile some = malloc(64);
    pthread_mutex_lock(&lock);
    syscall(SYS_getppid);
    const counts control = since(before);
    (void)some;
    const int length = snprintf(
        text, sizeof text,
        "{\"failed\": %d, \"step\": [%ld, %ld, %ld], \"run\": [%ld, %ld, %ld], "
        "\"control\": [%ld, %ld, %ld]}\n",
        failed, stepped.allocations, stepped.locks, stepped.calls, run.allocations, run.locks,
        run.calls, control.allocations, control.locks, control.calls);
    if (write(ANSWER, text, (size_t)length) != length) failed = 1;
    _exit(failed != 0);
}

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* A thread of its own processor that nothing else runs before, as far as that is allowed. */
static int become_realtime(long cpu) {
    const struct sched_param first = {.sched_priority = 50};
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (cpu >= 0 && sched_setaffinity(0, sizeof set, &set)) return -1;
    mlockall(MCL_CURRENT | MCL_FUTURE);
    return sched_setscheduler(0, SCHED_FIFO, &first) == 0;
}

/* Linux stops a thread of real time that leaves others less than 5 % of each second. */
enum { RUNS = 20000000, RESTS = 3000000 };

static int64_t rest(void) {
    const struct timespec time = {0, RESTS};
    nanosleep(&time, NULL);
    return now();
}

static int time_blocks(const subject *s, size_t samples, long cpu, double rate) {
    const size_t blocks = samples / BLOCK;
    int64_t *took = calloc(blocks + 1, sizeof *took);
    const int first = become_realtime(cpu);
    if (!took || first < 0) return fail("the thread", "there is no such processor, or no memory");
    printf("{\"isa\": \"%s\", \"first\": %s, \"blocks\": %zu, \"rows\": {",
           fl_model_isa(s->loaded.model), first ? "true" : "false", blocks);
    for (int of = 0; of < KINDS; ++of) {
        float *x = make_rows((kind)of, s->inputs);
        if (!x || fl_stream_reset(s->stream, NULL)) return fail("the rows", "there is no memory");
        int64_t before = now(), rested = before, sum = 0;
        for (size_t block = 0; block < blocks; ++block) {
            if (run_block(s, x, block)) return fail("a block", "it was refused");
            const int64_t after = now();
            sum += took[block] = after - before;
            before = after;
            if (after - rested > RUNS) before = rested = rest();
        }
        const double each = (double)sum / (double)blocks;
        qsort(took, blocks, sizeof *took, by_size);
        printf("%s\"%s\": {\"share\": %.6f, \"p50\": %lld, \"p99.9\": %lld, \"max\": %lld}",
               of ? ", " : "", NAMES[of], each / (BLOCK / rate * 1e9),
               (long long)took[blocks / 2], (long long)took[blocks - 1 - blocks / 1000],
               (long long)took[blocks - 1]);
        free(x);
    }
    printf("}}\n");
    free(took);
    return 0;
}

int main(int count, char **words) {
    subject s;
    memset(&s, 0, sizeof s);
    const char *what = count > 1 ? words[1] : "";
    if (make(&s, count == 5 && !strcmp(what, "steps") ? words[4] : NULL)) return 1;
    if (count == 3 && !strcmp(what, "calls"))
        return count_calls(&s, strtoull(words[2], NULL, 10));
    if (count == 5 && !strcmp(what, "times"))
        return time_blocks(&s, strtoull(words[2], NULL, 10), atol(words[3]), atof(words[4]));
    if (count >= 4 && !strcmp(what, "steps")) {
        for (int of = 0; of < KINDS; ++of) {
            float *x = !strcmp(words[2], NAMES[of]) ? make_rows((kind)of, s.inputs) : NULL;
            if (x) return run_steps(&s, x, strtoull(words[3], NULL, 10));
        }
    }
    return fail("usage", "realtime calls STEPS, times SAMPLES CPU RATE, or steps KIND STEPS [ISA]");
}
