/* lines.h - how many rows the values of a line have at most for so many steps, and what room the
 * buffers take for it. Both are made once, with a model, so that no call has to count them anew.
 */
#ifndef FL_LINES_H
#define FL_LINES_H

#include <stddef.h>

#include "program.h"

/* C steps give each batch row at most ceil(C * factor / divisor) + more rows, those that are due at
 * the end of its sequence among them. */
typedef struct {
    size_t factor, divisor, more;
} fl_bound;

/* A buffer begins, for C steps of B batch rows, at element B * (C * each + more) of all buffers. */
typedef struct {
    size_t each, more;
} fl_room;

/* The lines of an operation; -1: none, or that of what has one row for a whole sequence. */
typedef struct {
    ptrdiff_t on;    /* whose rows it runs over */
    ptrdiff_t from;  /* whose rows it makes others of, but of one that meets several, */
    ptrdiff_t to;    /* and where those are; -1: it makes none */
} fl_course;

fl_course fl_course_of(const fl_program *program, const fl_operation *op);

/* courses (operations,), bounds (lines,). Not 0 if a number is too large. */
int fl_bound_lines(const fl_program *program, const fl_course *courses, fl_bound *bounds);

/* rooms (buffers + 1,), where the last one is the end of all. Each buffer begins at a multiple of 64
 * bytes if the first does. Not 0 if a number is too large. */
int fl_place_buffers(const fl_program *program, const fl_bound *bounds, fl_room *rooms);

/* The number of rows that a bound stands for, or SIZE_MAX. */
size_t fl_most_rows(fl_bound bound, size_t steps);

/* a * b + c, or SIZE_MAX if that or an operand overflows; SIZE_MAX never is a legal size here. */
static inline size_t fl_checked(size_t a, size_t b, size_t c) {
    size_t product, sum;
    if (a == SIZE_MAX || b == SIZE_MAX || c == SIZE_MAX) return SIZE_MAX;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum))
        return SIZE_MAX;
    return sum;
}

/* a / b, rounded up. */
static inline size_t fl_divided(size_t a, size_t b) { return a / b + (a % b != 0); }

static inline size_t fl_most(size_t a, size_t b) { return a > b ? a : b; }

#endif
