/* functions.h - functions of numbers by name, and those of them that activations.h has not. A part
 * of kernel.h.
 *
 * tools/fit_activations.py derives the constants and measures the errors, in ulp: exp 1.04, log
 * 0.86, sin and cos 1.6, power 1.14. Limits, the signs of zeros and NaN are NumPy's. Kernels without
 * a fused multiply-add have all of these from the C library, in double, lane by lane.
 */

#if defined(FL_SCALAR) || defined(FL_SCALAR64) || defined(FL_SIMD128)

INLINE vec v_power(vec x, vec y) {
    real of[L], exponent[L];
    v_store(of, x);
    v_store(exponent, y);
    for (int l = 0; l < L; ++l) of[l] = (real)pow((double)of[l], (double)exponent[l]);
    return v_load(of);
}
#define LANE_BY_LANE(name, function)                                        \
    INLINE vec name(vec x) {                                                \
        real of[L];                                                         \
        v_store(of, x);                                                     \
        for (int l = 0; l < L; ++l) of[l] = (real)function((double)of[l]);  \
        return v_load(of);                                                  \
    }
LANE_BY_LANE(v_log, log)
LANE_BY_LANE(v_sin, sin)
LANE_BY_LANE(v_cos, cos)
LANE_BY_LANE(v_exp_of_any, exp)
#undef LANE_BY_LANE

#else

/* a 2^n, for integral n in [-254, 256]: in two steps, neither of which leaves the normal numbers
 * where the result does not. */
INLINE vec v_scale_far(vec a, vec shifted /* n + V_SHIFT */) {
    const vec shift = v_set1(V_SHIFT), half = v_fma(v_sub(shifted, shift), v_set1(0.5f), shift);
    const vec rest = v_sub(shifted, v_sub(half, shift));
    return v_mul(v_mul(a, v_exponent(half)), v_exponent(rest));
}

/* From -88 down it is denormal, so zero; from 89 up infinite. */
INLINE vec v_exp_of_any(vec x) {
    vec n, s = v_exp_rest(1.0f, v_min(v_set1(89.0f), v_max(v_set1(-88.0f), x)), &n);
    return v_scale_far(v_add(v_set1(1.0f), v_exp_series(1.0f, s)), n);
}

/* What a logarithm `y` of x becomes at the ends: of 0 it is -infinity, below it NaN. */
INLINE vec v_log_ends(vec x, vec y) {
    const vec zero = v_set1(0);
    const vec end = v_if_at_most(zero, x, v_set1(-INFINITY), v_set1(NAN));
    return v_if_at_most(x, zero, end, v_if_at_most(x, v_set1(FLT_MAX), y, x));
}

/* n ln 2 + log(1 + f), and log(1 + f) = f - f^2 / 2 + f^3 q(f), where q is the polynomial of degree
 * 7 with the least relative error of the logarithm on [sqrt(1/2), sqrt(2)], 0.10 * 2^-24. */
INLINE vec v_log(vec x) {
    vec n, f = v_sub(v_split(x, &n), v_set1(1.0f)), square = v_mul(f, f);
    vec q = v_set1(-0.0763643906f);
    q = v_fma(q, f, v_set1(0.127622172f));
    q = v_fma(q, f, v_set1(-0.131596103f));
    q = v_fma(q, f, v_set1(0.1420158f));
    q = v_fma(q, f, v_set1(-0.166234091f));
    q = v_fma(q, f, v_set1(0.200012416f));
    q = v_fma(q, f, v_set1(-0.250008196f));
    q = v_fma(q, f, v_set1(0.333333313f));
    q = v_fma(v_mul(square, f), q, v_mul(n, v_set1(1.42860677e-06f)));
    q = v_add(f, v_fma(square, v_set1(-0.5f), q));
    return v_log_ends(x, v_fma(n, v_set1(0.693145752f), q));
}

/* log(x) = n ln 2 + 2 atanh(t), t = (m - 1) / (m + 1), as a sum: what is returned is at least 2^23
 * times what is put into `rest`. Only t and its double are known to more than a float; what follows
 * of the series, 2 t (t^2 p(t^2)), is a hundredth of it. p is the polynomial of degree 3 with the
 * least relative error of the logarithm, 0.0004 * 2^-24. x > 0 and finite. */
INLINE vec v_log_parts(vec x, vec *rest) {
    const vec one = v_set1(1.0f);
    vec n, m = v_split(x, &n), f = v_sub(m, one), low, high;
    const vec below = v_exact_sum(m, one, &low), t = v_div(f, below);
    /* m - 1 - t (m + 1), of which the first product is taken away exactly */
    vec left = v_sub(v_sub(v_sub(f, v_mul(t, below)), v_product_error(t, below, v_mul(t, below))),
                     v_mul(t, low));
    const vec square = v_mul(t, t), twice = v_add(t, t);
    vec p = v_set1(0.121431179f);
    left = v_div(v_add(left, left), below);
    p = v_fma(p, square, v_set1(0.142492428f));
    p = v_fma(p, square, v_set1(0.200004876f));
    p = v_fma(p, square, v_set1(0.333333313f));
    left = v_fma(twice, v_mul(square, p), v_fma(n, v_set1(1.42860677e-06f), left));
    high = v_exact_sum(v_mul(n, v_set1(0.693145752f)), twice, &low);
    return v_exact_sum(high, v_add(low, left), rest);
}

/* exp(y log(x)), the exponent a sum of two. The cases are C's pow, which NumPy has too. */
INLINE vec v_power(vec x, vec y) {
    const vec zero = v_set1(0), one = v_set1(1.0f), most = v_set1(FLT_MAX), a = v_abs(x);
    vec low, high = v_log_parts(a, &low), n;
    high = v_log_ends(a, high);
    const vec product = v_mul(y, high);
    vec rest = v_fma(y, low, v_product_error(y, high, product));
    /* an end of x, or of y, has no rest; nor has what is as good as infinite or zero */
    rest = v_if_at_most(v_abs(product), v_set1(128.0f), rest, zero);
    vec s = v_min(v_set1(89.0f), v_max(v_set1(-88.0f), product));
    s = v_exp_rest(1.0f, s, &n);
    vec power = v_scale_far(v_add(one, v_exp_series(1.0f, v_add(s, rest))), n);
    power = v_if_at_most(one, a, v_if_at_most(a, one, one, power), power);
    /* an odd y has the sign of x, another y of a finite x below zero that is no integer is NaN */
    const vec whole = v_floor(y), half = v_floor(v_mul(y, v_set1(0.5f)));
    const vec odd = v_fma(half, v_set1(-2.0f), whole), sign = v_sign_of(one, x);
    const vec signed_power = v_mul(power, sign);
    power = v_if_at_most(one, odd, v_if_at_most(y, whole, signed_power, power), power);
    const vec refused = v_if_at_most(y, whole, power, v_set1(NAN));
    power = v_if_at_most(zero, x, power, v_if_at_most(a, most, refused, power));
    return v_if_at_most(v_abs(y), zero, one, power);
}

/* 2 / pi: bits 1 to 224 behind the point, after the 32 before it. */
static const uint32_t two_over_pi[8] = {
    0, 0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab,
};

/* x = n pi / 2 + r for x >= 2^17, n modulo 4: 2 / pi without the bits that make multiples of 4, in
 * fixed point (M. Payne, R. Hanek, Radian Reduction for Trigonometric Functions, 1983). The product
 * has 62 bits behind the point and leaves r right to 2^-25 of itself. NaN and infinity give NaN. */
INLINE real quarter_of(real x, real *n) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    *n = 0;
    if (!(x <= FLT_MAX)) return NAN;
    const uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    const uint32_t at = (bits >> 23) - 150 + 30; /* the first bit that counts */
    const uint32_t *word = two_over_pi + at / 32, shift = at % 32;
    uint64_t window = (uint64_t)word[0] << 32 | word[1], next = (uint64_t)word[2] << 32 | word[3];
    if (shift) window = window << shift | next >> (64 - shift), next <<= shift;
    const uint64_t product = mantissa * window + (mantissa * (next >> 32) >> 32);
    const uint64_t quarters = (product + ((uint64_t)1 << 61)) >> 62;
    const uint64_t rest = product - (quarters << 62); /* modulo 2^64, so of either sign */
    const double wide = rest >> 63 ? -(double)(0 - rest) : (double)rest;
    *n = (real)(quarters & 3);
    return (real)(wide * 3.4061215800865545e-19);
}

static __attribute__((noinline, cold)) void large_quarters(const real *x, real *r, real *n) {
    for (size_t l = 0; l < L; ++l)
        if (!(x[l] < 0x1p17f)) r[l] = quarter_of(x[l], n + l);
}

/* x = n pi / 2 + r, |r| little more than pi / 4, n modulo 4, for x >= 0. Below 2^17 the first
 * difference is exact, as its terms are multiples of the last bit of the larger one, and the second
 * rounds once, 2^-24 of itself; the third is too small beside them for its rounding to matter. */
INLINE vec v_quarter(vec x, vec *n) {
    *n = v_round(v_mul(x, v_set1(0.636619747f)));
    vec r = v_fma(*n, v_set1(-1.57079637f), x);
    r = v_fma(*n, v_set1(4.37113883e-08f), r);
    r = v_fma(*n, v_set1(1.71512451e-15f), r);
    if (!v_all_finite(v_mul(x, v_set1(0x1p111f)))) { /* one is 2^17 or more, or NaN */
        real x_lanes[L], r_lanes[L], n_lanes[L];
        v_store(x_lanes, x);
        v_store(r_lanes, r);
        v_store(n_lanes, *n);
        large_quarters(x_lanes, r_lanes, n_lanes);
        r = v_load(r_lanes);
        *n = v_load(n_lanes);
    }
    return r;
}

/* sin(n pi / 2 + r): of r + r^3 s(r^2), which is sin(r), and 1 - r^2 / 2 + r^4 c(r^2), cos(r), the
 * one that n says, with its sign. s and c are the polynomials of degree 2 with the least relative
 * errors of sine, 0.07 * 2^-24, and of cosine, 0.002 * 2^-24. */
INLINE vec v_sine(vec r, vec n) {
    const vec square = v_mul(r, r), one = v_set1(1.0f);
    vec s = v_set1(-0.000195078464f), c = v_set1(2.44300863e-05f);
    s = v_fma(s, square, v_set1(0.00833210628f));
    c = v_fma(c, square, v_set1(-0.00138872978f));
    s = v_fma(s, square, v_set1(-0.166666538f));
    c = v_fma(c, square, v_set1(0.0416666456f));
    s = v_fma(v_mul(square, r), s, r);
    c = v_fma(v_mul(square, square), c, v_fma(square, v_set1(-0.5f), one));
    n = v_fma(v_round(v_mul(n, v_set1(0.25f))), v_set1(-4.0f), n); /* -2 to 2 */
    const vec odd = v_abs(v_sub(v_abs(n), one));
    vec y = v_if_at_most(odd, v_set1(0.5f), c, s);
    return v_if_at_most(v_abs(v_sub(n, v_set1(0.5f))), one, y, v_sub(v_set1(0), y));
}

INLINE vec v_sin(vec x) {
    vec n, r = v_quarter(v_abs(x), &n);
    return v_mul(v_sine(r, n), v_sign_of(v_set1(1.0f), x));
}
INLINE vec v_cos(vec x) {
    vec n, r = v_quarter(v_abs(x), &n);
    return v_sine(r, v_add(n, v_set1(1.0f)));
}

#endif

/* Comparisons: 1 or 0, so 0 where one is NaN, but 1 of v_not_equal. */
INLINE vec v_less_equal(vec a, vec b) { return v_if_at_most(a, b, v_set1(1), v_set1(0)); }
INLINE vec v_less(vec a, vec b) { return v_if_at_most(b, a, v_set1(0), v_less_equal(a, b)); }
INLINE vec v_equal(vec a, vec b) { return v_if_at_most(a, b, v_less_equal(b, a), v_set1(0)); }
INLINE vec v_not_equal(vec a, vec b) { return v_sub(v_set1(1), v_equal(a, b)); }
INLINE vec v_where(vec condition, vec a, vec b) {
    return v_if_at_most(v_abs(condition), v_set1(0), b, a);
}

/* 0 of 0, of -0 and of NaN. */
INLINE vec v_sign(vec x) { return v_sub(v_less(v_set1(0), x), v_less(x, v_set1(0))); }

/* NaN where either is. */
INLINE vec v_minimum(vec a, vec b) { return v_if_at_most(a, a, v_flush(v_min(a, b)), a); }
INLINE vec v_maximum(vec a, vec b) { return v_if_at_most(a, a, v_flush(v_max(a, b)), a); }

/* What each name says of the number a, or of a and b, or a, b and c. */
#define FUNCTIONS_OF_ONE(F)                               \
    F(identity, a)                                        \
    F(relu, v_relu(a))                                    \
    F(tanh, v_tanh(a))                                    \
    F(sigmoid, v_sigmoid(a))                              \
    F(softsign, v_softsign(a))                            \
    F(softplus, v_softplus(a))                            \
    F(silu, v_silu(a))                                    \
    F(gelu, v_gelu(a))                                    \
    F(gelu_tanh, v_gelu_tanh(a))                          \
    F(affine, v_affine(a, alpha, beta))                   \
    F(elu, v_elu(a, alpha))                               \
    F(leaky_relu, v_leaky_relu(a, alpha))                 \
    F(thresholded_relu, v_thresholded_relu(a, alpha))     \
    F(hard_sigmoid, v_hard_sigmoid(a, alpha, beta))       \
    F(scaled_tanh, v_scaled_tanh(a, alpha, beta))         \
    F(clip, v_hardtanh(a, alpha, beta))                   \
    F(abs, v_flush(v_abs(a)))                             \
    F(sign, v_sign(a))                                    \
    F(floor, v_floor(a))                                  \
    F(sqrt, v_sqrt(a))                                    \
    F(square, v_mul(a, a))                                \
    F(reciprocal, v_div(v_set1(1), a))                    \
    F(exp, v_exp_of_any(a))                               \
    F(log, v_log(a))                                      \
    F(sin, v_sin(a))                                      \
    F(cos, v_cos(a))
#define FUNCTIONS_OF_TWO(F)                               \
    F(add, v_add(a, b))                                   \
    F(subtract, v_sub(a, b))                              \
    F(multiply, v_mul(a, b))                              \
    F(divide, v_div(a, b))                                \
    F(power, v_power(a, b))                               \
    F(minimum, v_minimum(a, b))                           \
    F(maximum, v_maximum(a, b))                           \
    F(equal, v_equal(a, b))                               \
    F(not_equal, v_not_equal(a, b))                       \
    F(less, v_less(a, b))                                 \
    F(less_equal, v_less_equal(a, b))                     \
    F(greater, v_less(b, a))                              \
    F(greater_equal, v_less_equal(b, a))
#define FUNCTIONS_OF_THREE(F) F(where, v_where(a, b, c))

/* The functions that few models have, in one place instead of in every block of a product. */
static __attribute__((noinline)) vec apply_other(const fl_activation *activation, vec a) {
    const vec alpha = v_set1((real)activation->alpha), beta = v_set1((real)activation->beta);
#define CASE(name, value) case FL_FUNCTION_##name: return value;
    switch (activation->function) {
        FUNCTIONS_OF_ONE(CASE)
    default: return a;
    }
#undef CASE
}

/* A function of one number. */
INLINE vec apply(const fl_activation *activation, vec a) {
    switch (activation->function) {
    case FL_FUNCTION_identity: return a;
    case FL_FUNCTION_relu: return v_relu(a);
    case FL_FUNCTION_tanh: return v_tanh(a);
    case FL_FUNCTION_sigmoid: return v_sigmoid(a);
    default: return apply_other(activation, a);
    }
}
