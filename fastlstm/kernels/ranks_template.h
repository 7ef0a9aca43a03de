/* ranks_template.h - which part of a call is this rank's, where it waits for the others, and whether
 * it goes on.
 *
 * A part of cells_template.h, which includes it with its definitions in place.
 */

/* The ranks of a call share its buffers; the pointers to rows are each rank's own. */
static void *shared_at(const fl_call *call, size_t offset) {
    return (char *)call->scratch + offset;
}

static void *own_at(const fl_call *call, size_t offset) {
    return shared_at(call, call->cut->own + call->rank * call->cut->own_bytes + offset);
}

/* This rank's part of n panels or rows. A call alone is not made to wait for a division. */
static range part_of(size_t n, const fl_call *call) {
    range made = {0, n};
    if (call->ranks > 1) {
        made.first = n * call->rank / call->ranks;
        made.end = n * (call->rank + 1) / call->ranks;
    }
    return made;
}

/* Wait until all ranks are here, and see what they wrote. */
static void meet(const fl_call *call) {
    if (call->ranks > 1) fl_team_barrier(call->team, call->rank, call->ranks);
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
INLINE int stopped(const fl_call *call, size_t work) {
    fl_watch *watch = call->watch;
    if (!watch) return 0;
    if (__atomic_load_n(&watch->stop, __ATOMIC_ACQUIRE)) return 1;
    return call->asks && (watch->work += work) >= FL_ASK_WORK && ask(watch);
}

/* Begin the chunk that starts with step `first`: 0 if the call stops before it. All ranks go back
 * to the same chunk. Between here and the next call of this, all are in the same one, so that one
 * which is not yet in the chunk that was given up keeps its states first. */
static int begin_chunk(const fl_model *model, const fl_call *call, size_t first) {
    fl_watch *watch = call->watch;
    const size_t size = model->state_size * sizeof(real);
    if (!watch || call->whole) {
        /* Rank 0 may still be writing the state that this chunk begins with. */
        if (first) meet(call);
        return !stopped(call, 0);
    }
    if (call->members > 1) fl_team_barrier(call->team, call->member, call->members);
    const size_t stop = __atomic_load_n(&watch->stop, __ATOMIC_ACQUIRE);
    if (stop && stop != first + 1) return 0;
    for (size_t b = 0; b < call->B && call->rank == 0; ++b)
        memcpy((char *)call->kept + b * size, call->state[b], size);
    meet(call);
    if (call->asks) watch->at = first + 1;
    return !stopped(call, 0);
}
