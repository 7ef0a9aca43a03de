/* system.h - what the files beside the core want of an operating system: memory, and for a team of
 * threads their start, sleep, clock, processors and rounding.
 *
 * POSIX systems and Windows have threads. Where there are none, on WebAssembly and on
 * microcontrollers, only the functions of memory are there.
 */
#ifndef FL_SYSTEM_H
#define FL_SYSTEM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) || defined(__APPLE__) || (defined(__unix__) && !defined(__wasm__))
#define FL_HAS_THREADS
#endif

#if defined(FL_HAS_THREADS) && !defined(_WIN32)
#include <pthread.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes at a multiple of 128, which are two cache lines; NULL if there are not so many. */
void *fl_memory_take(size_t bytes);
void fl_memory_free(void *memory); /* NULL is allowed */

#if defined(FL_HAS_THREADS)

/* ---- Threads ---- */

/* A lock with a condition that its holder can wait for. */
typedef struct {
#if defined(_WIN32)
    void *lock, *changed; /* SRWLOCK, CONDITION_VARIABLE, without the macros of windows.h */
#else
    pthread_mutex_t lock;
    pthread_cond_t changed;
#endif
} fl_gate;

void fl_gate_init(fl_gate *gate);
void fl_gate_end(fl_gate *gate);
void fl_gate_lock(fl_gate *gate);
void fl_gate_unlock(fl_gate *gate);
void fl_gate_wait(fl_gate *gate);   /* also returns when nothing was told */
void fl_gate_signal(fl_gate *gate);

typedef struct {
    void (*work)(void *given);
    void *given;
#if defined(_WIN32)
    void *handle;
#else
    pthread_t handle;
#endif
} fl_thread;

/* Run work(given) on a new thread, with all signals blocked but those of its own faults. `made` stays
 * where it is until the thread is joined. 0, or not 0: there is none. */
int fl_thread_start(fl_thread *made, void (*work)(void *given), void *given);
void fl_thread_join(fl_thread *thread);

uintptr_t fl_this_thread(void); /* another number for each that runs */

uint64_t fl_now_ns(void);
void fl_yield(void);  /* let another thread have the processor */
void fl_relax(void);  /* within a loop that waits */

/* ---- Processors ---- */

/* Those with these numbers; a system that has more, or does not say, gives none. */
typedef struct {
    uint64_t bits[16];
} fl_processors;

int fl_processors_count(const fl_processors *of);
int fl_processors_have(const fl_processors *of, int processor);
void fl_processors_drop(fl_processors *of, int processor);

int fl_this_processor(void);                     /* -1: nobody says */
void fl_processors_allowed(fl_processors *made); /* where the calling thread may run */
void fl_processors_keep_to(const fl_processors *these, fl_thread *thread); /* NULL: the caller */

/* How this thread rounds: bits of a control register. */
uint64_t fl_rounding(void);
void fl_round_as(uint64_t rounding);

/* ---- Forks ---- */

/* How many fork() lie between this process and the one that first called fl_watch_forks. */
uint64_t fl_generation(void);

/* Count forks from now on; not 0 if that cannot be. */
int fl_watch_forks(void);

#endif

#ifdef __cplusplus
}
#endif
#endif
