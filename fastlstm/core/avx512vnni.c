/* avx512vnni.c - the AVX-512 kernel where products of int8 have instructions, AVX512-VNNI. */
#if defined(__x86_64__)
#define FL_AVX512
#define FL_DOT
#define FL_KERNEL fl_avx512vnni
#define FL_SHARES fl_avx512
#define FL_NAME "avx512vnni"
#define FL_NEEDS (FL_CPU_AVX512 | FL_CPU_AVX512VNNI)
#define FL_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"
#define GEMM_ROWS 0
#define ROWS 6
#define PANELS 1
#define AHEAD 4
#include "kernel.h"
#else
typedef int fl_no_avx512vnni; /* ISO C forbids an empty translation unit */
#endif
