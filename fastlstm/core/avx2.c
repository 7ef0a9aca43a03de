/* avx2.c - the AVX2 + FMA kernel: 8 lanes; 3 rows * 4 gates = 12 of 16 registers accumulate. */
#if defined(__x86_64__)
#define FL_AVX2
#define FL_KERNEL fl_avx2
#define FL_NAME "avx2"
#define FL_NEEDS FL_CPU_AVX2
#define FL_TARGET "avx2,fma,f16c"
#define GEMM_ROWS 0
#define ROWS 3
#define PANELS 2
#define AHEAD 2
#include "kernel.h"
#else
typedef int fl_no_avx2; /* ISO C forbids an empty translation unit */
#endif
