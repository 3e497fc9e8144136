/* Numbers of a matrix's groups of weights, and what its codes are to products of bytes. */
#ifndef LUTRA_GROUPS_H
#define LUTRA_GROUPS_H

#include <string.h>

#include "golden.h"
#include "lutra_cpu.h"

/* Codes of up to 4 bits, of 5 and 6, and of 8. */
enum { NARROW, SIX, WIDE };

static inline int kind_of_codes(int bits) {
    return bits == 0 || bits == 8 ? WIDE : bits > 4 ? SIX : NARROW;
}

/* The zero point of a group. */
static inline int32_t zero_at(const lutra_matrix *w, int64_t row, int group) {
    int groups = w->k / w->group;
    if (w->zero) return w->zero[row * groups + group];
    int marked = w->marks && w->marks[row * ((groups + 7) / 8) + group / 8] >> group % 8 & 1;
    return marked ? w->other_zero : w->zero_point;
}

/* Zero points of all groups of a row, `stride` numbers apart. */
static inline void zeros_of(const lutra_matrix *w, int64_t row, int stride, int32_t *out) {
    int groups = w->k / w->group;
    if (w->zero) {
        const uint16_t *zero = w->zero + row * groups;
        for (int g = 0; g < groups; g++) out[(int64_t)g * stride] = zero[g];
    } else if (w->marks) {
        const uint8_t *marks = w->marks + row * ((groups + 7) / 8);
        const int32_t two[] = {w->zero_point, w->other_zero};
        for (int g = 0; g < groups; g++) out[(int64_t)g * stride] = two[marks[g / 8] >> g % 8 & 1];
    } else {
        for (int g = 0; g < groups; g++) out[(int64_t)g * stride] = w->zero_point;
    }
}

/* Bytes of a record of a matrix in two levels: of the multiples of the scales, and of all. */
static inline int multiples_bytes(const lutra_matrix *w) {
    return SUPER / w->group / 8 * w->multiple_bits;
}

static inline int record_bytes(const lutra_matrix *w) {
    return (1 + w->level_offsets) * (multiples_bytes(w) + 2);
}

/* The factor of a record's scales, or of its offsets. */
static inline int32_t scale_factor(const lutra_matrix *w, const uint8_t *record) {
    const uint8_t *p = record + (1 + w->level_offsets) * multiples_bytes(w);
    return p[0] | p[1] << 8;
}

static inline int32_t offset_factor(const lutra_matrix *w, const uint8_t *record) {
    const uint8_t *p = record + 2 * multiples_bytes(w) + 2;
    return (int16_t)(p[0] | p[1] << 8);
}

/* Eight multiples of `bits` bits, 4, 6 or 8, from p on, the first in the lowest bits. */
static inline uint64_t eight_multiples(const uint8_t *p, int bits) {
    /* a word that is stored in parts and read as a whole would wait for them */
    uint64_t word;
    uint32_t low;
    uint16_t high = 0;
    if (bits == 8) {
        memcpy(&word, p, 8);
        return word;
    }
    memcpy(&low, p, 4);
    if (bits == 6) memcpy(&high, p + 4, 2);
    return low | (uint64_t)high << 32;
}

#endif
