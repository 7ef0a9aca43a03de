/* activations.h - the functions of layers, made from the operations of vec.h. A part of kernel.h.
 */

/* No function branches on a value. NaN gives NaN, and infinity the limit: silu and gelu of -inf are
 * 0 and softsign of inf is 1, where PyTorch computes NaN. alpha and beta are those of ONNX.
 *
 * tools/fit_activations.py derives the constants, and compares the floats with float64. The largest
 * errors, in ulp: sigmoid 2.49, tanh 2.50, expm1 1.09, elu 1.99, softplus 2.28, softsign 1.50,
 * silu 3.40, scaled_tanh 4.81; gelu 3.27 for x >= 0 and 6.86 for x < 0, where that is 6e-8 at most;
 * gelu_tanh 1.90 for x >= 0 and 2.88 (1 + |2 u|) for x < 0, with the u named there, where that is
 * 6e-8 at most. The others round once, or twice where there is no fused multiply-add.
 *
 * A sigmoid and a tanh come as a numerator and a divisor, so that a product of two needs one
 * division: sigmoid(x) = 1 / v_sigmoid_divisor(x), tanh(x) = v_tanh_parts(x, &d) / d. */

#if defined(FL_SCALAR64)

/* The plain double kernel leaves its functions to the C library. */
INLINE vec v_exp(vec x) { return exp(x); }
INLINE vec v_expm1(vec x) { return expm1(x); }
INLINE vec v_log1p(vec x) { return log1p(x); }
INLINE vec v_sigmoid_divisor(vec x) { return 1 + exp(-x); }
INLINE vec v_tanh_parts(vec x, vec *divisor) {
    *divisor = 1;
    return tanh(x);
}

/* x sigmoid(z), for z of the sign of x, by the root of exp(-|z|), which itself would be denormal
 * while its product with x is not. Infinity is kept out of 0 inf, which is NaN. */
INLINE vec v_times_sigmoid(vec x, vec z) {
    vec root = exp(-0.5 * fabs(z));
    x = v_max(-1e3, x);
    return v_if_at_most(z, 0, x * root * root, x) / (1 + root * root);
}

INLINE vec v_gelu(vec x) {
    x = v_max(-40, x); /* as above */
    return 0.5 * x * erfc(-0.70710678118654752 * x);
}

INLINE real real_log(real x) { return log(x); }

#else

/* 1.5 * 2^23 + 127. A number n of less than 2^22 plus this is rounded to an integer, which the low
 * bits hold as an exponent does: v_exponent of the sum is 2^n for n in [-127, 128], where 2^-127
 * counts as 0 and 2^128 as infinity. */
#define V_SHIFT 12583039.0f

INLINE vec v_round(vec a) { return v_sub(v_add(a, v_set1(V_SHIFT)), v_set1(V_SHIFT)); }

/* exp(k x) = 2^n (1 + k h): n = round(k x / ln 2), s = x - n ln 2 / k, and k h is
 * expm1(r) = r + r^2 q(r) at r = k s. k is a power of two, with any sign, so that scaling the
 * constants by its powers is exact. ln 2 is taken away in two parts, the first short enough that n
 * times it is exact. q is the polynomial of degree 4 with the least relative error of expm1 on
 * |r| <= ln(2) / 2, 0.23 * 2^-24. Its terms are added in pairs, which wait for each other less than
 * one by one (G. Estrin, Organization of Computer Systems, 1960). */
INLINE vec v_exp_rest(const real k, vec x, vec *shifted /* n + V_SHIFT */) { /* s */
    *shifted = v_fma(x, v_set1(k * 1.44269502f), v_set1(V_SHIFT));
    const vec n = v_sub(*shifted, v_set1(V_SHIFT));
    x = v_fma(n, v_set1(-0.693145752f / k), x);
    return v_fma(n, v_set1(-1.42860677e-06f / k), x);
}
INLINE vec v_exp_terms(const real k, vec s, vec square, vec *high) { /* q = low + s^2 high */
    vec q = v_fma(s, v_set1(k * k * k * k * 0.0083662523f), v_set1(k * k * k * 0.0416674428f));
    *high = v_fma(square, v_set1(k * k * k * k * k * 0.00138699333f), q);
    return v_fma(s, v_set1(k * k * 0.166665465f), v_set1(k * 0.49999997f));
}
INLINE vec v_exp_series(const real k, vec s) { /* h */
    const vec square = v_mul(s, s);
    vec high, low = v_exp_terms(k, s, square, &high);
    return v_fma(square, v_fma(square, high, low), s);
}

/* h an operation sooner, but rounded once more: for the gates of a cell, whose steps wait for it. */
INLINE vec v_exp_series_soon(const real k, vec s) {
    const vec square = v_mul(s, s);
    vec high, low = v_exp_terms(k, s, square, &high);
    return v_fma(v_mul(square, square), high, v_fma(square, low, s));
}

/* Below -88, 2^n is zero. */
INLINE vec v_exp(vec x) { /* x <= 0 */
    vec n, s = v_exp_rest(1.0f, v_max(v_set1(-88.0f), x), &n);
    return v_mul(v_add(v_set1(1.0f), v_exp_series(1.0f, s)), v_exponent(n));
}

/* 2^n h + (2^n - 1). Near zero n is zero, and h is precise. */
INLINE vec v_expm1(vec x) { /* x <= 0 */
    vec n, s = v_exp_rest(1.0f, v_max(v_set1(-88.0f), x), &n), scale = v_exponent(n);
    return v_fma(scale, v_exp_series(1.0f, s), v_sub(scale, v_set1(1.0f)));
}

/* x + x^2 q(x), where q is the polynomial of degree 8 with the least relative error of log1p on
 * [0, 1], 0.09 * 2^-24. */
INLINE vec v_log1p(vec x) { /* 0 <= x <= 1 */
    vec q = v_set1(-0.00329046859f);
    q = v_fma(q, x, v_set1(0.0200862419f));
    q = v_fma(q, x, v_set1(-0.057457231f));
    q = v_fma(q, x, v_set1(0.106611282f));
    q = v_fma(q, x, v_set1(-0.153448805f));
    q = v_fma(q, x, v_set1(0.196921021f));
    q = v_fma(q, x, v_set1(-0.24958019f));
    q = v_fma(q, x, v_set1(0.333304644f));
    q = v_fma(q, x, v_set1(-0.499999315f));
    return v_fma(v_mul(x, x), q, x);
}

/* From 88 on the divisor is one, from -89 on infinite, as 2^128 is: a gate of -infinity is closed
 * even to what is infinite, and that is NaN. */
INLINE vec v_sigmoid_divisor(vec x) {
    vec n, one = v_set1(1.0f);
    vec s = v_exp_rest(-1.0f, v_min(v_set1(88.0f), v_max(v_set1(-89.0f), x)), &n);
    return v_fma(v_exponent(n), v_sub(one, v_exp_series_soon(-1.0f, s)), one);
}

/* (1 - e) / (1 + e) with e = exp(-2 |x|), which is one from 10 on. Near zero n is zero, and
 * 1 - e = 2 h is precise; with exp(2 |x|) a bit would be lost where n is one. n is -29 at least, and
 * where it is far from zero e is next to nothing: ln 2 in one part is near enough. */
INLINE vec v_tanh_parts(vec x, vec *divisor) {
    const vec one = v_set1(1.0f), a = v_min(v_set1(10.0f), v_abs(x));
    const vec shifted = v_fma(a, v_set1(-2 * 1.44269502f), v_set1(V_SHIFT));
    const vec s = v_fma(v_sub(shifted, v_set1(V_SHIFT)), v_set1(0.693147182f / 2), a);
    const vec h = v_exp_series_soon(-2.0f, s), scale = v_exponent(shifted);
    const vec twice = v_add(scale, scale);
    *divisor = v_fnma(twice, h, v_add(one, scale));
    return v_sign_of(v_fma(twice, h, v_sub(one, scale)), x);
}

/* x sigmoid(z), for z of the sign of x: x / (1 + e) or x e / (1 + e) with e = exp(-|z|), which is
 * zero from 93.5 on. It is made 2^8 times as large, for it would be denormal while x e is not; and
 * x is kept finite where e is zero, for 0 inf is NaN. */
INLINE vec v_times_sigmoid(vec x, vec z) {
    vec n, one = v_set1(1.0f), s = v_exp_rest(-1.0f, v_min(v_set1(93.5f), v_abs(z)), &n);
    vec e = v_mul(v_sub(one, v_exp_series(-1.0f, s)), v_exponent(v_add(n, v_set1(8.0f))));
    vec small = v_set1(0x1p-8f);
    x = v_max(v_set1(-94.0f), x);
    x = v_if_at_most(z, v_set1(0.0f), v_mul(v_mul(x, e), small), x);
    return v_div(x, v_fma(e, small, one));
}

/* x Phi(x) = max(0, x) - a Phi(-a) with a = |x| and Phi(-a) = exp(-a^2 / 2) p(a) / q(a), which is
 * zero from 13.28 on. p and q are polynomials of degrees 4 and 5 whose ratio has the least relative
 * error, 0.17 * 2^-24; no coefficient is negative, so nothing cancels. What rounding took from a^2
 * goes into the exponential, which would magnify it far from zero. */
INLINE vec v_gelu(vec x) {
    vec a = v_min(v_set1(13.28f), v_abs(x)), square = v_mul(a, a);
    vec n, s = v_exp_rest(-0.5f, square, &n);
    vec h = v_exp_series(-0.5f, v_add(s, v_product_error(a, a, square)));
    vec p = v_set1(0.00399003271f), q = v_set1(0.0100013819f);
    p = v_fma(p, a, v_set1(0.0397939496f));
    q = v_fma(q, a, v_set1(0.0997561812f));
    p = v_fma(p, a, v_set1(0.180761591f));
    q = v_fma(q, a, v_set1(0.462935269f));
    p = v_fma(p, a, v_set1(0.434980303f));
    q = v_fma(q, a, v_set1(1.19226801f));
    p = v_fma(p, a, v_set1(0.5f));
    q = v_fma(q, a, v_set1(1.66784537f));
    q = v_fma(q, a, v_set1(1.0f));
    p = v_mul(v_div(p, q), a);
    p = v_fma(v_mul(h, v_set1(-0.5f)), p, p);
    return v_sub(v_max(v_set1(0.0f), x), v_mul(p, v_exponent(n)));
}

/* log(2^e m) = e ln 2 + 2 atanh(t) with t = (m - 1) / (m + 1), whose series is cut where it is
 * below 1e-13; over every 37th float it rounds as the C library's log of double does. A C library's
 * logf need not round as another one does. */
INLINE real real_log(real x) { /* 1 <= x, or NaN */
    uint32_t bits, exponent;
    if (!(x >= 1)) return x;
    memcpy(&bits, &x, sizeof bits);
    exponent = (bits - 0x3f3504f3u) >> 23; /* from m >= sqrt(1/2) on */
    bits -= exponent << 23;
    memcpy(&x, &bits, sizeof x);
    const double t = ((double)x - 1) / ((double)x + 1), square = t * t;
    double sum = 1.0 / 15;
    for (int k = 13; k > 0; k -= 2) sum = sum * square + 1.0 / k;
    return (real)((double)exponent * 0.69314718055994531 + 2 * t * sum);
}

#endif

/* a + b, and what rounding took from it, exactly: Knuth, The Art of Computer Programming, 4.2.2,
 * theorem B. */
INLINE vec v_exact_sum(vec a, vec b, vec *error) {
    const vec sum = v_add(a, b), b_part = v_sub(sum, a), a_part = v_sub(sum, b_part);
    *error = v_add(v_sub(a, a_part), v_sub(b, b_part));
    return sum;
}

INLINE vec v_sigmoid(vec x) { return v_div(v_set1(1), v_sigmoid_divisor(x)); }
INLINE vec v_tanh(vec x) {
    vec d, n = v_tanh_parts(x, &d);
    return v_div(n, d);
}
INLINE vec v_scaled_tanh(vec x, vec alpha, vec beta) {
    return v_mul(alpha, v_tanh(v_mul(beta, x)));
}

INLINE vec v_silu(vec x) { return v_times_sigmoid(x, x); }

/* x (1 + tanh(u)) / 2 = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE vec v_gelu_tanh(vec x) {
    vec slope = v_set1((real)1.5957691216057308), cubic = v_set1((real)0.071354816272600244);
    return v_times_sigmoid(x, v_mul(x, v_fma(v_mul(x, x), cubic, slope)));
}

INLINE vec v_softplus(vec x) {
    vec zero = v_set1(0);
    return v_add(v_max(zero, x), v_log1p(v_exp(v_sub(zero, v_abs(x)))));
}

INLINE vec v_softsign(vec x) {
    vec a = v_min(v_set1((real)1e30), v_abs(x)); /* inf / inf would be NaN */
    return v_sign_of(v_div(a, v_add(v_set1(1), a)), x);
}

INLINE vec v_elu(vec x, vec alpha) {
    return v_if_at_most(x, v_set1(0), v_mul(alpha, v_expm1(x)), x);
}
INLINE vec v_leaky_relu(vec x, vec alpha) {
    return v_if_at_most(x, v_set1(0), v_mul(alpha, x), x);
}
INLINE vec v_thresholded_relu(vec x, vec alpha) { return v_if_at_most(x, alpha, v_set1(0), x); }

INLINE vec v_affine(vec x, vec alpha, vec beta) { return v_fma(alpha, x, beta); }
INLINE vec v_hard_sigmoid(vec x, vec alpha, vec beta) {
    return v_max(v_set1(0), v_min(v_set1(1), v_affine(x, alpha, beta)));
}
INLINE vec v_hardtanh(vec x, vec low, vec high) { return v_flush(v_min(high, v_max(low, x))); }
INLINE vec v_relu(vec x) { return v_flush(v_max(v_set1(0), x)); }
