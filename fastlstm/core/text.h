/* text.h - text that is counted, and written as far as there is room for it; and numbers, arrays
 * and fields as C has them.
 */
#ifndef FL_TEXT_H
#define FL_TEXT_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

typedef struct {
    char *text;
    size_t bytes, length;
} fl_text;

static inline void fl_say(fl_text *to, const char *text) {
    for (; *text; ++text, ++to->length)
        if (to->length + 1 < to->bytes) to->text[to->length] = *text;
}

static inline void fl_say_number(fl_text *to, uint64_t number) {
    char digits[21];
    size_t at = sizeof digits - 1;
    digits[at] = 0;
    do digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    fl_say(to, digits + at);
}

static inline void fl_say_integer(fl_text *to, int64_t number) {
    if (number < 0) fl_say(to, "-");
    fl_say_number(to, number < 0 ? 0 - (uint64_t)number : (uint64_t)number);
}

/* End the text; how long it is. */
static inline size_t fl_said(const fl_text *to) {
    if (to->bytes) to->text[to->length < to->bytes ? to->length : to->bytes - 1] = 0;
    return to->length;
}

void fl_say_float(fl_text *to, float number);
void fl_say_double(fl_text *to, double number);

/* What an array belongs to: a part of an operation, of which there may be several. Its name is made
 * of that and of the field that points at it. */
typedef struct {
    size_t operation;
    const char *part;
    size_t number;
} fl_owner;

void fl_say_name(fl_text *to, fl_owner of, const char *field);

/* An array of constants: only its beginning; of reals, none where `from` is NULL; of others, none
 * where there are none. */
void fl_begin_array(fl_text *to, fl_owner of, const char *field, const char *type);
void fl_put_reals(fl_text *to, fl_owner of, const char *field, const void *from, size_t count);
void fl_put_words(fl_text *to, fl_owner of, const char *field, fl_stored_kind stored,
                  const void *from, size_t count);
void fl_put_sizes(fl_text *to, fl_owner of, const char *field, const char *type,
                  const size_t *from, size_t count);
void fl_put_stretches(fl_text *to, fl_owner of, const char *field, const fl_stretch *from,
                      size_t count);

/* `.field = ` and what it is, with a comma behind it: a pointer, if it is there, to its array. */
void fl_say_field(fl_text *to, const char *field);
void fl_say_pointer(fl_text *to, fl_owner of, const char *field, int there);
void fl_say_size(fl_text *to, const char *field, size_t number);
void fl_say_real(fl_text *to, const char *field, double number);

/* The struct itself. */
void fl_say_function(fl_text *to, const fl_activation *function);

#endif
