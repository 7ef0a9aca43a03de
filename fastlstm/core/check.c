/* check.c - the tables of a program, and what holds of all its operations; check.h has the rest. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "check.h"

int fl_refuse(fl_checker *check, const char *format, ...) {
    int at = 0;
    va_list given;
    if (!check->message_bytes || check->message[0]) return 0;
    if (check->program && check->operation < check->program->operation_count)
        at = snprintf(check->message, check->message_bytes, "operation %zu (%s): ",
                      check->operation,
                      fl_operation_name(check->program->operations[check->operation].kind));
    if (at < 0 || (size_t)at >= check->message_bytes) return 0;
    va_start(given, format);
    vsnprintf(check->message + at, check->message_bytes - (size_t)at, format, given);
    va_end(given);
    return 0;
}

int fl_spend(fl_checker *check, uint64_t steps) {
    if (steps <= FL_MOST_CHECKING - check->steps) {
        check->steps += steps;
        return 1;
    }
    check->error = FL_TOO_LARGE;
    return fl_refuse(check, "the program is too large to be checked: its lists are read too often");
}

/* ---- Tables ---- */

static int of_tensor(fl_checker *check, const char *what, size_t number, ptrdiff_t tensor,
                     int64_t least, int64_t most) {
    const fl_program *program = check->program;
    if (tensor < -1 || tensor >= (ptrdiff_t)program->tensor_count)
        return fl_refuse(check, "%s %zu is of tensor %td, of %zu", what, number, tensor,
                         program->tensor_count);
    const size_t count = tensor < 0 ? program->real_count : program->tensor[tensor].count;
    if (least >= 0 && most < (int64_t)count) return 1;
    return fl_refuse(check, "%s %zu reads numbers %lld to %lld of %zu", what, number,
                     (long long)least, (long long)most, count);
}

static int check_piece(fl_checker *check, size_t number) {
    const fl_piece *piece = check->program->piece + number;
    const fl_list *order = &piece->order;
    int64_t least = 0, most = ((int64_t)piece->columns - 1) * piece->column_stride;
    if (!piece->rows || !piece->columns) return fl_refuse(check, "piece %zu is empty", number);
    if (order->at) {
        if (!fl_check_list(check, "order of a piece", order, piece->columns, -1, INT32_MAX))
            return 0;
        least = INT32_MAX, most = -1;
        for (size_t c = 0; c < order->count; ++c) {
            if (order->at[c] < 0) continue;
            if (order->at[c] < least) least = order->at[c];
            if (order->at[c] > most) most = order->at[c];
        }
        if (most < 0) return of_tensor(check, "piece", number, piece->tensor, 0, -1);
    } else if (most < 0) least = most, most = 0;
    const int64_t last = ((int64_t)piece->rows - 1) * piece->row_stride;
    least += (int64_t)piece->first + (last < 0 ? last : 0);
    most += (int64_t)piece->first + (last > 0 ? last : 0);
    return of_tensor(check, "piece", number, piece->tensor, least, most);
}

static int pieces_overlap(const fl_piece *a, const fl_piece *b) {
    return a->row < b->row + b->rows && b->row < a->row + a->rows &&
           a->column < b->column + b->columns && b->column < a->column + a->columns;
}

static int check_matrix(fl_checker *check, size_t number) {
    const fl_program *program = check->program;
    const fl_matrix *matrix = program->matrix + number;
    const size_t n = matrix->pieces;
    if (!matrix->rows || !matrix->columns)
        return fl_refuse(check, "matrix %zu is empty", number);
    if (matrix->scale >= 0 && program->vector[matrix->scale].count != matrix->rows)
        return fl_refuse(check, "matrix %zu has %zu rows, and %zu scales", number, matrix->rows,
                         program->vector[matrix->scale].count);
    if (matrix->stored == FL_STORED_int8 &&
        (matrix->scale < 0 || matrix->columns > FL_MOST_INT8_COLUMNS))
        return fl_refuse(check, "matrix %zu of int8 has %zu columns, at most %d are supported, or no "
                                "scales", number, matrix->columns, (int)FL_MOST_INT8_COLUMNS);
    if (n > program->piece_count || matrix->first_piece > program->piece_count - n)
        return fl_refuse(check, "matrix %zu has pieces beyond the %zu there are", number,
                         program->piece_count);
    const fl_piece *pieces = program->piece + matrix->first_piece;
    if (!fl_spend(check, fl_times(n, n))) return 0;
    for (size_t i = 0; i < n; ++i) {
        if (pieces[i].row + pieces[i].rows > matrix->rows ||
            pieces[i].column + pieces[i].columns > matrix->columns)
            return fl_refuse(check, "matrix %zu is (%zu, %zu), and piece %zu lies outside it",
                             number, matrix->rows, matrix->columns, matrix->first_piece + i);
        for (size_t j = 0; j < i; ++j)
            if (pieces_overlap(pieces + i, pieces + j))
                return fl_refuse(check, "pieces %zu and %zu of matrix %zu overlap", j, i, number);
    }
    return 1;
}

static int check_stretch(fl_checker *check, size_t number) {
    const fl_program *program = check->program;
    const fl_value *value = program->value + number;
    if (value->number >= program->value_count)
        return fl_refuse(check, "value %zu is a stretch of value %zu, of %zu", number,
                         value->number, program->value_count);
    const fl_value *of = program->value + value->number;
    if (of->place == FL_PLACE_stretch || of->tokens || of->line != value->line)
        return fl_refuse(check, "value %zu is a stretch of value %zu, which is %s", number,
                         value->number,
                         of->tokens                ? "tokens"
                         : of->line != value->line ? "on another line"
                                                   : "one itself");
    return (value->first <= of->count && value->count <= of->count - value->first) ||
           fl_refuse(check, "value %zu is %zu numbers from %zu on, of %zu", number, value->count,
                     value->first, of->count);
}

static int check_value(fl_checker *check, size_t number) {
    const fl_program *program = check->program;
    const fl_value *value = program->value + number;
    const int is_held = value->line < 0;
    if (!value->count) return fl_refuse(check, "value %zu has no numbers", number);
    if (value->line < -1 || value->line >= (ptrdiff_t)program->lines)
        return fl_refuse(check, "value %zu is on line %td, of %zu", number, value->line,
                         program->lines);
    if (value->tokens && value->place != FL_PLACE_input)
        return fl_refuse(check, "value %zu has tokens and is no input", number);
    if (value->first && value->place != FL_PLACE_stretch)
        return fl_refuse(check, "value %zu begins at number %zu and is no stretch", number,
                         value->first);
    switch (value->place) {
    case FL_PLACE_input:
        if (value->number < program->input_count && program->inputs[value->number] == number &&
            value->line <= 0)
            return 1;
        return fl_refuse(check, "value %zu is not input %zu on line 0 or held", number,
                         value->number);
    case FL_PLACE_output:
        if (value->number < program->output_count && program->outputs[value->number] == number &&
            !is_held)
            return 1;
        return fl_refuse(check, "value %zu is not output %zu, with rows of steps", number,
                         value->number);
    case FL_PLACE_buffer:
        if (value->number < program->buffers) return 1;
        return fl_refuse(check, "value %zu is in buffer %zu, of %zu", number, value->number,
                         program->buffers);
    case FL_PLACE_state:
        if (!is_held) return fl_refuse(check, "value %zu lies in the state, on a line", number);
        return fl_check_claim(check, "a held value", (ptrdiff_t)value->number, value->count, 1);
    case FL_PLACE_stretch: return check_stretch(check, number);
    default:
        if (is_held && value->number < program->vector_count &&
            program->vector[value->number].count == value->count)
            return 1;
        return fl_refuse(check, "value %zu is not vector %zu, and constant", number,
                         value->number);
    }
}

static int check_part(fl_checker *check, size_t number) {
    const fl_part *part = check->program->part + number;
    const size_t size = check->program->state_size;
    const uint64_t count = fl_times(part->rows, part->count);
    if (!count || part->offset < 0 || count > size || (size_t)part->offset > size - count)
        return fl_refuse(check, "part %zu of the state is (%zu, %zu) from %td on, of %zu", number,
                         part->rows, part->count, part->offset, size);
    if (part->part == FL_PART_ring ? part->rows > 1 && part->position < 0 : part->position != -1)
        return fl_refuse(check, "part %zu of the state has position %td", number, part->position);
    if (part->part == FL_PART_count && (part->count != 1 || part->rows > 2 || part->order.at))
        return fl_refuse(check, "part %zu of the state is a count of (%zu, %zu)", number,
                         part->rows, part->count);
    return !part->order.at ||
           fl_check_list(check, "order of a part", &part->order, part->count, 0, part->count);
}

static int check_initial(fl_checker *check, size_t number) {
    const fl_program *program = check->program;
    const fl_initial *initial = program->initial + number;
    if (initial->values >= 0 && initial->offset >= 0 &&
        program->vector[initial->values].count <= program->state_size - (size_t)initial->offset)
        return 1;
    return fl_refuse(check, "initial numbers %zu lie outside the state", number);
}

static int check_tables(fl_checker *check) {
    const fl_program *program = check->program;
    for (size_t i = 0; i < program->vector_count; ++i) {
        const fl_vector *vector = program->vector + i;
        if (!vector->count) return fl_refuse(check, "vector %zu is empty", i);
        if (!of_tensor(check, "vector", i, vector->tensor, (int64_t)vector->first,
                       (int64_t)(vector->first + vector->count) - 1))
            return 0;
        if (vector->tensor >= 0 && program->tensor[vector->tensor].stored != FL_STORED_real)
            return fl_refuse(check, "vector %zu is of tensor %td, whose numbers are not reals", i,
                             vector->tensor);
    }
    for (size_t i = 0; i < program->piece_count; ++i)
        if (!check_piece(check, i)) return 0;
    for (size_t i = 0; i < program->matrix_count; ++i)
        if (!check_matrix(check, i)) return 0;
    for (size_t i = 0; i < program->value_count; ++i)
        if (!check_value(check, i)) return 0;
    for (size_t i = 0; i < program->part_count; ++i)
        if (!check_part(check, i)) return 0;
    for (size_t i = 0; i < program->initial_count; ++i)
        if (!check_initial(check, i)) return 0;
    for (size_t i = 0; i < program->input_count; ++i)
        if (program->value[program->inputs[i]].place != FL_PLACE_input)
            return fl_refuse(check, "input %zu is a value that is none", i);
    return 1;
}

/* ---- What an operation reads and writes ---- */

static int begins(const fl_checker *check) { return check->operation < check->program->held; }

int fl_check_read(fl_checker *check, const char *field, size_t number, ptrdiff_t line) {
    const fl_value *value = check->program->value + number;
    if (!fl_spend(check, 1)) return 0;
    if (value->line >= 0 && value->line != line)
        return fl_refuse(check, "%s is value %zu of line %td; expected line %td", field, number,
                         value->line, line);
    if (value->place == FL_PLACE_stretch) return fl_check_read(check, field, value->number, line);
    if (value->place == FL_PLACE_vector) return 1;
    if (value->place == FL_PLACE_input) {
        if (value->line >= 0 || begins(check)) return 1;
        return fl_refuse(check, "%s is value %zu, a held input, which only held operations read",
                         field, number);
    }
    if (!check->written[number])
        return fl_refuse(check, "%s is value %zu, which is not written yet", field, number);
    if (value->place == FL_PLACE_buffer && check->holder[value->number] != number + 1)
        return fl_refuse(check, "%s is value %zu, which buffer %zu does not hold any more", field,
                         number, value->number);
    if (value->place == FL_PLACE_buffer) check->reader[value->number] = check->operation + 1;
    return 1;
}

int fl_check_one(fl_checker *check, const char *field, size_t number, ptrdiff_t line,
                 uint64_t count) {
    const fl_value *value = check->program->value + number;
    if (!fl_check_read(check, field, number, line)) return 0;
    if (value->tokens)
        return fl_refuse(check, "%s is value %zu, which is tokens, and read as numbers", field,
                         number);
    return value->count == count ||
           fl_refuse(check, "%s is value %zu of %zu numbers; expected %llu", field, number,
                     value->count, (unsigned long long)count);
}

int fl_check_reads(fl_checker *check, const fl_list *reads, ptrdiff_t line, int tokens,
                   size_t *total) {
    *total = 0;
    if (reads->count > FL_MOST_READS)
        return fl_refuse(check, "%zu values are read; at most %d are supported", reads->count,
                         FL_MOST_READS);
    if (!fl_check_list(check, "reads", reads, reads->count, 0, check->program->value_count))
        return 0;
    for (size_t i = 0; i < reads->count; ++i) {
        const size_t number = (size_t)reads->at[i];
        if (!fl_check_read(check, "what is read", number, line)) return 0;
        if (check->program->value[number].tokens && !tokens)
            return fl_refuse(check, "value %zu, which is tokens, is read as numbers", number);
        *total += check->program->value[number].count;
        if (*total > INT32_MAX) return fl_refuse(check, "more numbers are read than 2^31 - 1");
    }
    return 1;
}

int fl_check_write(fl_checker *check, size_t number, uint64_t count) {
    const fl_value *value = check->program->value + number;
    if (value->count != count)
        return fl_refuse(check, "y has %zu numbers; expected %llu", value->count,
                         (unsigned long long)count);
    if (value->place == FL_PLACE_input || value->place == FL_PLACE_vector ||
        value->place == FL_PLACE_stretch)
        return fl_refuse(check, "y is value %zu, an input, a constant or a stretch", number);
    if ((value->line < 0) != begins(check))
        return fl_refuse(check, "y is value %zu, of line %td, and the operation is %sheld", number,
                         value->line, begins(check) ? "" : "not ");
    if (check->loop_end && check->loop_line < 0) check->loop_line = value->line;
    if (check->loop_end && check->loop_line != value->line)
        return fl_refuse(check, "y is value %zu, of line %td, in a loop over line %td", number,
                         value->line, check->loop_line);
    if (check->written[number])
        return fl_refuse(check, "value %zu is written twice", number);
    check->written[number] = check->operation + 1;
    if (value->place != FL_PLACE_buffer) return 1;
    if (check->reader[value->number] == check->operation + 1)
        return fl_refuse(check, "y is in buffer %zu, from which it is made", value->number);
    check->holder[value->number] = number + 1;
    return 1;
}

int fl_check_list(fl_checker *check, const char *field, const fl_list *list, uint64_t count,
                  int64_t least, uint64_t end) {
    if (!list->at) return fl_refuse(check, "%s is missing", field);
    if (list->count != count)
        return fl_refuse(check, "%s has %zu numbers; expected %llu", field, list->count,
                         (unsigned long long)count);
    if (!fl_spend(check, count + 1)) return 0;
    for (size_t i = 0; i < list->count; ++i)
        if (list->at[i] < least || (list->at[i] >= 0 && (uint64_t)list->at[i] >= end))
            return fl_refuse(check, "number %zu of %s is %lld; expected from %lld to below %llu",
                             i, field, (long long)list->at[i], (long long)least,
                             (unsigned long long)end);
    return 1;
}

int fl_check_vector(fl_checker *check, const char *field, ptrdiff_t vector, uint64_t count,
                    int needed) {
    if (vector < 0) return !needed || fl_refuse(check, "%s is missing", field);
    const size_t found = check->program->vector[vector].count;
    return found == count || fl_refuse(check, "%s has %zu numbers; expected %llu", field, found,
                                       (unsigned long long)count);
}

int fl_check_matrix(fl_checker *check, const char *field, ptrdiff_t number, uint64_t rows,
                    uint64_t columns, int use) {
    if (number < 0) return fl_refuse(check, "%s is missing", field);
    const fl_matrix *matrix = check->program->matrix + number;
    check->uses[number] |= (unsigned char)use;
    if ((!rows || matrix->rows == rows) && (!columns || matrix->columns == columns)) return 1;
    return fl_refuse(check, "%s is (%zu, %zu); expected (%llu, %llu)", field, matrix->rows,
                     matrix->columns, (unsigned long long)rows, (unsigned long long)columns);
}

/* ---- The state ---- */

int fl_check_claim(fl_checker *check, const char *field, ptrdiff_t offset, uint64_t count,
                   int needed) {
    const size_t size = check->program->state_size;
    if (offset < 0) return !needed || fl_refuse(check, "%s is missing", field);
    if (!count || count > size || (size_t)offset > size - count)
        return fl_refuse(check, "%s is %llu numbers from %td on, of a state of %zu", field,
                         (unsigned long long)count, offset, size);
    if (check->claim_count == check->most_claims)
        return fl_refuse(check, "%s lies where other operations keep theirs", field);
    const fl_claim claim = {(uint32_t)offset, (uint32_t)((size_t)offset + count)};
    check->claims[check->claim_count++] = claim;
    return 1;
}

/* Sift down claim `at` of the heap of the first n, the largest at its top. */
static void sift(fl_claim *claims, size_t at, size_t n) {
    const fl_claim moved = claims[at];
    for (size_t child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && claims[child + 1].first > claims[child].first) ++child;
        if (claims[child].first <= moved.first) break;
        claims[at] = claims[child];
    }
    claims[at] = moved;
}

/* No two claims overlap. Sorted in place: qsort() may allocate. */
static int check_claims(fl_checker *check) {
    fl_claim *claims = check->claims;
    const size_t n = check->claim_count;
    for (size_t i = n / 2; i-- > 0;) sift(claims, i, n);
    for (size_t i = n; i-- > 1;) {
        const fl_claim largest = claims[0];
        claims[0] = claims[i];
        claims[i] = largest;
        sift(claims, 0, i);
    }
    for (size_t i = 1; i < n; ++i)
        if (claims[i].first < claims[i - 1].end)
            return fl_refuse(check, "elements %u to %u of the state belong to two operations",
                             (unsigned)claims[i].first, (unsigned)claims[i - 1].end - 1);
    return 1;
}

/* ---- Operations ---- */

static int check_operation(fl_checker *check, const fl_operation *operation) {
    if (check->operation == check->loop_end) check->loop_first = check->loop_end = 0;
    if (operation->kind <= FL_ONE_HOT) return fl_check_on_rows(check, operation);
    if (operation->kind == FL_RECURRENT) return fl_check_recurrent(check, &operation->recurrent);
    return fl_check_over_time(check, operation);
}

int fl_check_program(fl_checker *check) {
    const fl_program *program = check->program;
    check->operation = SIZE_MAX;
    if (!check_tables(check)) return 0;
    for (size_t i = 0; i < program->operation_count; ++i) {
        /* What a held operation has in a buffer, only those behind it that are held read. */
        if (i == program->held) memset(check->holder, 0, program->buffers * sizeof(size_t));
        check->operation = i;
        if (!check_operation(check, program->operations + i)) return 0;
    }
    check->operation = SIZE_MAX;
    /* An output that lies elsewhere is copied, once all has run. */
    for (size_t i = 0; i < program->output_count; ++i) {
        const fl_value *value = program->value + program->outputs[i];
        if (!fl_check_read(check, "an output", program->outputs[i], value->line)) return 0;
        if (value->tokens) return fl_refuse(check, "output %zu is tokens", i);
    }
    return check_claims(check);
}
