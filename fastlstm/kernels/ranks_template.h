/* ranks_template.h - which part of a call is this rank's, and where it waits for the others.
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
