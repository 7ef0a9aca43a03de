/* team.h - threads that share the work of one call, for calls of a few microseconds.
 *
 * A team has `size` ranks: whoever calls fl_team_run is rank 0, the worker threads are the others.
 * Waiting is spinning for FL_TEAM_SPIN_US and then sleeping, so that a stream of calls hands over
 * its work within a few hundred nanoseconds and an idle team costs nothing. Every rank looks at
 * every other in a barrier: right for the cores that share a cache, not for a hundred of them.
 *
 * Any thread may call fl_team_take at any time; one that finds the team taken works alone.
 *
 * There are teams where system.h has threads; elsewhere nothing here is defined.
 */
#ifndef FL_TEAM_H
#define FL_TEAM_H

#include <stddef.h>

#include "fastlstm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How long a rank with nothing to do spins before it sleeps. */
enum { FL_TEAM_SPIN_US = 50 };

/* Short calls in a row, of one thread, of which one looks up where that thread may run. */
enum { FL_TEAM_SHORT_CALLS = 1024 };

typedef struct fl_team fl_team;

/* A team of `size` >= 2 ranks. Allocates, starts no thread. NULL if there is no memory. */
fl_team *fl_team_new(size_t size);

/* Stop and join the workers, free the memory. No call may be using the team, save that of a parent
 * process: a forked child frees its copy, and has nothing to join. NULL is allowed. */
void fl_team_free(fl_team *team);

/* What a rank does; `ranks` is their number in this run. */
typedef void (*fl_work)(void *job, size_t rank, size_t ranks);

/* How many of `wanted` ranks a call may use now. More than 1: min(wanted, size), and the team is
 * this call's, which must go on to fl_team_run. 1: the caller alone, nothing is taken, because
 * another call has the team, or wanted < 2, or threads cannot be started, or a rank that is wanted
 * sleeps and `is_long` is 0: waking it would take longer than the work, which therefore should
 * last less than FL_TEAM_SPIN_US alone. The second such call within FL_TEAM_SPIN_US wakes the
 * workers, without waiting for them, so that those after it find them spinning. Threads not yet
 * started count as asleep. They have all signals blocked but those of a thread's own faults, so
 * that a crash is reported as anywhere.
 *
 * They run on the processors that the caller may run on, each on another one as far as there are
 * enough, and round as the caller does. The caller's processors are looked up, and the workers
 * moved if they are others, before the team runs for a long call, for one of another thread than
 * the last, for one that finds a rank asleep or its own thread on another's processor, and else
 * for one in FL_TEAM_SHORT_CALLS: the others make no system call for it. A caller that no longer
 * has a processor for each rank, as it had before, works alone.
 *
 * A child of fork() has threads of its own, started when it first needs them, whatever the
 * parent's did at that moment. Work must not fork. */
size_t fl_team_take(fl_team *team, size_t wanted, int is_long);

/* Run work(job, rank, ranks) on every rank < ranks at once, with ranks >= 2 as fl_team_take gave
 * it, and give the team back. Returns when every rank has returned from work: nothing touches
 * `job` any more, and all they wrote is seen. */
void fl_team_run(fl_team *team, size_t ranks, fl_work work, void *job);

/* Within work, by all its ranks equally often: wait until all are here. What any of them wrote
 * before, all see after. */
void fl_team_barrier(fl_team *team, size_t rank, size_t ranks);

/* Within work, by a rank that will come to no other barrier of this run: from now on no barrier
 * waits for it. What it wrote before, a rank sees that passes one without it. If any rank leaves,
 * rank 0 must, sooner or later. */
void fl_team_leave(fl_team *team, size_t rank);

/* A team as a call or a stream takes it. */
fl_threads fl_team_threads(fl_team *team, size_t size);

#ifdef __cplusplus
}
#endif
#endif
