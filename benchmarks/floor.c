/* floor.c - what one core can do at most: reading data of any size again and again, and
 * multiply-adds from registers. floor.py compiles it for the machine it runs on and times it.
 *
 * Several orders of reading, because the fastest depends on the caches: data that is a little
 * larger than a cache is found there in part if every other reading goes backwards.
 */
#define _GNU_SOURCE /* madvise */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), may_alias));

enum { CHAINS = 12, HUGE_PAGE = 2 << 20 };

enum { ASCENDING, BACK_AND_FORTH, TWO_STREAMS, FOUR_STREAMS };

/* Load a vector into a register and do nothing with it, which the compiler must not know. */
#if defined(__x86_64__)
#define LOAD(p) __asm__ volatile("" : : "x"(*(const volatile vec *)(p)))
#elif defined(__aarch64__)
#define LOAD(p) __asm__ volatile("" : : "w"(*(const volatile vec *)(p)))
#else
#define LOAD(p) (void)*(const volatile vec *)(p)
#endif

/* `bytes` for read(), on large pages where there are any: with small ones, data of half the size of
 * a cache may already share some of its sets. NULL if there is no memory. */
void *new_data(size_t bytes) {
    const size_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *data = aligned_alloc(HUGE_PAGE, size);
    if (!data) return NULL;
#if defined(MADV_HUGEPAGE)
    madvise(data, size, MADV_HUGEPAGE);
#endif
    memset(data, 0, size); /* gives it pages of its own */
    return data;
}

void free_data(void *data) { free(data); }

static void ascend(const vec *data, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
#pragma GCC unroll 8
        for (size_t j = 0; j < 8; ++j) LOAD(data + i + j);
    }
    for (; i < n; ++i) LOAD(data + i);
}

static void descend(const vec *data, size_t n) {
    for (; n >= 8; n -= 8) {
#pragma GCC unroll 8
        for (size_t j = 1; j <= 8; ++j) LOAD(data + n - j);
    }
    for (; n > 0; --n) LOAD(data + n - 1);
}

static inline void in_streams(const vec *data, size_t n, size_t streams) {
    const size_t each = n / streams;
    size_t i = 0;
    for (; i + 4 <= each; i += 4) {
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) {
#pragma GCC unroll 4
            for (size_t s = 0; s < streams; ++s) LOAD(data + s * each + i + j);
        }
    }
    for (; i < each; ++i)
        for (size_t s = 0; s < streams; ++s) LOAD(data + s * each + i);
    for (i = streams * each; i < n; ++i) LOAD(data + i);
}

/* Read the first `bytes`, a multiple of 64, `times` times. */
void read_data(const void *data, size_t bytes, size_t times, int order) {
    const size_t n = bytes / sizeof(vec);
    for (size_t t = 0; t < times; ++t) {
        if (order == TWO_STREAMS)
            in_streams(data, n, 2);
        else if (order == FOUR_STREAMS)
            in_streams(data, n, 4);
        else if (order == BACK_AND_FORTH && t % 2)
            descend(data, n);
        else
            ascend(data, n);
    }
}

/* Multiply-adds in chains that start differently, or the compiler would compute one of them; each
 * of `count` rounds is one in every lane of every chain. Returns their number. */
size_t multiply_add(size_t count) {
    const vec x = (vec){0} + 0.5f, y = (vec){0} + 1e-3f;
    vec s[CHAINS];
    for (int j = 0; j < CHAINS; ++j) s[j] = x + (float)j;
    for (size_t i = 0; i < count; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; ++j) s[j] = s[j] * x + y;
    }
    for (int j = 0; j < CHAINS; ++j) LOAD(s + j);
    return count * CHAINS * LANES;
}

/* A vector of bytes times another, added to sums of 32 bits: four multiply-adds in each lane. */
#if defined(__AVX512VNNI__)
typedef __m512i bytes;
#define ADD_DOTS(s, x, y) _mm512_dpbusd_epi32(s, x, y)
#elif defined(__AVXVNNI__)
typedef __m256i bytes;
#define ADD_DOTS(s, x, y) _mm256_dpbusd_avx_epi32(s, x, y)
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t bytes;
#define ADD_DOTS(s, x, y) vdotq_s32(s, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y))
#endif

/* Keep what a register holds from the compiler. */
#if defined(__aarch64__)
#define HIDE(v) __asm__ volatile("" : "+w"(v))
#else
#define HIDE(v) __asm__ volatile("" : "+v"(v))
#endif

/* The same as multiply_add of bytes; 0: this processor has no instruction for it. */
size_t multiply_add_bytes(size_t count) {
#if defined(ADD_DOTS)
    bytes s[CHAINS], x = {0}, y = {0};
    for (int j = 0; j < CHAINS; ++j) s[j] = x;
    for (size_t i = 0; i < count; ++i) {
        HIDE(x);
        HIDE(y);
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; ++j) s[j] = ADD_DOTS(s[j], x, y);
    }
    for (int j = 0; j < CHAINS; ++j) LOAD(s + j);
    return count * CHAINS * sizeof(bytes);
#else
    (void)count;
    return 0;
#endif
}
