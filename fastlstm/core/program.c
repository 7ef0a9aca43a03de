/* program.c - the words of a program, which nobody vouches for, -> fl_program.
 *
 * Words, each 64 bits, the lowest byte first: "fastlstm"; the version; the number of all words;
 * state_size, lines, buffers, held, looks_ahead; how many reals, and those; how many lists, the
 * length of each, and their words; for each table how many entries, and their fields; how many
 * inputs, and the value of each; outputs likewise; how many operations, and of each its kind and
 * its fields.
 *
 * It is gone through twice: count_words() counts, which tells how much memory it takes, and decode()
 * fills that. Words may lie in a mapped file that changes meanwhile: decode() looks at each once,
 * and trusts nothing that count_words() saw but the counts it was given memory for.
 */
#include <string.h>

#include "check.h"
#include "checksum.h"

enum { VERSION = 3, HEAD_WORDS = 9 };

static const uint64_t MOST_WORDS = (uint64_t)1 << 28;

/* ---- Reading words ---- */

typedef struct {
    const unsigned char *at;
    size_t left;         /* words */
    fl_checker *check;   /* whose program has the tables read so far; NULL while counting */
    const char *what;    /* what is read now, and its number */
    size_t number;
} reader;

static int refuse_word(reader *r, const char *field, int64_t found, const char *expected) {
    return fl_refuse(r->check, "%s %zu: %s is %lld; expected %s", r->what, r->number, field,
                     (long long)found, expected);
}

static int read_word(reader *r, int64_t *to) {
    uint64_t word = 0;
    *to = 0; /* also of a word that is refused: a compiler does not see that nobody reads it then */
    if (!r->left) return fl_refuse(r->check, "the program ends within %s %zu", r->what, r->number);
    for (int i = 0; i < 8; ++i) word |= (uint64_t)r->at[i] << (8 * i);
    r->at += 8;
    --r->left;
    memcpy(to, &word, sizeof word);
    return 1;
}

/* A word from `least` on, below `end`. */
static int read_below(reader *r, const char *field, int64_t least, int64_t end, int64_t *to) {
    if (!read_word(r, to)) return 0;
    if (*to >= least && *to < end) return 1;
    return fl_refuse(r->check, "%s %zu: %s is %lld; expected %lld to %lld", r->what, r->number,
                     field, (long long)*to, (long long)least, (long long)end - 1);
}

static int read_size(reader *r, const char *field, size_t *to) {
    int64_t word;
    if (!read_below(r, field, 0, FL_SIZE_END, &word)) return 0;
    *to = (size_t)word;
    return 1;
}

static int read_signed(reader *r, const char *field, int64_t least, size_t end, ptrdiff_t *to) {
    int64_t word;
    if (!read_below(r, field, least, (int64_t)end, &word)) return 0;
    *to = (ptrdiff_t)word;
    return 1;
}

static int read_integer(reader *r, const char *field, ptrdiff_t *to) {
    return read_signed(r, field, -FL_SIZE_END, (size_t)FL_SIZE_END, to);
}

static int read_value(reader *r, const char *field, size_t *to) {
    ptrdiff_t number;
    if (!read_signed(r, field, 0, r->check->program->value_count, &number)) return 0;
    *to = (size_t)number;
    return 1;
}

static int read_some_value(reader *r, const char *field, ptrdiff_t *to) {
    return read_signed(r, field, -1, r->check->program->value_count, to);
}

static int read_vector(reader *r, const char *field, ptrdiff_t *to) {
    return read_signed(r, field, -1, r->check->program->vector_count, to);
}

static int read_matrix(reader *r, const char *field, ptrdiff_t *to) {
    return read_signed(r, field, -1, r->check->program->matrix_count, to);
}

static int read_offset(reader *r, const char *field, ptrdiff_t *to) {
    return read_signed(r, field, -1, r->check->program->state_size, to);
}

static int read_list(reader *r, const char *field, fl_list *to) {
    ptrdiff_t number;
    if (!read_signed(r, field, -1, r->check->program->list_count, &number)) return 0;
    if (number >= 0) *to = r->check->program->lists[number];
    return 1;
}

static int read_number(reader *r, const char *field, double *to) {
    int64_t bits;
    (void)field;
    if (!read_word(r, &bits)) return 0;
    memcpy(to, &bits, sizeof bits);
    return 1;
}

static int read_flag(reader *r, const char *field, int *to) {
    int64_t word;
    if (!read_word(r, &word)) return 0;
    if (word != 0 && word != 1) return refuse_word(r, field, word, "0 or 1");
    *to = (int)word;
    return 1;
}

static int read_function(reader *r, const char *field, fl_activation *to) {
    int64_t word;
    if (!read_below(r, field, 0, FL_FUNCTION_COUNT, &word)) return 0;
    to->function = (fl_function)word;
    if (fl_arity(to->function) != 1) return refuse_word(r, field, word, "a function of one number");
    return read_number(r, field, &to->alpha) && read_number(r, field, &to->beta);
}

#define KIND(type, COUNT)                                                             \
    static int read_##type(reader *r, const char *field, fl_##type##_kind *to) {      \
        int64_t word;                                                                 \
        if (!read_below(r, field, 0, COUNT, &word)) return 0;                         \
        *to = (fl_##type##_kind)word;                                                 \
        return 1;                                                                     \
    }
KIND(reduction, FL_REDUCTION_COUNT)
KIND(fold, FL_FOLD_COUNT)
KIND(norm, FL_NORM_COUNT)
KIND(cell, FL_CELL_COUNT)
KIND(cell_norm, FL_CELL_NORM_COUNT)
KIND(place, FL_PLACE_COUNT)
KIND(part, FL_PART_COUNT)
KIND(stored, FL_STORED_COUNT)
#undef KIND

#define F(type, name) \
    if (!read_##type(r, #name, &to->name)) return 0;
#define T(NAME, name)                                      \
    static int decode_##name(reader *r, fl_##name *to) { \
        FL_##NAME##_FIELDS(F) return 1;                    \
    }
FL_TABLES(T)
FL_OPERATIONS(T)
#undef T
#undef F

/* ---- Counting ---- */

/* Words of an entry or an operation. */
enum {
#define F(type, name) +(FL_WORDS_##type)
#define FL_WORDS_value 1
#define FL_WORDS_some_value 1
#define FL_WORDS_vector 1
#define FL_WORDS_matrix 1
#define FL_WORDS_list 1
#define FL_WORDS_offset 1
#define FL_WORDS_size 1
#define FL_WORDS_integer 1
#define FL_WORDS_number 1
#define FL_WORDS_flag 1
#define FL_WORDS_function 3
#define FL_WORDS_reduction 1
#define FL_WORDS_fold 1
#define FL_WORDS_norm 1
#define FL_WORDS_cell 1
#define FL_WORDS_cell_norm 1
#define FL_WORDS_place 1
#define FL_WORDS_part 1
#define FL_WORDS_stored 1
#define T(NAME, name) WORDS_OF_##name = 0 FL_##NAME##_FIELDS(F),
    FL_TABLES(T) FL_OPERATIONS(T)
#undef T
#undef F
    WORDS_END
};

static const unsigned char operation_words[] = {
#define O(NAME, name) WORDS_OF_##name,
    FL_OPERATIONS(O)
#undef O
};

typedef struct {
    size_t state_size, lines, buffers, held, looks_ahead;
    size_t reals, lists, list_words, inputs, outputs, operations;
#define T(NAME, name) size_t name;
    FL_TABLES(T)
#undef T
} counts;

/* A number of things that are to follow, each of so many words or more. */
static int read_count(reader *r, const char *what, size_t words, size_t *to) {
    int64_t word;
    r->what = what;
    r->number = 0;
    const size_t left = r->left ? r->left - 1 : 0; /* behind the number itself */
    if (!read_below(r, "their number", 0, (int64_t)(left / words) + 1, &word)) return 0;
    *to = (size_t)word;
    return 1;
}

static void skip(reader *r, size_t words) {
    r->at += 8 * words;
    r->left -= words;
}

static int skip_counted(reader *r, const char *what, size_t words, size_t *count) {
    if (!read_count(r, what, words, count)) return 0;
    skip(r, *count * words);
    return 1;
}

static int read_head(reader *r, size_t words, counts *found) {
    int64_t magic, version, total;
    r->what = "word";
    if (!read_word(r, &magic) || memcmp(r->at - 8, "fastlstm", 8))
        return fl_refuse(r->check, "these bytes are not a program: they do not begin so");
    if (!read_word(r, &version)) return 0;
    if (version != VERSION)
        return fl_refuse(r->check, "a program of version %lld; expected %d: export it anew",
                         (long long)version, (int)VERSION);
    if (!read_word(r, &total)) return 0;
    if (total < 0 || (uint64_t)total != words)
        return fl_refuse(r->check, "a program of %lld words, of which %zu are given",
                         (long long)total, words);
    r->what = "program", r->number = 1;
    int ahead;
    if (!read_size(r, "state_size", &found->state_size) || !read_size(r, "lines", &found->lines) ||
        !read_size(r, "buffers", &found->buffers) || !read_size(r, "held", &found->held) ||
        !read_flag(r, "looks_ahead", &ahead))
        return 0;
    found->looks_ahead = (size_t)ahead;
    return 1;
}

static int count_words(reader r, size_t words, counts *found) {
    int64_t word;
    if (!read_head(&r, words, found) || !skip_counted(&r, "reals", 1, &found->reals) ||
        !read_count(&r, "lists", 1, &found->lists))
        return 0;
    found->list_words = 0;
    for (size_t i = 0; i < found->lists; ++i) {
        r.what = "list", r.number = i;
        if (!read_below(&r, "its length", 0, (int64_t)r.left + 1, &word)) return 0;
        found->list_words += (size_t)word;  /* at most words * words, of 2^28 each */
    }
    if (found->list_words > r.left) return fl_refuse(r.check, "the program ends within its lists");
    skip(&r, found->list_words);
#define T(NAME, name) \
    if (!skip_counted(&r, "table " #name, WORDS_OF_##name, &found->name)) return 0;
    FL_TABLES(T)
#undef T
    if (!skip_counted(&r, "inputs", 1, &found->inputs) ||
        !skip_counted(&r, "outputs", 1, &found->outputs) ||
        !read_count(&r, "operations", 2, &found->operations))
        return 0;
    for (size_t i = 0; i < found->operations; ++i) {
        r.what = "operation", r.number = i;
        if (!read_below(&r, "its kind", 0, FL_OPERATION_COUNT, &word)) return 0;
        if (r.left < operation_words[word])
            return fl_refuse(r.check, "the program ends within operation %zu", i);
        skip(&r, operation_words[word]);
    }
    if (r.left) return fl_refuse(r.check, "%zu words are left over behind the last", r.left);
    if (found->lines < 1 || found->lines > found->operations + 1)
        return fl_refuse(r.check, "%zu lines; expected 1 to %zu, one for each operation and one",
                         found->lines, found->operations + 1);
    if (found->buffers > found->value)
        return fl_refuse(r.check, "%zu buffers for %zu values", found->buffers, found->value);
    if (found->held > found->operations)
        return fl_refuse(r.check, "%zu held operations of %zu", found->held, found->operations);
    return 1;
}

/* ---- Decoding ---- */

/* Where everything is in the program's memory, or, where `memory` is NULL, only how much it is. */
typedef struct {
    fl_program *program;
    double *reals;
    fl_list *lists;
    int64_t *words;  /* of the lists */
#define T(NAME, name) fl_##name *name;
    FL_TABLES(T)
#undef T
    size_t *inputs, *outputs;
    fl_operation *operations;
    unsigned char *uses;
    size_t *twins;
    fl_checker check;
    size_t bytes;
} layout;

static layout lay_out(const counts *n, void *memory) {
    layout made;
    fl_arena arena = {memory, SIZE_MAX - 1, 0};
    memset(&made, 0, sizeof made);
    made.program = fl_take(&arena, 1, sizeof *made.program);
    made.reals = fl_take(&arena, n->reals, sizeof *made.reals);
    made.lists = fl_take(&arena, n->lists, sizeof *made.lists);
    made.words = fl_take(&arena, n->list_words, sizeof *made.words);
#define T(NAME, name) made.name = fl_take(&arena, n->name, sizeof *made.name);
    FL_TABLES(T)
#undef T
    made.inputs = fl_take(&arena, n->inputs, sizeof *made.inputs);
    made.outputs = fl_take(&arena, n->outputs, sizeof *made.outputs);
    made.operations = fl_take(&arena, n->operations, sizeof *made.operations);
    made.uses = made.check.uses = fl_take(&arena, n->matrix, sizeof *made.uses);
    made.twins = made.check.twins = fl_take(&arena, n->operations, sizeof *made.twins);
    made.check.slot_count = 2 * n->operations + 1;
    made.check.slots = fl_take(&arena, made.check.slot_count, sizeof *made.check.slots);
    made.check.written = fl_take(&arena, n->value, sizeof *made.check.written);
    made.check.holder = fl_take(&arena, n->buffers, sizeof *made.check.holder);
    made.check.reader = fl_take(&arena, n->buffers, sizeof *made.check.reader);
    made.check.maker = fl_take(&arena, n->lines, sizeof *made.check.maker);
    made.check.most_claims = 4 * n->operations + n->value +
                             (n->list_words < n->state_size ? n->list_words : n->state_size);
    made.check.claims = fl_take(&arena, made.check.most_claims, sizeof *made.check.claims);
    made.bytes = arena.used;
    return made;
}

static int decode_operation(reader *r, fl_operation *to) {
    int64_t kind;
    if (!read_below(r, "its kind", 0, FL_OPERATION_COUNT, &kind)) return 0;
    to->kind = (fl_kind)kind;
    r->what = fl_operation_name(to->kind);
    switch (to->kind) {
#define O(NAME, name) \
    case FL_##NAME: return decode_##name(r, &to->name);
        FL_OPERATIONS(O)
#undef O
    default: return 0;
    }
}

static int decode_numbers(reader *r, const char *what, size_t *to, size_t count) {
    size_t again;
    if (!read_count(r, what, 1, &again) || again != count) return 0;
    for (size_t i = 0; i < count; ++i)
        if (!read_value(r, "its value", to + i)) return 0;
    return 1;
}

static int decode_lists(reader *r, const counts *n, layout *to) {
    size_t at = 0, again;
    int64_t word;
    if (!read_count(r, "lists", 1, &again) || again != n->lists) return 0;
    for (size_t i = 0; i < n->lists; ++i) {
        if (!read_below(r, "its length", 0, (int64_t)(n->list_words - at) + 1, &word)) return 0;
        to->lists[i].at = to->words + at;
        to->lists[i].count = (size_t)word;
        at += (size_t)word;
    }
    for (size_t i = 0; i < at; ++i)
        if (!read_word(r, to->words + i)) return 0;
    return 1;
}

static int decode(reader *r, const counts *n, layout *to) {
    fl_program *made = to->program;
    size_t again;
    made->state_size = n->state_size, made->lines = n->lines, made->buffers = n->buffers;
    made->held = n->held, made->looks_ahead = n->looks_ahead != 0;
    skip(r, HEAD_WORDS - 1);
    if (!read_count(r, "reals", 1, &again) || again != n->reals) return 0;
    for (size_t i = 0; i < n->reals; ++i)
        if (!read_number(r, "real", to->reals + i)) return 0;
    if (!decode_lists(r, n, to)) return 0;
    made->reals = to->reals, made->real_count = n->reals;
    made->lists = to->lists, made->list_count = n->lists;
#define T(NAME, entry)                                                                        \
    if (!read_count(r, "table " #entry, WORDS_OF_##entry, &again) || again != n->entry)       \
        return 0;                                                                             \
    made->entry = to->entry, made->entry##_count = n->entry;                                  \
    r->what = #entry;                                                                         \
    for (r->number = 0; r->number < n->entry; ++r->number)                                    \
        if (!decode_##entry(r, to->entry + r->number)) return 0;
    FL_TABLES(T)
#undef T
    if (!decode_numbers(r, "input", to->inputs, n->inputs) ||
        !decode_numbers(r, "output", to->outputs, n->outputs))
        return 0;
    made->inputs = to->inputs, made->input_count = n->inputs;
    made->outputs = to->outputs, made->output_count = n->outputs;
    if (!read_count(r, "operations", 2, &again) || again != n->operations) return 0;
    made->operations = to->operations, made->operation_count = n->operations;
    made->uses = to->uses, made->twins = to->twins;
    for (size_t i = 0; i < n->operations; ++i) {
        r->what = "operation", r->number = i;
        if (!decode_operation(r, to->operations + i)) return 0;
    }
    return 1;
}

/* ---- The public functions ---- */

static fl_error begin_reading(const void *program, size_t bytes, fl_checker *check, reader *r) {
    r->at = program;
    r->left = bytes / 8;
    r->check = check;
    r->what = "word";
    r->number = 0;
    check->error = FL_BAD_PROGRAM;
    if (!program) return FL_BAD_ARGUMENT;
    if (bytes % 8 || bytes / 8 < HEAD_WORDS) {
        fl_refuse(check, "a program of %zu bytes, which is no number of words", bytes);
        return FL_BAD_PROGRAM;
    }
    if (bytes / 8 <= MOST_WORDS) return FL_OK;
    fl_refuse(check, "a program of %zu words", bytes / 8);
    return FL_TOO_LARGE;
}

fl_error fl_program_size(const void *program, size_t bytes, size_t *memory_bytes) {
    fl_checker check;
    reader r;
    counts n;
    memset(&check, 0, sizeof check);
    if (!memory_bytes) return FL_BAD_ARGUMENT;
    *memory_bytes = 0;
    const fl_error error = begin_reading(program, bytes, &check, &r);
    if (error) return error;
    if (!count_words(r, bytes / 8, &n)) return check.error;
    *memory_bytes = lay_out(&n, NULL).bytes;
    return *memory_bytes == SIZE_MAX ? FL_TOO_LARGE : FL_OK;
}

fl_error fl_program_init(const void *program, size_t bytes, void *memory, size_t memory_bytes,
                         const fl_program **made, char *message, size_t message_bytes) {
    fl_checker check;
    reader r;
    counts n;
    memset(&check, 0, sizeof check);
    check.message = message;
    check.message_bytes = message ? message_bytes : 0;
    if (check.message_bytes) message[0] = 0;
    if (!made) return FL_BAD_ARGUMENT;
    *made = NULL;
    const fl_error error = begin_reading(program, bytes, &check, &r);
    if (error) return error;
    if (!count_words(r, bytes / 8, &n)) return check.error;
    if (!memory || (uintptr_t)memory % FL_ALIGNMENT || memory_bytes < lay_out(&n, NULL).bytes)
        return FL_LITTLE_MEMORY;
    layout to = lay_out(&n, memory);
    memset(memory, 0, to.bytes);
    to.check.error = FL_BAD_PROGRAM;
    to.check.message = check.message;
    to.check.message_bytes = check.message_bytes;
    to.check.program = to.program;
    r.check = &to.check;
    if (!decode(&r, &n, &to) || !fl_check_program(&to.check)) return to.check.error;
    to.program->fingerprint = (uint64_t)bytes << 32 ^ fl_checksum(0, program, bytes);
    *made = to.program;
    return FL_OK;
}

size_t fl_count(const fl_program *program, fl_count_of what) {
    if (!program) return 0;
    switch (what) {
    case FL_COUNT_INPUTS: return program->input_count;
    case FL_COUNT_OUTPUTS: return program->output_count;
    case FL_COUNT_PARTS: return program->part_count;
    case FL_COUNT_TENSORS: return program->tensor_count;
    case FL_COUNT_STATE: return program->state_size;
    case FL_COUNT_AHEAD: return program->looks_ahead != 0;
    }
    return 0;
}

static fl_row_shape shape_of(const fl_program *program, const size_t *values, size_t count,
                             size_t number) {
    const fl_row_shape none = {0, 0, 0};
    if (number >= count) return none;
    const fl_value *value = program->value + values[number];
    const fl_row_shape made = {value->count, value->tokens, value->line < 0};
    return made;
}

fl_row_shape fl_input_shape(const fl_program *program, size_t number) {
    const fl_row_shape none = {0, 0, 0};
    return program ? shape_of(program, program->inputs, program->input_count, number) : none;
}

fl_row_shape fl_output_shape(const fl_program *program, size_t number) {
    const fl_row_shape none = {0, 0, 0};
    return program ? shape_of(program, program->outputs, program->output_count, number) : none;
}
