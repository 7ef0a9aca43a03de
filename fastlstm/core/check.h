/* check.h - what is checked of a program once its words are decoded. Behind it, every number of a
 * value, list, matrix, vector and element of the state is one there is; every place lies within
 * what is read; sizes multiply without overflow; and what an operation reads, another has written.
 *
 * Functions give 1, or 0 once they have said what is wrong: `return fl_refuse(...)`.
 */
#ifndef FL_CHECK_H
#define FL_CHECK_H

#include "arena.h"
#include "model.h"

/* What every size of a program is below: a few of them add up to no more than a ptrdiff_t, and rows
 * of so many doubles have no more bytes than a size_t, which may have 32 bits. */
static const int64_t FL_SIZE_END = (int64_t)1 << (sizeof(size_t) > 4 ? 31 : 26);

/* Steps of checking, and multiply-adds that the tables of tokens take as they are packed: about a
 * second, and a minute. */
static const uint64_t FL_MOST_CHECKING = (uint64_t)1 << 28, FL_MOST_PACKING = (uint64_t)1 << 37;

/* Elements [first, end) of the state that belong to one operation alone, or to a held value. */
typedef struct {
    uint32_t first, end;
} fl_claim;

typedef struct {
    fl_program *program;
    fl_error error;
    char *message;         /* (message_bytes,), or NULL */
    size_t message_bytes;
    size_t operation;      /* that is checked now, from 0; SIZE_MAX: none */
    size_t loop_first, loop_end;  /* operations of the loop it is part of; 0, 0: of none */
    ptrdiff_t loop_line;   /* of the values of that loop; -1: none is known yet */
    size_t columns;        /* of y that recurrences, one behind the other, have written so far */
    uint64_t steps;        /* of checking */
    uint64_t packing;      /* multiply-adds */
    unsigned char *uses;   /* those of the program, as they are found */
    size_t *twins;         /* likewise */
    size_t *slots;         /* (slot_count,) 1 + a recurrence that is the first of its twins, found by */
    size_t slot_count;     /* hash; 0: none. More than there are operations */
    size_t *written;       /* (values,) 1 + the operation that wrote it last, 0: none did */
    size_t *holder;        /* (buffers,) 1 + the value that is in it, 0: none is */
    size_t *reader;        /* (buffers,) 1 + the operation that read it last */
    size_t *maker;         /* (lines,) 1 + the operation that told how many rows it has, 0: none */
    fl_claim *claims;      /* (most_claims,) */
    size_t claim_count, most_claims;
} fl_checker;

/* Say what is wrong, with the operation's number before it. Always gives 0. */
int fl_refuse(fl_checker *check, const char *format, ...)
#if defined(__MINGW32__) && !defined(__clang__)
    __attribute__((format(gnu_printf, 2, 3))) /* C's formats, not those of Windows */
#elif defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

const char *fl_operation_name(fl_kind kind);
const char *fl_function_name(fl_function function);

int fl_check_program(fl_checker *check);

/* Count so many steps of work; 0 if there are too many of them. */
int fl_spend(fl_checker *check, uint64_t steps);

/* ---- Parts of it, for those who check one kind of operation ---- */

/* Whether the operation may read this value now, over the rows of `line` (-1: in the beginning). */
int fl_check_read(fl_checker *check, const char *field, size_t value, ptrdiff_t line);

/* Whether a list is one of values that may be read so, and how many numbers they have together. */
int fl_check_reads(fl_checker *check, const fl_list *reads, ptrdiff_t line, int tokens,
                   size_t *total);

/* Whether the operation may read a value of so many numbers. */
int fl_check_one(fl_checker *check, const char *field, size_t value, ptrdiff_t line,
                 uint64_t count);

/* Whether the operation may write this value, of so many numbers; it is written from now on. */
int fl_check_write(fl_checker *check, size_t value, uint64_t count);

/* Elements of the state that are this operation's. `needed`: -1 is refused, else taken for none. */
int fl_check_claim(fl_checker *check, const char *field, ptrdiff_t offset, uint64_t count,
                   int needed);

/* Whether a list is there, has so many numbers, and none below `least` or at `end`. */
int fl_check_list(fl_checker *check, const char *field, const fl_list *list, uint64_t count,
                  int64_t least, uint64_t end);

/* Whether a vector has so many numbers. `needed`: -1 is refused. */
int fl_check_vector(fl_checker *check, const char *field, ptrdiff_t vector, uint64_t count,
                    int needed);

/* Whether a matrix has so many rows and columns; either may be told, where it is given as 0. It is
 * packed for `use`, FL_USE_ bits, from now on. */
int fl_check_matrix(fl_checker *check, const char *field, ptrdiff_t matrix, uint64_t rows,
                    uint64_t columns, int use);

/* a * b, or a number that no size is where that overflows. */
static inline uint64_t fl_times(uint64_t a, uint64_t b) {
    uint64_t made;
    return __builtin_mul_overflow(a, b, &made) ? UINT64_MAX : made;
}

int fl_check_on_rows(fl_checker *check, const fl_operation *operation);
int fl_check_over_time(fl_checker *check, const fl_operation *operation);
int fl_check_recurrent(fl_checker *check, const fl_recurrent *r);

#endif
