/* neondot.c - the NEON kernel where products of int8 have instructions, FEAT_DotProd. */
#if defined(__aarch64__)
#define FL_NEON
#define FL_DOT
#define FL_KERNEL fl_neondot
#define FL_SHARES fl_neon
#define FL_NAME "neondot"
#define FL_NEEDS (FL_CPU_NEON | FL_CPU_DOT)
#if defined(__clang__)
#define FL_TARGET "dotprod"
#else
#define FL_TARGET "arch=armv8.2-a+dotprod"
#endif
#define GEMM_ROWS 0
#define ROWS 6
#define PANELS 2
#define AHEAD 4
#include "kernel.h"
#else
typedef int fl_no_neondot; /* ISO C forbids an empty translation unit */
#endif
