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

#include "lines.h"
#include "model.h"

/* What an operation needs is a function of its own fields and of these. */
typedef struct {
    size_t lanes, real_size;  /* of the kernel */
    size_t B;                 /* rows of the batch */
    size_t rows;              /* of a batch row that a chunk has at most, on the operation's line */
} fl_extent;

typedef struct {
    size_t shared, own;  /* bytes */
} fl_need;

/* Positions of a product whose inputs are put together before they are multiplied at once. */
enum { FL_POSITIONS = 24 };

/* Rows that a recurrence takes through its steps together. A multiple of every kernel's ROWS. */
enum { FL_TILE_ROWS = 96 };

/* Those of so many rows, each of so many positions. */
static inline size_t fl_tile_rows(size_t rows, size_t positions) {
    const size_t all = positions < FL_TILE_ROWS ? rows * positions : FL_TILE_ROWS;
    return all < FL_TILE_ROWS ? all : FL_TILE_ROWS;
}

/* Bytes from one twin of a row of K numbers to the next: integers are stored 16 at a time. */
static inline size_t fl_twin_bytes(size_t K) {
    return (sizeof(fl_twin) + (K + 15) / 16 * 16 + 63) / 64 * 64;
}

/* Those of the rows of a product; sizes in a program are below 2^31. */
static inline size_t fl_patch_bytes(const fl_packed_product *packed, size_t real_size) {
    const size_t patch = fl_checked(packed->columns, real_size, 0);
    return packed->x.stretches ? fl_checked(FL_POSITIONS, patch, 0) : 0;
}

static inline fl_need fl_product_need(const fl_product *product, const fl_packed_product *packed,
                                      const fl_extent *extent) {
    const int twins = packed->panels && packed->panels->stored == FL_STORED_int8;
    const size_t rows = twins ? FL_TILE_ROWS : 0;
    const fl_need need = {0, fl_checked(rows, fl_twin_bytes(packed->columns),
                                        fl_patch_bytes(packed, extent->real_size))};
    (void)product;
    return need;
}

/* How the weights of the new scores (S,) fade those of before, and what they are. */
static inline fl_need fl_attention_need(size_t S, const fl_extent *extent) {
    const fl_need need = {0, 2 * S * extent->real_size};
    return need;
}

/* Numbers that a step of a variant of a cell keeps of each row; units = P * L. */
static inline size_t fl_variant_numbers(const fl_cell *cell, size_t units) {
    const size_t sums = cell->variant->norm == FL_CELL_NORM_product ? 3 : 2;
    return units * (cell->gates.groups * sums + 2);
}

/* Rows whose input projections, of `width` numbers, are made together: few enough to stay near the
 * core while the weights stream past them, enough to share each reading of the weights. */
static inline size_t fl_gate_rows(size_t width, size_t real_size) {
    enum { BYTES = 64 * 1024, LEAST = 24 };
    return fl_most(BYTES / (width * real_size), LEAST);
}

/* What the ranks of a recurrence share of a tile, in numbers from the first. Nothing overflows:
 * sizes in a program are below 2^31, and rows of a tile few. */
typedef struct {
    size_t width;    /* G * L * P */
    size_t variant;  /* (rows, fl_variant_numbers) */
    size_t c;        /* (rows, P * L), along positions */
    size_t hidden;   /* (rows, H) h before its projection */
    size_t gates;    /* (2, fl_gate_rows, P, G, L) */
    size_t numbers;  /* in all */
} fl_tile;

static inline fl_tile fl_tile_of(const fl_recurrent *a, const fl_cell *cell, size_t lanes,
                                 size_t real_size, size_t rows, int projects) {
    enum { ALIGNED = 16 };
    const size_t units = cell->gates.panels * lanes;
    fl_tile made = {units * cell->gates.groups, 0, 0, 0, 0, 0};
    made.c = cell->variant ? rows * fl_variant_numbers(cell, units) : 0;
    made.hidden = made.c + (a->along_positions ? rows * units : 0);
    made.gates = made.hidden + (cell->projection.weights ? rows * a->hidden_size : 0);
    made.gates = (made.gates + ALIGNED - 1) / ALIGNED * ALIGNED;
    made.numbers = made.gates;
    if (projects) made.numbers += 2 * fl_gate_rows(made.width, real_size) * made.width;
    return made;
}

/* What each rank keeps of a tile beside: FL_TRACK_BYTES of each row, rows for three purposes, of
 * which one is input projections, and zeros (h_size,). */
enum { FL_ROW_BYTES = 7 * sizeof(void *), FL_TRACK_BYTES = 13 * sizeof(void *) };

static inline size_t fl_tile_structs(size_t rows) { return fl_most(3 * rows, 24); }

/* Where the twins of a tile of so many rows are, of all that a rank keeps; and how many bytes they are:
 * those of x and h, or of fl_tile_structs(rows) rows of either. */
static inline size_t fl_twins_at(const fl_recurrent *a, size_t rows, size_t real_size) {
    return FL_TRACK_BYTES * rows + FL_ROW_BYTES * fl_tile_structs(rows) + a->h_size * real_size;
}
static inline size_t fl_twins_bytes(const fl_recurrent *a, const fl_cell *cell, size_t rows) {
    const size_t K = fl_most(fl_most(a->input_size, a->h_size), a->hidden_size);
    const int some = cell->gates.stored == FL_STORED_int8 ||
                     cell->projection.stored == FL_STORED_int8;
    return some ? fl_checked(fl_tile_structs(rows), fl_twin_bytes(K), 0) : 0;
}

static inline fl_need fl_recurrent_need(const fl_recurrent *recurrent, const fl_cell *cell,
                                        const fl_extent *extent) {
    const int along = recurrent->along_positions;
    size_t rows = fl_checked(extent->B, recurrent->positions, 0);
    if (along) rows = fl_checked(rows, extent->rows, 0);
    if (rows > FL_TILE_ROWS) rows = FL_TILE_ROWS;
    const int projects = (along ? recurrent->steps : extent->rows) > 1;
    const fl_tile tile =
        fl_tile_of(recurrent, cell, extent->lanes, extent->real_size, rows, projects);
    const fl_need need = {tile.numbers * extent->real_size,
                          fl_checked(fl_twins_bytes(recurrent, cell, rows), 1,
                                     fl_twins_at(recurrent, rows, extent->real_size))};
    return need;
}

#endif
