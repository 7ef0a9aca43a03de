/* call.h - a call as it runs: what it is given, how it is cut, which part of it a rank has.
 *
 * The run templates (kernel.h has their order) include it once for each instruction set; view.h and
 * ranks.h have what depends on `real`. The convention that every operation's template keeps:
 *
 *   static void run_<operation>(const run *in, const fl_<operation> *operation)
 *
 * runs the operation over the rows of `in`: rows t in [in->rows.first, in->rows.end) of each batch
 * row b, those that there are (has_row). The walk has told how many rows each line has, and what of
 * the rows or panels is this rank's: in->mine, to be walked with FOR_ROWS, or panels_of(in, P). What
 * an operation reads and writes, view_of(in, value) finds, and at(&view, t, b) gives a row. It uses
 * no state but what its own fields name, and scratch memory as scratch.h says. It returns early,
 * whatever is written by then, when stopped(in->call, work) says so, and asks that before each
 * piece of at most about FL_ASK_WORK multiply-adds.
 */
#ifndef FL_CALL_H
#define FL_CALL_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

/* What may stop a call before its end. The thread that made the call asks now and then; all ranks
 * heed the answer. `work` has a cache line of its own: who asks writes it at every step, and the
 * others read `stop` as often. */
typedef struct {
    int (*ask)(void *who);    /* not 0: stop. Runs in the caller's floating-point mode */
    void *who;                /* what it is asked with */
    size_t stop;              /* atomic; 0, or 1 + the step with which the chunk given up began */
    char apart[128];
    size_t work;              /* multiply-adds, about, since it was asked */
    size_t at;                /* 1 + the step with which the chunk of the rank that asks began */
    uint64_t mode;            /* the caller's floating-point mode */
} fl_watch;

/* How a call is cut into chunks, and where its scratch memory goes. Buffers and `shared` are shared
 * by the ranks of a call, byte offsets into the scratch; then comes each rank's own. */
typedef struct {
    size_t chunk;            /* steps that pass through all operations before the next ones start */
    size_t gate_steps;       /* rows of one line whose input projections are made together */
    size_t *buffer;          /* (buffers,) offset of each */
    size_t *capacity;        /* (lines,) rows of each batch row that a chunk has at most */
    size_t lines;            /* (lines, B) rows of each batch row, size_t */
    size_t written;          /* (outputs, B) rows that the call has given, size_t */
    size_t kept;             /* real (B, state_size) the states as the chunk began, or a copy to end */
    size_t states;           /* (B,) pointers to those */
    size_t shared;           /* what an operation shares between its ranks while it runs */
    size_t own, own_bytes;   /* of the first rank, and from one rank to the next */
    size_t bytes;            /* total */
} fl_cut;

typedef struct fl_running {
    const fl_model *model;
    size_t T, B;
    const fl_rows *inputs;    /* (inputs,) */
    const fl_rows *outputs;   /* (outputs,); they overlap no input and no state */
    const size_t *lengths;    /* (B,) steps of each row, none of more than T; NULL: all have T */
    int whole;                /* the sequence ends with this call: a folded value has one row */
    int ending;               /* no steps come any more: what is due at the end is given now */
    void *const *states;      /* (B,) pointers to real (state_size,), all distinct */
    void *scratch;            /* cut->bytes, 64-byte aligned */
    fl_gemm gemm;             /* for input projections of many rows; NULL: the kernel's own loops */
    fl_watch *watch;          /* NULL: nothing stops this call; else `ask` and `who` are set */
    size_t turn;              /* steps run before: which way panels are taken */
    const fl_cut *cut;
    const fl_threads *threads; /* who shares the work, unless ranks is 1, */
    size_t rank, ranks;       /* which part of the rows and panels this is, */
    size_t member, members;   /* and of the team: who has rows of its own has all their panels */
    int asks;                 /* whether this is the rank that asks `watch` */
} fl_running;

/* Rows or panels [first, end). */
typedef struct {
    size_t first, end;
} range;

/* How many rows of this chunk the values of a line have. */
typedef struct {
    size_t rows;       /* the most of any batch row */
    const size_t *of;  /* (B,) rows of each, or NULL: all have as many */
} line;

/* How the ranks divide an operation. */
typedef enum { BY_RANK_0, BY_ROWS, BY_PANELS } division;

/* An operation over a chunk, or over one row of it where it is part of a loop. */
typedef struct {
    const fl_running *call;
    const fl_packed *packed; /* what packing gave this operation: in->packed->product */
    const line *lines;  /* (lines,), and lines[-1], of held values and constants, with one row */
    line on;            /* of the line whose rows this operation runs over */
    range rows;         /* those t of them that it runs over now */
    division by;
    range mine;         /* of the rows r = (t - rows.first) * B + b those that are this rank's */
    size_t first;       /* number of the chunk's first step within the call */
    int back;           /* panels are taken from the last to the first */
} run;

#endif
