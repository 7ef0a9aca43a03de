/* neon.c - the NEON kernel of aarch64: 4 lanes; 6 rows * 4 gates = 24 of 32 registers. */
#if defined(__aarch64__)
#define FL_NEON
#define FL_KERNEL fl_neon
#define FL_NAME "neon"
#define FL_NEEDS FL_CPU_NEON
#define GEMM_ROWS 0
#define ROWS 6
#define PANELS 2
#define AHEAD 4
#include "kernel.h"
#else
typedef int fl_no_neon; /* ISO C forbids an empty translation unit */
#endif
