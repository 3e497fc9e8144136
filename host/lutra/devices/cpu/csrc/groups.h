/* Numbers of a matrix's groups of weights, and what its codes are to products of bytes. */
#ifndef LUTRA_GROUPS_H
#define LUTRA_GROUPS_H

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

#endif
