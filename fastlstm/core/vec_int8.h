/* vec_int8.h - the vector operations of one instruction set on words of four int8.
 *
 * Beside vec.h, and sum_tiles.h for tiles, the only file that names an intrinsic. The file that
 * includes this one has defined what vec.h asks for; FL_DOT says that the set has an instruction for
 * four products and their sum, of which the first factor is then unsigned on x86. It gets `ints`,
 * INTS lanes of int32, and
 *
 *   i_load(w)            INTS words of weights
 *   i_word(x)            one word of a row in every lane
 *   i_last(w, n)         the last n of INTS words, and 0 for those before, of AVX-512
 *   i_add(a, b), i_store(p, a), i_set1(n)
 *   i_dot(sum, w, x)     sum + the four products of each lane, exactly
 *
 * Numbers are -127 to 127, so that pairs of products, 32258 at most, fit the 16 bits of AVX2's sums,
 * which saturate, and NEON's products fit theirs. DOT_OFFSET is what weights are stored with.
 */
#if defined(FL_AVX512)

enum { INTS = 16 };
typedef __m512i ints;
INLINE ints i_load(const int32_t *w) { return _mm512_loadu_si512(w); }
INLINE ints i_set1(int32_t n) { return _mm512_set1_epi32(n); }
INLINE ints i_add(ints a, ints b) { return _mm512_add_epi32(a, b); }
INLINE void i_store(int32_t *p, ints a) { _mm512_storeu_si512(p, a); }
INLINE ints i_last(const int32_t *w, size_t n) {
    return _mm512_maskz_loadu_epi32((__mmask16)(0xffffu << (16 - n)), w);
}
#if defined(FL_DOT)
enum { DOT_OFFSET = 128 };
INLINE ints i_dot(ints sum, ints w, ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
#else
enum { DOT_OFFSET = 0 };
INLINE ints i_dot(ints sum, ints w, ints x) {
    const ints signed_w = _mm512_mask_sub_epi8(w, _mm512_movepi8_mask(x), i_set1(0), w);
    const ints pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(x), signed_w);
    return i_add(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif

#elif defined(FL_AVX2)

enum { INTS = 8 };
typedef __m256i ints;
INLINE ints i_load(const int32_t *w) { return _mm256_loadu_si256((const __m256i *)(const void *)w); }
INLINE ints i_set1(int32_t n) { return _mm256_set1_epi32(n); }
INLINE ints i_add(ints a, ints b) { return _mm256_add_epi32(a, b); }
INLINE void i_store(int32_t *p, ints a) { _mm256_storeu_si256((__m256i *)(void *)p, a); }
#if defined(FL_DOT)
enum { DOT_OFFSET = 128 };
INLINE ints i_dot(ints sum, ints w, ints x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#else
enum { DOT_OFFSET = 0 };
INLINE ints i_dot(ints sum, ints w, ints x) {
    const ints pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return i_add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

#elif defined(FL_NEON)

enum { INTS = 4, DOT_OFFSET = 0 };
typedef int32x4_t ints;
INLINE ints i_load(const int32_t *w) { return vld1q_s32(w); }
INLINE ints i_set1(int32_t n) { return vdupq_n_s32(n); }
INLINE ints i_add(ints a, ints b) { return vaddq_s32(a, b); }
INLINE void i_store(int32_t *p, ints a) { vst1q_s32(p, a); }
INLINE ints i_dot(ints sum, ints w, ints x) {
    const int8x16_t a = vreinterpretq_s8_s32(w), b = vreinterpretq_s8_s32(x);
#if defined(FL_DOT)
    return vdotq_s32(sum, a, b);
#else
    const ints low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const ints high = vpaddlq_s16(vmull_high_s8(a, b));
    return vaddq_s32(sum, vpaddq_s32(low, high));
#endif
}

#elif defined(FL_SIMD128)

enum { INTS = 4, DOT_OFFSET = 0 };
typedef v128_t ints;
INLINE ints i_load(const int32_t *w) { return wasm_v128_load(w); }
INLINE ints i_set1(int32_t n) { return wasm_i32x4_splat(n); }
INLINE ints i_add(ints a, ints b) { return wasm_i32x4_add(a, b); }
INLINE void i_store(int32_t *p, ints a) { wasm_v128_store(p, a); }
INLINE ints i_dot(ints sum, ints w, ints x) {
    const ints low = wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extmul_low_i8x16(w, x));
    const ints high = wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extmul_high_i8x16(w, x));
    return wasm_i32x4_add(sum, wasm_i32x4_add(wasm_i32x4_shuffle(low, high, 0, 2, 4, 6),
                                              wasm_i32x4_shuffle(low, high, 1, 3, 5, 7)));
}

#else

enum { INTS = 1, DOT_OFFSET = 0 };
typedef int32_t ints;
INLINE ints i_load(const int32_t *w) { return *w; }
INLINE ints i_set1(int32_t n) { return n; }
INLINE ints i_add(ints a, ints b) { return a + b; }
INLINE void i_store(int32_t *p, ints a) { *p = a; }
INLINE ints i_dot(ints sum, ints w, ints x) {
    int8_t a[4], b[4];
    memcpy(a, &w, sizeof a), memcpy(b, &x, sizeof b);
    return sum + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

#endif

INLINE ints i_word(const int32_t *x) { return i_set1(*x); }
