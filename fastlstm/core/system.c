/* system.c - memory, threads, processors and forks, of POSIX systems and of Windows. */
#define _GNU_SOURCE /* processors of threads, and their names */
#include <stdlib.h>
#include <string.h>

#include "system.h"

#if defined(_WIN32)
#include <malloc.h>
#include <process.h>
#include <windows.h>
#elif defined(FL_HAS_THREADS)
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#endif

enum { MEMORY_LINE = 128 };

void *fl_memory_take(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * MEMORY_LINE) return NULL;
    const size_t whole = (bytes / MEMORY_LINE + 1) * MEMORY_LINE;
#if defined(_WIN32)
    return _aligned_malloc(whole, MEMORY_LINE);
#else
    return aligned_alloc(MEMORY_LINE, whole);
#endif
}

void fl_memory_free(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

#if defined(FL_HAS_THREADS)

/* Bytes; unoptimized, a kernel takes half of it. */
enum { STACK = 1024 * 1024 };

#if defined(_WIN32)

_Static_assert(sizeof(SRWLOCK) == sizeof(void *) && sizeof(CONDITION_VARIABLE) == sizeof(void *),
               "a gate has room for them");

static SRWLOCK *lock_of(fl_gate *gate) { return (SRWLOCK *)&gate->lock; }
static CONDITION_VARIABLE *changed_of(fl_gate *gate) { return (CONDITION_VARIABLE *)&gate->changed; }

void fl_gate_init(fl_gate *gate) {
    InitializeSRWLock(lock_of(gate));
    InitializeConditionVariable(changed_of(gate));
}
void fl_gate_end(fl_gate *gate) { (void)gate; }
void fl_gate_lock(fl_gate *gate) { AcquireSRWLockExclusive(lock_of(gate)); }
void fl_gate_unlock(fl_gate *gate) { ReleaseSRWLockExclusive(lock_of(gate)); }
void fl_gate_wait(fl_gate *gate) {
    SleepConditionVariableSRW(changed_of(gate), lock_of(gate), INFINITE, 0);
}
void fl_gate_signal(fl_gate *gate) { WakeConditionVariable(changed_of(gate)); }

static unsigned __stdcall run_thread(void *given) {
    const fl_thread *thread = given;
    thread->work(thread->given);
    return 0;
}

int fl_thread_start(fl_thread *made, void (*work)(void *given), void *given) {
    made->work = work;
    made->given = given;
    made->handle = (HANDLE)_beginthreadex(NULL, STACK, run_thread, made, 0, NULL);
    return !made->handle;
}

void fl_thread_join(fl_thread *thread) {
    WaitForSingleObject(thread->handle, INFINITE);
    CloseHandle(thread->handle);
}

uintptr_t fl_this_thread(void) { return GetCurrentThreadId(); }

uint64_t fl_now_ns(void) {
    LARGE_INTEGER now, second;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&second);
    const uint64_t at = (uint64_t)now.QuadPart, of = (uint64_t)second.QuadPart;
    return at / of * 1000000000u + at % of * 1000000000u / of;
}

void fl_yield(void) { SwitchToThread(); }

uint64_t fl_generation(void) { return 0; } /* nothing forks */
int fl_watch_forks(void) { return 0; }

#else

void fl_gate_init(fl_gate *gate) {
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
}
void fl_gate_end(fl_gate *gate) {
    pthread_mutex_destroy(&gate->lock);
    pthread_cond_destroy(&gate->changed);
}
void fl_gate_lock(fl_gate *gate) { pthread_mutex_lock(&gate->lock); }
void fl_gate_unlock(fl_gate *gate) { pthread_mutex_unlock(&gate->lock); }
void fl_gate_wait(fl_gate *gate) { pthread_cond_wait(&gate->changed, &gate->lock); }
void fl_gate_signal(fl_gate *gate) { pthread_cond_signal(&gate->changed); }

static void *run_thread(void *given) {
    const fl_thread *thread = given;
    thread->work(thread->given);
    return NULL;
}

static size_t stack_size(void) {
    const long least = sysconf(_SC_THREAD_STACK_MIN);
    return least > STACK ? (size_t)least : STACK;
}

int fl_thread_start(fl_thread *made, void (*work)(void *given), void *given) {
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    pthread_attr_t attr;
    sigset_t blocked, before;
    made->work = work;
    made->given = given;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; ++i) sigdelset(&blocked, faults[i]);
    if (pthread_attr_init(&attr)) return -1;
    (void)pthread_attr_setstacksize(&attr, stack_size());
    int error = pthread_sigmask(SIG_SETMASK, &blocked, &before);
    if (!error) {
        error = pthread_create(&made->handle, &attr, run_thread, made);
        /* The stack also holds the thread-local variables of every library in the process. */
        if (error == EINVAL) error = pthread_create(&made->handle, NULL, run_thread, made);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attr);
#if defined(__linux__)
    if (!error) (void)pthread_setname_np(made->handle, "fastlstm");
#endif
    return error;
}

void fl_thread_join(fl_thread *thread) { pthread_join(thread->handle, NULL); }

uintptr_t fl_this_thread(void) { return (uintptr_t)pthread_self(); }

uint64_t fl_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void fl_yield(void) { sched_yield(); }

static _Atomic uint64_t generation;
static pthread_once_t watching = PTHREAD_ONCE_INIT;
static int watched; /* whether forks are counted */

static void count_fork(void) { atomic_fetch_add(&generation, 1); }

static void watch_forks(void) { watched = !pthread_atfork(NULL, NULL, count_fork); }

int fl_watch_forks(void) {
    pthread_once(&watching, watch_forks);
    return !watched;
}

uint64_t fl_generation(void) { return atomic_load_explicit(&generation, memory_order_relaxed); }

#endif

/* ---- Processors ---- */

enum { MOST_PROCESSORS = 8 * sizeof(fl_processors) };

int fl_processors_count(const fl_processors *of) {
    int count = 0;
    for (size_t i = 0; i < sizeof of->bits / sizeof *of->bits; ++i)
        count += __builtin_popcountll(of->bits[i]);
    return count;
}

int fl_processors_have(const fl_processors *of, int processor) {
    if (processor < 0 || processor >= MOST_PROCESSORS) return 0;
    return (of->bits[processor / 64] >> (processor % 64)) & 1;
}

void fl_processors_drop(fl_processors *of, int processor) {
    if (processor < 0 || processor >= MOST_PROCESSORS) return;
    of->bits[processor / 64] &= ~(UINT64_C(1) << (processor % 64));
}

#if defined(__linux__)
_Static_assert(sizeof(cpu_set_t) == sizeof(fl_processors), "both are words, the lowest bit first");

int fl_this_processor(void) { return sched_getcpu(); }

void fl_processors_allowed(fl_processors *made) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) CPU_ZERO(&set);
    memcpy(made, &set, sizeof set);
}

void fl_processors_keep_to(const fl_processors *these, fl_thread *thread) {
    cpu_set_t set;
    memcpy(&set, these, sizeof set);
    if (thread) (void)pthread_setaffinity_np(thread->handle, sizeof set, &set);
    else (void)sched_setaffinity(0, sizeof set, &set);
}
#else
int fl_this_processor(void) { return -1; }
void fl_processors_allowed(fl_processors *made) { memset(made, 0, sizeof *made); }
void fl_processors_keep_to(const fl_processors *these, fl_thread *thread) { (void)these, (void)thread; }
#endif

void fl_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* there `yield` does not wait at all */
#endif
}

/* MXCSR bits 13 and 14: Intel SDM volume 1, 10.2.3; FPCR bits 22 and 23: Arm ARM C5.2.8. */
#if defined(__x86_64__)
static const uint64_t ROUNDING = 3u << 13;
static uint64_t control(void) {
    uint32_t mode;
    __asm__ volatile("stmxcsr %0" : "=m"(mode));
    return mode;
}
static void set_control(uint64_t given) {
    const uint32_t mode = (uint32_t)given;
    __asm__ volatile("ldmxcsr %0" ::"m"(mode));
}
#elif defined(__aarch64__)
static const uint64_t ROUNDING = 3u << 22;
static uint64_t control(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_control(uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode)); }
#else
static const uint64_t ROUNDING = 0;
static uint64_t control(void) { return 0; }
static void set_control(uint64_t mode) { (void)mode; }
#endif

uint64_t fl_rounding(void) { return control() & ROUNDING; }

/* Written only when it changes: that takes longer than reading it. */
void fl_round_as(uint64_t rounding) {
    const uint64_t mode = control();
    if ((mode & ROUNDING) != rounding) set_control((mode & ~ROUNDING) | rounding);
}

#else
typedef int fl_no_threads;
#endif
