/* absent_kernels.c - kernels that a build of a test leaves out: no processor has what they need. */
#include "call.h"

#define ABSENT(kernel)             \
    extern const fl_kernel kernel; \
    const fl_kernel kernel = {"absent", 1, sizeof(float), UINT32_MAX, 0, NULL, NULL, NULL}

#if defined(ABSENT_AVX512)
ABSENT(fl_avx512);
#endif
#if defined(ABSENT_SCALAR)
ABSENT(fl_scalar);
#endif
#if defined(ABSENT_SCALAR64)
ABSENT(fl_scalar64);
#endif
typedef int fl_absent_kernels; /* ISO C forbids an empty translation unit */
