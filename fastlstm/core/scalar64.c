/* scalar64.c - the plain double kernel of any machine, one lane. */
#define FL_SCALAR64
#define FL_KERNEL fl_scalar64
#define FL_NAME "scalar"
#define FL_NEEDS 0
#define GEMM_ROWS 16
#define ROWS 2
#define PANELS 2
#define AHEAD 0
#include "kernel.h"
