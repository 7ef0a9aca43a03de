/* checksum.h - CRC-32 of ISO 3309, as zlib and gzip have it: any change of up to 32 bits in a row
 * is found.
 */
#ifndef FL_CHECKSUM_H
#define FL_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Of what had the checksum `before` (0: of nothing) with bytes (count,) behind it. Four bits at a
 * time: the table is 64 bytes. */
static inline uint32_t fl_checksum(uint32_t before, const void *bytes, size_t count) {
    static const uint32_t of_bits[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
        0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
        0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const unsigned char *at = (const unsigned char *)bytes;
    uint32_t sum = ~before;
    for (size_t i = 0; i < count; ++i) {
        sum ^= at[i];
        sum = (sum >> 4) ^ of_bits[sum & 15];
        sum = (sum >> 4) ^ of_bits[sum & 15];
    }
    return ~sum;
}

#endif
