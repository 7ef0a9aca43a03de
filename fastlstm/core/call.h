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

/* How a call is cut into chunks, and where its scratch memory goes, in bytes from its beginning on:
 * the buffers of a chunk, where fl_model.rooms say; what its ranks share; what each has to itself. */
typedef struct {
    size_t chunk;            /* steps that pass through all operations before the next ones start */
    size_t shared;           /* what an operation shares between its ranks while it runs */
    size_t kept;             /* real (B, state_size): the states as the chunk began, or a copy */
    size_t states;           /* (B,) pointers to those */
    size_t own, own_bytes;   /* of the first rank, and from one rank to the next: */
    size_t counts;           /*   size_t (lines + outputs, B) rows that each batch row has */
    size_t lines;            /*   line_rows (1 + lines + outputs,) */
    size_t work;             /*   what an operation uses while it runs */
    size_t bytes;            /* total */
} fl_cut;

/* How a call goes on one thread, and how on a team. */
typedef struct {
    fl_cut alone;
    fl_cut shared;   /* of all rows, or of the most rows one rank has; unused if ranks is 1 */
    size_t ranks;    /* threads that the work is worth */
    int by_rows;     /* each rank runs rows of its own, else its panels of all rows */
    int is_long;     /* the work takes longer than waking a thread */
    size_t bytes;    /* of scratch memory for either way */
} fl_plan;

/* Fill `plan` for calls of up to T steps of exactly B streams on up to `threads` threads. Not 0: a
 * size is too large. A call without steps (fl_begin, fl_flush) takes any plan for as many streams. */
int fl_plan_call(const fl_model *model, size_t T, size_t B, size_t threads, fl_plan *plan);

typedef struct fl_running {
    const fl_model *model;
    size_t T, B;
    const fl_rows *inputs;    /* (inputs,) */
    const fl_rows *outputs;   /* (outputs,); they overlap no input and no state */
    const size_t *lengths;    /* (B,) steps of each row, none of more than T; NULL: all have T */
    int whole;                /* what is folded has one row for all, and that at the end */
    int ending;               /* there are no steps: what is due at the end is given */
    int prepares;             /* there are no steps: `prepared` is made where it is not yet */
    void *const *states;      /* (B,) pointers to real (state_size,), all distinct */
    void *const *prepared;    /* (B,) fl_prepared of each, or NULL; NULL too where T > 1 */
    void *scratch;            /* as the plan says, 64-byte aligned */
    fl_gemm gemm;             /* for input projections of many rows; NULL: the kernel's own loops */
    fl_watch *watch;          /* NULL: nothing stops this call; else `ask` and `who` are set */
    size_t turn;              /* steps run before: which way panels are taken */
    const unsigned char *resets; /* (T, batch) not 0: the row starts anew before it; or NULL */
    size_t *given;            /* written, (outputs, batch): rows of each output; or NULL */
    size_t batch;             /* batch rows of the whole call, of which this may have some: */
                              /* B, from first_row on */
    size_t done;              /* written: T, or the steps made before the call stopped */
    const fl_threads *threads; /* who shares the work; NULL: nobody. The rest is set as it starts: */
    const fl_cut *cut;
    size_t first_row;         /* of the batch rows of the whole call, the one that is row 0, */
    size_t rank, ranks;       /* which part of the rows and panels this is, */
    size_t member, members;   /* and of the team: who has rows of its own has all their panels */
    int asks;                 /* whether this is the rank that asks `watch` */
} fl_running;

/* Run a call as planned: alone, or on its threads if the plan has more ranks than one and they are
 * free. Either way gives the same bits, save where a BLAS is used. A call that is stopped leaves each
 * state as it is after the first `done` steps; what the outputs hold beyond their rows is
 * undefined. Of a program that looks ahead T steps are a whole sequence, and are all or none. */
void fl_share(fl_running *call, const fl_plan *plan);

/* Whether a struct of a caller's is of a size that is known: as it is, or as it was before it had a
 * field. */
#define FL_IS_KNOWN(a, field)                  \
    ((a)->struct_size == sizeof *(a) ||        \
     (a)->struct_size == offsetof(__typeof__(*(a)), field))

/* Whether one of a size that is known has a field. */
#define FL_HAS(a, field) ((a)->struct_size > offsetof(__typeof__(*(a)), field))

/* Whether the functions of threads are there; NULL: nobody shares, which is allowed. */
int fl_have_threads(const fl_threads *threads);

/* Put the states of a call where a sequence starts, with the rows that its held inputs have. */
void fl_begin_alone(fl_running *call, const fl_plan *plan);

/* Write only `given`. */
void fl_count_alone(fl_running *call, const fl_plan *plan);

/* Rows or panels [first, end). */
typedef struct {
    size_t first, end;
} range;

/* How many rows of this chunk the values of a line have. */
typedef struct {
    size_t rows;       /* the most of any batch row */
    const size_t *of;  /* (B,) rows of each, or NULL: all have as many */
} line_rows;

/* How the ranks divide an operation. */
typedef enum { BY_RANK_0, BY_ROWS, BY_PANELS } division;

/* An operation over a chunk, or over one row of it where it is part of a loop. */
typedef struct {
    const fl_running *call;
    const fl_packed *packed; /* what packing gave this operation: in->packed->product */
    line_rows *lines;   /* (lines,), and lines[-1], of held values and constants, with one row */
    line_rows *given;   /* (outputs,) rows that the call gave before this chunk */
    const line_rows *on; /* the line whose rows this operation runs over */
    range rows;         /* those t of them that it runs over now */
    division by, by_before; /* of this operation, and of the one that ran before it */
    range mine;         /* of the rows r = (t - rows.first) * B + b those that are this rank's */
    size_t first;       /* number of the chunk's first step within the call */
    int ends;           /* no rows come behind those of this chunk */
    size_t at;          /* number of the operation */
    int loops;          /* it is part of a loop */
    int back;           /* panels are taken from the last to the first */
} run;

#endif
