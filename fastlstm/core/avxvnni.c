/* avxvnni.c - the AVX2 kernel where products of int8 have instructions, AVX-VNNI. */
#if defined(__x86_64__)
#define FL_AVX2
#define FL_DOT
#define FL_KERNEL fl_avxvnni
#define FL_SHARES fl_avx2
#define FL_NAME "avxvnni"
#define FL_NEEDS (FL_CPU_AVX2 | FL_CPU_AVXVNNI)
#define FL_TARGET "avx2,fma,f16c,avxvnni"
#define GEMM_ROWS 0
#define ROWS 3
#define PANELS 2
#define AHEAD 2
#include "kernel.h"
#else
typedef int fl_no_avxvnni; /* ISO C forbids an empty translation unit */
#endif
