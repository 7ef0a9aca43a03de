/* pack.h - from a program's matrices, vectors and lists to what the operations read (model.h).
 *
 * Everything is done twice, by the same code: while memory is NULL, sizes are counted; then what was
 * counted is filled. Memory is zero before it is filled, which is what padding stays.
 */
#ifndef FL_PACK_H
#define FL_PACK_H

#include "arena.h"
#include "model.h"

typedef struct {
    const fl_program *program;
    const fl_kernel *kernel;
    const fl_tensor_data *tensors;  /* (tensors,), or NULL while sizes are counted */
    int keeps_tensors;              /* as of fl_model_config */
    int widens_float16;             /* the matrices are few enough to be read faster as reals */
    const void *const *vectors;     /* (vectors,), packed before all else, and then what operations */
    const void *const *panels;      /* (matrices,) share: the weights of panels, */
    const void *const *rows;        /* (matrices,) matrices as they are, and as they are stored; */
    const void *const *tables;      /* (matrices,) NULL while counted */
    const void *zeros;              /* as many as any product without a bias starts from */
    fl_arena arena;                 /* of the model */
    double *scratch;                /* behind the model, as much as any operation counts in */
    size_t scratch_count;           /* doubles */
} fl_packer;

/* How outputs lie in panels. A matrix of several gates has `units` outputs of each. */
typedef struct {
    size_t lanes, panels, groups, last_groups;
    size_t gates, units;
} fl_layout;

/* Any matrix but a cell's: up to 4 vectors a panel, the last panel with those that are left. */
fl_layout fl_plain_layout(const fl_packer *to, size_t outputs);

/* A cell's: all gates of L units a panel, or without gates as many vectors as there are accumulators
 * for, unless padding then costs a fifth. */
fl_layout fl_cell_layout(const fl_packer *to, size_t units, size_t gates);

/* How a matrix lies in tables, and in panels: a kernel for doubles has reals of all. The numbers are
 * the same either way. */
fl_stored_kind fl_table_as(const fl_packer *to, const fl_matrix *matrix);
fl_stored_kind fl_packed_as(const fl_packer *to, const fl_matrix *matrix);

/* `count` reals, or NULL while sizes are counted. */
void *fl_take_reals(fl_packer *to, size_t a, size_t b, size_t c);

/* Put a number into reals, as it is rounded. */
void fl_put(const fl_packer *to, void *reals, size_t at, double number);

/* n numbers of a tensor, or of the program's own where it is -1. to (n,). */
void fl_read_numbers(const fl_packer *from, ptrdiff_t tensor, int64_t first, int64_t stride,
                     size_t n, double *to);

/* Weights of panels of so many words in this layout, all 0 as yet; NULL while counted. */
void *fl_take_weights(fl_packer *to, const fl_layout *at, size_t words);

/* Put rows [first_row, first_row + gates * units) of a matrix into the weights of panels of so many
 * words, from word `word` on. */
void fl_fill_weights(const fl_packer *to, const fl_layout *at, void *weights, size_t words,
                     ptrdiff_t matrix, size_t first_row, size_t word);

/* Panels of so many words in this layout, of numbers that are stored so. */
fl_panels fl_panels_of(const fl_layout *at, fl_stored_kind stored, size_t words,
                       const void *weights, const void *bias);

/* The scales, in the order of panels, of rows [first_row, first_row + gates * units) of a matrix of
 * int8; NULL of another, and while counted. */
const void *fl_pack_units(fl_packer *to, const fl_layout *at, ptrdiff_t matrix, size_t first_row);

/* The panels of a matrix in the plain layout, whose weights all who use it share, with a bias. */
fl_panels fl_shared_panels(const fl_packer *to, ptrdiff_t matrix, const void *bias);

/* Pack what operations share, once the vectors are: panels, rows and tables (matrices,), or NULL while
 * it is counted. */
void fl_pack_matrices(fl_packer *to, const void **panels, const void **rows, const void **tables);

/* Outputs of a plain layout lie as they do in a vector: numbers of it from `first` on, which are
 * read up to a whole vector of lanes; zeros for -1. NULL while counted. */
const void *fl_plain_vector(const fl_packer *to, ptrdiff_t vector, size_t first);

/* Numbers of a vector from `first` on, in the order of panels, real (P, G, L), from gate `gate` on:
 * as many gates as it has numbers for. -1: zeros. */
const void *fl_pack_gates(fl_packer *to, const fl_layout *at, ptrdiff_t vector, size_t first,
                          size_t gate, size_t gates);

/* real (V, P, G, L): the product of each token with `input`; table -1: its column of it. */
const void *fl_pack_tokens(fl_packer *to, const fl_layout *at, ptrdiff_t input, ptrdiff_t table);

/* What an operation needs beside its fields. */
void fl_pack_move(fl_packer *to, const fl_move *move, fl_packed_move *made);
void fl_pack_map(fl_packer *to, const fl_map *map, fl_packed_map *made);
void fl_pack_product(fl_packer *to, const fl_product *product, fl_packed_product *made);
void fl_pack_taps(fl_packer *to, const fl_taps *taps, fl_packed_taps *made);
/* twin: the cell for which the matrices of this one are packed already, without numbers while sizes
 * are counted; or NULL. */
void fl_pack_cell(fl_packer *to, const fl_recurrent *recurrent, const fl_cell *twin, fl_cell *made);

#endif
