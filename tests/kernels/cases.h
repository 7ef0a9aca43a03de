/* cases.h - a case of driver.c, read from its file into memory whose every edge is watched.
 *
 * A case file holds int64 numbers, doubles and plain arrays in the order of the calls below, which
 * is that of the fields in fastlstm.h; tests/test_kernels_c.py writes it.
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fastlstm.h"

enum { CANARY = 0xa5, CANARIES = 64 };

static size_t slack = 0; /* bytes between the end of an array and its fence */

/* Which of the numbers in a state count steps, and below what. */
typedef struct {
    size_t offset;
    double bound;
} counter;

/* What a case expects of one kind of run. */
typedef struct {
    size_t steps;         /* T' */
    const double *y;      /* (T', B, O) */
    const double *state;  /* (B, state_size) after the run */
} expectation;

typedef struct {
    size_t real_size, lanes;
    fl_model model;
    size_t T, B, I, O;
    const char *x;         /* real (T, B, I), or NULL */
    const int64_t *tokens; /* (T, B), or NULL */
    const char *state;     /* real (B, state_size) to start from */
    const size_t *lengths; /* (B,), or NULL */
    expectation whole;     /* of the whole sequence */
    expectation cut_short; /* of rows of these lengths, if there are any */
    expectation streamed;  /* of a stream, if the model does not look ahead */
    double bound;          /* on |y - expected| / max(1, largest |expected|) */
    counter *counters;
    size_t n_counters;
} test_case;

static _Noreturn void fail(const char *what) {
    printf("FAILED: %s\n", what);
    exit(1);
}

static void demand(int holds, const char *what) {
    if (!holds) fail(what);
}

/* Whole pages that hold so many bytes behind canaries, less the fence. */
static size_t fenced_size(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (CANARIES + bytes + slack + page - 1) / page * page;
}

/* Memory that ends where a page begins that may not be touched, so that one element too many ends
 * the process; before it lie CANARIES bytes. Only scratch memory is freed: the process is short. */
static char *fenced(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = fenced_size(bytes);
    const int access = PROT_READ | PROT_WRITE;
    char *block = mmap(NULL, size + page, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    demand(block != MAP_FAILED && !mprotect(block + size, page, PROT_NONE), "no memory");
    memset(block, CANARY, size);
    return block + size - slack - bytes;
}

static void free_fenced(char *p, size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = fenced_size(bytes);
    demand(!munmap(p + bytes + slack - size, size + page), "memory cannot be freed");
}

static int all_canaries(const char *p, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        if ((unsigned char)p[i] != CANARY) return 0;
    return 1;
}

static int64_t take_signed(FILE *file) {
    int64_t value;
    demand(fread(&value, sizeof value, 1, file) == 1, "the case file ends early");
    return value;
}

static size_t take(FILE *file) {
    const int64_t value = take_signed(file);
    demand(value >= 0, "a size is negative");
    return (size_t)value;
}

static double take_double(FILE *file) {
    double value;
    demand(fread(&value, sizeof value, 1, file) == 1, "the case file ends early");
    return value;
}

/* An array, as its number of elements (none: NULL) and the elements; aligned to 64 bytes. */
static void *take_array(FILE *file, size_t item) {
    const size_t count = take(file);
    char *p;
    if (!count) return NULL;
    p = fenced((count * item + 63) / 64 * 64);
    demand(fread(p, item, count, file) == count, "the case file ends early");
    return p;
}

/* An array that need not be aligned, so that not a byte lies between its end and the fence. */
static char *take_tight(FILE *file, size_t item) {
    const size_t count = take(file);
    char *p = fenced(count * item);
    demand(fread(p, item, count, file) == count, "the case file ends early");
    return p;
}

static fl_activation take_activation(FILE *file) {
    fl_activation made;
    made.function = (fl_function)take(file);
    made.alpha = take_double(file);
    made.beta = take_double(file);
    return made;
}

static fl_panels take_panels(FILE *file, size_t real_size) {
    fl_panels made;
    made.weights = take_array(file, real_size);
    made.bias = take_array(file, real_size);
    made.scale = take_array(file, real_size);
    made.shift = take_array(file, real_size);
    made.stride = take(file);
    made.panels = take(file);
    made.groups = take(file);
    made.last_groups = take(file);
    return made;
}

static fl_variant *take_variant(FILE *file, size_t real_size) {
    fl_variant *made;
    if (!take(file)) return NULL;
    made = (fl_variant *)(void *)fenced(sizeof *made);
    for (int i = 0; i < 3; ++i) made->functions[i] = take_activation(file);
    made->clip = take_double(file);
    made->cell_clip = take_double(file);
    made->norm = (fl_norm)take(file);
    made->eps = take_double(file);
    made->coupled = (int)take(file);
    made->h_bias = take_array(file, real_size);
    made->bias = take_array(file, real_size);
    for (int i = 0; i < 3; ++i) made->peepholes[i] = take_array(file, real_size);
    for (int i = 0; i < 2; ++i) made->norm_x[i] = take_array(file, real_size);
    for (int i = 0; i < 2; ++i) made->norm_h[i] = take_array(file, real_size);
    for (int i = 0; i < 2; ++i) made->norm_c[i] = take_array(file, real_size);
    made->norm_gate = take_array(file, real_size);
    made->reset_gates = take_panels(file, real_size);
    made->reset_candidate = take_panels(file, real_size);
    return made;
}

static fl_cell take_cell(FILE *file, size_t real_size) {
    fl_cell made;
    made.gates = take_panels(file, real_size);
    made.projection = take_panels(file, real_size);
    made.variant = take_variant(file, real_size);
    made.activation = take_activation(file);
    made.bias_n = take_array(file, real_size);
    made.table = take_array(file, real_size);
    made.input_rows = take(file);
    made.hidden_size = take(file);
    made.h_size = take(file);
    made.h_offset = take(file);
    made.c_offset = take(file);
    made.y_offset = take(file);
    return made;
}

static fl_convolution take_convolution(FILE *file) {
    fl_convolution made;
    made.channels = take(file);
    made.kernel_size = take(file);
    made.stride = take(file);
    made.dilation = take(file);
    made.groups = take(file);
    made.out_channels = take(file);
    made.depthwise = (int)take(file);
    made.padding_left = (ptrdiff_t)take_signed(file);
    made.padding = (fl_padding)take(file);
    made.width = take(file);
    made.out_width = take(file);
    made.reach = take(file);
    made.first = take(file);
    made.period = take(file);
    made.padding_right = take(file);
    made.x_offset = take(file);
    made.count_offset = take(file);
    made.has_count = (int)take(file);
    return made;
}

static fl_layer take_layer(FILE *file, size_t real_size) {
    fl_layer made;
    memset(&made, 0, sizeof made);
    made.kind = (fl_kind)take(file);
    made.activation = take_activation(file);
    made.from = take(file);
    made.beside = take(file);
    made.to = take(file);
    made.input_size = take(file);
    made.output_size = take(file);
    made.table = take_array(file, real_size);
    made.weight = take_array(file, real_size);
    made.bias = take_array(file, real_size);
    made.linear = take_panels(file, real_size);
    made.eps = take_double(file);
    made.positions = take(file);
    made.combination = (fl_combination)take(file);
    made.pooling = (fl_pooling)take(file);
    made.state_offset = take(file);
    made.count_bound = take_double(file);
    made.x_first = (int)take(file);
    if (take(file)) made.convolution = take_convolution(file);
    made.directions = (int)take(file);
    made.reverse = (int)take(file);
    made.clip = take_double(file);
    for (int d = 0; d < made.directions; ++d) made.cell[d] = take_cell(file, real_size);
    return made;
}

static expectation take_expectation(FILE *file) {
    expectation made;
    made.steps = take(file);
    made.y = (const double *)(void *)take_tight(file, sizeof(double));
    made.state = (const double *)(void *)take_tight(file, sizeof(double));
    return made;
}

static test_case read_case(const char *path) {
    test_case made;
    FILE *file = fopen(path, "rb");
    demand(file != NULL, "the case file cannot be opened");
    memset(&made, 0, sizeof made);
    made.real_size = take(file);
    made.lanes = take(file);
    made.model.n_layers = take(file);
    made.model.state_size = take(file);
    made.model.takes_tokens = (int)take(file);
    made.model.pools = (int)take(file);
    made.model.looks_ahead = (int)take(file);
    fl_layer *layers = (fl_layer *)(void *)fenced(made.model.n_layers * sizeof *layers);
    made.model.layers = layers;
    for (size_t l = 0; l < made.model.n_layers; ++l) layers[l] = take_layer(file, made.real_size);
    made.I = layers[0].input_size;
    made.O = layers[made.model.n_layers - 1].output_size;
    made.T = take(file);
    made.B = take(file);
    if (made.model.takes_tokens)
        made.tokens = (const int64_t *)(void *)take_tight(file, sizeof(int64_t));
    else
        made.x = take_tight(file, made.real_size);
    made.state = take_tight(file, made.real_size);
    if (take(file)) made.lengths = (const size_t *)(void *)take_tight(file, sizeof(size_t));
    made.whole = take_expectation(file);
    made.cut_short = take_expectation(file);
    made.streamed = take_expectation(file);
    made.bound = take_double(file);
    made.n_counters = take(file);
    made.counters = (counter *)(void *)fenced(made.n_counters * sizeof(counter));
    for (size_t i = 0; i < made.n_counters; ++i) {
        made.counters[i].offset = take(file);
        made.counters[i].bound = take_double(file);
    }
    demand(fgetc(file) == EOF && !fclose(file), "the case file is longer than the case");
    return made;
}
