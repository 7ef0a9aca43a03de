/* kernel.h - all that runs a program, for one instruction set.
 *
 * An instruction set's file defines, and then includes this file:
 *   FL_AVX512 | FL_AVX2 | FL_NEON | FL_SIMD128 | FL_FUSED | FL_SCALAR | FL_SCALAR64
 *                which operations vec.h gives
 *   FL_KERNEL    the fl_kernel object to define; without one the templates are all there is
 *   FL_SHARES    the fl_kernel whose templates this one runs too: it has only sums of int8 of its
 *                own; where FL_WHOLE is defined it has all
 *   FL_DOT       vec_int8.h: there are instructions for products of int8
 *   FL_TILES     sum_tiles.h: there are instructions for products of many rows of int8
 *   FL_NAME      its name, a string
 *   FL_NEEDS     the FL_CPU_ bits it needs
 *   FL_TARGET    the compiler's names of those instruction sets, a string, if any
 *   GEMM_ROWS    rows from which a BLAS does input projections faster, 0 if it never does
 *   ROWS         batch rows computed together, 2 to 6: ROWS * 4 accumulators fit the registers
 *   PANELS       panels of a single row computed together, so that enough sums are in flight
 *   AHEAD        rows projected on the side of a scan: (AHEAD + 1) * 4 accumulators fit; 0: none
 * Combinations tested: the files beside this one.
 *
 * The summation order of every output is: bias, then the inputs, then h, each in blocks. It does
 * not depend on ROWS, on how many rows or steps a call has, or on who else is in the batch, so
 * neither does any bit of the result. No expression may be contracted (-ffp-contract=off).
 */
#include "call.h"
#include "scratch.h"

#define FL_PRAGMA(x) _Pragma(#x)
#if defined(FL_TARGET)
#if defined(__clang__)
#define FL_REGION(t) \
    FL_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
#define FL_REGION_END FL_PRAGMA(clang attribute pop)
#else
#define FL_REGION(t) FL_PRAGMA(GCC push_options) FL_PRAGMA(GCC target(t))
#define FL_REGION_END FL_PRAGMA(GCC pop_options)
#endif
#else
#define FL_REGION(t)
#define FL_REGION_END
#endif

FL_REGION(FL_TARGET)

#include "vec.h"

#define UNROLL FL_PRAGMA(GCC unroll 8)

/* Keep what lies behind `p` in memory. Where totals of several rows fit beside the accumulators, a
 * compiler puts them into registers, and then has too few for the loop that matters; and of GCC's
 * tiles it does not know that they are read from there. */
#define IN_MEMORY(p) __asm__ volatile("" : : "r"(p) : "memory")

#if !defined(FL_SCALAR64)
#include "vec_int8.h"
#include "sum_int8.h"
#endif
#if defined(FL_TILES)
#include "sum_tiles.h"
#define FL_INT8 {sum_rows_in_tiles, begin_tiles, end_tiles}
#else
#define FL_INT8 {.sum = sum_products}
#endif

#if !defined(FL_SHARES) || defined(FL_WHOLE)

#include "ranks.h"
#include "view.h"

#include "activations.h"
#include "functions.h"
#include "panels.h"
#include "stored.h"
#include "multiply.h"
#include "cells.h"
#include "rows.h"
#include "maps.h"
#include "reductions.h"
#include "norms.h"
#include "products.h"
#include "variants.h"
#include "prepare.h"
#include "recurrent.h"
#include "over_time.h"
#include "folds.h"
#include "run.h"
#endif

FL_REGION_END

#if defined(FL_KERNEL)
#define FL_JOINED(a, b) a##b
#define FL_PART_OF(kernel, part) FL_JOINED(kernel, part)
#if !defined(FL_SHARES) || defined(FL_WHOLE)
#undef FL_SHARES
#define FL_SHARES FL_KERNEL
#define FL_SHARED(part, body)                                   \
    void FL_PART_OF(FL_SHARES, part)(fl_running *call);         \
    void FL_PART_OF(FL_SHARES, part)(fl_running *call) { body(call); }
#else
#define FL_SHARED(part, body) void FL_PART_OF(FL_SHARES, part)(fl_running *call);
#endif
FL_SHARED(_run, run_call)
FL_SHARED(_begin, begin_call)
FL_SHARED(_count, count_call)
extern const fl_kernel FL_KERNEL;
const fl_kernel FL_KERNEL = {
    .name = FL_NAME,
    .lanes = L,
    .real_size = sizeof(real),
    .needs = FL_NEEDS,
    .gemm_rows = GEMM_ROWS,
#if !defined(FL_SCALAR64)
    .int8_offset = DOT_OFFSET,
    .int8 = FL_INT8,
#endif
    .run = FL_PART_OF(FL_SHARES, _run),
    .begin = FL_PART_OF(FL_SHARES, _begin),
    .count = FL_PART_OF(FL_SHARES, _count),
};
#endif
