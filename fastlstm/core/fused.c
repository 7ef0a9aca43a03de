/* fused.c - the kernel of 32-bit Arm with a fused multiply-add, as Cortex-M4F and M7: one lane. */
#if defined(__ARM_FEATURE_FMA) && !defined(__aarch64__)
#define FL_FUSED
#define FL_KERNEL fl_fused
#define FL_NAME "fused"
#define FL_NEEDS 0
#define GEMM_ROWS 0
#define ROWS 2
#define PANELS 2
#define AHEAD 0
#include "kernel.h"
#else
typedef int fl_no_fused; /* ISO C forbids an empty translation unit */
#endif
