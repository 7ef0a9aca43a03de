/* avx512amx.c - the AVX-512 kernel where products of int8 have instructions, of many rows AMX,
 * which Linux is asked for: dispatch.c. */
#if defined(__x86_64__) && defined(__linux__)
#define FL_AVX512
#define FL_DOT
#define FL_TILES
#define FL_KERNEL fl_avx512amx
#define FL_SHARES fl_avx512
#define FL_NAME "avx512amx"
#define FL_NEEDS (FL_CPU_AVX512 | FL_CPU_AVX512VNNI | FL_CPU_AMX)
#define FL_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,avx2,fma"
#define GEMM_ROWS 0
#define ROWS 6
#define PANELS 1
#define AHEAD 4
#include "kernel.h"
#else
typedef int fl_no_avx512amx; /* ISO C forbids an empty translation unit */
#endif
