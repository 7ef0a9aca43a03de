/* stored.h - sums of products of a matrix whose panels hold fewer bits than reals. A part of kernel.h.
 *
 * Halves are widened as they are read, which loses nothing, and summed in the order of panels.h: the
 * sums are those of a matrix of floats with the same numbers. Of int8 a row becomes integers first, its
 * twin; operations.h has how. What the twins of rows take is scratch memory, as scratch.h says.
 */

/* A part of a matrix whose panels are not of reals, and the twins of the rows it meets. */
typedef struct {
    const real *weights;    /* words; panels lie `stride` apart */
    size_t stride;
    fl_stored_kind stored;
    const real *unit;       /* (P, G, L), of int8 */
    size_t K;               /* inputs */
    const char *twins;      /* of int8: of row r from r * fl_twin_bytes(K) on */
    const fl_int8 *int8;
} stored_part;

#if defined(FL_SCALAR64) /* packing makes reals of all */

INLINE void make_twin(const real *x, size_t K, char *made) { (void)x, (void)K, (void)made; }
INLINE void sum_stored(const int G, const stored_part *a, size_t p, const row *rows, size_t n,
                       int of_h, vec (*total)[4]) {
    (void)G, (void)a, (void)p, (void)rows, (void)n, (void)of_h, (void)total;
}

#else

/* A row x (K,) as integers. */
static void make_twin(const real *x, size_t K, char *made) {
    const vec middle = v_set1(0x1.8p23f); /* a float of this size is whole, and ends with its integer */
    fl_twin *twin = (fl_twin *)(void *)made;
    int8_t *to = (int8_t *)(twin + 1);
    vec most = v_set1(0), spoilt = v_set1(0), sum = v_set1(0);
    for (size_t k = 0; k < K; k += L) {
        const vec a = load_left(x + k, lanes_left(K, k));
        most = v_max(v_abs(a), most);
        spoilt = v_fma(a, v_set1(0), spoilt);
    }
    const real m = v_most(most);
    const int finite = v_total(spoilt) == 0, none = !(m >= 0x1p-100f) || !finite;
    const vec inverse = v_set1(none ? 0 : 127 / m), zero = v_set1(0);
    twin->scale = finite ? (none ? 0 : m / 127) : (real)NAN;
    for (size_t k = 0; k < K; k += L) {
        const vec a = none ? zero : load_left(x + k, lanes_left(K, k));
        const vec raised = v_add(v_mul(a, inverse), middle);
        v_put_bytes(to + k, raised);
        sum = v_add(sum, v_sub(raised, middle));
    }
    twin->total = (int32_t)v_total(sum);
    for (size_t k = (K + L - 1) / L * L; k < 4 * fl_words(FL_STORED_int8, K); ++k) to[k] = 0;
}

/* The products of int8 of n rows with one panel, w at its first word of these, `unit` its scales. */
INLINE void sum_integers(const int G, const stored_part *a, const real *w, const real *unit,
                         size_t n, vec (*total)[4]) {
    _Alignas(64) int32_t sums[TILE * 4 * L];
    const size_t bytes = fl_twin_bytes(a->K);
    a->int8->sum((size_t)G, w, fl_words(FL_STORED_int8, a->K), a->twins, bytes, n, sums);
    for (size_t r = 0; r < n; ++r) {
        const vec scale = v_set1(((const fl_twin *)(const void *)(a->twins + r * bytes))->scale);
        const int32_t *sum = sums + r * (size_t)(G * L);
        UNROLL for (int g = 0; g < G; ++g)
            total[r][g] = v_fma(v_of_ints(sum + g * L), v_mul(scale, v_load(unit + g * L)),
                                total[r][g]);
    }
}

/* The same of halves, of one row. */
INLINE void sum_halves(const int is_float16, const int G, const real *w, const real *x, size_t K,
                       vec *total) {
    vec levels[1][4];
    clear(1, G, levels);
    for (size_t k = 0, end; k < K; k = end) {
        accumulators acc;
        end = K - k < K_BLOCK ? K : k + K_BLOCK;
        if (k && k % K_LEVEL == 0) {
            UNROLL for (int g = 0; g < G; ++g) {
                levels[0][g] = v_add(levels[0][g], total[g]);
                total[g] = v_set1(0);
            }
        }
        clear(1, G, acc);
        for (size_t i = k; i < end; i += 2, w += G * L) {
            const int both = i + 1 < end;
            const vec first = v_set1(x[i]), second = v_set1(both ? x[i + 1] : 0);
            UNROLL for (int g = 0; g < G; ++g) {
                const uint16_t *halves = (const uint16_t *)(const void *)(w + g * L);
                acc[0][g] = v_fma(first, is_float16 ? v_of_float16(halves) : v_low_halves(halves),
                                  acc[0][g]);
                if (both)
                    acc[0][g] = v_fma(second, is_float16 ? v_of_float16(halves + L)
                                                         : v_high_halves(halves), acc[0][g]);
            }
        }
        UNROLL for (int g = 0; g < G; ++g) total[g] = v_add(acc[0][g], total[g]);
    }
    if (K > K_LEVEL)
        UNROLL for (int g = 0; g < G; ++g) total[g] = v_add(total[g], levels[0][g]);
}

/* Of several rows: a part of the panel is widened once for all. */
INLINE void sum_widened(const int is_float16, const int G, const real *w, const row *rows, size_t n,
                        int of_h, size_t K, vec (*total)[4]) {
    _Alignas(64) real wide[K_PART * 4 * L];
    vec levels[TILE][4];
    for (size_t k = 0, end; k < K; k = end) {
        end = K - k <= K_PART ? K : k + K_PART;
        if (k && k % K_LEVEL == 0) {
            for (size_t r = 0; r < n; ++r) {
                if (k == K_LEVEL) clear(1, G, levels + r);
                add_to(1, G, total + r, levels + r);
                clear(1, G, total + r);
            }
        }
        for (size_t i = k; i < end; i += 2, w += G * L) {
            real *to = wide + (i - k) * (size_t)(G * L);
            UNROLL for (int g = 0; g < G; ++g) {
                const uint16_t *halves = (const uint16_t *)(const void *)(w + g * L);
                v_store(to + g * L, is_float16 ? v_of_float16(halves) : v_low_halves(halves));
                if (i + 1 < end)
                    v_store(to + (G + g) * L, is_float16 ? v_of_float16(halves + L)
                                                         : v_high_halves(halves));
            }
        }
        sum_part(G, rows, n, of_h, k, end - k, wide, wide, total);
    }
    for (size_t r = 0; r < n && K > K_LEVEL; ++r) add_to(1, G, levels + r, total + r);
}

INLINE void sum_of_halves(const int is_float16, const int G, const real *w, const row *rows,
                          size_t n, int of_h, size_t K, vec (*total)[4]) {
    if (n == 1) sum_halves(is_float16, G, w, of_h ? rows->h : rows->x, K, total[0]);
    else sum_widened(is_float16, G, w, rows, n, of_h, K, total);
}

/* total[r][g] += the sum over the inputs of x, or of h, of n rows, TILE at most, in panel p. */
static void sum_stored(const int G, const stored_part *a, size_t p, const row *rows, size_t n,
                       int of_h, vec (*total)[4]) {
    const real *w = a->weights + p * a->stride;
#define OF_GROUPS(G)                                                                \
    if (a->stored == FL_STORED_int8)                                                \
        sum_integers(G, a, w, a->unit + p * (size_t)(G * L), n, total);             \
    else if (a->stored == FL_STORED_float16)                                        \
        sum_of_halves(1, G, w, rows, n, of_h, a->K, total);                         \
    else                                                                            \
        sum_of_halves(0, G, w, rows, n, of_h, a->K, total);                         \
    break
    switch (G) {
    case 1: OF_GROUPS(1);
    case 2: OF_GROUPS(2);
    case 3: OF_GROUPS(3);
    default: OF_GROUPS(4);
    }
#undef OF_GROUPS
}

#endif

/* The twins of n rows of K numbers, x or h, but of an h whose product was made before. */
INLINE void make_twins(const row *rows, size_t n, int of_h, size_t K, char *made) {
    for (size_t r = 0; r < n; ++r)
        if (!of_h || !rows[r].from_h)
            make_twin(of_h ? rows[r].h : rows[r].x, K, made + r * fl_twin_bytes(K));
}

/* The sums of integers of n rows at once lie between these. */
INLINE void begin_int8(const fl_int8 *int8, size_t n) {
    if (int8->begin) int8->begin(n);
}
INLINE void end_int8(const fl_int8 *int8, size_t n) {
    if (int8->end) int8->end(n);
}
