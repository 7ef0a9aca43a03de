/* functions_driver.c - one function of vec.h or functions.h, of one instruction set, for numbers from a file.
 *
 *   functions_driver FUNCTION ALPHA BETA <x >y
 *
 * Reads and writes plain reals; the exit status is 1 if that fails. The instruction set is the one
 * whose macro is defined as for a kernel, by default that of one lane of float. All vectors are
 * whole but the last. tools/fit_activations.py and tests/test_functions_c.py build and run it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(FL_AVX512) && !defined(FL_AVX2) && !defined(FL_NEON) && !defined(FL_SCALAR64)
#define FL_SCALAR
#endif
#include "program.h"

#include "vec.h"

#include "functions.h"

enum { BLOCK = 4096 * L };

typedef vec function(vec x, vec alpha, vec beta);

#define FUNCTIONS(F)                                  \
    F(sigmoid, v_sigmoid(x))                          \
    F(tanh, v_tanh(x))                                \
    F(expm1, v_expm1(v_min(v_set1(0), x)))            \
    F(elu, v_elu(x, alpha))                           \
    F(softplus, v_softplus(x))                        \
    F(softsign, v_softsign(x))                        \
    F(silu, v_silu(x))                                \
    F(gelu, v_gelu(x))                                \
    F(gelu_tanh, v_gelu_tanh(x))                      \
    F(relu, v_relu(x))                                \
    F(sqrt, v_sqrt(x))                                \
    F(leaky_relu, v_leaky_relu(x, alpha))             \
    F(thresholded_relu, v_thresholded_relu(x, alpha)) \
    F(affine, v_affine(x, alpha, beta))               \
    F(hard_sigmoid, v_hard_sigmoid(x, alpha, beta))   \
    F(hardtanh, v_hardtanh(x, alpha, beta))           \
    F(scaled_tanh, v_scaled_tanh(x, alpha, beta))     \
    F(floor, v_floor(x))                              \
    F(sign, v_sign(x))                                \
    F(reciprocal, v_div(v_set1(1), x))                \
    F(exp, v_exp_of_any(x))                           \
    F(log, v_log(x))                                  \
    F(sin, v_sin(x))                                  \
    F(cos, v_cos(x))                                  \
    F(power, v_power(x, alpha))                       \
    F(power_of, v_power(alpha, x))                    \
    F(minimum, v_minimum(x, alpha))                   \
    F(minimum_of, v_minimum(alpha, x))                \
    F(maximum, v_maximum(x, alpha))                   \
    F(maximum_of, v_maximum(alpha, x))                \
    F(equal, v_equal(x, alpha))                       \
    F(not_equal, v_not_equal(x, alpha))               \
    F(less, v_less(x, alpha))                         \
    F(less_equal, v_less_equal(x, alpha))             \
    F(where, v_where(x, alpha, beta))

#define DEFINE(name, value)                            \
    static vec name##_of(vec x, vec alpha, vec beta) { \
        (void)alpha, (void)beta;                       \
        return value;                                  \
    }
FUNCTIONS(DEFINE)

#define ROW(name, value) {#name, name##_of},
static const struct {
    const char *name;
    function *of;
} functions[] = {FUNCTIONS(ROW)};

static function *find(const char *name) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i)
        if (!strcmp(functions[i].name, name)) return functions[i].of;
    return NULL;
}

int main(int argc, char **argv) {
    static real x[BLOCK];
    function *of = argc == 4 ? find(argv[1]) : NULL;
    if (!of) return fprintf(stderr, "expected a function, alpha and beta\n"), 1;
    const vec alpha = v_set1((real)strtod(argv[2], NULL));
    const vec beta = v_set1((real)strtod(argv[3], NULL));
    size_t count;
    v_flush_denormals();
    while ((count = fread(x, sizeof *x, BLOCK, stdin))) {
        size_t i = 0;
        for (; i + L <= count; i += L) v_store(x + i, of(v_load(x + i), alpha, beta));
        if (i < count) v_store_n(x + i, of(v_load_n(x + i, count - i), alpha, beta), count - i);
        if (fwrite(x, sizeof *x, count, stdout) != count) return 1;
    }
    return ferror(stdin) || fflush(stdout);
}
