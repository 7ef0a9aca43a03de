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
