/* vec.h - the vector operations of one instruction set, and the functions of layers made from them.
 *
 * The file that includes this one has defined exactly one of FL_SCALAR, FL_SCALAR64, FL_FUSED,
 * FL_SIMD128, FL_AVX2, FL_AVX512, FL_NEON. It gets `real`, `vec`, L (lanes) and the v_ operations below; it is the only
 * file that names an intrinsic. In v_min and v_max the second operand wins if either is NaN, so a
 * NaN passed second propagates. v_if_at_most(x, y, a, b) is a where x <= y, else b, so also where x
 * or y is NaN. v_product_error(a, b, v_mul(a, b)) is what rounding took from the product, exactly.
 * v_keep has the compiler hold a vector in a register that it would rather load again for each use.
 * v_total(a) adds the lanes up, halves by halves. v_all_finite(a): no lane is infinite or NaN.
 * v_scale(a, n) is a times 2^n for integral n in [-127, 128], where 2^-127 counts as 0 and 2^128 as
 * infinity. v_split(a, &n) is a / 2^n, in [sqrt(1/2), sqrt(2)), of a normal a > 0; of others it is
 * any number, and so is n. v_flush(a) is a with zeros for denormals: arithmetic makes them anyway, and so do v_min
 * and v_max but for those of NEON and of FL_FUSED.
 *
 * Every operation of AVX2, AVX-512, NEON and FL_FUSED, the one lane of a machine whose multiply-add
 * is fused, rounds once and to nearest, so that the same operations give the same bits on each; a
 * NaN may have another sign or payload. Arm also flushes to zero what would only be rounded up to
 * the smallest normal number (Arm ARM, FPCR.FZ; tininess is detected before rounding). FL_SCALAR
 * and the four lanes of FL_SIMD128, which is WebAssembly's, have no fused multiply-add, so that
 * their v_fma rounds twice; WebAssembly knows no other way with denormals than to compute them.
 */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "floats are computed in more bits than they have; compile with -msse2 -mfpmath=sse"
#endif

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(FL_SIMD128)
#include <wasm_simd128.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
INLINE float v_total_of_4(__m128 a) {
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}
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
#elif defined(__arm__) && defined(__ARM_FP)
/* FPSCR bit 24, FZ: Armv7-M ARM A2.5.3. */
INLINE uint32_t v_flush_denormals(void) {
    uint32_t before;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(before));
    if (!(before & (1u << 24))) __asm__ volatile("vmsr fpscr, %0" ::"r"(before | (1u << 24)));
    return before;
}
INLINE void v_restore(uint32_t before) {
    if (!(before & (1u << 24))) __asm__ volatile("vmsr fpscr, %0" ::"r"(before));
}
#else
INLINE unsigned v_flush_denormals(void) { return 0; }
INLINE void v_restore(unsigned before) { (void)before; }
#endif

enum { V_ROOT_HALF = 0x3f3504f3 }; /* the bits of a float, sqrt(1/2) */

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
INLINE vec v_sqrt(vec a) { return _mm512_sqrt_ps(a); }
INLINE vec v_if_at_most(vec x, vec y, vec a, vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LE_OQ), b, a);
}
INLINE vec v_product_error(vec a, vec b, vec product) { return _mm512_fmsub_ps(a, b, product); }
INLINE vec v_round(vec a) { return _mm512_roundscale_ps(a, 0x08); }
INLINE vec v_floor(vec a) { return _mm512_roundscale_ps(a, 0x09); }
INLINE vec v_split(vec a, vec *n) {
    __m512i bits = _mm512_castps_si512(a);
    __m512i e = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(V_ROOT_HALF)), 23);
    *n = _mm512_cvtepi32_ps(e);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23)));
}
INLINE vec v_scale(vec a, vec n) {
    return _mm512_mul_ps(a, _mm512_scalef_ps(_mm512_set1_ps(1.0f), n));
}
INLINE real v_total(vec a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return v_total_of_4(_mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}
INLINE int v_all_finite(vec a) {
    return _mm512_cmp_ps_mask(v_abs(a), _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ) == 0xffff;
}
INLINE vec v_flush(vec a) { return a; }

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
INLINE vec v_sqrt(vec a) { return _mm256_sqrt_ps(a); }
INLINE vec v_if_at_most(vec x, vec y, vec a, vec b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LE_OQ));
}
INLINE vec v_product_error(vec a, vec b, vec product) { return _mm256_fmsub_ps(a, b, product); }
INLINE vec v_round(vec a) { return _mm256_round_ps(a, 0x08); }
INLINE vec v_floor(vec a) { return _mm256_round_ps(a, 0x09); }
INLINE vec v_split(vec a, vec *n) {
    __m256i bits = _mm256_castps_si256(a);
    __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(V_ROOT_HALF)), 23);
    *n = _mm256_cvtepi32_ps(e);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
}
INLINE vec v_scale(vec a, vec n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}
INLINE real v_total(vec a) {
    return v_total_of_4(_mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}
INLINE int v_all_finite(vec a) {
    vec finite = _mm256_cmp_ps(v_abs(a), _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ);
    return _mm256_movemask_ps(finite) == 0xff;
}
INLINE vec v_flush(vec a) { return a; }

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
INLINE vec v_sqrt(vec a) { return vsqrtq_f32(a); }
INLINE vec v_if_at_most(vec x, vec y, vec a, vec b) { return vbslq_f32(vcleq_f32(x, y), a, b); }
INLINE vec v_product_error(vec a, vec b, vec product) {
    return vfmaq_f32(vnegq_f32(product), a, b);
}
INLINE vec v_round(vec a) { return vrndnq_f32(a); }
INLINE vec v_floor(vec a) { return vrndmq_f32(a); }
INLINE vec v_split(vec a, vec *n) {
    int32x4_t bits = vreinterpretq_s32_f32(a);
    int32x4_t e = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(V_ROOT_HALF)), 23);
    *n = vcvtq_f32_s32(e);
    return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(e, 23)));
}
INLINE vec v_scale(vec a, vec n) {
    int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(e, 23)));
}
INLINE real v_total(vec a) {
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}
INLINE int v_all_finite(vec a) {
    return vminvq_u32(vcleq_f32(vabsq_f32(a), vdupq_n_f32(FLT_MAX))) != 0;
}
/* A compiler would leave out a product with a one that it knows. */
INLINE vec v_flush(vec a) { return vmulq_f32(a, v_keep(vdupq_n_f32(1.0f))); }

#elif defined(FL_SIMD128)

enum { L = 4 };
typedef float real;
typedef v128_t vec;
INLINE vec v_load(const real *p) { return wasm_v128_load(p); }
INLINE void v_store(real *p, vec a) { wasm_v128_store(p, a); }
INLINE vec v_load_n(const real *p, size_t n) {
    real full[4] = {0, 0, 0, 0};
    memcpy(full, p, n * sizeof(real));
    return wasm_v128_load(full);
}
INLINE void v_store_n(real *p, vec a, size_t n) {
    real full[4];
    wasm_v128_store(full, a);
    memcpy(p, full, n * sizeof(real));
}
INLINE vec v_set1(real x) { return wasm_f32x4_splat(x); }
INLINE vec v_keep(vec a) { return a; }
INLINE vec v_add(vec a, vec b) { return wasm_f32x4_add(a, b); }
INLINE vec v_sub(vec a, vec b) { return wasm_f32x4_sub(a, b); }
INLINE vec v_mul(vec a, vec b) { return wasm_f32x4_mul(a, b); }
INLINE vec v_div(vec a, vec b) { return wasm_f32x4_div(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }
/* pmin(b, a) is a < b ? a : b. */
INLINE vec v_min(vec a, vec b) { return wasm_f32x4_pmin(b, a); }
INLINE vec v_max(vec a, vec b) { return wasm_f32x4_pmax(b, a); }
INLINE vec v_abs(vec a) { return wasm_f32x4_abs(a); }
INLINE vec v_sign_of(vec magnitude, vec sign) {
    return wasm_v128_bitselect(sign, magnitude, wasm_i32x4_splat(INT32_MIN));
}
INLINE vec v_sqrt(vec a) { return wasm_f32x4_sqrt(a); }
INLINE vec v_if_at_most(vec x, vec y, vec a, vec b) {
    return wasm_v128_bitselect(a, b, wasm_f32x4_le(x, y));
}
INLINE vec v_round(vec a) { return wasm_f32x4_nearest(a); }
INLINE vec v_floor(vec a) { return wasm_f32x4_floor(a); }
INLINE vec v_scale(vec a, vec n) {
    vec e = wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127));
    return wasm_f32x4_mul(a, wasm_i32x4_shl(e, 23));
}
INLINE real v_total(vec a) {
    a = wasm_f32x4_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 2, 3));
    return wasm_f32x4_extract_lane(a, 0) + wasm_f32x4_extract_lane(a, 1);
}
INLINE int v_all_finite(vec a) {
    return wasm_i32x4_all_true(wasm_f32x4_le(v_abs(a), v_set1(FLT_MAX)));
}
INLINE vec v_product_error(vec a, vec b, vec product) {
    real of[L], a_of[L], b_of[L];
    v_store(of, product), v_store(a_of, a), v_store(b_of, b);
    for (int l = 0; l < L; ++l) of[l] = (real)((double)a_of[l] * (double)b_of[l] - (double)of[l]);
    return v_load(of);
}
INLINE vec v_flush(vec a) { return a; }

#elif defined(FL_SCALAR) || defined(FL_SCALAR64) || defined(FL_FUSED)

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
INLINE vec v_min(vec a, vec b) { return a < b ? a : b; }
INLINE vec v_max(vec a, vec b) { return a > b ? a : b; }
INLINE vec v_if_at_most(vec x, vec y, vec a, vec b) { return x <= y ? a : b; }
INLINE real v_total(vec a) { return a; }
INLINE int v_all_finite(vec a) { return isfinite(a); }

#if defined(FL_FUSED)
INLINE vec v_fma(vec a, vec b, vec c) { return __builtin_fmaf(a, b, c); }
INLINE vec v_product_error(vec a, vec b, vec product) { return __builtin_fmaf(a, b, -product); }
/* A compiler would leave out a product with a one that it knows. */
INLINE vec v_flush(vec a) {
    vec one = 1.0f;
    __asm__("" : "+r"(one));
    return a * one;
}
INLINE vec v_split(vec a, vec *n) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    const int32_t e = (int32_t)(bits - V_ROOT_HALF) >> 23;
    bits -= (uint32_t)e << 23;
    memcpy(&a, &bits, sizeof a);
    *n = (vec)e;
    return a;
}
#else
INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec v_flush(vec a) { return a; }
#endif

#if defined(FL_SCALAR64)
INLINE vec v_abs(vec a) { return fabs(a); }
INLINE vec v_sign_of(vec magnitude, vec sign) { return copysign(magnitude, sign); }
INLINE vec v_sqrt(vec a) { return sqrt(a); }
INLINE vec v_floor(vec a) { return floor(a); }
#else
INLINE vec v_abs(vec a) { return fabsf(a); }
INLINE vec v_sign_of(vec magnitude, vec sign) { return copysignf(magnitude, sign); }
INLINE vec v_sqrt(vec a) { return sqrtf(a); }
/* Every float from 2^23 on is an integer; NaN stays. */
INLINE vec v_floor(vec a) {
    const int is_small = fabsf(a) < 0x1p23f;
    const vec whole = (vec)(int32_t)(is_small ? a : 0);
    return is_small ? copysignf(whole - (vec)(whole > a), a) : a;
}
/* Adding and taking away 1.5 * 2^23 leaves the nearest integer, for |a| < 2^22; before it is taken
 * away, the last bits are that integer. */
INLINE vec v_round(vec a) {
    vec shifted = a + 12582912.0f;
    return shifted - 12582912.0f;
}
INLINE vec v_scale(vec a, vec n) {
    uint32_t bits;
    n += 12582912.0f;
    memcpy(&bits, &n, sizeof bits);
    bits = (bits + 127) << 23;
    memcpy(&n, &bits, sizeof n);
    return a * n;
}
#if defined(FL_SCALAR)
INLINE vec v_product_error(vec a, vec b, vec product) {
    return (real)((double)a * (double)b - (double)product);
}
#endif
#endif
#else
#error "define the instruction set before including vec.h"
#endif

/* The largest real, the smallest normal one, and a scale: the sum of 2^31 squares of any reals
 * times it is finite. */
#if defined(FL_SCALAR64)
#define REAL_MOST DBL_MAX
#define REAL_LEAST DBL_MIN
#define REAL_SMALL 0x1p-768
#else
#define REAL_MOST FLT_MAX
#define REAL_LEAST FLT_MIN
#define REAL_SMALL 0x1p-96f
#endif

/* No function branches on a value. NaN gives NaN, and infinity the limit: silu and gelu of -inf are
 * 0 and softsign of inf is 1, where PyTorch computes NaN. alpha and beta are those of ONNX.
 *
 * tools/fit_activations.py derives the constants, and compares the floats with float64. The largest
 * errors, in ulp: sigmoid 2.49, tanh 2.02, expm1 1.04, elu 1.92, softplus 2.28, softsign 1.50,
 * silu 3.40, scaled_tanh 4.22; gelu 3.27 for x >= 0 and 6.86 for x < 0, where that is 6e-8 at most;
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

/* exp(k x) = 2^n (1 + k h): n = round(k x / ln 2), s = x - n ln 2 / k, and k h is
 * expm1(r) = r + r^2 q(r) at r = k s. k is a power of two, with any sign, so that scaling the
 * constants by its powers is exact. ln 2 is taken away in two parts, the first short enough that n
 * times it is exact. q is the polynomial of degree 4 with the least relative error of expm1 on
 * |r| <= ln(2) / 2, 0.23 * 2^-24. */
INLINE vec v_exp_rest(const real k, vec x, vec *n) { /* s */
    *n = v_round(v_mul(x, v_set1(k * 1.44269502f)));
    x = v_fma(*n, v_set1(-0.693145752f / k), x);
    return v_fma(*n, v_set1(-1.42860677e-06f / k), x);
}
INLINE vec v_exp_series(const real k, vec s) { /* h */
    vec q = v_set1(k * k * k * k * k * 0.00138699333f);
    q = v_fma(q, s, v_set1(k * k * k * k * 0.0083662523f));
    q = v_fma(q, s, v_set1(k * k * k * 0.0416674428f));
    q = v_fma(q, s, v_set1(k * k * 0.166665465f));
    q = v_fma(q, s, v_set1(k * 0.49999997f));
    return v_fma(v_mul(s, s), q, s);
}

/* n and h, with x no less than `least` and no more than `most`. */
INLINE vec v_exp_parts(const real k, const real least, const real most, vec x, vec *n) {
    x = v_min(v_set1(most), v_max(v_set1(least), x));
    return v_exp_series(k, v_exp_rest(k, x, n));
}

/* Below -88, 2^n is zero. */
INLINE vec v_exp(vec x) { /* x <= 0 */
    vec n, h = v_exp_parts(1.0f, -88.0f, 0.0f, x, &n);
    return v_scale(v_add(v_set1(1.0f), h), n);
}

/* 2^n h + (2^n - 1). Near zero n is zero, and h is precise. */
INLINE vec v_expm1(vec x) { /* x <= 0 */
    vec n, one = v_set1(1.0f), h = v_exp_parts(1.0f, -88.0f, 0.0f, x, &n);
    vec scale = v_scale(one, n);
    return v_fma(scale, h, v_sub(scale, one));
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

/* x sigmoid(z), for z of the sign of x: x / (1 + e) or x e / (1 + e) with e = exp(-|z|), which is
 * zero from 93.5 on. It is made 2^8 times as large, for it would be denormal while x e is not; and
 * x is kept finite where e is zero, for 0 inf is NaN. */
INLINE vec v_times_sigmoid(vec x, vec z) {
    vec n, one = v_set1(1.0f), h = v_exp_parts(-1.0f, 0.0f, 93.5f, v_abs(z), &n);
    vec e = v_scale(v_sub(one, h), v_add(n, v_set1(8.0f))), small = v_set1(0x1p-8f);
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
    return v_sub(v_max(v_set1(0.0f), x), v_scale(p, n));
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
