/* layers_template.h - what lies between cells: functions of a row, normalisation, convolutions.
 *
 * A part of cells_template.h, which includes it with its definitions in place.
 */

/* A sum over a row is SUMS partial sums, number i in that of i % SUMS, which are then added up
 * halves by halves: the order of it does not depend on L. */
enum { SUMS = 16, VECTORS = SUMS / L };

INLINE void clear_sums(vec *sums) {
    UNROLL for (int v = 0; v < VECTORS; ++v) sums[v] = v_set1(0);
}
INLINE real total_of(vec *sums /* (VECTORS,) */) {
    UNROLL for (int n = VECTORS / 2; n; n /= 2)
        UNROLL for (int v = 0; v < n; ++v) sums[v] = v_add(sums[v], sums[v + n]);
    return v_total(sums[0]);
}

/* The largest of x, which is not NaN if any number is not; never -0. */
INLINE real most_of(const real *x, size_t size) {
    real most = x[0], lane[L];
    size_t i = 0;
    if (size >= L) {
        vec m = v_load(x);
        for (i = L; i + L <= size; i += L) m = v_max(v_load(x + i), m);
        v_store(lane, m);
        for (size_t l = 0; l < L; ++l) most = lane[l] > most ? lane[l] : most;
    }
    for (; i < size; ++i) most = x[i] > most ? x[i] : most;
    return most + 0;
}

/* Numbers that a sum of floats takes before it is added to a double. */
enum { SOFTMAX_BLOCK = 8 * SUMS };

/* exp(x - most) of up to SOFTMAX_BLOCK numbers, into y; their sum. */
INLINE real exponentials(const real *x, real *y, size_t size, vec most) {
    vec sums[VECTORS];
    clear_sums(sums);
    for (size_t at = 0; at < size; at += SUMS) {
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t i = at + (size_t)v * L, left = lanes_left(size, i);
            if (!left) continue;
            vec e = v_exp(v_sub(load_left(x + i, left), most));
            store_left(y + i, e, left);
            if (left < L) e = v_load_n(y + i, left);
            sums[v] = v_add(sums[v], e);
        }
    }
    return total_of(sums);
}

static void softmax(fl_function function, const real *x, real *y, size_t size) {
    const vec most = v_set1(most_of(x, size));
    double total = 0;
    for (size_t i = 0; i < size; i += SOFTMAX_BLOCK) {
        const size_t left = size - i < SOFTMAX_BLOCK ? size - i : SOFTMAX_BLOCK;
        total += (double)exponentials(x + i, y + i, left, most);
    }
    const real sum = (real)total;
    const vec whole = v_set1(sum), log_sum = v_set1(function == FL_SOFTMAX ? 0 : real_log(sum));
    for (size_t i = 0; i < size; i += L) {
        const size_t left = lanes_left(size, i);
        const vec a = function == FL_SOFTMAX ? v_div(load_left(y + i, left), whole)
                                             : v_sub(v_sub(load_left(x + i, left), most), log_sum);
        store_left(y + i, a, left);
    }
}

static void activate(const fl_activation *activation, const real *x, real *y, size_t size) {
    if (activation->function == FL_SOFTMAX || activation->function == FL_LOG_SOFTMAX) {
        softmax(activation->function, x, y, size);
        return;
    }
    for (size_t i = 0; i < size; i += L) {
        size_t left = lanes_left(size, i);
        store_left(y + i, apply(activation, load_left(x + i, left)), left);
    }
}

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
INLINE void add_numbers(const int full, const numbers *a, size_t at, real scale, vec *sums) {
    for (size_t i = a->g; i < a->g + a->gates; ++i) {
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t first = at + (size_t)v * L;
            const size_t left = full ? L : lanes_left(a->size, first);
            if (!left) continue;
            const vec x = load_left(a->z + (first / L * a->G + i) * L, left);
            sums[v] = v_add(sums[v], scale == 1 ? x : v_mul(x, v_set1(scale)));
        }
    }
}

/* What lies between these and a mean, and its squares; minus_mean (L,). */
INLINE void add_distances(const int full, const numbers *a, size_t at, real scale,
                          const real *minus_mean, vec *sums, vec *squares) {
    for (size_t i = a->g; i < a->g + a->gates; ++i) {
        UNROLL for (int v = 0; v < VECTORS; ++v) {
            const size_t first = at + (size_t)v * L;
            const size_t left = full ? L : lanes_left(a->size, first);
            if (!left) continue;
            /* 0 in lanes without a number */
            const vec x = load_left(a->z + (first / L * a->G + i) * L, left);
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
    for (size_t at = 0; at < full; at += SUMS) add_numbers(1, a, at, scale, sums);
    if (full < a->size) add_numbers(0, a, full, scale, sums);
    const real mean = total_of(sums) / n;
    v_store(minus_mean, v_set1(-mean));
    clear_sums(sums);
    clear_sums(squares);
    for (size_t at = 0; at < full; at += SUMS)
        add_distances(1, a, at, scale, minus_mean, sums, squares);
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

static void layer_norm(const fl_layer *layer, const real *x, real *y) {
    const size_t size = layer->input_size;
    const numbers row_numbers = {x, size, 0, 1, 1};
    const moments m = moments_of(&row_numbers, layer->eps);
    const real *weight = layer->weight, *bias = layer->bias;
    for (size_t i = 0; i < size; i += L) {
        const size_t left = lanes_left(size, i);
        vec a = normalised(&m, load_left(x + i, left));
        if (weight) a = v_mul(a, load_left(weight + i, left));
        if (bias) a = v_add(a, load_left(bias + i, left));
        store_left(y + i, a, left);
    }
}

static void scale(const fl_layer *layer, const real *x, real *y) {
    const real *weight = layer->weight, *bias = layer->bias;
    for (size_t i = 0; i < layer->input_size; i += L) {
        const size_t left = lanes_left(layer->input_size, i);
        vec a = load_left(x + i, left), w = load_left(weight + i, left), zero = v_set1(0);
        if (layer->kind == FL_SCALE) a = v_fma(a, w, load_left(bias + i, left));
        else a = v_fma(v_min(zero, a), w, v_max(zero, a));
        store_left(y + i, a, left);
    }
}

INLINE vec combine(fl_combination combination, vec a, vec b) {
    switch (combination) {
    case FL_SUM: return v_add(a, b);
    case FL_PRODUCT: return v_mul(a, b);
    case FL_AVERAGE: return v_mul(v_add(a, b), v_set1((real)0.5));
    case FL_GLU: return v_div(a, v_sigmoid_divisor(b));
    default: return v_sqrt(v_fma(a, a, v_mul(b, b)));
    }
}

static void combine_halves(const fl_layer *layer, const real *x, real *y) {
    const size_t half = layer->input_size / layer->positions / 2;
    for (size_t p = 0; p < layer->positions; ++p, x += 2 * half, y += half) {
        for (size_t i = 0; i < half; i += L) {
            const size_t left = lanes_left(half, i);
            vec a = load_left(x + i, left), b = load_left(x + half + i, left);
            store_left(y + i, combine(layer->combination, a, b), left);
        }
    }
}

static void transpose(const fl_layer *layer, const real *x, real *y) {
    const size_t P = layer->positions, C = layer->input_size / P;
    for (size_t p = 0; p < P; ++p)
        for (size_t c = 0; c < C; ++c) y[p * C + c] = x[c * P + p];
}

/* One row of a layer that looks at nothing but that row. */
static void run_row(const fl_layer *layer, const real *beside, const real *x, real *y) {
    const size_t I = layer->input_size, more = layer->output_size - I;
    switch (layer->kind) {
    case FL_ACTIVATION: activate(&layer->activation, x, y, I); break;
    case FL_LAYER_NORM: layer_norm(layer, x, y); break;
    case FL_SCALE:
    case FL_PRELU: scale(layer, x, y); break;
    case FL_HALVES: combine_halves(layer, x, y); break;
    case FL_TRANSPOSE: transpose(layer, x, y); break;
    case FL_CONCAT:
        memcpy(layer->x_first ? y : y + more, x, I * sizeof(real));
        memcpy(layer->x_first ? y + I : y, beside, more * sizeof(real));
        break;
    default: /* FL_ADD */
        for (size_t i = 0; i < I; i += L) {
            const size_t left = lanes_left(I, i);
            store_left(y + i, v_add(load_left(beside + i, left), load_left(x + i, left)), left);
        }
    }
}

/* Outputs of a convolution to compute together: for each the row that it is, and room for its
 * inputs, where they do not lie one after the other already. */
typedef struct {
    const fl_layer *layer;
    row *rows;          /* (FL_POSITIONS,) */
    real *y[FL_POSITIONS];
    real *patches;      /* (FL_POSITIONS, K) */
    range panels;       /* of this rank */
    int back;
    size_t n;
} batch;

/* y = function(scale (bias + the sum over taps) + shift), channel by channel: what a weight of one
 * row a tap asks for. x (kernel_size, C). */
static void convolve_depthwise(const fl_layer *layer, const real *x, real *y) {
    const fl_convolution *a = &layer->convolution;
    const size_t C = a->channels;
    for (size_t i = 0; i < C; i += L) {
        const size_t left = lanes_left(C, i);
        const real *weight = layer->weight;
        vec sum = load_left((const real *)layer->bias + i, left);
        for (size_t k = 0; k < a->kernel_size; ++k)
            sum = v_fma(load_left(x + k * C + i, left), load_left(weight + k * C + i, left), sum);
        if (layer->linear.scale)
            sum = v_fma(sum, load_left((const real *)layer->linear.scale + i, left),
                        load_left((const real *)layer->linear.shift + i, left));
        store_left(y + i, apply(&layer->activation, sum), left);
    }
}

/* Compute a batch, and begin the next. */
static void convolve(batch *b) {
    const fl_layer *layer = b->layer;
    const fl_panels *matrix = &layer->linear;
    const fl_convolution *a = &layer->convolution;
    const size_t taps = a->kernel_size, K = taps * a->channels, each = a->channels / a->groups;
    const size_t outputs = a->out_channels / a->groups, P = matrix->panels;
    if (a->depthwise) {
        for (size_t i = 0; i < b->n; ++i) convolve_depthwise(layer, b->rows[i].x, b->y[i]);
        b->n = 0;
        return;
    }
    const size_t vectors = (P - 1) * matrix->groups + matrix->last_groups;
    for (size_t g = 0; g < a->groups; ++g) {
        /* The panels of this group that are this rank's, counted from the group's first. */
        const size_t first = g * P, end = b->panels.end < first + P ? b->panels.end : first + P;
        const size_t skipped = b->panels.first > first ? b->panels.first - first : 0;
        if (end <= first + skipped) continue;
        const range panels = {skipped, end - first};
        product made = matrix_product(matrix, panels, taps * each, outputs);
        made.weights += g * vectors * L * taps * each;
        if (made.scale) made.scale += g * vectors * L, made.shift += g * vectors * L;
        made.activation = &layer->activation;
        for (size_t i = 0; i < b->n; ++i) {
            b->rows[i].init = (const real *)matrix->bias + g * vectors * L;
            b->rows[i].y = b->y[i] + g * outputs;
            /* The patch of a group lies behind that of the group before. */
            if (a->groups > 1) b->rows[i].x = b->patches + i * K + g * taps * each;
        }
        multiply(&made, b->rows, b->n, b->back);
    }
    b->n = 0;
}

/* The position that stands for one outside [0, width), or `width` if that is a zero. */
INLINE size_t position_of(const fl_convolution *a, ptrdiff_t at) {
    const ptrdiff_t width = (ptrdiff_t)a->width;
    if (at >= 0 && at < width) return (size_t)at;
    if (a->padding == FL_ZEROS) return a->width;
    if (a->padding == FL_REPLICATE) return at < 0 ? 0 : a->width - 1;
    return (size_t)(at < 0 ? -at : 2 * (width - 1) - at);
}

/* Put position x (C,) where tap k of output i of the batch has it; NULL: zeros. */
INLINE void put_tap(const fl_convolution *a, real *patch, size_t k, const real *x) {
    const size_t each = a->depthwise ? a->channels : a->channels / a->groups;
    const size_t groups = a->depthwise ? 1 : a->groups;
    for (size_t g = 0; g < groups; ++g) {
        real *to = patch + (g * a->kernel_size + k) * each;
        if (each == 1) *to = x ? x[g] : 0;
        else if (x) memcpy(to, x + g * each, each * sizeof(real));
        else memset(to, 0, each * sizeof(real));
    }
}

/* The next output of a batch that has room: its row, without inputs yet. */
static row *next_row(batch *b, real *y) {
    const fl_convolution *a = &b->layer->convolution;
    row *r = b->rows + b->n;
    memset(r, 0, sizeof *r);
    r->x = b->patches + b->n * a->kernel_size * a->channels;
    b->y[b->n++] = y;
    return r;
}

/* Add output `o` of frame x (width, C). */
static void add_position(batch *b, const real *x, size_t o, real *y) {
    const fl_convolution *a = &b->layer->convolution;
    const size_t C = a->channels, d = a->dilation;
    const ptrdiff_t start = (ptrdiff_t)(o * a->stride) - a->padding_left;
    const int one_piece = start >= 0 && d == 1 && (a->groups == 1 || a->depthwise);
    row *r = next_row(b, y + o * a->out_channels);
    real *patch = (real *)r->x;
    size_t k = 0;
    if (one_piece && (size_t)start + a->kernel_size <= a->width) {
        r->x = x + (size_t)start * C;
        return;
    }
    if (one_piece && (size_t)start < a->width) {
        k = a->width - (size_t)start;
        memcpy(patch, x + (size_t)start * C, k * C * sizeof(real));
    }
    for (; k < a->kernel_size; ++k) {
        const size_t at = position_of(a, start + (ptrdiff_t)(k * d));
        put_tap(a, patch, k, at < a->width ? x + at * C : NULL);
    }
}

/* A stream of steps, as a convolution over time sees it: those before the chunk and those of it. */
typedef struct {
    const real *kept;     /* (reach, C) step t in row t % reach; NULL: zeros */
    const real *const *x; /* pointers to (C,), `B` apart */
    size_t B, steps, count;
} history;

/* Step i of the chunk, or before it where i is negative; NULL: zeros. */
INLINE const real *step_at(const fl_convolution *a, const history *h, ptrdiff_t i) {
    if (i >= 0) return (size_t)i < h->steps ? h->x[(size_t)i * h->B] : NULL;
    if (!h->kept) return NULL;
    return h->kept + (h->count + a->reach - (size_t)-i) % a->reach * a->channels;
}

/* Add the output whose kernel starts at step `start` of the chunk. */
static void add_step(batch *b, const history *h, ptrdiff_t start, real *y) {
    const fl_convolution *a = &b->layer->convolution;
    row *r = next_row(b, y);
    if (a->kernel_size == 1 && a->groups == 1) {
        r->x = step_at(a, h, start);
        return;
    }
    for (size_t k = 0; k < a->kernel_size; ++k)
        put_tap(a, (real *)r->x, k, step_at(a, h, start + (ptrdiff_t)(k * a->dilation)));
}
