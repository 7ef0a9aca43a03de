/* folds.h - all rows so far as one: sums, means, extremes, and attention over time. A part of
 * kernel.h.
 */

/* Rows are counted in two digits, each below this: a float holds every integer up to it. */
enum { DIGIT = 16777216 };

/* The number of rows in two digits, the lower one first. */
INLINE double counted(const real *digits) {
    return (double)count_of(digits[1], DIGIT) * DIGIT + (double)count_of(digits[0], DIGIT);
}

/* Count one row more; how many rows those are. The largest count stays. */
INLINE real count_row(real *digits) {
    const size_t low = count_of(digits[0], DIGIT) + 1, high = count_of(digits[1], DIGIT);
    if (low < DIGIT) digits[0] = (real)low;
    else if (high + 1 < DIGIT) digits[0] = 0, digits[1] = (real)(high + 1);
    return (real)counted(digits);
}

/* The larger, or smaller, of two numbers; NaN if one of them is. */
INLINE vec v_largest(vec a, vec b) { return v_if_at_most(a, a, v_flush(v_max(a, b)), a); }
INLINE vec v_smallest(vec a, vec b) { return v_if_at_most(a, a, v_flush(v_min(a, b)), a); }

/* One number x more of a mean and of what rounding took from it, `part` of the sum being its own:
 * mean += (x - mean) / n. `odd` is needed where that is not finite, and changes nothing where it
 * is: an infinite mean stays so, as a sum would, and a huge distance may be infinite where its part
 * is not. Rounding errors of what is not finite are NaN. */
INLINE vec next_mean(const int odd, vec x, vec mean, vec *rest, vec part) {
    const vec zero = v_set1(0), most = v_set1(REAL_MOST);
    const vec from = odd ? v_if_at_most(v_abs(mean), most, mean, zero) : mean;
    vec distance_error, more_error;
    const vec distance = v_exact_sum(x, v_sub(zero, from), &distance_error);
    vec more = v_mul(distance, part);
    if (odd)
        more = v_if_at_most(v_abs(distance), most, more,
                            v_sub(v_mul(x, part), v_mul(from, part)));
    const vec sum = v_exact_sum(mean, more, &more_error);
    const vec low = v_add(v_fma(v_sub(distance_error, *rest), part, *rest), more_error);
    const vec made = v_add(sum, low), left = v_sub(low, v_sub(made, sum));
    *rest = odd ? v_if_at_most(v_abs(made), most, left, zero) : left;
    return odd ? v_if_at_most(v_abs(made), most, made, sum) : made;
}

static __attribute__((noinline, cold)) vec next_odd_mean(vec x, vec mean, vec *rest, vec part) {
    return next_mean(1, x, mean, rest, part);
}

/* One number x more of a sum, and of what rounding took from it, which is nothing of a sum that is
 * not finite. */
INLINE vec next_sum(vec x, vec sum, vec *rest) {
    vec error;
    const vec made = v_exact_sum(sum, x, &error), low = v_add(*rest, error);
    *rest = v_if_at_most(v_abs(made), v_set1(REAL_MOST), low, v_set1(0));
    return made;
}

/* One row x (count,) more. n rows there are with it; y (count,) is what all of them give, or NULL. */
static void fold_row(const fl_fold *f, const real *x, real *state, size_t count, real n, real *y) {
    real *total = f->total < 0 ? NULL : state + f->total;
    real *rest = f->rest < 0 ? NULL : state + f->rest;
    const int begins = f->fold == FL_FOLD_last || (f->rows >= 0 && n == 1);
    if (begins) {
        if (total) memmove(total, x, count * sizeof(real));
        for (size_t i = 0; rest && i < count; ++i) rest[i] = 0;
        if (y) memmove(y, x, count * sizeof(real));
        return;
    }
    const vec part = v_set1(1 / n);
    for (size_t i = 0; i < count; i += L) {
        const size_t left = lanes_left(count, i);
        const vec a = load_left(x + i, left), before = load_left(total + i, left);
        const vec low = rest ? load_left(rest + i, left) : v_set1(0);
        vec made, below = low;
        switch (f->fold) {
        case FL_FOLD_sum:
            made = rest ? next_sum(a, before, &below) : v_add(before, a);
            break;
        case FL_FOLD_mean:
            made = next_mean(0, a, before, &below, part);
            if (!v_all_finite(made)) {
                below = low;
                made = next_odd_mean(a, before, &below, part);
            }
            break;
        case FL_FOLD_max: made = v_largest(before, a); break;
        case FL_FOLD_min: made = v_smallest(before, a); break;
        default: made = before; /* the first */
        }
        store_left(total + i, made, left);
        if (rest) store_left(rest + i, below, left), made = v_add(made, below);
        if (y) store_left(y + i, made, left);
    }
}

/* What all rows gave. */
static void fold_total(const fl_fold *f, const real *state, size_t count, real *y) {
    for (size_t i = 0; i < count; i += L) {
        const size_t left = lanes_left(count, i);
        vec made = load_left(state + f->total + i, left);
        if (f->rest >= 0) made = v_add(made, load_left(state + f->rest + i, left));
        store_left(y + i, made, left);
    }
}

static void run_fold(const run *in, const fl_fold *f) {
    const fl_running *call = in->call;
    const view x = view_of(in, f->x), y = view_of(in, f->y);
    const size_t count = numbers_of(in, f->x);
    const int once = f->folded && call->whole;
    for (size_t b = 0; b < call->B; ++b) {
        real *state = state_of(in, b);
        const size_t end = rows_end(in, b);
        for (size_t t = in->rows.first; t < end; ++t) {
            if (stopped(call, ROW_WORK * count)) return;
            const real n = f->rows < 0 ? 0 : count_row(state + f->rows);
            fold_row(f, at(&x, t, b), state, count, n, once ? NULL : at(&y, t, b));
        }
        if (once && in->ends && counted(state + f->rows) > 0)
            fold_total(f, state, count, at(&y, 0, b));
    }
}

/* ---- Attention ---- */

/* Numbers [i, i + left) of x, or those that `of` names. */
INLINE vec load_of(fl_list of, const real *x, size_t i, size_t left) {
    real lane[L];
    if (!of.at) return load_left(x + i, left);
    for (size_t l = 0; l < L; ++l) lane[l] = l < left ? x[of.at[i + l]] : 0;
    return v_load(lane);
}

/* The next scores (S,): the largest so far, the sums of the weights, and by what those of before fade
 * and what weights the new ones have. Scores of minus infinity have no weight, also before any other
 * has come. */
static void weigh(const fl_attention *a, const real *scores, real *state, size_t S, int begins,
                  real *fades, real *weights) {
    const vec none = v_set1(-(real)INFINITY), least = v_set1(-REAL_MOST), zero = v_set1(0);
    real *largest = state + a->largest, *weight = state + a->weight;
    for (size_t i = 0; i < S; i += L) {
        const size_t left = lanes_left(S, i);
        const vec score = load_left(scores + i, left);
        const vec before = begins ? none : load_left(largest + i, left);
        const vec most = v_largest(before, score);
        /* least <= most is not so of minus infinity, nor of NaN, which stays itself. */
        const vec base = v_if_at_most(least, most, most, v_if_at_most(most, least, zero, most));
        const vec fade = v_exp(v_sub(before, base)), own = v_exp(v_sub(score, base));
        store_left(largest + i, most, left);
        store_left(weight + i, v_fma(fade, load_left(weight + i, left), own), left);
        store_left(fades + i, fade, left);
        store_left(weights + i, own, left);
    }
}

/* total (count,) += weights * x, the values, or y = total / the sums of the weights, or both. */
static void attend(const fl_attention *a, const real *x, real *state, size_t count,
                   const real *fades, const real *weights, real *y) {
    real *total = state + a->total, *weight = state + a->weight;
    for (size_t i = 0; i < count; i += L) {
        const size_t left = lanes_left(count, i);
        vec sum = load_left(total + i, left);
        if (x) {
            sum = v_mul(load_of(a->score_of, fades, i, left), sum);
            sum = v_fma(load_of(a->score_of, weights, i, left),
                        load_of(a->value_of, x, i, left), sum);
            store_left(total + i, sum, left);
        }
        if (y) store_left(y + i, v_div(sum, load_of(a->score_of, weight, i, left)), left);
    }
}

static void run_attention(const run *in, const fl_attention *a) {
    const fl_running *call = in->call;
    const view scores = view_of(in, a->scores), x = view_of(in, a->values);
    const view y = view_of(in, a->y);
    const size_t S = numbers_of(in, a->scores), count = numbers_of(in, a->y);
    const int once = a->folded && call->whole;
    real *fades = own_scratch(call), *weights = fades + S;
    for (size_t b = 0; b < call->B; ++b) {
        real *state = state_of(in, b);
        const size_t end = rows_end(in, b);
        for (size_t t = in->rows.first; t < end; ++t) {
            if (stopped(call, ROW_WORK * (S + count))) return;
            const int begins = a->rows >= 0 && count_row(state + a->rows) == 1;
            weigh(a, at(&scores, t, b), state, S, begins, fades, weights);
            attend(a, at(&x, t, b), state, count, fades, weights,
                   once ? NULL : at(&y, t, b));
        }
        if (once && in->ends && counted(state + a->rows) > 0)
            attend(a, NULL, state, count, fades, weights, at(&y, 0, b));
    }
}
