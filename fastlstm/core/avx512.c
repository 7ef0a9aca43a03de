/* avx512.c - the AVX-512 kernel: 16 lanes; 6 rows * 4 gates = 24 of 32 registers accumulate. */
#if defined(__x86_64__)
#define FL_AVX512
#define FL_KERNEL fl_avx512
#define FL_NAME "avx512"
#define FL_NEEDS FL_CPU_AVX512
#define FL_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define GEMM_ROWS 0
#define ROWS 6
#define PANELS 1
#define AHEAD 4
#include "kernel.h"
#else
typedef int fl_no_avx512; /* ISO C forbids an empty translation unit */
#endif
