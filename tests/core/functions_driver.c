/* functions_driver.c - one function of functions.h, of one instruction set, for numbers from a file.
 *
 *   functions_driver FUNCTION ALPHA BETA <x >y
 *   functions_driver FUNCTION each BETA <x,alpha >y   as many of alpha behind x, few enough
 *
 * Reads and writes plain reals; the exit status is 1 if that fails. The instruction set is the one
 * whose macro is defined as for a kernel, by default that of one lane of float. All vectors are
 * whole but the last. tools/fit_activations.py and tests/test_functions_c.py build and run it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(FL_AVX512) && !defined(FL_AVX2) && !defined(FL_NEON) && !defined(FL_SIMD128) && \
    !defined(FL_FUSED) && !defined(FL_SCALAR64)
#define FL_SCALAR
#endif
#include "program.h"

#include "vec.h"

#include "activations.h"
#include "functions.h"

enum { BLOCK = 1 << 17 }; /* a multiple of L */

typedef vec function(vec x, vec alpha, vec beta);

/* Of two numbers the first is x, and the second alpha; or the other way, of `name_of`. */
#define DEFINE(name, value, ...)                        \
    static vec name(vec x, vec alpha, vec beta) {       \
        const vec __VA_ARGS__;                          \
        (void)a, (void)alpha, (void)beta;               \
        return value;                                   \
    }
#define ONE(name, value) DEFINE(one_##name, value, a = x)
#define TWO(name, value) \
    DEFINE(one_##name, value, a = x, b = alpha) DEFINE(of_##name, value, a = alpha, b = x)
#define THREE(name, value) DEFINE(one_##name, value, a = x, b = alpha, c = beta)
#define EXPM1(F) F(expm1, v_expm1(v_min(v_set1(0), a)))
FUNCTIONS_OF_ONE(ONE)
EXPM1(ONE)
FUNCTIONS_OF_TWO(TWO)
FUNCTIONS_OF_THREE(THREE)

#define ROW(name, value) {#name, one_##name},
#define ROW_OF(name, value) {#name "_of", of_##name},
static const struct {
    const char *name;
    function *of;
} functions[] = {
    FUNCTIONS_OF_ONE(ROW) EXPM1(ROW) FUNCTIONS_OF_TWO(ROW) FUNCTIONS_OF_TWO(ROW_OF)
    FUNCTIONS_OF_THREE(ROW)
};

static function *find(const char *name) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i)
        if (!strcmp(functions[i].name, name)) return functions[i].of;
    return NULL;
}

int main(int argc, char **argv) {
    static real x[BLOCK], each[BLOCK];
    function *of = argc == 4 ? find(argv[1]) : NULL;
    if (!of) return fprintf(stderr, "expected a function, alpha and beta\n"), 1;
    const int pairs = !strcmp(argv[2], "each");
    const vec alpha = v_set1((real)strtod(argv[2], NULL));
    const vec beta = v_set1((real)strtod(argv[3], NULL));
    size_t count;
    v_flush_denormals();
    while ((count = fread(x, sizeof *x, BLOCK, stdin))) {
        if (pairs) {
            count /= 2;
            memcpy(each, x + count, count * sizeof *x);
        }
        for (size_t i = 0; i < count; i += L) {
            const size_t left = count - i < L ? count - i : L;
            const vec second = pairs ? v_load_n(each + i, left) : alpha;
            if (left == L) v_store(x + i, of(v_load(x + i), second, beta));
            else v_store_n(x + i, of(v_load_n(x + i, left), second, beta), left);
        }
        if (fwrite(x, sizeof *x, count, stdout) != count) return 1;
    }
    return ferror(stdin) || fflush(stdout);
}
