/* maps.h - functions number by number: a program of them, over blocks of numbers. A part of
 * kernel.h.
 *
 * A row is one list of numbers, whatever axes it has, and is cut into blocks; each function of the
 * code is one loop over a block. What is read lies as y does, and is used where it is; or is the
 * same number everywhere; or strides, and is then put together for the block first.
 */

/* Numbers for what the code before gave and for what was put together, all of a block; and the
 * longest block, which is what one function takes at once. A block is whole vectors of any kernel. */
enum { MAP_SCRATCH = 4096, MAP_BLOCK = 4096, MAP_ROUND = 16 };

/* Numbers of a block: vector i begins at from + i * step * L. */
typedef struct {
    const real *from;
    size_t step;  /* 1, or 0: from (L,) is the same number in all lanes */
} operand;

/* One function of n numbers, n a multiple of L. What is in locals the loops need not read again. */
static void run_vectors(const fl_activation *function, const operand *of /* (3,) */, real *y,
                        size_t n) {
    const vec alpha = v_set1((real)function->alpha), beta = v_set1((real)function->beta);
    const real *from_a = of[0].from, *from_b = of[1].from, *from_c = of[2].from, *end = y + n;
    const size_t step_a = of[0].step * L, step_b = of[1].step * L, step_c = of[2].step * L;
#define ONE(name, value)                                                                          \
    case FL_FUNCTION_##name:                                                                      \
        for (; y < end; y += L, from_a += step_a) {                                               \
            const vec a = v_load(from_a);                                                         \
            v_store(y, value);                                                                    \
        }                                                                                         \
        break;
#define TWO(name, value)                                                                          \
    case FL_FUNCTION_##name:                                                                      \
        for (; y < end; y += L, from_a += step_a, from_b += step_b) {                             \
            const vec a = v_load(from_a), b = v_load(from_b);                                     \
            v_store(y, value);                                                                    \
        }                                                                                         \
        break;
#define THREE(name, value)                                                                        \
    case FL_FUNCTION_##name:                                                                      \
        for (; y < end; y += L, from_a += step_a, from_b += step_b, from_c += step_c) {           \
            const vec a = v_load(from_a), b = v_load(from_b), c = v_load(from_c);                 \
            v_store(y, value);                                                                    \
        }                                                                                         \
        break;
    switch (function->function) {
        FUNCTIONS_OF_ONE(ONE)
        FUNCTIONS_OF_TWO(TWO)
        FUNCTIONS_OF_THREE(THREE)
    default: break;
    }
#undef ONE
#undef TWO
#undef THREE
}

/* One function of n numbers. What is left behind the last whole vector is made of copies. */
static void run_code(const fl_code *code, const operand *registers, real *y, size_t n) {
    const size_t whole = n / L * L, left = n - whole;
    operand of[3] = {{NULL, 0}, {NULL, 0}, {NULL, 0}};
    for (size_t i = 0; i < code->arity; ++i) of[i] = registers[code->from[i]];
    run_vectors(&code->function, of, y, whole);
    if (left) {
        real copies[3][L], last[L];
        for (size_t i = 0; i < code->arity; ++i) {
            const real *from = of[i].from + whole * of[i].step;
            v_store(copies[i], of[i].step ? v_load_n(from, left) : v_load(from));
            of[i].from = copies[i];
        }
        run_vectors(&code->function, of, last, L);
        memcpy(y + whole, last, left * sizeof(real));
    }
}

/* How a value that is read lies beside y. */
typedef enum { AS_Y, SAME, STRIDING } manner;

static manner manner_of(const fl_packed_map *a, size_t read) {
    const size_t *strides = a->strides + read * a->axes;
    size_t behind = 1;
    int as_y = 1, same = 1;
    for (size_t k = a->axes; k--; behind *= a->shape[k]) {
        if (a->shape[k] == 1) continue;
        as_y &= strides[k] == behind;
        same &= strides[k] == 0;
    }
    return as_y ? AS_Y : same ? SAME : STRIDING;
}

/* Numbers [first, first + n) of a value x as y's axes see it, run by run of the last axis that is
 * none of 1. */
static void put_together(const fl_packed_map *a, size_t read, const real *x, size_t first,
                         real *block, size_t n) {
    const size_t *strides = a->strides + read * a->axes, *shape = a->shape;
    size_t last = a->axes - 1, at[FL_MOST_AXES];
    while (last && shape[last] == 1) --last;
    size_t rest = first;
    for (size_t k = last + 1; k--; rest /= shape[k]) {
        at[k] = rest % shape[k];
        x += at[k] * strides[k];
    }
    for (size_t i = 0;;) {
        const size_t left = shape[last] - at[last], count = left < n - i ? left : n - i;
        put_run(x, (ptrdiff_t)strides[last], block + i, count);
        i += count;
        if (i == n) return;
        x -= at[last] * strides[last];
        at[last] = 0;
        for (size_t k = last; k--;) {
            x += strides[k];
            if (++at[k] < shape[k]) break;
            x -= shape[k] * strides[k];
            at[k] = 0;
        }
    }
}

/* What a map needs beside its rows. */
typedef struct {
    const fl_packed_map *a;
    size_t reads, size, block;
    manner manners[FL_MOST_REGISTERS];
    const real *rows[FL_MOST_REGISTERS];   /* of what is read */
    real same[FL_MOST_REGISTERS][L];       /* of what is one number */
    real scratch[MAP_SCRATCH];
} mapping;

/* Numbers [first, first + n) of y, n at most a block. */
static void run_block(mapping *m, size_t first, size_t n, real *y) {
    const fl_packed_map *a = m->a;
    operand registers[FL_MOST_REGISTERS];
    real *free = m->scratch;
    for (size_t i = 0; i < m->reads; ++i) {
        const operand here = {m->rows[i] + first, 1}, same = {m->same[i], 0}, put = {free, 1};
        registers[i] = m->manners[i] == AS_Y ? here : m->manners[i] == SAME ? same : put;
        if (m->manners[i] != STRIDING) continue;
        put_together(a, i, m->rows[i], first, free, n);
        free += m->block;
    }
    for (size_t c = 0; c < a->codes; ++c) {
        const operand made = {free, 1};
        const int is_last = c + 1 == a->codes;
        run_code(a->code + c, registers, is_last ? y + first : free, n);
        if (is_last) break;
        registers[m->reads + c] = made;
        free += m->block;
    }
}

static void run_map(const run *in, const fl_map *operation) {
    const fl_packed_map *a = &in->packed->map;
    const view to = view_of(in, operation->y);
    mapping m;
    values x;
    size_t kept = a->codes - 1;
    find_values(&x, in, &operation->reads);
    m.a = a;
    m.reads = operation->reads.count;
    m.size = 1;
    for (size_t k = 0; k < a->axes; ++k) m.size *= a->shape[k];
    for (size_t i = 0; i < m.reads; ++i)
        kept += (m.manners[i] = manner_of(a, i)) == STRIDING;
    m.block = kept ? MAP_SCRATCH / kept / MAP_ROUND * MAP_ROUND : MAP_BLOCK;
    if (m.block > 256 && kept) m.block = 256;
    FOR_ROWS(in, p) {
        real *y = at(&to, p.t, p.b);
        go_to(&x, p);
        for (size_t i = 0; i < m.reads; ++i) {
            m.rows[i] = row_of(&x, i) + a->begins[i];
            if (m.manners[i] == SAME) v_store(m.same[i], v_set1(*m.rows[i]));
        }
        for (size_t first = 0; first < m.size; first += m.block) {
            const size_t n = m.size - first < m.block ? m.size - first : m.block;
            if (stopped(in->call, ROW_WORK * a->codes * n)) return;
            run_block(&m, first, n, y);
        }
    }
}
