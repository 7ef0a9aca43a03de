/* sum_tiles.h - the sums of products of int8 of many rows, by AMX. A part of kernel.h.
 *
 * A tile is a register of 16 lines of 64 bytes. Lines of a panel, 16 words of each of a vector's
 * outputs, are a tile as they lie, and so are as many words of 16 rows: the product of both adds to a
 * tile of sums what 16 words of each row have with one vector. Of fewer words or rows sum_int8.h has
 * the sums. The last 16 may begin within those before: the rows then have zeros for words that were
 * added, and sums of the rows of both are written twice.
 *
 * Tiles are named by number, which no function can be given: their instructions are macros, and only
 * named here. Source: Intel SDM, volume 1, chapter 18, and volume 2, LDTILECFG and TDPBSUD.
 */
enum { LINES = 16 };

/* What each tile is, as the processor reads it. */
static const struct {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16]; /* of a line */
    uint8_t lines[16];
} tile_shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64}, {LINES, LINES, LINES, LINES, LINES, LINES}};

/* Shapes are loaded once for all panels: loading them waits for all tiles before. */
static void begin_tiles(size_t n) {
    if (n >= LINES) _tile_loadconfig(&tile_shapes);
}

/* No state is left behind, which a change of threads would have to keep. */
static void end_tiles(size_t n) {
    if (n >= LINES) _tile_release();
}

/* sums (LINES, G, INTS) of as many rows and LINES words or more. Tiles 0 to 3 are sums, 4 words of the
 * rows, 5 of w. */
INLINE void sum_in_tiles(const int G, const int32_t *w, size_t K, const char *twins, size_t bytes,
                         int32_t *sums) {
    _Alignas(64) int32_t start[LINES * INTS], last[LINES * INTS];
    const size_t line = (size_t)G * sizeof(ints), left = K % LINES;
    for (size_t r = 0; r < LINES; ++r) {
        const fl_twin *twin = (const fl_twin *)(const void *)(twins + r * bytes);
        const int32_t *x = (const int32_t *)(const void *)(twin + 1);
        i_store(start + r * INTS, i_set1(-DOT_OFFSET * twin->total));
        if (left) i_store(last + r * INTS, i_last(x + K - INTS, left));
    }
    IN_MEMORY(start);
    IN_MEMORY(last);
    _tile_loadd(0, start, sizeof(ints));
    if (G > 1) _tile_loadd(1, start, sizeof(ints));
    if (G > 2) _tile_loadd(2, start, sizeof(ints));
    if (G > 3) _tile_loadd(3, start, sizeof(ints));
#define ADD_PRODUCTS(x, bytes, w)                         \
    _tile_loadd(4, x, bytes);                             \
    _tile_loadd(5, w, line);                              \
    _tile_dpbsud(0, 4, 5);                                \
    if (G > 1) _tile_loadd(5, (w) + INTS, line);          \
    if (G > 1) _tile_dpbsud(1, 4, 5);                     \
    if (G > 2) _tile_loadd(5, (w) + 2 * INTS, line);      \
    if (G > 2) _tile_dpbsud(2, 4, 5);                     \
    if (G > 3) _tile_loadd(5, (w) + 3 * INTS, line);      \
    if (G > 3) _tile_dpbsud(3, 4, 5)
    const char *x = twins + sizeof(fl_twin);
    for (size_t k = 0; k + LINES <= K; k += LINES) {
        ADD_PRODUCTS(x + k * sizeof(int32_t), bytes, w + k * (size_t)(G * INTS));
    }
    if (left) {
        ADD_PRODUCTS(last, sizeof(ints), w + (K - LINES) * (size_t)(G * INTS));
    }
#undef ADD_PRODUCTS
    _tile_stored(0, sums, line);
    if (G > 1) _tile_stored(1, sums + INTS, line);
    if (G > 2) _tile_stored(2, sums + 2 * INTS, line);
    if (G > 3) _tile_stored(3, sums + 3 * INTS, line);
}

INLINE void sum_many(const int G, const int32_t *w, size_t K, const char *twins, size_t bytes,
                     size_t n, int32_t *sums) {
    for (size_t r = 0; r < n; r += LINES) {
        const size_t first = n - r < LINES ? n - LINES : r;
        sum_in_tiles(G, w, K, twins + first * bytes, bytes, sums + first * (size_t)(G * INTS));
    }
}

static void sum_rows_in_tiles(size_t G, const void *w, size_t K, const void *twins, size_t bytes,
                              size_t n, int32_t *sums) {
    if (n < LINES || K < LINES) {
        sum_products(G, w, K, twins, bytes, n, sums);
        return;
    }
    switch (G) {
    case 1: sum_many(1, w, K, twins, bytes, n, sums); break;
    case 2: sum_many(2, w, K, twins, bytes, n, sums); break;
    case 3: sum_many(3, w, K, twins, bytes, n, sums); break;
    default: sum_many(4, w, K, twins, bytes, n, sums); break;
    }
}
