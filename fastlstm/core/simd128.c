/* simd128.c - the kernel of WebAssembly's SIMD128: 4 lanes; 2 rows * 4 gates accumulate. */
#if defined(__wasm_simd128__)
#define FL_SIMD128
#define FL_KERNEL fl_simd128
#define FL_NAME "simd128"
#define FL_NEEDS 0
#define GEMM_ROWS 0
#define ROWS 2
#define PANELS 2
#define AHEAD 0
#include "kernel.h"
#else
typedef int fl_no_simd128; /* ISO C forbids an empty translation unit */
#endif
