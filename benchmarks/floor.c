/* floor.c - what one core can do at most: bytes read a second at each size of data, and
 * multiply-adds a second from registers. Compiled for the machine it runs on by floor.py; prints
 * `read KB GB/s` lines and one `fma GFLOP/s`. The best of several rounds is the floor's measure: a
 * disturbance can only make it slower. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), may_alias));

enum { STREAMS = 8, CHAINS = 12, ROUNDS = 15 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The sum of n vectors, n a multiple of STREAMS: eight chains of additions hide their latency. */
static vec total(const vec *data /* (n,) */, size_t n) {
    vec s[STREAMS] = {{0}};
    for (size_t i = 0; i < n; i += STREAMS)
        for (int j = 0; j < STREAMS; ++j) s[j] += data[i + (size_t)j];
    for (int j = 1; j < STREAMS; ++j) s[0] += s[j];
    return s[0];
}

/* Chains that start differently, or the compiler computes one of them. */
static vec multiply_add(vec x, vec y, size_t n) {
    vec s[CHAINS];
    for (int j = 0; j < CHAINS; ++j) s[j] = x + (float)j;
    for (size_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; ++j) s[j] = s[j] * x + y;
    }
    for (int j = 1; j < CHAINS; ++j) s[0] += s[j];
    return s[0];
}

int main(void) {
    float seen = 0;
    for (size_t kb = 16; kb <= 32768; kb *= 2) {
        const size_t bytes = kb * 1024, n = bytes / sizeof(vec), repeat = 400000 / kb + 1;
        vec *data = aligned_alloc(64, bytes);
        double best = 1e9;
        if (!data) return 1;
        for (size_t i = 0; i < n; ++i) data[i] = (vec){0} + 1e-3f;
        for (int round = 0; round < ROUNDS; ++round) {
            double start = seconds();
            for (size_t r = 0; r < repeat; ++r) {
                seen += total(data, n)[0];
                __asm__ volatile("" : : "r"(data) : "memory");
            }
            double took = (seconds() - start) / (double)repeat;
            if (took < best) best = took;
        }
        printf("read %zu %.1f\n", kb, (double)bytes / best / 1e9);
        free(data);
    }
    double best = 1e9;
    const size_t n = 2000000;
    for (int round = 0; round < ROUNDS; ++round) {
        double start = seconds();
        seen += multiply_add((vec){0} + 0.5f, (vec){0} + 1e-3f, n)[0];
        double took = seconds() - start;
        if (took < best) best = took;
    }
    printf("fma %.1f\n", 2.0 * CHAINS * LANES * (double)n / best / 1e9);
    return seen == 1.0f;
}
