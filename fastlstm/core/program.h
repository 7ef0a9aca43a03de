/* program.h - a program once it is decoded: the enumerations, tables and operations of operations.h
 * as C types.
 *
 * A type `t` with kinds has them in an enumeration fl_t_kind, FL_T_KIND names below; each table's
 * entry is a struct of the table's name, and each operation a struct of the operation's. Fields are
 * named and documented in operations.h, and only there.
 */
#ifndef FL_PROGRAM_H
#define FL_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

#include "fastlstm.h"
#include "operations.h"

typedef enum {
#define E(name) FL_FUNCTION_##name,
    FL_FUNCTIONS(E)
#undef E
    FL_FUNCTION_COUNT
} fl_function;

typedef enum {
#define E(name) FL_REDUCTION_##name,
    FL_REDUCTIONS(E)
#undef E
    FL_REDUCTION_COUNT
} fl_reduction_kind;

typedef enum {
#define E(name) FL_FOLD_##name,
    FL_FOLDS(E)
#undef E
    FL_FOLD_COUNT
} fl_fold_kind;

typedef enum {
#define E(name) FL_NORM_##name,
    FL_NORMS(E)
#undef E
    FL_NORM_COUNT
} fl_norm_kind;

typedef enum {
#define E(name) FL_CELL_##name,
    FL_CELLS(E)
#undef E
    FL_CELL_COUNT
} fl_cell_kind;

typedef enum {
#define E(name) FL_CELL_NORM_##name,
    FL_CELL_NORMS(E)
#undef E
    FL_CELL_NORM_COUNT
} fl_cell_norm_kind;

typedef enum {
#define E(name) FL_PLACE_##name,
    FL_PLACES(E)
#undef E
    FL_PLACE_COUNT
} fl_place_kind;

typedef enum {
#define E(name) FL_PART_##name,
    FL_PARTS(E)
#undef E
    FL_PART_COUNT
} fl_part_kind;

typedef enum {
#define E(name) FL_STORED_##name,
    FL_STORED(E)
#undef E
    FL_STORED_COUNT
} fl_stored_kind;

typedef enum {
#define O(NAME, name) FL_##NAME,
    FL_OPERATIONS(O)
#undef O
    FL_OPERATION_COUNT
} fl_kind;

/* A function of numbers and its parameters, 0 where it has none. */
typedef struct {
    fl_function function;
    double alpha, beta;
} fl_activation;

typedef struct {
    const int64_t *at;  /* (count,); NULL where a field that may be -1 is -1 */
    size_t count;
} fl_list;

/* What a field of each type is decoded to. Those that may be -1 are signed. */
#define FL_TYPE_value size_t
#define FL_TYPE_some_value ptrdiff_t
#define FL_TYPE_vector ptrdiff_t
#define FL_TYPE_matrix ptrdiff_t
#define FL_TYPE_list fl_list
#define FL_TYPE_offset ptrdiff_t
#define FL_TYPE_size size_t
#define FL_TYPE_integer ptrdiff_t
#define FL_TYPE_number double
#define FL_TYPE_flag int
#define FL_TYPE_function fl_activation
#define FL_TYPE_reduction fl_reduction_kind
#define FL_TYPE_fold fl_fold_kind
#define FL_TYPE_norm fl_norm_kind
#define FL_TYPE_cell fl_cell_kind
#define FL_TYPE_cell_norm fl_cell_norm_kind
#define FL_TYPE_place fl_place_kind
#define FL_TYPE_part fl_part_kind
#define FL_TYPE_stored fl_stored_kind

#define F(type, name) FL_TYPE_##type name;
#define T(NAME, name) typedef struct { FL_##NAME##_FIELDS(F) } fl_##name;
FL_TABLES(T)
FL_OPERATIONS(T)
#undef T
#undef F

typedef struct {
    fl_kind kind;
    union {
#define O(NAME, name) fl_##name name;
        FL_OPERATIONS(O)
#undef O
    };
} fl_operation;

/* What a matrix is packed for: products with rows, which read panels; rows of it as reals; rows of it
 * as they are stored, to be looked up. */
enum { FL_USE_PANELS = 1, FL_USE_ROWS = 2, FL_USE_TABLE = 4 };

/* Columns of a matrix of int8: so many products of two of them, also where one is counted from -128 as
 * an unsigned number, have a sum that an int32 holds, and rows of so many a sum that a float does. */
enum { FL_MOST_INT8_COLUMNS = 65536 };

/* All pointers are into the memory that it was decoded to. */
struct fl_program {
    size_t state_size, lines, buffers;
    size_t held;       /* operations that begin a sequence, from the first on */
    int looks_ahead;   /* runs only whole, in one chunk */
    const double *reals;
    size_t real_count;
    const fl_list *lists;
    size_t list_count;
#define T(NAME, name)       \
    const fl_##name *name; \
    size_t name##_count;
    FL_TABLES(T)
#undef T
    const size_t *inputs, *outputs;  /* numbers of their values */
    size_t input_count, output_count;
    const fl_operation *operations;
    size_t operation_count;
    const unsigned char *uses;       /* (matrices,) FL_USE_ bits: as what operations read it */
    const size_t *twins;             /* (operations,) of a recurrence the first one whose matrices */
                                     /* are packed as its own are, which may be itself */
    uint64_t fingerprint;            /* of the program, or of the file that it was opened from; */
    const char *const *names;        /* of that: inputs, then outputs, then parts. Else NULL */
    const fl_tensor_data *tensors;   /* (tensor_count,) likewise */
};

/* Bytes of a number of an fl_type; 0: there is no such type. */
size_t fl_type_bytes(int64_t type);

/* Numbers that a function takes: 1, 2 or 3. */
size_t fl_arity(fl_function function);

#endif
