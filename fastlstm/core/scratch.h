/* scratch.h - the bytes of scratch memory that each operation uses while it runs: shared by the
 * ranks of a call (shared_scratch), and of each rank its own (own_scratch).
 *
 * cut.c reserves the most that any operation needs; the template of an operation lays out what it
 * asked for here. Sizes are checked: one that overflows is SIZE_MAX.
 */
#ifndef FL_SCRATCH_H
#define FL_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

/* What an operation needs is a function of its own fields and of these. */
typedef struct {
    size_t lanes, real_size;  /* of the kernel */
    size_t B;                 /* rows of the batch */
    size_t rows;              /* of a batch row that a chunk has at most, on the operation's line */
    size_t gate_steps;        /* rows of a batch row whose input projections are made together */
} fl_extent;

typedef struct {
    size_t shared, own;  /* bytes */
} fl_need;

/* a * b + c, or SIZE_MAX if that or an operand overflows; SIZE_MAX never is a legal size here. */
static inline size_t fl_checked(size_t a, size_t b, size_t c) {
    size_t product, sum;
    if (a == SIZE_MAX || b == SIZE_MAX || c == SIZE_MAX) return SIZE_MAX;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum))
        return SIZE_MAX;
    return sum;
}

static inline size_t fl_most(size_t a, size_t b) { return a > b ? a : b; }

static inline fl_need fl_map_need(const fl_map *map, const fl_packed_map *packed,
                                  const fl_extent *extent) {
    const fl_need need = {0, 0};
    (void)map, (void)packed, (void)extent;
    return need;
}

static inline fl_need fl_product_need(const fl_product *product, const fl_packed_product *packed,
                                      const fl_extent *extent) {
    const fl_need need = {0, 0};
    (void)product, (void)packed, (void)extent;
    return need;
}

static inline fl_need fl_recurrent_need(const fl_recurrent *recurrent, const fl_cell *cell,
                                        const fl_extent *extent) {
    const fl_need need = {0, 0};
    (void)recurrent, (void)cell, (void)extent;
    return need;
}

#endif
