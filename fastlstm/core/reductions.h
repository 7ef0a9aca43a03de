/* reductions.h - many numbers made into one: sums, means, extremes, and softmax. A part of kernel.h.
 *
 * x is (outer, n, inner). Where inner is 1 the lanes go along n, else along inner, L columns at a
 * time; the order of each sum is the same for both, and does not depend on L: SUMS partial sums,
 * number i in that of i % SUMS, which are added up halves by halves, and after SUM_BLOCK numbers to
 * a double.
 */
enum { SUMS = 16, VECTORS = SUMS / L, SUM_BLOCK = 8 * SUMS };

/* A sum of squares that is less may have lost squares that were denormal. Numbers whose squares add
 * up to it have a finite sum when they are multiplied by 1 / REAL_SMALL first. */
#if defined(FL_SCALAR64)
#define REAL_LITTLE 0x1p-938
#else
#define REAL_LITTLE 0x1p-71
#endif

INLINE void clear_sums(vec *sums /* (VECTORS,) */) {
    UNROLL for (int v = 0; v < VECTORS; ++v) sums[v] = v_set1(0);
}
INLINE real total_of(vec *sums /* (VECTORS,) */) {
    UNROLL for (int n = VECTORS / 2; n; n /= 2)
        UNROLL for (int v = 0; v < n; ++v) sums[v] = v_add(sums[v], sums[v + n]);
    return v_total(sums[0]);
}
INLINE vec total_of_columns(vec *sums /* (SUMS,) */) {
    for (int n = SUMS / 2; n; n /= 2)
        for (int v = 0; v < n; ++v) sums[v] = v_add(sums[v], sums[v + n]);
    return sums[0];
}

/* A sum with x times `scale`, or its square, added. */
INLINE vec add_term(const int squares, vec sum, vec x, vec scale) {
    x = v_mul(x, scale);
    return squares ? v_fma(x, x, sum) : v_add(sum, x);
}

INLINE double row_sum(const int squares, const real *x, size_t n, real scale) {
    const vec factor = v_set1(scale);
    double total = 0;
    for (size_t end, i = 0; i < n; i = end) {
        vec sums[VECTORS];
        end = n - i < SUM_BLOCK ? n : i + SUM_BLOCK;
        clear_sums(sums);
        for (; i + SUMS <= end; i += SUMS)
            UNROLL for (int v = 0; v < VECTORS; ++v)
                sums[v] = add_term(squares, sums[v], v_load(x + i + (size_t)v * L), factor);
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t at_v = i + (size_t)v * L, left = lanes_left(end, at_v);
            if (left) sums[v] = add_term(squares, sums[v], load_left(x + at_v, left), factor);
        }
        total += (double)total_of(sums);
    }
    return total;
}

/* Of `left` columns, `inner` apart. */
INLINE void column_sums(const int squares, const real *x, size_t n, size_t inner, size_t left,
                        real scale, double *totals /* (L,) */) {
    const vec factor = v_set1(scale);
    for (size_t l = 0; l < L; ++l) totals[l] = 0;
    for (size_t end, i = 0; i < n; i = end) {
        vec sums[SUMS];
        real lanes[L];
        end = n - i < SUM_BLOCK ? n : i + SUM_BLOCK;
        for (int v = 0; v < SUMS; ++v) sums[v] = v_set1(0);
        for (size_t k = i; k < end; ++k)
            sums[k % SUMS] =
                add_term(squares, sums[k % SUMS], load_left(x + k * inner, left), factor);
        v_store(lanes, total_of_columns(sums));
        for (size_t l = 0; l < L; ++l) totals[l] += (double)lanes[l];
    }
}

/* What numbers must be multiplied by for this total of theirs to be a good one: 1 if it is. */
INLINE real scale_for(const int squares, double total) {
    if (!isfinite(total)) return REAL_SMALL;
    return squares && total < REAL_LITTLE && total >= 0 ? 1 / REAL_SMALL : 1;
}

INLINE real from_total(fl_reduction_kind kind, double total, size_t n, real scale) {
    if (kind == FL_REDUCTION_l2) return (real)(sqrt(total) / (double)scale);
    if (kind == FL_REDUCTION_mean) total /= (double)n;
    return (real)(total / (double)scale);
}

INLINE void sum_row(const int squares, fl_reduction_kind kind, const real *x, real *y, size_t n) {
    double total = row_sum(squares, x, n, 1);
    const real scale = scale_for(squares, total);
    if (scale != 1) total = row_sum(squares, x, n, scale);
    *y = from_total(kind, total, n, scale);
}

INLINE void sum_columns(const int squares, fl_reduction_kind kind, const real *x, real *y, size_t n,
                        size_t inner, size_t left) {
    double totals[L], again[L];
    column_sums(squares, x, n, inner, left, 1, totals);
    for (size_t l = 0; l < left; ++l) {
        const real scale = scale_for(squares, totals[l]);
        if (scale != 1) column_sums(squares, x, n, inner, left, scale, again);
        y[l] = from_total(kind, scale != 1 ? again[l] : totals[l], n, scale);
    }
}

/* The largest or the least, NaN if any is; never -0, whose order with 0 would depend on that of the
 * numbers. */
INLINE vec extreme(const int largest, vec a, vec b) {
    return largest ? v_maximum(a, b) : v_minimum(a, b);
}

INLINE void extreme_of_row(const int largest, const real *x, real *y, size_t n) {
    real most = x[0], lanes[L];
    size_t i = 0, in_lanes = 0;
    if (n >= L) {
        vec m = v_load(x);
        for (i = L; i + L <= n; i += L) m = extreme(largest, m, v_load(x + i));
        v_store(lanes, extreme(largest, m, v_load(x + n - L)));
        in_lanes = L;
        i = n;
    }
    for (size_t l = 0; l < in_lanes + n - i; ++l) {
        const real a = in_lanes ? lanes[l] : x[l];
        if ((largest ? a > most : a < most) || a != a) most = a;
    }
    *y = most + 0;
}

INLINE void extreme_of_columns(const int largest, const real *x, real *y, size_t n, size_t inner,
                               size_t left) {
    vec m = load_left(x, left);
    for (size_t i = 1; i < n; ++i) m = extreme(largest, m, load_left(x + i * inner, left));
    store_left(y, v_add(m, v_set1(0)), left);
}

static void reduce_row(fl_reduction_kind kind, const real *x, real *y, size_t n) {
    switch (kind) {
    case FL_REDUCTION_max: extreme_of_row(1, x, y, n); break;
    case FL_REDUCTION_min: extreme_of_row(0, x, y, n); break;
    case FL_REDUCTION_l2: sum_row(1, kind, x, y, n); break;
    default: sum_row(0, kind, x, y, n);
    }
}

static void reduce_columns(fl_reduction_kind kind, const real *x, real *y, size_t n, size_t inner,
                           size_t left) {
    switch (kind) {
    case FL_REDUCTION_max: extreme_of_columns(1, x, y, n, inner, left); break;
    case FL_REDUCTION_min: extreme_of_columns(0, x, y, n, inner, left); break;
    case FL_REDUCTION_l2: sum_columns(1, kind, x, y, n, inner, left); break;
    default: sum_columns(0, kind, x, y, n, inner, left);
    }
}

static void run_reduce(const run *in, const fl_reduce *a) {
    const view from = view_of(in, a->x), to = view_of(in, a->y);
    const size_t n = a->n, inner = a->inner;
    FOR_ROWS(in, p) {
        const real *x = at(&from, p.t, p.b);
        real *y = at(&to, p.t, p.b);
        for (size_t o = 0; o < a->outer; ++o, x += n * inner, y += inner) {
            if (stopped(in->call, ROW_WORK * n * inner)) return;
            if (inner == 1) reduce_row(a->reduction, x, y, n);
            else
                for (size_t j = 0; j < inner; j += L)
                    reduce_columns(a->reduction, x + j, y + j, n, inner, lanes_left(inner, j));
        }
    }
}

/* The largest of x, in which a NaN may not count. */
INLINE real most_of(const real *x, size_t n) {
    real most = x[0], lane[L];
    size_t i = 0;
    if (n >= L) {
        vec m = v_load(x);
        for (i = L; i + L <= n; i += L) m = v_max(v_load(x + i), m);
        v_store(lane, m);
        for (size_t l = 0; l < L; ++l) most = lane[l] > most ? lane[l] : most;
    }
    for (; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most + 0;
}

/* exp(x - most) of up to SUM_BLOCK numbers, into y, if it is not NULL; their sum. */
INLINE real exponentials(const real *x, real *y, size_t n, vec most) {
    vec sums[VECTORS];
    clear_sums(sums);
    for (size_t i = 0; i < n; i += SUMS) {
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t at_v = i + (size_t)v * L, left = lanes_left(n, at_v);
            if (!left) continue;
            vec e = v_exp(v_sub(load_left(x + at_v, left), most));
            if (y) store_left(y + at_v, e, left);
            if (left < L) { /* 0 in lanes without a number */
                real lanes[L];
                v_store(lanes, e);
                e = v_load_n(lanes, left);
            }
            sums[v] = v_add(sums[v], e);
        }
    }
    return total_of(sums);
}

/* y may be x. */
INLINE void softmax_of_row(const int log, const real *x, real *y, size_t n) {
    const vec most = v_set1(most_of(x, n));
    double total = 0;
    for (size_t i = 0; i < n; i += SUM_BLOCK) {
        const size_t left = n - i < SUM_BLOCK ? n - i : SUM_BLOCK;
        total += (double)exponentials(x + i, log ? NULL : y + i, left, most);
    }
    const vec whole = v_set1(log ? real_log((real)total) : (real)total);
    for (size_t i = 0; i < n; i += L) {
        const size_t left = lanes_left(n, i);
        const vec a = log ? v_sub(v_sub(load_left(x + i, left), most), whole)
                          : v_div(load_left(y + i, left), whole);
        store_left(y + i, a, left);
    }
}

INLINE void softmax_of_columns(const int log, const real *x, real *y, size_t n, size_t inner,
                               size_t left) {
    vec most = load_left(x, left);
    double totals[L] = {0};
    real lanes[L];
    for (size_t i = 1; i < n; ++i) most = v_max(load_left(x + i * inner, left), most);
    most = v_add(most, v_set1(0));
    for (size_t end, i = 0; i < n; i = end) {
        vec sums[SUMS];
        end = n - i < SUM_BLOCK ? n : i + SUM_BLOCK;
        for (int v = 0; v < SUMS; ++v) sums[v] = v_set1(0);
        for (size_t k = i; k < end; ++k) {
            const vec e = v_exp(v_sub(load_left(x + k * inner, left), most));
            if (!log) store_left(y + k * inner, e, left);
            sums[k % SUMS] = v_add(sums[k % SUMS], e);
        }
        v_store(lanes, total_of_columns(sums));
        for (size_t l = 0; l < L; ++l) totals[l] += (double)lanes[l];
    }
    for (size_t l = 0; l < L; ++l)
        lanes[l] = log ? real_log((real)totals[l]) : (real)totals[l];
    const vec whole = v_load(lanes);
    for (size_t i = 0; i < n; ++i) {
        const size_t k = i * inner;
        const vec a = log ? v_sub(v_sub(load_left(x + k, left), most), whole)
                          : v_div(load_left(y + k, left), whole);
        store_left(y + k, a, left);
    }
}

static void softmax_row(int log, const real *x, real *y, size_t n) {
    if (log) softmax_of_row(1, x, y, n);
    else softmax_of_row(0, x, y, n);
}

static void softmax_columns(int log, const real *x, real *y, size_t n, size_t inner, size_t left) {
    if (log) softmax_of_columns(1, x, y, n, inner, left);
    else softmax_of_columns(0, x, y, n, inner, left);
}

static void run_softmax(const run *in, const fl_softmax *a) {
    const view from = view_of(in, a->x), to = view_of(in, a->y);
    const size_t n = a->n, inner = a->inner;
    FOR_ROWS(in, p) {
        const real *x = at(&from, p.t, p.b);
        real *y = at(&to, p.t, p.b);
        for (size_t o = 0; o < a->outer; ++o, x += n * inner, y += n * inner) {
            if (stopped(in->call, ROW_WORK * n * inner)) return;
            if (inner == 1) softmax_row(a->log, x, y, n);
            else
                for (size_t j = 0; j < inner; j += L)
                    softmax_columns(a->log, x + j, y + j, n, inner, lanes_left(inner, j));
        }
    }
}
