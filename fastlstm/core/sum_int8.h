/* sum_int8.h - the sums of products of int8 of an instruction set, an fl_sum_int8. A part of kernel.h.
 *
 * ROWS rows are taken together. Integers have the same sum in any order, which is free to be what a
 * processor likes.
 */

/* sums (M, G, INTS) of M rows. Of one row two sums are counted for each vector, of words in turn: one
 * alone would wait for itself. */
INLINE void sum_some(const int M, const int G, const int32_t *w, size_t K, const char *twins,
                     size_t bytes, int32_t *sums) {
    ints acc[ROWS][4], other[4];
    const int32_t *x[ROWS];
    size_t k = 0;
    UNROLL for (int m = 0; m < M; ++m) {
        const fl_twin *twin = (const fl_twin *)(const void *)(twins + (size_t)m * bytes);
        x[m] = (const int32_t *)(const void *)(twin + 1);
        UNROLL for (int g = 0; g < G; ++g) acc[m][g] = i_set1(-DOT_OFFSET * twin->total);
    }
    UNROLL for (int g = 0; g < G; ++g) other[g] = i_set1(0);
    for (; M == 1 && k + 2 <= K; k += 2, w += 2 * G * INTS) {
        const ints first = i_word(x[0] + k), second = i_word(x[0] + k + 1);
        UNROLL for (int g = 0; g < G; ++g) {
            acc[0][g] = i_dot(acc[0][g], i_load(w + g * INTS), first);
            other[g] = i_dot(other[g], i_load(w + (G + g) * INTS), second);
        }
    }
    for (; k < K; ++k, w += G * INTS) {
        ints wk[4];
        UNROLL for (int g = 0; g < G; ++g) wk[g] = i_load(w + g * INTS);
        UNROLL for (int m = 0; m < M; ++m) {
            const ints xk = i_word(x[m] + k);
            UNROLL for (int g = 0; g < G; ++g) acc[m][g] = i_dot(acc[m][g], wk[g], xk);
        }
    }
    UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int g = 0; g < G; ++g)
            i_store(sums + (m * G + g) * INTS, M == 1 ? i_add(acc[m][g], other[g]) : acc[m][g]);
}

INLINE void sum_groups(const int G, const int32_t *w, size_t K, const char *twins, size_t bytes,
                       size_t n, int32_t *sums) {
    for (size_t r = 0, m; r < n; r += m, twins += m * bytes, sums += m * (size_t)(G * INTS)) {
        const size_t left = n - r;
        m = left / ((left + ROWS - 1) / ROWS);
        switch (m) {
#if ROWS > 5
        case 6: sum_some(6, G, w, K, twins, bytes, sums); break;
#endif
#if ROWS > 4
        case 5: sum_some(5, G, w, K, twins, bytes, sums); break;
#endif
#if ROWS > 3
        case 4: sum_some(4, G, w, K, twins, bytes, sums); break;
#endif
#if ROWS > 2
        case 3: sum_some(3, G, w, K, twins, bytes, sums); break;
#endif
        case 2: sum_some(2, G, w, K, twins, bytes, sums); break;
        default: sum_some(1, G, w, K, twins, bytes, sums);
        }
    }
}

static void sum_products(size_t G, const void *w, size_t K, const void *twins, size_t bytes,
                         size_t n, int32_t *sums) {
    switch (G) {
    case 1: sum_groups(1, w, K, twins, bytes, n, sums); break;
    case 2: sum_groups(2, w, K, twins, bytes, n, sums); break;
    case 3: sum_groups(3, w, K, twins, bytes, n, sums); break;
    default: sum_groups(4, w, K, twins, bytes, n, sums); break;
    }
}
