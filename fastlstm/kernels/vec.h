/* vec.h - the vector operations of one instruction set, and sigmoid and tanh made from them.
 *
 * The file that includes this one has defined exactly one of FL_SCALAR, FL_SCALAR64, FL_AVX2,
 * FL_AVX512, FL_NEON. It gets `real`, `vec`, L (lanes) and the v_ operations below; it is the only
 * file that names an intrinsic. In v_min and v_max the second operand wins if either is NaN, so a
 * NaN passed second propagates. v_keep has the compiler hold a vector in a register that it would
 * rather load again for each use. v_scale(a, n) is a 2^n for integral n in [-127, 128].
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(__x86_64__)
#include <immintrin.h>
/* MXCSR bits 15 (flush to zero) and 6 (denormals are zero): Intel SDM volume 1, 10.2.3. */
INLINE unsigned v_flush_denormals(void) {
    unsigned before = _mm_getcsr();
    if ((before & 0x8040u) != 0x8040u) _mm_setcsr(before | 0x8040u);
    return before;
}
INLINE void v_restore(unsigned before) {
    if ((before & 0x8040u) != 0x8040u) _mm_setcsr((_mm_getcsr() & ~0x8040u) | (before & 0x8040u));
}
#elif defined(__aarch64__)
#include <arm_neon.h>
/* FPCR bit 24, FZ: Arm ARM C5.2.8. */
INLINE uint64_t v_flush_denormals(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(before | (1u << 24)));
    return before;
}
INLINE void v_restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#else
INLINE unsigned v_flush_denormals(void) { return 0; }
INLINE void v_restore(unsigned before) { (void)before; }
#endif

#if defined(FL_AVX512)

enum { L = 16 };
typedef float real;
typedef __m512 vec;
INLINE vec v_load(const real *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(real *p, vec a) { _mm512_storeu_ps(p, a); }
INLINE vec v_load_n(const real *p, size_t n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
INLINE void v_store_n(real *p, vec a, size_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), a);
}
INLINE vec v_set1(real x) { return _mm512_set1_ps(x); }
INLINE vec v_keep(vec a) {
    __asm__("" : "+v"(a));
    return a;
}
INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec v_abs(vec a) { return _mm512_abs_ps(a); }
INLINE vec v_sign_of(vec magnitude, vec sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
INLINE vec v_round(vec a) { return _mm512_roundscale_ps(a, 0x08); }
INLINE vec v_scale(vec a, vec n) { return _mm512_scalef_ps(a, n); }

#elif defined(FL_AVX2)

enum { L = 8 };
typedef float real;
typedef __m256 vec;
INLINE __m256i v_first(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vec v_load(const real *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(real *p, vec a) { _mm256_storeu_ps(p, a); }
INLINE vec v_load_n(const real *p, size_t n) { return _mm256_maskload_ps(p, v_first(n)); }
INLINE void v_store_n(real *p, vec a, size_t n) { _mm256_maskstore_ps(p, v_first(n), a); }
INLINE vec v_set1(real x) { return _mm256_set1_ps(x); }
INLINE vec v_keep(vec a) {
    __asm__("" : "+x"(a));
    return a;
}
INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec v_abs(vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE vec v_sign_of(vec magnitude, vec sign) {
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
INLINE vec v_round(vec a) { return _mm256_round_ps(a, 0x08); }
INLINE vec v_scale(vec a, vec n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}

#elif defined(FL_NEON)

enum { L = 4 };
typedef float real;
typedef float32x4_t vec;
INLINE vec v_load(const real *p) { return vld1q_f32(p); }
INLINE void v_store(real *p, vec a) { vst1q_f32(p, a); }
INLINE vec v_load_n(const real *p, size_t n) {
    real full[4] = {0, 0, 0, 0};
    memcpy(full, p, n * sizeof(real));
    return vld1q_f32(full);
}
INLINE void v_store_n(real *p, vec a, size_t n) {
    real full[4];
    vst1q_f32(full, a);
    memcpy(p, full, n * sizeof(real));
}
INLINE vec v_set1(real x) { return vdupq_n_f32(x); }
INLINE vec v_keep(vec a) {
    __asm__("" : "+w"(a));
    return a;
}
INLINE vec v_add(vec a, vec b) { return vaddq_f32(a, b); }
INLINE vec v_sub(vec a, vec b) { return vsubq_f32(a, b); }
INLINE vec v_mul(vec a, vec b) { return vmulq_f32(a, b); }
INLINE vec v_div(vec a, vec b) { return vdivq_f32(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
INLINE vec v_min(vec a, vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE vec v_max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE vec v_abs(vec a) { return vabsq_f32(a); }
INLINE vec v_sign_of(vec magnitude, vec sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
}
INLINE vec v_round(vec a) { return vrndnq_f32(a); }
INLINE vec v_scale(vec a, vec n) {
    int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(e, 23)));
}

#elif defined(FL_SCALAR) || defined(FL_SCALAR64)

enum { L = 1 };
#if defined(FL_SCALAR64)
typedef double real;
#else
typedef float real;
#endif
typedef real vec;
INLINE vec v_load(const real *p) { return *p; }
INLINE void v_store(real *p, vec a) { *p = a; }
INLINE vec v_load_n(const real *p, size_t n) { return n ? *p : 0; }
INLINE void v_store_n(real *p, vec a, size_t n) {
    if (n) *p = a;
}
INLINE vec v_set1(real x) { return x; }
INLINE vec v_keep(vec a) { return a; }
INLINE vec v_add(vec a, vec b) { return a + b; }
INLINE vec v_sub(vec a, vec b) { return a - b; }
INLINE vec v_mul(vec a, vec b) { return a * b; }
INLINE vec v_div(vec a, vec b) { return a / b; }
INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec v_min(vec a, vec b) { return a < b ? a : b; }
INLINE vec v_max(vec a, vec b) { return a > b ? a : b; }

#if defined(FL_SCALAR)
INLINE vec v_abs(vec a) { return fabsf(a); }
INLINE vec v_sign_of(vec magnitude, vec sign) { return copysignf(magnitude, sign); }
/* Adding and taking away 1.5 * 2^23 leaves the nearest integer, for |a| < 2^22. */
INLINE vec v_round(vec a) {
    vec shifted = a + 12582912.0f;
    return shifted - 12582912.0f;
}
INLINE vec v_scale(vec a, vec n) {
    /* Converting NaN or a huge number to an integer is undefined; a NaN takes the first branch. */
    int32_t e = !(n >= -127.0f && n <= 128.0f) ? 0 : (int32_t)n + 127;
    uint32_t bits = (uint32_t)e << 23;
    memcpy(&n, &bits, sizeof n);
    return a * n;
}
#endif
#else
#error "define the instruction set before including vec.h"
#endif

/* A sigmoid and a tanh come as a numerator and a divisor, so that a product of two needs one
 * division: sigmoid(x) = 1 / v_sigmoid_divisor(x), tanh(x) = v_tanh_parts(x, &d) / d. */

#if defined(FL_SCALAR64)

/* The plain double kernel leaves its functions to the C library. */
INLINE vec v_exp(vec x) { return exp(x); }
INLINE vec v_sigmoid_divisor(vec x) { return 1 + exp(-x); }
INLINE vec v_tanh_parts(vec x, vec *divisor) {
    *divisor = 1;
    return tanh(x);
}
INLINE real real_log(real x) { return log(x); }

#else

/* exp(k x) = 2^n (1 + k h), with x no less than `least` and no more than `most`:
 * n = round(k x / ln 2), s = x - n ln 2 / k, and k h is expm1(r) = r + r^2 q(r) at r = k s. k is a
 * power of two, with any sign, so that scaling the constants by its powers is exact. ln 2 is taken
 * away in two parts, the first short enough that n times it is exact. q is the polynomial of degree
 * 4 with the least relative error of expm1 on |r| <= ln(2) / 2, 0.23 * 2^-24.
 * tools/fit_activations.py derives the constants, and measures sigmoid at 2.49 and tanh at 2.02 ulp
 * at most, over every float, against the bound of 2.5. */
INLINE vec v_exp_parts(const real k, const real least, const real most, vec x, vec *n) {
    vec s, q;
    x = v_min(v_set1(most), v_max(v_set1(least), x));
    *n = v_round(v_mul(x, v_set1(k * 1.44269502f)));
    s = v_fma(*n, v_set1(-0.693145752f / k), x);
    s = v_fma(*n, v_set1(-1.42860677e-06f / k), s);
    q = v_set1(k * k * k * k * k * 0.00138699333f);
    q = v_fma(q, s, v_set1(k * k * k * k * 0.0083662523f));
    q = v_fma(q, s, v_set1(k * k * k * 0.0416674428f));
    q = v_fma(q, s, v_set1(k * k * 0.166665465f));
    q = v_fma(q, s, v_set1(k * 0.49999997f));
    return v_fma(v_mul(s, s), q, s);
}

/* Below -88, 2^n is zero. */
INLINE vec v_exp(vec x) { /* x <= 0 */
    vec n, h = v_exp_parts(1.0f, -88.0f, 0.0f, x, &n);
    return v_scale(v_add(v_set1(1.0f), h), n);
}

/* From 88 on the divisor is one, from -89 on infinite, as 2^128 is: a gate of -infinity is closed
 * even to what is infinite, and that is NaN. */
INLINE vec v_sigmoid_divisor(vec x) {
    vec n, one = v_set1(1.0f), h = v_exp_parts(-1.0f, -89.0f, 88.0f, x, &n);
    return v_add(one, v_scale(v_sub(one, h), n));
}

/* (1 - e) / (1 + e) with e = exp(-2 |x|), which is one from 10 on. Near zero n is zero, and
 * 1 - e = 2 h is precise; with exp(2 |x|) a bit would be lost where n is one. */
INLINE vec v_tanh_parts(vec x, vec *divisor) {
    vec n, one = v_set1(1.0f), h = v_exp_parts(-2.0f, 0.0f, 10.0f, v_abs(x), &n);
    vec scale = v_scale(v_set1(2.0f), n), minus = v_sub(v_set1(0.0f), scale), half = v_set1(0.5f);
    *divisor = v_fma(minus, h, v_fma(scale, half, one));
    return v_sign_of(v_fma(scale, h, v_fma(minus, half, one)), x);
}

INLINE real real_log(real x) { return logf(x); }

#endif

INLINE vec v_sigmoid(vec x) { return v_div(v_set1(1), v_sigmoid_divisor(x)); }
INLINE vec v_tanh(vec x) {
    vec d, n = v_tanh_parts(x, &d);
    return v_div(n, d);
}
