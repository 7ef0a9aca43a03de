/* text.c - numbers, arrays and fields as C has them. Floats are written as their bits are, in
 * hexadecimal.
 */
#include <string.h>

#include "text.h"

/* ---- Numbers ---- */

/* `digits` hexadecimal digits of a number. */
static void say_hex(fl_text *to, uint64_t number, int digits) {
    char text[17];
    text[digits] = 0;
    for (; digits; number >>= 4) text[--digits] = "0123456789abcdef"[number & 15];
    fl_say(to, text);
}

/* A number of `places` binary places behind the point and this exponent, which has `bits` bits. */
static void say_bits(fl_text *to, int negative, uint64_t mantissa, int places, int exponent,
                     int bits) {
    const int most = (1 << bits) - 1, bias = most / 2, digits = (places + 3) / 4;
    if (negative) fl_say(to, "-");
    if (exponent == most) {
        fl_say(to, mantissa ? "NAN" : "INFINITY");
        return;
    }
    fl_say(to, exponent ? "0x1" : "0x0");
    mantissa <<= 4 * digits - places;
    if (mantissa) {
        fl_say(to, ".");
        say_hex(to, mantissa, digits);
    }
    fl_say(to, "p");
    fl_say_integer(to, exponent ? exponent - bias : mantissa ? 1 - bias : 0);
}

void fl_say_float(fl_text *to, float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    say_bits(to, bits >> 31 != 0, bits & 0x7fffff, 23, (int)(bits >> 23 & 0xff), 8);
    if ((bits >> 23 & 0xff) != 0xff) fl_say(to, "f");
}

void fl_say_double(fl_text *to, double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    say_bits(to, bits >> 63 != 0, bits & 0xfffffffffffff, 52, (int)(bits >> 52 & 0x7ff), 11);
}

/* ---- Arrays ---- */

void fl_say_name(fl_text *to, fl_owner of, const char *field) {
    fl_say(to, "o");
    fl_say_number(to, of.operation);
    fl_say(to, "_");
    fl_say(to, of.part);
    fl_say_number(to, of.number);
    fl_say(to, "_");
    fl_say(to, field);
}

static void say_floats(fl_text *to, const float *from, size_t count) {
    enum { ON_A_LINE = 6 };
    fl_say(to, "[] = {");
    for (size_t i = 0; i < count; ++i) {
        fl_say(to, i % ON_A_LINE ? " " : "\n    ");
        fl_say_float(to, from[i]);
        fl_say(to, ",");
    }
    fl_say(to, "\n};\n");
}

/* An array of reals; none where there is nothing to point at. */
void fl_put_reals(fl_text *to, fl_owner of, const char *field, const void *from, size_t count) {
    if (!from) return;
    fl_say(to, "FL_CONSTANT_REALS ");
    fl_say_name(to, of, field);
    say_floats(to, from, count);
}

void fl_put_words(fl_text *to, fl_owner of, const char *field, fl_stored_kind stored,
                  const void *from, size_t count) {
    if (stored == FL_STORED_real) {
        fl_put_reals(to, of, field, from, count);
        return;
    }
    if (!from) return;
    fl_begin_array(to, of, field, "uint32_t");
    for (size_t i = 0; i < count; ++i) {
        uint32_t word;
        memcpy(&word, (const char *)from + i * sizeof word, sizeof word);
        fl_say_number(to, word);
        fl_say(to, "u, ");
    }
    fl_say(to, "};\n");
}

void fl_begin_array(fl_text *to, fl_owner of, const char *field, const char *type) {
    fl_say(to, "static const ");
    fl_say(to, type);
    fl_say(to, " ");
    fl_say_name(to, of, field);
    fl_say(to, "[] = {");
}

void fl_put_sizes(fl_text *to, fl_owner of, const char *field, const char *type,
                  const size_t *from, size_t count) {
    if (!count) return;
    fl_begin_array(to, of, field, type);
    for (size_t i = 0; i < count; ++i) {
        fl_say_number(to, from[i]);
        fl_say(to, ", ");
    }
    fl_say(to, "};\n");
}

void fl_put_stretches(fl_text *to, fl_owner of, const char *field, const fl_stretch *from,
                      size_t count) {
    if (!count) return;
    fl_begin_array(to, of, field, "fl_stretch");
    for (size_t i = 0; i < count; ++i) {
        fl_say(to, "{");
        fl_say_integer(to, from[i].read);
        fl_say(to, ", ");
        fl_say_number(to, from[i].first);
        fl_say(to, ", ");
        fl_say_integer(to, from[i].stride);
        fl_say(to, ", ");
        fl_say_number(to, from[i].count);
        fl_say(to, "}, ");
    }
    fl_say(to, "};\n");
}

/* ---- Fields ---- */

void fl_say_field(fl_text *to, const char *field) {
    fl_say(to, ".");
    fl_say(to, field);
    fl_say(to, " = ");
}

void fl_say_pointer(fl_text *to, fl_owner of, const char *field, int there) {
    if (!there) return;
    fl_say_field(to, field);
    fl_say_name(to, of, field);
    fl_say(to, ", ");
}

void fl_say_size(fl_text *to, const char *field, size_t number) {
    fl_say_field(to, field);
    fl_say_number(to, number);
    fl_say(to, ", ");
}

void fl_say_real(fl_text *to, const char *field, double number) {
    fl_say_field(to, field);
    fl_say_double(to, number);
    fl_say(to, ", ");
}

void fl_say_function(fl_text *to, const fl_activation *function) {
    fl_say(to, "{");
    fl_say_number(to, (uint64_t)function->function);
    fl_say(to, ", ");
    fl_say_double(to, function->alpha);
    fl_say(to, ", ");
    fl_say_double(to, function->beta);
    fl_say(to, "}");
}
