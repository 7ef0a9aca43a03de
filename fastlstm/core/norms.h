/* norms.h - numbers normalised: to mean 0 and variance 1, or to a mean square of 1. A part of
 * kernel.h.
 */

INLINE real real_sqrt(real x) {
    real lane[L];
    v_store(lane, v_sqrt(v_set1(x)));
    return lane[0];
}

/* What brings numbers to mean 0 and variance 1: (scale x - mean) factor. The scale is 1 but for
 * numbers whose sum or squares are too large for a real. */
typedef struct {
    real scale, mean, factor;
} moments;

INLINE vec normalised(const moments *m, vec a) {
    return v_mul(v_fma(a, v_set1(m->scale), v_set1(-m->mean)), v_set1(m->factor));
}

/* Numbers that lie as a product (P, G, L) does: `size` of each of the vectors [g, g + gates). A row
 * is one vector of one. */
typedef struct {
    const real *z;
    size_t size, g, gates, G;
} numbers;

/* Numbers [at, at + SUMS), `full` if there are as many, times `scale`, one sum each. */
INLINE void add_numbers(const int full, const numbers *a, size_t first, real scale, vec *sums) {
    for (size_t i = a->g; i < a->g + a->gates; ++i) {
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t at_v = first + (size_t)v * L;
            const size_t left = full ? L : lanes_left(a->size, at_v);
            if (!left) continue;
            const vec x = load_left(a->z + (at_v / L * a->G + i) * L, left);
            sums[v] = v_add(sums[v], scale == 1 ? x : v_mul(x, v_set1(scale)));
        }
    }
}

/* What lies between these and a mean, and its squares; minus_mean (L,). */
INLINE void add_distances(const int full, const numbers *a, size_t first, real scale,
                          const real *minus_mean, vec *sums, vec *squares) {
    for (size_t i = a->g; i < a->g + a->gates; ++i) {
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t at_v = first + (size_t)v * L;
            const size_t left = full ? L : lanes_left(a->size, at_v);
            if (!left) continue;
            /* 0 in lanes without a number */
            const vec x = load_left(a->z + (at_v / L * a->G + i) * L, left);
            const vec d = v_fma(x, v_set1(scale), load_left(minus_mean, left));
            sums[v] = v_add(sums[v], d);
            squares[v] = v_fma(d, d, squares[v]);
        }
    }
}

/* The moments of numbers times `scale`, with `eps` added to the variance; that is returned. What
 * rounding left the mean off by is the mean of the distances: of equal numbers it is as large as
 * each of them, and without it they would be normalised to what rounding left. */
INLINE real scaled_moments(const numbers *a, real scale, real eps, moments *m) {
    const real n = (real)a->size * (real)a->gates;
    const size_t full = a->size / SUMS * SUMS;
    vec sums[VECTORS], squares[VECTORS];
    real minus_mean[L];
    clear_sums(sums);
    for (size_t i = 0; i < full; i += SUMS) add_numbers(1, a, i, scale, sums);
    if (full < a->size) add_numbers(0, a, full, scale, sums);
    const real mean = total_of(sums) / n;
    v_store(minus_mean, v_set1(-mean));
    clear_sums(sums);
    clear_sums(squares);
    for (size_t i = 0; i < full; i += SUMS)
        add_distances(1, a, i, scale, minus_mean, sums, squares);
    if (full < a->size) add_distances(0, a, full, scale, minus_mean, sums, squares);
    const real off = total_of(sums) / n, variance = total_of(squares) / n - off * off;
    m->scale = scale;
    m->mean = mean + off;
    m->factor = 1 / real_sqrt((variance < 0 ? 0 : variance) + eps);
    return variance;
}

/* Of numbers that are too large, or not finite. eps is nothing beside any variance that such
 * numbers have, but keeps equal ones from 0 / 0. */
static __attribute__((noinline, cold)) moments moments_of_large(const numbers *a, double eps) {
    moments m;
    scaled_moments(a, REAL_SMALL, eps > 0 ? REAL_LEAST : 0, &m);
    return m;
}

INLINE moments moments_of(const numbers *a, double eps) {
    moments m;
    return isfinite(scaled_moments(a, 1, (real)eps, &m)) ? m : moments_of_large(a, eps);
}

/* Likewise, to a mean square of 1, the mean left as it is. */
static moments mean_square_of(const real *x, size_t n, double eps) {
    double total = row_sum(1, x, n, 1) + (double)n * eps;
    const real scale = scale_for(1, total);
    const double wide = (double)scale;
    if (scale != 1) total = row_sum(1, x, n, scale) + (double)n * eps * wide * wide;
    const moments m = {scale, 0, (real)(1 / sqrt(total / (double)n))};
    return m;
}

static void run_norm(const run *in, const fl_norm *a) {
    const fl_packed_norm *packed = &in->packed->norm;
    const view from = view_of(in, a->x), to = view_of(in, a->y);
    const size_t n = a->n;
    FOR_ROWS(in, p) {
        const real *x = at(&from, p.t, p.b), *weight = packed->weight, *bias = packed->bias;
        real *y = at(&to, p.t, p.b);
        if (stopped(in->call, ROW_WORK * a->outer * n)) return;
        for (size_t o = 0; o < a->outer; ++o, x += n, y += n) {
            const numbers row_numbers = {x, n, 0, 1, 1};
            const moments m = a->norm == FL_NORM_rms ? mean_square_of(x, n, a->eps)
                                                     : moments_of(&row_numbers, a->eps);
            for (size_t i = 0; i < n; i += L) {
                const size_t left = lanes_left(n, i);
                vec v = normalised(&m, load_left(x + i, left));
                if (weight) v = v_mul(v, load_left(weight + i, left));
                if (bias) v = v_add(v, load_left(bias + i, left));
                store_left(y + i, v, left);
            }
            if (packed->weight_each) weight += n;
            if (packed->bias_each) bias += n;
        }
    }
}
