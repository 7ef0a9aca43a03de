/* dispatch.c - which kernels there are, which of them this processor can run, the plan of a run.
 *
 * This is the one place that decides whether wide code may run. Every bit a kernel relies on is
 * tested, and XGETBV that the operating system saves the registers; none of it is wide code itself.
 */
#include <string.h>

#include "fastlstm.h"

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

/* Bits: Intel SDM volume 2, CPUID; volume 1, 13.3 (XCR0: 1 SSE, 2 AVX, 5 to 7 AVX-512 state). */
uint32_t fl_cpu_features(void) {
    uint32_t a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const int fma = (c >> 12) & 1, osxsave = (c >> 27) & 1, avx = (c >> 28) & 1;
    if (!fma || !osxsave || !avx || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const uint64_t saved = xgetbv0();
    const uint32_t wide = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F DQ BW VL */
    if ((saved & 0x6) == 0x6 && (b & (1u << 5))) found |= FL_CPU_AVX2;
    if (found && (saved & 0xe6) == 0xe6 && (b & wide) == wide) found |= FL_CPU_AVX512;
    return found;
}
#elif defined(__aarch64__)
uint32_t fl_cpu_features(void) { return FL_CPU_NEON; } /* part of the base architecture */
#else
uint32_t fl_cpu_features(void) { return 0; }
#endif

extern const fl_kernel fl_avx512, fl_avx2, fl_neon, fl_scalar, fl_scalar64;

const fl_kernel *const fl_kernels[] = {
#if defined(__x86_64__)
    &fl_avx512, &fl_avx2,
#elif defined(__aarch64__)
    &fl_neon,
#endif
    &fl_scalar, &fl_scalar64, NULL};

const fl_kernel *fl_find(const char *name, size_t real_size) {
    const uint32_t has = fl_cpu_features();
    for (const fl_kernel *const *k = fl_kernels; *k; ++k)
        if (!strcmp((*k)->name, name) && (*k)->real_size == real_size)
            return ((*k)->needs & ~has) ? NULL : *k;
    return NULL;
}

/* Input projections held at once: few enough to stay near the core while the weights stream past
 * them, enough rows to share each reading of the input's weights. There are two such parts: one is
 * scanned while the next is made. A chunk has many: its first is not made on the side. */
enum { GATE_BYTES = 64 * 1024, LEAST_GATE_ROWS = 24, PARTS = 16 };

/* The most rows one block of any kernel takes (ROWS of avx512 and neon). */
enum { MOST_ROWS = 6 };

/* a * b + c, or SIZE_MAX if that or an operand overflows; SIZE_MAX never is a legal size here. */
static size_t checked(size_t a, size_t b, size_t c) {
    size_t product, sum;
    if (a == SIZE_MAX || b == SIZE_MAX || c == SIZE_MAX) return SIZE_MAX;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum))
        return SIZE_MAX;
    return sum;
}

/* Reserve `bytes` at the end of the plan, from a multiple of 64 on. */
static size_t reserve(fl_plan *plan, size_t bytes) {
    size_t at = plan->bytes, padded = checked(1, bytes, 63);
    plan->bytes = padded == SIZE_MAX ? SIZE_MAX : checked(1, padded / 64 * 64, at);
    return at;
}

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

int fl_plan_run(const fl_model *model, size_t lanes, size_t real_size, size_t T, size_t B,
                fl_plan *plan) {
    size_t gates = 0, hidden = 0, width[2] = {0, 0}, rows, steps;
    int bidirectional = 0;
    memset(plan, 0, sizeof *plan);
    if (T == 0 || B == 0) return 0;
    for (size_t l = 0; l < model->n_layers; ++l) {
        const fl_layer *layer = model->layers + l;
        if (l + 1 < model->n_layers) width[l % 2] = largest(width[l % 2], layer->output_size);
        for (int d = 0; d < layer->directions; ++d) {
            const fl_cell *cell = layer->cell + d;
            gates = largest(gates, cell->gates.panels * cell->gates.groups * lanes);
            if (cell->projection.weights) hidden = largest(hidden, cell->hidden_size);
        }
        bidirectional |= layer->directions == 2;
    }
    /* Also without recurrent layers a chunk is bounded, by its widest row. */
    rows = largest(gates, largest(width[0], width[1]));
    rows = largest(GATE_BYTES / (largest(rows, 1) * real_size), LEAST_GATE_ROWS);
    steps = largest(rows / B, 1);
    plan->gate_steps = steps < T ? steps : T;
    steps = checked(plan->gate_steps, PARTS, 0);
    plan->chunk = bidirectional || steps > T ? T : steps;
    rows = checked(plan->chunk, B, 0);
    plan->x_rows = reserve(plan, checked(rows, sizeof(void *), 0));
    plan->y_rows = reserve(plan, checked(rows, sizeof(void *), 0));
    plan->tokens = reserve(plan, model->takes_tokens ? checked(rows, sizeof(int64_t), 0) : 0);
    plan->cell_rows = reserve(plan, checked(largest(B, MOST_ROWS), 2 * 5 * sizeof(void *), 0));
    for (int i = 0; i < 2; ++i)
        plan->buffer[i] = reserve(plan, checked(checked(rows, width[i], 0), real_size, 0));
    plan->gates = reserve(
        plan, plan->gate_steps > 1
                  ? checked(checked(checked(plan->gate_steps, 2 * B, 0), gates, 0), real_size, 0)
                  : 0);
    plan->hidden = reserve(plan, checked(checked(B, hidden, 0), real_size, 0));
    return plan->bytes == SIZE_MAX ? -1 : 0;
}
