/* source.c - a packed model -> C whose structs are constants, which constant.h runs.
 *
 * Each struct of program.h and model.h that the run templates read is written with the names of its
 * fields, each array with a name made of its operation's number and its field's name:
 * o2_gates0_bias is what the bias of the panels `gates` of operation 2 points at. What a compiler
 * finds unused costs nothing.
 */
#include <string.h>

#include "call.h"
#include "check.h"
#include "source.h"

/* ---- Targets ---- */

/* Lanes by instruction set, and what int8 is stored with; constant.h asserts that the kernel has the
 * same. */
#define TARGETS(X)                                                                                 \
    X(avx512vnni, 16, 128) X(avx512, 16, 0) X(avxvnni, 8, 128) X(avx2, 8, 0) X(neondot, 4, 0)      \
    X(neon, 4, 0) X(simd128, 4, 0) X(fused, 1, 0) X(scalar, 1, 0)

static const fl_kernel targets[] = {
#define X(isa, L, added) \
    {.name = #isa, .lanes = L, .real_size = sizeof(float), .int8_offset = added},
    TARGETS(X)
#undef X
};

enum { TARGET_COUNT = sizeof targets / sizeof *targets };

const fl_kernel *fl_target(const char *isa) {
    for (size_t i = 0; i < TARGET_COUNT; ++i)
        if (!strcmp(targets[i].name, isa)) return targets + i;
    return NULL;
}

const char *fl_target_name(size_t number) {
    return number < TARGET_COUNT ? targets[number].name : NULL;
}

/* ---- Operations and tables, as operations.h has their fields ---- */

/* A list is an array of its own, which a field points at. */
static void put_list(fl_text *to, fl_owner of, const char *field, fl_list list) {
    if (!list.count) return;
    fl_begin_array(to, of, field, "int64_t");
    for (size_t i = 0; i < list.count; ++i) {
        fl_say_integer(to, list.at[i]);
        fl_say(to, ", ");
    }
    fl_say(to, "};\n");
}

static void say_list(fl_text *to, fl_owner of, const char *field, fl_list list) {
    fl_say_field(to, field);
    fl_say(to, "{");
    if (list.count) fl_say_name(to, of, field);
    else fl_say(to, "0");
    fl_say(to, ", ");
    fl_say_number(to, list.count);
    fl_say(to, "}, ");
}

static void say_signed(fl_text *to, const char *field, int64_t number) {
    fl_say_field(to, field);
    fl_say_integer(to, number);
    fl_say(to, ", ");
}

static void say_function_field(fl_text *to, const char *field, const fl_activation *function) {
    fl_say_field(to, field);
    fl_say_function(to, function);
    fl_say(to, ", ");
}

/* What is written of a field of each type, with `of`, `to` and the struct `a` at hand. */
#define SAY_INTEGER(name) say_signed(to, #name, (int64_t)a->name);
#define SAY_value SAY_INTEGER
#define SAY_some_value SAY_INTEGER
#define SAY_vector SAY_INTEGER
#define SAY_matrix SAY_INTEGER
#define SAY_offset SAY_INTEGER
#define SAY_size SAY_INTEGER
#define SAY_integer SAY_INTEGER
#define SAY_flag SAY_INTEGER
#define SAY_reduction SAY_INTEGER
#define SAY_fold SAY_INTEGER
#define SAY_norm SAY_INTEGER
#define SAY_cell SAY_INTEGER
#define SAY_cell_norm SAY_INTEGER
#define SAY_place SAY_INTEGER
#define SAY_number(name) fl_say_real(to, #name, a->name);
#define SAY_list(name) say_list(to, of, #name, a->name);
#define SAY_function(name) say_function_field(to, #name, &a->name);

/* Only a list has something behind it. */
#define PUT_NOTHING(name)
#define PUT_value PUT_NOTHING
#define PUT_some_value PUT_NOTHING
#define PUT_vector PUT_NOTHING
#define PUT_matrix PUT_NOTHING
#define PUT_offset PUT_NOTHING
#define PUT_size PUT_NOTHING
#define PUT_integer PUT_NOTHING
#define PUT_flag PUT_NOTHING
#define PUT_reduction PUT_NOTHING
#define PUT_fold PUT_NOTHING
#define PUT_norm PUT_NOTHING
#define PUT_cell PUT_NOTHING
#define PUT_cell_norm PUT_NOTHING
#define PUT_number PUT_NOTHING
#define PUT_function PUT_NOTHING
#define PUT_list(name) put_list(to, of, #name, a->name);

static void put_operation(fl_text *to, size_t i, const fl_operation *op) {
    switch (op->kind) {
#define F(type, field) PUT_##type(field)
#define O(NAME, name)                                   \
    case FL_##NAME: {                                   \
        const fl_##name *a = &op->name;                 \
        const fl_owner of = {i, "list", 0};                 \
        (void)a, (void)of;                              \
        FL_##NAME##_FIELDS(F)                           \
        break;                                          \
    }
        FL_OPERATIONS(O)
#undef O
#undef F
    default: break;
    }
}

static void say_operation(fl_text *to, size_t i, const fl_operation *op) {
    switch (op->kind) {
#define F(type, field) SAY_##type(field)
#define O(NAME, name)                                   \
    case FL_##NAME: {                                   \
        const fl_##name *a = &op->name;                 \
        const fl_owner of = {i, "list", 0};                 \
        (void)of;                                       \
        fl_say(to, "{FL_" #NAME ", {." #name " = {");   \
        FL_##NAME##_FIELDS(F)                           \
        fl_say(to, "}}},\n    ");                       \
        break;                                          \
    }
        FL_OPERATIONS(O)
#undef O
#undef F
    default: break;
    }
}

/* ---- The model ---- */

static void begin_table(fl_text *to, const char *type, const char *name) {
    fl_say(to, "static const ");
    fl_say(to, type);
    fl_say(to, " model_");
    fl_say(to, name);
    fl_say(to, "[] = {\n    ");
}

static int is_read(const fl_program *program, size_t vector) {
    for (size_t v = 0; v < program->value_count; ++v)
        if (program->value[v].place == FL_PLACE_vector && program->value[v].number == vector)
            return 1;
    for (size_t i = 0; i < program->initial_count; ++i)
        if ((size_t)program->initial[i].values == vector) return 1;
    return 0;
}

/* Vectors that values and states begin with; the others are parts of what was packed. */
static void put_vectors(fl_text *to, const fl_model *model) {
    const fl_program *program = &model->program;
    for (size_t v = 0; v < program->vector_count; ++v) {
        if (!is_read(program, v) || !model->vectors[v]) continue;
        fl_put_reals(to, (fl_owner){v, "of_model", 0}, "vector", model->vectors[v],
                     program->vector[v].count);
    }
    begin_table(to, "void *const", "vectors");
    for (size_t v = 0; v < program->vector_count; ++v) {
        if (is_read(program, v) && model->vectors[v])
            fl_say_name(to, (fl_owner){v, "of_model", 0}, "vector");
        else fl_say(to, "0");
        fl_say(to, ", ");
    }
    fl_say(to, "0};\n");
    begin_table(to, "fl_vector", "vector");
    for (size_t v = 0; v < program->vector_count; ++v) {
        fl_say(to, "{");
        fl_say_size(to, "count", program->vector[v].count);
        fl_say(to, "}, ");
    }
    fl_say(to, "{0}};\n");
}

static void put_tables(fl_text *to, const fl_model *model) {
    const fl_program *program = &model->program;
    const fl_owner of = {0, "", 0};
    (void)of;
#define F(type, field) SAY_##type(field)
    begin_table(to, "fl_value", "value");
    for (size_t v = 0; v < program->value_count; ++v) {
        const fl_value *a = program->value + v;
        fl_say(to, "{");
        FL_VALUE_FIELDS(F)
        fl_say(to, "},\n    ");
    }
    fl_say(to, "{0}};\n");
    begin_table(to, "fl_initial", "initial");
    for (size_t i = 0; i < program->initial_count; ++i) {
        const fl_initial *a = program->initial + i;
        fl_say(to, "{");
        FL_INITIAL_FIELDS(F)
        fl_say(to, "}, ");
    }
    fl_say(to, "{0}};\n");
#undef F
    begin_table(to, "size_t", "outputs");
    for (size_t o = 0; o < program->output_count; ++o) {
        fl_say_number(to, program->outputs[o]);
        fl_say(to, ", ");
    }
    fl_say(to, "0};\n");
    begin_table(to, "fl_course", "courses");
    for (size_t i = 0; i < program->operation_count; ++i) {
        const fl_course *a = model->courses + i;
        fl_say(to, "{");
        SAY_INTEGER(on) SAY_INTEGER(from) SAY_INTEGER(to)
        fl_say(to, "}, ");
    }
    fl_say(to, "{0}};\n");
    begin_table(to, "fl_room", "rooms");
    for (size_t i = 0; i <= program->buffers; ++i) {
        const fl_room *a = model->rooms + i;
        fl_say(to, "{");
        SAY_INTEGER(each) SAY_INTEGER(more)
        fl_say(to, "}, ");
    }
    fl_say(to, "};\n");
}

/* Whether constant.h has all of an operation inline: a product of one position, whose x lies where
 * it is read, or a step of PyTorch's cells, with one row each step, of line 0, or held, and with weights
 * that are reals. */
static int is_one_row(const fl_model *model, size_t i) {
    const fl_operation *op = model->program.operations + i;
    const fl_packed *packed = model->packed + i;
    if (model->courses[i].on > 0) return 0;
    if (op->kind == FL_PRODUCT) {
        const fl_gather *x = &packed->product.x;
        return op->product.positions == 1 && packed->product.groups == 1 &&
               packed->product.panels->stored == FL_STORED_real &&
               (!x->stretches || (x->first[1] == 1 && x->stretches->read >= 0));
    }
    if (op->kind != FL_RECURRENT) return 0;
    const fl_recurrent *is = &op->recurrent;
    return !is->along_positions && is->positions == 1 && is->mask < 0 && is->c_column < 0 &&
           !packed->recurrent.variant && !packed->recurrent.projection.weights &&
           packed->recurrent.gates.stored == FL_STORED_real;
}

/* Scratch memory: the buffers, and behind them what run.h takes for operations that it runs. */
static size_t scratch_of(const fl_model *model, const fl_cut *cut) {
    const fl_room room = model->rooms[model->program.buffers];
    for (size_t i = 0; i < model->program.operation_count; ++i)
        if (!is_one_row(model, i)) return cut->bytes;
    return fl_most((room.each + room.more) * sizeof(float), 1);
}

/* Operations [first, end) in the order in which they run: ONE(number, name) those of one row, or
 * OTHER(number, name); LOOP(number) those of a loop END. */
static void put_walk(fl_text *to, const char *name, const fl_model *model, size_t first,
                     size_t end) {
    size_t loop_end = 0;
    fl_say(to, "#define ");
    fl_say(to, name);
    fl_say(to, "(ONE, OTHER, LOOP, END)");
    for (size_t i = first; i < end; ++i) {
        const fl_operation *op = model->program.operations + i;
        const int loops = op->kind == FL_LOOP;
        if (loops) loop_end = i + 1 + op->loop.operations;
        fl_say(to, " \\\n    ");
        fl_say(to, loops ? "LOOP(" : is_one_row(model, i) ? "ONE(" : "OTHER(");
        fl_say_number(to, i);
        if (!loops) {
            fl_say(to, ", ");
            fl_say(to, fl_operation_name(op->kind));
        }
        fl_say(to, ")");
        if (i + 1 == loop_end) fl_say(to, " END");
    }
    fl_say(to, "\n");
}

/* Whether there are products of int8: what a model does not call takes no memory. */
static int has_int8(const fl_program *program) {
    for (size_t m = 0; m < program->matrix_count; ++m)
        if (program->matrix[m].stored == FL_STORED_int8) return 1;
    return 0;
}

size_t fl_source(const fl_model *model, char *text, size_t bytes) {
    fl_text made = {text, bytes, 0}, *to = &made;
    const fl_program *program = &model->program;
    const size_t n = program->operation_count, lanes = model->kernel->lanes;
    fl_plan plan;
    if (model->kernel->real_size != sizeof(float) || fl_plan_call(model, 1, 1, 1, &plan)) return 0;
    const fl_cut *cut = &plan.alone;
    for (size_t i = 0; i < n; ++i) {
        put_operation(to, i, program->operations + i);
        fl_put_packed(to, i, program->operations + i, model->packed + i, lanes);
    }
    put_vectors(to, model);
    put_tables(to, model);
    begin_table(to, "fl_operation", "operations");
    for (size_t i = 0; i < n; ++i) say_operation(to, i, program->operations + i);
    fl_say(to, "{0}};\n");
    begin_table(to, "fl_packed", "packed");
    for (size_t i = 0; i < n; ++i) {
        fl_say_packed(to, i, program->operations + i, model->packed + i);
        fl_say(to, ",\n    ");
    }
    fl_say(to, "{{0}}};\n");
    fl_say(to, "static const fl_kernel the_kernel = {");
    fl_say(to, has_int8(program) ? ".int8 = {.sum = sum_products}};\n" : "0};\n");
    fl_say(to, "static const fl_model the_model = {.kernel = &the_kernel, .program = {");
    fl_say_size(to, "state_size", program->state_size);
    fl_say_size(to, "lines", program->lines);
    fl_say_size(to, "held", program->held);
    fl_say_size(to, "initial_count", program->initial_count);
    fl_say_size(to, "output_count", program->output_count);
    fl_say(to,
           ".vector = model_vector, .value = model_value, .initial = model_initial, "
           ".outputs = model_outputs, .operations = model_operations}, .packed = model_packed, "
           ".vectors = model_vectors, .courses = model_courses, .rooms = model_rooms, ");
    fl_say_size(to, "copies", (size_t)model->copies);
    fl_say(to, "};\nstatic const fl_cut the_cut = {.chunk = 1, ");
    fl_say_size(to, "shared", cut->shared);
    fl_say_size(to, "kept", cut->kept);
    fl_say_size(to, "states", cut->states);
    fl_say_size(to, "own", cut->own);
    fl_say_size(to, "counts", cut->counts);
    fl_say_size(to, "lines", cut->lines);
    fl_say_size(to, "work", cut->work);
    fl_say_size(to, "bytes", cut->bytes);
    fl_say(to, "};\n");
#define SIZE(name, number) fl_say(to, name), fl_say_number(to, number), fl_say(to, "\n");
    SIZE("#define FL_CONSTANT_LANES ", lanes)
    SIZE("#define FL_CONSTANT_OFFSET ", model->kernel->int8_offset)
    SIZE("#define FL_CONSTANT_LINES ", program->lines)
    SIZE("#define FL_CONSTANT_STATE ", program->state_size)
    SIZE("#define FL_CONSTANT_SCRATCH ", scratch_of(model, cut))
    SIZE("#define FL_CONSTANT_OUTPUTS ", program->output_count)
#undef SIZE
    put_walk(to, "FL_CONSTANT_BEGIN", model, 0, program->held);
    put_walk(to, "FL_CONSTANT_STEP", model, program->held, n);
    return fl_said(to);
}

size_t fl_source_scratch(const fl_model *model) {
    fl_plan plan;
    return fl_plan_call(model, 1, 1, 1, &plan) ? SIZE_MAX : scratch_of(model, &plan.alone);
}

size_t fl_source_rows(const fl_model *model, size_t output, int ending) {
    const ptrdiff_t line = model->program.value[model->program.outputs[output]].line;
    return line < 0 ? 1 : fl_most_rows(model->bounds[line], !ending);
}
