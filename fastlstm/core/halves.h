/* halves.h - float16 (IEEE 754 binary16) and bfloat16, the upper half of a float, as 16 bits.
 *
 * Integers only, but for one product with a power of two: a float that is denormal would be taken for
 * zero inside a call. From a float it is rounded half to even; infinities and NaN stay what they are.
 */
#ifndef FL_HALVES_H
#define FL_HALVES_H

#include <stdint.h>
#include <string.h>

static inline float fl_float_of_bits(uint32_t bits) {
    float made;
    memcpy(&made, &bits, sizeof made);
    return made;
}

static inline uint32_t fl_bits_of_float(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static inline float fl_float_of_bfloat16(uint16_t half) {
    return fl_float_of_bits((uint32_t)half << 16);
}

static inline float fl_float_of_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, e = half >> 10 & 31, m = half & 0x3ffu;
    if (e == 31) return fl_float_of_bits(sign | 0x7f800000u | m << 13);
    if (e) return fl_float_of_bits(sign | (e + 112) << 23 | m << 13);
    const float size = (float)m * 0x1p-24f;
    return sign ? -size : size;
}

static inline uint16_t fl_bfloat16_of_float(float number) {
    const uint32_t bits = fl_bits_of_float(number);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline uint16_t fl_float16_of_float(float number) {
    const uint32_t bits = fl_bits_of_float(number), size = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more */
    if (size < 0x33000001u) return sign;                         /* 2^-25 and less */
    /* A multiple of 2^-24 below the smallest normal number, 2^-14; else 10 bits behind the first. */
    const uint32_t e = size >> 23, dropped = e < 113 ? 126 - e : 13;
    const uint32_t m = e < 113 ? (size & 0x7fffffu) | 0x800000u : size - (112u << 23);
    const uint32_t half = m >> dropped, rest = m & ((1u << dropped) - 1), middle = 1u << (dropped - 1);
    return (uint16_t)(sign | (half + (rest > middle || (rest == middle && (half & 1u)))));
}

#endif
