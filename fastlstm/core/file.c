/* file.c - what `fastlstm export` writes, which nobody vouches for: a program, names and tensors.
 *
 * Words, each 64 bits, the lowest byte first: "flmodel" and a 0; the version; the bytes of all; the
 * CRC-32 (ISO 3309, as zlib has it) of what follows; the bytes of the program; the bytes of the
 * names; how many tensors, and the type of each (fl_type). Then the program; the names of inputs,
 * outputs and parts of the state, each with a 0 behind it, and zeros up to a multiple of 8 bytes; and
 * each tensor's numbers from a multiple of 64 bytes on, with zeros before it. Nothing else.
 */
#include <string.h>

#include "check.h"
#include "checksum.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensors are read as they lie in a file, the lowest byte first"
#endif

enum { FILE_VERSION = 1, HEAD_BYTES = 56, SUMMED_FROM = 32 };

/* Where the parts of a file are. */
typedef struct {
    const unsigned char *bytes;
    size_t size;
    const unsigned char *types;     /* words */
    const unsigned char *program, *names;
    size_t program_bytes, name_bytes, tensors;
    uint32_t checksum;
} file_parts;

static uint64_t word_at(const unsigned char *bytes) {
    uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word |= (uint64_t)bytes[i] << (8 * i);
    return word;
}

static fl_error refuse_file(fl_checker *check, fl_error error, const char *why) {
    fl_refuse(check, "%s", why);
    return error;
}

static fl_checker messenger(char *message, size_t message_bytes) {
    fl_checker made;
    memset(&made, 0, sizeof made);
    made.message = message;
    made.message_bytes = message ? message_bytes : 0;
    if (made.message_bytes) message[0] = 0;
    return made;
}

/* Find the parts, all of them within the file. */
static fl_error find_parts(const void *file, size_t size, fl_checker *check, file_parts *found) {
    const unsigned char *bytes = file;
    if (!file || (uintptr_t)file % 8)
        return refuse_file(check, FL_BAD_ARGUMENT,
                           "the file is NULL, or not at a multiple of 8 bytes");
    if (size < HEAD_BYTES || memcmp(bytes, "flmodel", 8))
        return refuse_file(check, FL_BAD_PROGRAM,
                           "these bytes are not a model that fastlstm export wrote: they do not "
                           "begin so");
    if (word_at(bytes + 8) != FILE_VERSION)
        return refuse_file(check, FL_BAD_PROGRAM,
                           word_at(bytes + 8) > FILE_VERSION
                               ? "a model of a newer version: export it with this version, or build "
                                 "with the newer one"
                               : "a model of an older version: export it anew");
    if (word_at(bytes + 16) != size)
        return refuse_file(check, FL_BAD_PROGRAM,
                           "the model is cut off, or something follows it: it is of another size "
                           "than it says");
    found->checksum = fl_checksum(0, bytes + SUMMED_FROM, size - SUMMED_FROM);
    if (word_at(bytes + 24) != found->checksum)
        return refuse_file(check, FL_BAD_PROGRAM, "the model is damaged: its checksum is another");
    const uint64_t program = word_at(bytes + 32), names = word_at(bytes + 40);
    const uint64_t tensors = word_at(bytes + 48), left = size - HEAD_BYTES;
    if (tensors > left / 8 || program > left - 8 * tensors ||
        names > left - 8 * tensors - program || program % 8 || names % 8)
        return refuse_file(check, FL_BAD_PROGRAM, "the parts of the model are larger than it is");
    found->bytes = bytes;
    found->size = size;
    found->tensors = (size_t)tensors;
    found->program_bytes = (size_t)program;
    found->name_bytes = (size_t)names;
    found->types = bytes + HEAD_BYTES;
    found->program = found->types + 8 * found->tensors;
    found->names = found->program + found->program_bytes;
    return FL_OK;
}

/* An opened file in memory: the program with its names and tensors, or only how much it takes. */
typedef struct {
    void *program;
    size_t program_bytes;
    char *text;
    const char **names;
    fl_tensor_data *tensors;
    size_t bytes;
} opened_file;

static fl_error lay_out_file(const file_parts *is, void *memory, fl_checker *check,
                             opened_file *made) {
    fl_arena arena = {memory, SIZE_MAX - 1, 0};
    const fl_error error = fl_program_size(is->program, is->program_bytes, &made->program_bytes);
    if (error)
        return refuse_file(check, error, "the program in it is none that this version reads");
    made->program = fl_take(&arena, 1, made->program_bytes);
    made->text = fl_take(&arena, is->name_bytes, 1);
    /* A name takes a byte at least. */
    made->names = fl_take(&arena, is->name_bytes, sizeof *made->names);
    made->tensors = fl_take(&arena, is->tensors, sizeof *made->tensors);
    made->bytes = arena.used;
    if (arena.used < SIZE_MAX) return FL_OK;
    return refuse_file(check, FL_TOO_LARGE, "the model is larger than can be addressed");
}

/* Whether text, up to its 0, is UTF-8 (RFC 3629). */
static int is_utf8(const char *text) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        const unsigned first = *at++;
        const int more = first < 0x80 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
        uint32_t code = more ? first & (0x3fu >> more) : first;
        if ((first >= 0x80 && first < 0xc0) || first > 0xf4) return 0;
        for (int i = 0; i < more; ++i) {
            if ((*at & 0xc0) != 0x80) return 0;
            code = code << 6 | (*at++ & 0x3f);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
    }
    return 1;
}

/* Names, as many as the program has inputs, outputs and parts, and behind them zeros only. */
static int read_names(const file_parts *is, const fl_program *program, opened_file *to) {
    const size_t count = program->input_count + program->output_count + program->part_count;
    size_t at = 0;
    memcpy(to->text, is->names, is->name_bytes);
    for (size_t i = 0; i < count; ++i) {
        const size_t left = is->name_bytes - at;
        const char *end = left ? memchr(to->text + at, 0, left) : NULL;
        if (!end || !is_utf8(to->text + at)) return 0;
        to->names[i] = to->text + at;
        at = (size_t)(end - to->text) + 1;
    }
    if (is->name_bytes - at >= 8) return 0;
    while (at < is->name_bytes)
        if (to->text[at++]) return 0;
    return 1;
}

/* Tensors, of the counts that the program says, one behind the other up to the file's end. */
static int read_tensors(const file_parts *is, const fl_program *program, opened_file *to) {
    size_t at = (size_t)(is->names - is->bytes) + is->name_bytes;
    if (is->tensors != program->tensor_count) return 0;
    for (size_t i = 0; i < is->tensors; ++i) {
        const uint64_t type = word_at(is->types + 8 * i);
        const size_t size = fl_type_bytes((int64_t)type);
        if (!size) return 0;
        for (; at % FL_ALIGNMENT; ++at)
            if (at >= is->size || is->bytes[at]) return 0;
        to->tensors[i].count = program->tensor[i].count;
        if (at > is->size || to->tensors[i].count > (is->size - at) / size) return 0;
        to->tensors[i].data = is->bytes + at;
        to->tensors[i].type = (fl_type)type;
        at += to->tensors[i].count * size;
    }
    return at == is->size;
}

fl_error fl_open_size(const void *file, size_t bytes, size_t *memory_bytes, char *message,
                      size_t message_bytes) {
    fl_checker check = messenger(message, message_bytes);
    file_parts is;
    opened_file made;
    if (!memory_bytes) return FL_BAD_ARGUMENT;
    *memory_bytes = 0;
    fl_error error = find_parts(file, bytes, &check, &is);
    if (!error) error = lay_out_file(&is, NULL, &check, &made);
    if (!error) *memory_bytes = made.bytes;
    return error;
}

fl_error fl_open(const void *file, size_t bytes, void *memory, size_t memory_bytes,
                 const fl_program **opened, char *message, size_t message_bytes) {
    fl_checker check = messenger(message, message_bytes);
    const fl_program *program;
    file_parts is;
    opened_file to;
    if (!opened) return FL_BAD_ARGUMENT;
    *opened = NULL;
    fl_error error = find_parts(file, bytes, &check, &is);
    if (!error) error = lay_out_file(&is, NULL, &check, &to);
    if (error) return error;
    if (!memory || (uintptr_t)memory % FL_ALIGNMENT || memory_bytes < to.bytes)
        return refuse_file(&check, FL_LITTLE_MEMORY, "less memory than fl_open_size told, or it "
                                                     "is not at a multiple of 64 bytes");
    error = lay_out_file(&is, memory, &check, &to);
    if (!error)
        error = fl_program_init(is.program, is.program_bytes, to.program, to.program_bytes,
                                &program, message, message_bytes);
    if (error) return error;
    if (!read_names(&is, program, &to))
        return refuse_file(&check, FL_BAD_PROGRAM,
                           "the names are not UTF-8, one for each input, output and part of the "
                           "state");
    if (!read_tensors(&is, program, &to))
        return refuse_file(&check, FL_BAD_TENSORS, "the tensors are not those of the program");
    fl_program *made = to.program;
    made->names = to.names;
    made->tensors = to.tensors;
    made->fingerprint = (uint64_t)bytes << 32 ^ is.checksum;
    *opened = made;
    return FL_OK;
}

static const char *name_of(const fl_program *program, size_t before, size_t count, size_t number) {
    if (!program || !program->names || number >= count) return NULL;
    return program->names[before + number];
}

const char *fl_input_name(const fl_program *program, size_t number) {
    return name_of(program, 0, program ? program->input_count : 0, number);
}

const char *fl_output_name(const fl_program *program, size_t number) {
    return name_of(program, program ? program->input_count : 0,
                   program ? program->output_count : 0, number);
}

const char *fl_part_name(const fl_program *program, size_t number) {
    return name_of(program, program ? program->input_count + program->output_count : 0,
                   program ? program->part_count : 0, number);
}
