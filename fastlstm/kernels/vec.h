/* vec.h - the vector operations of one instruction set, and sigmoid and tanh made from them.
 *
 * The file that includes this one has defined exactly one of FL_SCALAR, FL_SCALAR64, FL_AVX2,
 * FL_AVX512, FL_NEON. It gets `real`, `vec`, L (lanes) and the v_ operations below; it is the only
 * file that names an intrinsic. In v_min and v_max the second operand wins if either is NaN, so a
 * NaN passed second propagates.
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
INLINE vec v_if_negative(vec a, vec yes, vec no) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(a)), no, yes);
}
INLINE vec v_round(vec a) { return _mm512_roundscale_ps(a, 0x08); }
INLINE vec v_exp2i(vec n) { /* 2^n for integral n in [-127, 127]; 0 for -127 */
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}

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
INLINE vec v_if_negative(vec a, vec yes, vec no) { return _mm256_blendv_ps(no, yes, a); }
INLINE vec v_round(vec a) { return _mm256_round_ps(a, 0x08); }
INLINE vec v_exp2i(vec n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
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
INLINE vec v_if_negative(vec a, vec yes, vec no) {
    return vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(a)), yes, no);
}
INLINE vec v_round(vec a) { return vrndnq_f32(a); }
INLINE vec v_exp2i(vec n) {
    int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(e, 23));
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
INLINE vec v_if_negative(vec a, vec yes, vec no) { return signbit(a) ? yes : no; }
/* Adding and taking away 1.5 * 2^23 leaves the nearest integer, for |a| < 2^22. */
INLINE vec v_round(vec a) {
    vec shifted = a + 12582912.0f;
    return shifted - 12582912.0f;
}
INLINE vec v_exp2i(vec n) {
    /* Converting NaN or a huge number to an integer is undefined; a NaN takes the first branch. */
    int32_t e = !(n >= -127.0f && n <= 127.0f) ? 0 : (int32_t)n + 127;
    uint32_t bits = (uint32_t)e << 23;
    memcpy(&n, &bits, sizeof n);
    return n;
}
#endif
#else
#error "define the instruction set before including vec.h"
#endif

#if defined(FL_SCALAR64)

/* The plain double kernel leaves its functions to the C library. */
INLINE vec v_exp(vec x) { return exp(x); }
INLINE vec v_tanh(vec x) { return tanh(x); }
INLINE vec v_sigmoid(vec x) {
    real e = exp(-fabs(x));
    return signbit(x) ? e / (1 + e) : 1 / (1 + e);
}
INLINE real real_log(real x) { return log(x); }

#else

/* exp(x) = 2^n (1 + p) for x <= 0: n = round(x / ln 2), r = x - n ln 2,
 * p = expm1(r) = r + r^2 q(r). ln 2 is taken away in two parts, the first short enough that n
 * times it is exact. q is the polynomial of degree 4 with the least relative error of expm1 on
 * |r| <= ln(2) / 2, 0.23 * 2^-24.
 * tools/fit_activations.py derives the constants, and measures sigmoid at 2.41 and tanh at 2.02 ulp
 * at most, over every float, against the bound of 2.5. Below -88, 2^n is zero. */
INLINE vec v_exp_parts(vec x, vec *p) {
    vec n, r, q;
    x = v_max(v_set1(-88.0f), x);
    n = v_round(v_mul(x, v_set1(1.44269502f)));
    r = v_fma(n, v_set1(-0.693145752f), x);
    r = v_fma(n, v_set1(-1.42860677e-06f), r);
    q = v_set1(0.00138699333f);
    q = v_fma(q, r, v_set1(0.0083662523f));
    q = v_fma(q, r, v_set1(0.0416674428f));
    q = v_fma(q, r, v_set1(0.166665465f));
    q = v_fma(q, r, v_set1(0.49999997f));
    *p = v_fma(v_mul(r, r), q, r);
    return v_exp2i(n);
}

INLINE vec v_exp(vec x) { /* x <= 0 */
    vec p, scale = v_exp_parts(x, &p);
    return v_mul(scale, v_add(v_set1(1.0f), p)); /* scale * p alone may be flushed to zero */
}

/* 1 / (1 + e) above zero, e / (1 + e) below, e = exp(-|x|): relative precision on both sides. */
INLINE vec v_sigmoid(vec x) {
    vec one = v_set1(1.0f);
    vec e = v_exp(v_sub(v_set1(0.0f), v_abs(x)));
    return v_div(v_if_negative(x, e, one), v_add(one, e));
}

/* tanh |x| = -m / (m + 2) with m = exp(-2 |x|) - 1, which keeps its relative precision near zero.
 * m + 2 is made from the same parts: m's own rounding would count twice near 1. */
INLINE vec v_tanh(vec x) {
    vec p, m, d, one = v_set1(1.0f);
    vec scale = v_exp_parts(v_mul(v_set1(-2.0f), v_abs(x)), &p);
    m = v_fma(scale, p, v_sub(scale, one));
    d = v_fma(scale, p, v_add(scale, one));
    return v_sign_of(v_div(v_abs(m), d), x);
}

INLINE real real_log(real x) { return logf(x); }

#endif
