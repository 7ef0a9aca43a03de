/* ranks.h - which part of a call is this rank's, where it waits for the others, and whether it goes
 * on. A part of kernel.h.
 */

/* The ranks of a call share its buffers. */
INLINE void *shared_at(const fl_running *call, size_t offset) {
    return (char *)call->scratch + offset;
}

/* Each rank has some to itself. */
INLINE void *own_at(const fl_running *call, size_t offset) {
    return shared_at(call, call->cut->own + call->rank * call->cut->own_bytes + offset);
}

/* What an operation may use while it runs: of all its ranks, and of this one. */
INLINE void *shared_scratch(const fl_running *call) { return shared_at(call, call->cut->shared); }
INLINE void *own_scratch(const fl_running *call) {
    return own_at(call, call->cut->work);
}

/* This rank's part of n panels or rows. A call alone is not made to wait for a division. */
INLINE range part_of(size_t n, const fl_running *call) {
    range made = {0, n};
    if (call->ranks > 1) {
        made.first = n * call->rank / call->ranks;
        made.end = n * (call->rank + 1) / call->ranks;
    }
    return made;
}

/* Of P panels, those that this rank computes of each of its rows. */
INLINE range panels_of(const run *in, size_t P) {
    const range all = {0, P};
    return in->by == BY_PANELS ? part_of(P, in->call) : all;
}

/* Wait until all ranks are here, and see what they wrote. */
INLINE void meet(const fl_running *call) {
    if (call->ranks > 1) call->threads->barrier(call->threads->team, call->rank, call->ranks);
}

/* Multiply-adds, about, from one question whether to stop to the next: 20 microseconds of the
 * fastest kernel, and a millisecond or two of the plain one. The tests set it to 1, so that every
 * place that may stop is tried. A row's other work counts as ROW_WORK multiply-adds a number. */
#ifndef FL_ASK_WORK
#define FL_ASK_WORK (1 << 20)
#endif
enum { ROW_WORK = 16 };

static __attribute__((noinline)) int ask(fl_watch *watch) {
    watch->work = 0;
    v_restore((__typeof__(v_flush_denormals()))watch->mode);
    const int stop = watch->ask(watch->who);
    v_flush_denormals();
    if (stop) __atomic_store_n(&watch->stop, watch->at, __ATOMIC_RELEASE);
    return stop;
}

/* Whether to return, leaving all as it is, before this much work is done. A rank that does is not
 * waited for any more; who meets it next sees `stop`, and returns before the numbers that are
 * missing could matter: nothing that is computed from a stopped rank's numbers is an index. */
INLINE int stopped(const fl_running *call, size_t work) {
    fl_watch *watch = call->watch;
    if (!watch) return 0;
    if (__atomic_load_n(&watch->stop, __ATOMIC_ACQUIRE)) return 1;
    return call->asks && (watch->work += work) >= FL_ASK_WORK && ask(watch);
}
