/* state.c - one stream's state: its parts, as they are known by name. */
#include <string.h>

#include "model.h"

size_t fl_state_size(const fl_model *model) {
    return model ? model->program.state_size * model->kernel->real_size : 0;
}

static double get(const fl_model *model, const void *state, size_t at) {
    return model->kernel->real_size == sizeof(float) ? (double)((const float *)state)[at]
                                                     : ((const double *)state)[at];
}

static void set(const fl_model *model, void *state, size_t at, double number) {
    if (model->kernel->real_size == sizeof(float)) ((float *)state)[at] = (float)number;
    else ((double *)state)[at] = number;
}

fl_part_shape fl_state_part(const fl_program *program, size_t number) {
    fl_part_shape made = {0, 0, 0};
    if (!program || number >= program->part_count) return made;
    const fl_part *part = program->part + number;
    made.is_count = part->part == FL_PART_count;
    made.rows = made.is_count ? 1 : part->rows;
    made.count = part->count;
    return made;
}

static const double COUNT_DIGIT = 16777216.0; /* 2^24: every integer below it is a float */

/* A count that the state holds, or -1 if its digits are none. */
static int64_t read_steps(const fl_model *model, const fl_part *part, const void *state) {
    int64_t count = 0;
    for (size_t i = part->rows; i-- > 0;) {
        const double digit = get(model, state, (size_t)part->offset + i);
        if (!(digit >= 0 && digit < COUNT_DIGIT) || digit != (double)(int64_t)digit) return -1;
        count = count * (int64_t)COUNT_DIGIT + (int64_t)digit;
    }
    return count;
}

static int write_count(const fl_model *model, const fl_part *part, void *state, int64_t count) {
    const int64_t digit = (int64_t)COUNT_DIGIT;
    if (count < 0 || count >= (part->rows > 1 ? digit * digit : digit)) return 0;
    for (size_t i = 0; i < part->rows; ++i, count /= digit)
        set(model, state, (size_t)part->offset + i, (double)(count % digit));
    return 1;
}

/* Number of a ring's oldest row, or of 0 where the rows stay where they are; SIZE_MAX: none. */
static size_t oldest(const fl_model *model, const fl_part *part, const void *state) {
    if (part->part != FL_PART_ring || part->position < 0 || part->rows == 1) return 0;
    const double position = get(model, state, (size_t)part->position);
    return position >= 0 && position < (double)part->rows ? (size_t)position : SIZE_MAX;
}

/* Where number i of row r is, the oldest row being `first`. */
static size_t place_of(const fl_part *part, size_t first, size_t r, size_t i) {
    const size_t row = (first + r) % part->rows;
    const size_t number = part->order.at ? (size_t)part->order.at[i] : i;
    return (size_t)part->offset + row * part->count + number;
}

static const fl_part *find_part(const fl_model *model, size_t number, size_t bytes) {
    if (number >= model->program.part_count) return NULL;
    const fl_part *part = model->program.part + number;
    const size_t size = part->part == FL_PART_count
                            ? sizeof(int64_t)
                            : part->rows * part->count * model->kernel->real_size;
    return bytes == size ? part : NULL;
}

fl_error fl_state_read(const fl_model *model, const void *state, size_t number, void *to,
                       size_t to_bytes) {
    const fl_part *part = model && state && to ? find_part(model, number, to_bytes) : NULL;
    if (!part) return FL_BAD_ARGUMENT;
    if (part->part == FL_PART_count) {
        const int64_t count = read_steps(model, part, state);
        if (count < 0) return FL_BAD_STATE;
        memcpy(to, &count, sizeof count);
        return FL_OK;
    }
    const size_t first = oldest(model, part, state), size = model->kernel->real_size;
    if (first == SIZE_MAX) return FL_BAD_STATE;
    for (size_t r = 0; r < part->rows; ++r)
        for (size_t i = 0; i < part->count; ++i)
            memcpy((char *)to + (r * part->count + i) * size,
                   (const char *)state + place_of(part, first, r, i) * size, size);
    return FL_OK;
}

fl_error fl_state_write(const fl_model *model, void *state, size_t number, const void *from,
                        size_t from_bytes) {
    const fl_part *part = model && state && from ? find_part(model, number, from_bytes) : NULL;
    if (!part) return FL_BAD_ARGUMENT;
    if (part->part == FL_PART_count) {
        int64_t count;
        memcpy(&count, from, sizeof count);
        return write_count(model, part, state, count) ? FL_OK : FL_BAD_STATE;
    }
    const size_t first = oldest(model, part, state), size = model->kernel->real_size;
    if (first == SIZE_MAX) return FL_BAD_STATE;
    for (size_t r = 0; r < part->rows; ++r)
        for (size_t i = 0; i < part->count; ++i)
            memcpy((char *)state + place_of(part, first, r, i) * size,
                   (const char *)from + (r * part->count + i) * size, size);
    return FL_OK;
}
