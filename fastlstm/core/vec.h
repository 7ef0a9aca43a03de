/* vec.h - the vector operations of one instruction set.
 *
 * The file that includes this one has defined exactly one of FL_SCALAR, FL_SCALAR64, FL_FUSED,
 * FL_SIMD128, FL_AVX2, FL_AVX512, FL_NEON. It gets `real`, `vec`, L (lanes) and the v_ operations
 * below; beside vec_int8.h it is the only file that names an intrinsic. In v_min and v_max the second operand wins if either is NaN, so a
 * NaN passed second propagates. v_if_at_most(x, y, a, b) is a where x <= y, else b, so also where x
 * or y is NaN. v_product_error(a, b, v_mul(a, b)) is what rounding took from the product, exactly.
 * v_keep has the compiler hold a vector in a register that it would rather load again for each use.
 * v_total(a) adds the lanes up, halves by halves. v_all_finite(a): no lane is infinite or NaN.
 * v_fnma(a, b, c) is c - a b. v_exponent(a) has the low 9 bits of a as its sign and exponent, and
 * no others. v_split(a, &n) is a / 2^n, in [sqrt(1/2), sqrt(2)), of a normal a > 0; of others it is
 * any number, and so is n. v_most(a) is the largest lane of finite ones. v_of_ints(p) are integers as
 * floats; v_put_bytes(p, a) stores the lowest byte of each lane. Of words of two halves
 * v_low_halves(p) and v_high_halves(p) are the first and the second bfloat16 of each as floats;
 * v_of_float16(p) are L float16 that lie together, as floats. v_flush(a) is a with zeros for denormals: arithmetic makes them anyway,
 * and so do v_min and v_max but for those of NEON and of FL_FUSED.
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

#include "halves.h"

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
INLINE vec v_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
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
INLINE vec v_floor(vec a) { return _mm512_roundscale_ps(a, 0x09); }
INLINE vec v_exponent(vec a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}
INLINE vec v_split(vec a, vec *n) {
    __m512i bits = _mm512_castps_si512(a);
    __m512i e = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(V_ROOT_HALF)), 23);
    *n = _mm512_cvtepi32_ps(e);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23)));
}
INLINE real v_total(vec a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return v_total_of_4(_mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}
INLINE int v_all_finite(vec a) {
    return _mm512_cmp_ps_mask(v_abs(a), _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ) == 0xffff;
}
INLINE vec v_flush(vec a) { return a; }
INLINE real v_most(vec a) { return _mm512_reduce_max_ps(a); }
INLINE vec v_of_ints(const int32_t *p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
INLINE void v_put_bytes(int8_t *p, vec a) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(_mm512_castps_si512(a)));
}
INLINE vec v_low_halves(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
INLINE vec v_high_halves(const void *p) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), upper));
}
INLINE vec v_of_float16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
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
INLINE vec v_keep(vec a) {
    __asm__("" : "+x"(a));
    return a;
}
INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec v_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
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
INLINE vec v_floor(vec a) { return _mm256_round_ps(a, 0x09); }
INLINE vec v_exponent(vec a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
INLINE vec v_split(vec a, vec *n) {
    __m256i bits = _mm256_castps_si256(a);
    __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(V_ROOT_HALF)), 23);
    *n = _mm256_cvtepi32_ps(e);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
}
INLINE real v_total(vec a) {
    return v_total_of_4(_mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}
INLINE int v_all_finite(vec a) {
    vec finite = _mm256_cmp_ps(v_abs(a), _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ);
    return _mm256_movemask_ps(finite) == 0xff;
}
INLINE vec v_flush(vec a) { return a; }
INLINE real v_most(vec a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
INLINE vec v_of_ints(const int32_t *p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE void v_put_bytes(int8_t *p, vec a) {
    const __m128i lowest = _mm_set1_epi32(0x0c080400);
    const __m256i bits = _mm256_castps_si256(a);
    const __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128(bits), lowest);
    const __m128i high = _mm_shuffle_epi8(_mm256_extracti128_si256(bits, 1), lowest);
    _mm_storel_epi64((__m128i *)(void *)p, _mm_unpacklo_epi32(low, high));
}
INLINE vec v_low_halves(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}
INLINE vec v_high_halves(const void *p) {
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), upper));
}
INLINE vec v_of_float16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
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
INLINE vec v_fnma(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }
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
INLINE vec v_floor(vec a) { return vrndmq_f32(a); }
INLINE vec v_exponent(vec a) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23));
}
INLINE vec v_split(vec a, vec *n) {
    int32x4_t bits = vreinterpretq_s32_f32(a);
    int32x4_t e = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(V_ROOT_HALF)), 23);
    *n = vcvtq_f32_s32(e);
    return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(e, 23)));
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
INLINE real v_most(vec a) { return vmaxvq_f32(a); }
INLINE vec v_of_ints(const int32_t *p) { return vcvtq_f32_s32(vld1q_s32(p)); }
INLINE void v_put_bytes(int8_t *p, vec a) {
    const uint16x4_t shorts = vmovn_u32(vreinterpretq_u32_f32(a));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(shorts, shorts));
    const uint32_t word = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &word, sizeof word);
}
INLINE vec v_low_halves(const void *p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32((const uint32_t *)p), 16));
}
INLINE vec v_high_halves(const void *p) {
    return vreinterpretq_f32_u32(
        vandq_u32(vld1q_u32((const uint32_t *)p), vdupq_n_u32(0xffff0000u)));
}
INLINE vec v_of_float16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

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
INLINE vec v_fnma(vec a, vec b, vec c) { return wasm_f32x4_sub(c, wasm_f32x4_mul(a, b)); }
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
INLINE vec v_floor(vec a) { return wasm_f32x4_floor(a); }
INLINE vec v_exponent(vec a) { return wasm_i32x4_shl(a, 23); }
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
INLINE real v_most(vec a) {
    a = v_max(a, wasm_i32x4_shuffle(a, a, 2, 3, 2, 3));
    return wasm_f32x4_extract_lane(v_max(a, wasm_i32x4_shuffle(a, a, 1, 1, 1, 1)), 0);
}
INLINE vec v_of_ints(const int32_t *p) { return wasm_f32x4_convert_i32x4(wasm_v128_load(p)); }
INLINE void v_put_bytes(int8_t *p, vec a) {
    a = wasm_i8x16_shuffle(a, a, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    wasm_v128_store32_lane(p, a, 0);
}
INLINE vec v_low_halves(const void *p) { return wasm_i32x4_shl(wasm_v128_load(p), 16); }
INLINE vec v_high_halves(const void *p) {
    return wasm_v128_and(wasm_v128_load(p), wasm_i32x4_splat(INT32_MIN >> 15));
}
INLINE vec v_of_float16(const uint16_t *p) {
    real of[L];
    for (int l = 0; l < L; ++l) of[l] = fl_float_of_float16(p[l]);
    return v_load(of);
}

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
INLINE real v_most(vec a) { return a; }
INLINE vec v_of_ints(const int32_t *p) { return (vec)*p; }
INLINE void v_put_bytes(int8_t *p, vec a) { memcpy(p, &a, 1); } /* the lowest comes first */
INLINE vec v_low_halves(const void *p) { return fl_float_of_bfloat16(((const uint16_t *)p)[0]); }
INLINE vec v_high_halves(const void *p) { return fl_float_of_bfloat16(((const uint16_t *)p)[1]); }
INLINE vec v_of_float16(const uint16_t *p) { return fl_float_of_float16(*p); }

#if defined(FL_FUSED)
INLINE vec v_fma(vec a, vec b, vec c) { return __builtin_fmaf(a, b, c); }
INLINE vec v_fnma(vec a, vec b, vec c) { return __builtin_fmaf(-a, b, c); }
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
INLINE vec v_fnma(vec a, vec b, vec c) { return c - a * b; }
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
INLINE vec v_exponent(vec a) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    bits <<= 23;
    memcpy(&a, &bits, sizeof a);
    return a;
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
