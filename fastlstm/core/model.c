/* model.c - a program and its tensors -> a model: what is in its block of memory, and how much. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "pack.h"
#include "source.h"

typedef struct {
    char *text;
    size_t bytes;
} note;

static fl_error refuse(note message, fl_error error, const char *format, ...) {
    va_list given;
    if (!message.text || !message.bytes) return error;
    va_start(given, format);
    vsnprintf(message.text, message.bytes, format, given);
    va_end(given);
    return error;
}

static void pack_norm(const fl_packer *to, const fl_norm *norm, fl_packed_norm *made) {
    const ptrdiff_t of[] = {norm->weight, norm->bias};
    const void *vectors[2] = {NULL, NULL};
    int each[2] = {0, 0};
    for (int i = 0; i < 2; ++i) {
        if (of[i] < 0 || !to->vectors) continue;
        vectors[i] = to->vectors[of[i]];
        each[i] = to->program->vector[of[i]].count != norm->n;
    }
    made->weight = vectors[0], made->bias = vectors[1];
    made->weight_each = each[0], made->bias_each = each[1];
}

static void pack_lookup(const fl_packer *to, const fl_lookup *lookup, fl_packed_lookup *made) {
    const fl_matrix *table = to->program->matrix + lookup->table;
    made->table = to->tables ? to->tables[lookup->table] : NULL;
    made->stored = fl_table_as(to, table);
    made->unit = made->stored == FL_STORED_int8 ? fl_plain_vector(to, table->scale, 0) : NULL;
    made->tokens = to->program->matrix[lookup->table].rows;
    made->width = to->program->matrix[lookup->table].columns;
}

/* Pack operation `at`; packed (operations,), or NULL while sizes are counted. */
static void pack_operation(fl_packer *to, size_t at, fl_packed *packed) {
    const fl_operation *operation = to->program->operations + at;
    const size_t twin = to->program->twins[at];
    static const fl_packed none;
    fl_packed counted = none;
    fl_packed *made = packed ? packed + at : &counted;
    switch (operation->kind) {
    case FL_MOVE: fl_pack_move(to, &operation->move, &made->move); break;
    case FL_MAP: fl_pack_map(to, &operation->map, &made->map); break;
    case FL_PRODUCT: fl_pack_product(to, &operation->product, &made->product); break;
    case FL_TAPS: fl_pack_taps(to, &operation->taps, &made->taps); break;
    case FL_NORM: pack_norm(to, &operation->norm, &made->norm); break;
    case FL_LOOKUP: pack_lookup(to, &operation->lookup, &made->lookup); break;
    case FL_RECURRENT:
        fl_pack_cell(to, &operation->recurrent,
                     twin == at ? NULL : &(packed ? packed + twin : &none)->recurrent,
                     &made->recurrent);
        break;
    default: break;
    }
}

/* A vector, with numbers behind it that whole vectors of lanes may be read of. */
static const void *pack_vector(fl_packer *to, const fl_vector *vector) {
    void *made = fl_take_reals(to, vector->count + to->kernel->lanes, 1, 1);
    double number;
    for (size_t i = 0; made && i < vector->count; ++i) {
        fl_read_numbers(to, vector->tensor, (int64_t)(vector->first + i), 1, 1, &number);
        fl_put(to, made, i, number);
    }
    return made;
}

/* Have a place for what each recurrence can make before its input; those of a loop make it in their
 * turn, and those with several rows a step would have it for the first only. Not 0 if a number is
 * too large. */
static int make_room_for_prepared(fl_model *model, fl_packed *packed) {
    const fl_program *program = &model->program;
    const size_t real_size = model->kernel->real_size;
    size_t end = FL_ALIGNMENT / real_size;
    if (program->looks_ahead) return 0;
    for (size_t i = program->held; i < program->operation_count; ++i) {
        const fl_operation *op = program->operations + i;
        if (op->kind == FL_LOOP) i += op->loop.operations;
        if (op->kind != FL_RECURRENT || op->recurrent.along_positions) continue;
        const ptrdiff_t on = model->courses[i].on;
        fl_cell *cell = &packed[i].recurrent;
        const fl_panels *matrix = fl_panels_of_h(cell);
        if (on < 0 || model->bounds[on].factor > model->bounds[on].divisor) continue;
        cell->prepared = end;
        end = fl_checked(matrix->panels * matrix->groups * model->kernel->lanes,
                         op->recurrent.positions, end);
        end = fl_checked(1, end, FL_ALIGNMENT / real_size - 1);
        if (end == SIZE_MAX) return -1;
        end -= end % (FL_ALIGNMENT / real_size);
        model->prepared_bytes = fl_checked(end, real_size, 0);
    }
    return model->prepared_bytes == SIZE_MAX ? -1 : 0;
}

/* Count, or make, all of a model. NULL while it is counted, or if a number is too large. */
static fl_model *pack(fl_packer *to) {
    const fl_program *program = to->program;
    const size_t n = program->operation_count;
    fl_model *model = fl_take(&to->arena, 1, sizeof *model);
    fl_packed *packed = fl_take(&to->arena, n, sizeof *packed);
    const void **vectors = fl_take(&to->arena, program->vector_count, sizeof *vectors);
    const void **panels = fl_take(&to->arena, program->matrix_count, sizeof *panels);
    const void **rows = fl_take(&to->arena, program->matrix_count, sizeof *rows);
    const void **tables = fl_take(&to->arena, program->matrix_count, sizeof *tables);
    fl_course *courses = fl_take(&to->arena, n, sizeof *courses);
    fl_bound *bounds = fl_take(&to->arena, program->lines, sizeof *bounds);
    fl_room *rooms = fl_take(&to->arena, program->buffers + 1, sizeof *rooms);
    for (size_t v = 0; v < program->vector_count; ++v) {
        const void *made = pack_vector(to, program->vector + v);
        if (rooms) vectors[v] = made;
    }
    to->vectors = vectors;
    fl_pack_matrices(to, rooms ? panels : NULL, rooms ? rows : NULL, rooms ? tables : NULL);
    for (size_t i = 0; i < n && to->arena.used != SIZE_MAX; ++i)
        pack_operation(to, i, rooms ? packed : NULL);
    const size_t bytes = to->arena.used;
    to->scratch = fl_take(&to->arena, to->scratch_count, sizeof *to->scratch);
    if (!rooms || to->arena.used == SIZE_MAX) return NULL;
    for (size_t i = 0; i < n; ++i) courses[i] = fl_course_of(program, program->operations + i);
    if (fl_bound_lines(program, courses, bounds) || fl_place_buffers(program, bounds, rooms))
        return NULL;
    model->program = *program;
    model->kernel = to->kernel;
    model->packed = packed;
    model->vectors = vectors;
    model->courses = courses;
    model->bounds = bounds;
    model->rooms = rooms;
    if (make_room_for_prepared(model, packed)) return NULL;
    for (size_t o = 0; o < program->output_count; ++o) {
        const fl_value *value = program->value + program->outputs[o];
        if (value->place != FL_PLACE_output || value->number != o) model->copies = 1;
    }
    model->bytes = bytes;
    return model;
}

/* To widen a float16 takes two of the operations of which a processor of x86 makes two at once, and so
 * longer than a second-level cache takes to give a float (benchmarks/precision.py): float16 is read
 * faster only where floats would not fit there. */
enum { WIDENED_BYTES = 512 * 1024 };

static int widens_float16(const fl_program *program) {
    size_t bytes = 0;
    for (size_t m = 0; m < program->matrix_count && bytes <= WIDENED_BYTES; ++m) {
        const fl_matrix *matrix = program->matrix + m;
        if (program->uses[m] != FL_USE_TABLE)
            bytes = fl_checked(fl_checked(matrix->rows, matrix->columns, 0), sizeof(float), bytes);
    }
    return bytes <= WIDENED_BYTES;
}

/* foreign: the kernel, or NULL for the config's instruction set. */
static fl_error read_config(const fl_program *program, const fl_model_config *config,
                            const fl_kernel *foreign, fl_packer *to, note message) {
    memset(to, 0, sizeof *to);
    if (message.text && message.bytes) message.text[0] = 0;
    if (!program || !config || config->struct_size != sizeof *config)
        return refuse(message, FL_BAD_ARGUMENT, "no program, or a config of another size");
    if (config->type != FL_FLOAT32 && config->type != FL_FLOAT64)
        return refuse(message, FL_BAD_ARGUMENT, "type %d; expected FL_FLOAT32 or FL_FLOAT64",
                      (int)config->type);
    to->program = program;
    to->keeps_tensors = config->keeps_tensors;
    to->widens_float16 = widens_float16(program);
    to->kernel = foreign ? foreign : fl_find(config->isa, config->type == FL_FLOAT32 ? 4 : 8);
    if (to->kernel) return FL_OK;
    return refuse(message, FL_NO_KERNEL, "no instruction set %s for reals of %d bytes here",
                  config->isa ? config->isa : "at all", config->type == FL_FLOAT32 ? 4 : 8);
}

static size_t count_bytes(fl_packer *to) {
    fl_packer counted = *to;
    counted.arena = (fl_arena){NULL, SIZE_MAX - 1, 0};
    pack(&counted);
    to->scratch_count = counted.scratch_count;
    return counted.arena.used;
}

fl_error fl_model_size_for(const fl_kernel *foreign, const fl_program *program,
                           const fl_model_config *config, size_t *bytes, char *message,
                           size_t message_bytes) {
    fl_packer to;
    const note text = {message, message_bytes};
    if (!bytes) return refuse(text, FL_BAD_ARGUMENT, "nowhere to put the size");
    *bytes = 0;
    const fl_error error = read_config(program, config, foreign, &to, text);
    if (error) return error;
    *bytes = count_bytes(&to);
    if (*bytes != SIZE_MAX) return FL_OK;
    *bytes = 0;
    return refuse(text, FL_TOO_LARGE, "the packed model is larger than can be addressed");
}

fl_error fl_model_size(const fl_program *program, const fl_model_config *config, size_t *bytes,
                       char *message, size_t message_bytes) {
    return fl_model_size_for(NULL, program, config, bytes, message, message_bytes);
}

static fl_stored_kind stored_as(fl_type type) {
    return type == FL_FLOAT16    ? FL_STORED_float16
           : type == FL_BFLOAT16 ? FL_STORED_bfloat16
           : type == FL_INT8     ? FL_STORED_int8
                                 : FL_STORED_real;
}

static fl_error check_tensors(const fl_program *program, const fl_model_config *config,
                              const fl_tensor_data *tensors, size_t count, note message) {
    if (count != program->tensor_count || (count && !tensors))
        return refuse(message, FL_BAD_TENSORS, "%zu tensors are given; expected %zu", count,
                      program->tensor_count);
    for (size_t i = 0; i < count; ++i) {
        const fl_tensor_data *one = tensors + i;
        const size_t size = fl_type_bytes(one->type);
        if (!size)
            return refuse(message, FL_BAD_TENSORS, "tensor %zu is of type %d, which is unknown", i,
                          (int)one->type);
        if (stored_as(one->type) != program->tensor[i].stored)
            return refuse(message, FL_BAD_TENSORS,
                          "tensor %zu is of type %d, which is not what the program says of it", i,
                          (int)one->type);
        if (config->keeps_tensors && stored_as(one->type) == FL_STORED_real &&
            one->type != config->type)
            return refuse(message, FL_BAD_TENSORS,
                          "tensor %zu is of another type than the model, and must be converted", i);
        if (one->count != program->tensor[i].count)
            return refuse(message, FL_BAD_TENSORS, "tensor %zu has %zu numbers; expected %zu", i,
                          one->count, program->tensor[i].count);
        if (one->count && (!one->data || (uintptr_t)one->data % size))
            return refuse(message, FL_BAD_TENSORS,
                          "tensor %zu is NULL, or not at a multiple of %zu bytes", i, size);
    }
    return FL_OK;
}

fl_error fl_model_init_for(const fl_kernel *foreign, const fl_program *program,
                           const fl_model_config *config, const fl_tensor_data *tensors,
                           size_t tensor_count, void *memory, size_t memory_bytes,
                           const fl_model **made, char *message, size_t message_bytes) {
    fl_packer to;
    const note text = {message, message_bytes};
    if (!made) return refuse(text, FL_BAD_ARGUMENT, "nowhere to put the model");
    *made = NULL;
    fl_error error = read_config(program, config, foreign, &to, text);
    if (!error && !tensors && !tensor_count && program->tensors) {
        tensors = program->tensors;
        tensor_count = program->tensor_count;
    }
    if (!error) error = check_tensors(program, config, tensors, tensor_count, text);
    if (error) return error;
    const size_t bytes = count_bytes(&to);
    if (bytes == SIZE_MAX)
        return refuse(text, FL_TOO_LARGE, "the packed model is larger than can be addressed");
    if (!memory || (uintptr_t)memory % FL_ALIGNMENT || memory_bytes < bytes)
        return refuse(text, FL_LITTLE_MEMORY, "%zu bytes of memory at %p; expected %zu, aligned",
                      memory_bytes, memory, bytes);
    memset(memory, 0, bytes);
    to.tensors = tensors;
    /* Scratch memory lies behind all that stays, which is as large as was counted. */
    const size_t scratch = (to.scratch_count * sizeof(double) + 63) / 64 * 64;
    to.arena = (fl_arena){memory, bytes, 0};
    to.scratch = (double *)(void *)((char *)memory + (bytes - scratch));
    *made = pack(&to);
    return *made ? FL_OK : refuse(text, FL_TOO_LARGE, "the rows of a chunk are too many to count");
}

fl_error fl_model_init(const fl_program *program, const fl_model_config *config,
                       const fl_tensor_data *tensors, size_t tensor_count, void *memory,
                       size_t memory_bytes, const fl_model **made, char *message,
                       size_t message_bytes) {
    return fl_model_init_for(NULL, program, config, tensors, tensor_count, memory, memory_bytes,
                             made, message, message_bytes);
}

const char *fl_model_isa(const fl_model *model) { return model ? model->kernel->name : NULL; }

const fl_program *fl_model_program(const fl_model *model) { return model ? &model->program : NULL; }
