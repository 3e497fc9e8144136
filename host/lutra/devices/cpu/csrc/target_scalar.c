/* Plain C, for any machine. */
#include <string.h>

#include "codes.h"
#include "kernels.h"

#define TARGET
#define NAME(x) x##_scalar
#include "vector_body.h"

/* The sum of codes first..last - 1 times activations, twice of those in groups. */
static int64_t part_sum(const uint8_t *codes, int is_signed, const int8_t *x, const int32_t *shifts,
                        int first, int last) {
    int64_t total = 0;
    for (int end; first < last; first = end) {
        end = (first / SHARED + 1) * SHARED < last ? (first / SHARED + 1) * SHARED : last;
        int32_t sum = 0;
        for (int i = first; i < end; i++)
            sum += (is_signed ? (int)(int8_t)codes[i] : codes[i]) * x[i];
        total += sum * (shifts ? 1 << shifts[first / SHARED] : 1);
    }
    return total;
}

static int64_t row_sum(const lutra_matrix *w, int row, const uint8_t *codes, const int8_t *x,
                       const int32_t *shifts, const int32_t *group_sums) {
    int64_t total = 0, twice = shifts ? 1 : 2;
    if (!w->scale) {
        int64_t sum = part_sum(codes, !w->bits, x, shifts, 0, w->k);
        return twice * sum - (w->bits ? 2 * (int64_t)group_sums[0] : 0);
    }
    int groups = w->k / w->group;
    for (int g = 0; g < groups; g++) {
        int64_t at = (int64_t)row * groups + g;
        int64_t scale = w->scale_bytes == 1 ? ((const uint8_t *)w->scale)[at]
                                            : ((const uint16_t *)w->scale)[at];
        int64_t sum = part_sum(codes, 0, x, shifts, g * w->group, (g + 1) * w->group);
        int64_t zero = zero_at(w, row, g);
        total += scale * (twice * sum - zero * group_sums[g]);
        if (shifts && w->offset)
            total += (int64_t)w->offset[at] * group_sums[g] * (1 << w->offset_shift);
    }
    return total;
}

static void sums_of(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                    lutra_scratch *scratch, int64_t *out, int shifted) {
    int groups = w->scale ? w->k / w->group : 1, rows = last - first;
    for (int r = first; r < last; r++) {
        const uint8_t *codes = w->codes + r * w->row_bytes;
        if (w->bits) {
            codes_of(codes, w->bits, x->depth / BLOCK, scratch->bytes);
            codes = scratch->bytes;
        }
        for (int c = 0; c < x->count; c++)
            out[(int64_t)c * rows + r - first] =
                row_sum(w, r, codes, x->x + (int64_t)c * x->depth,
                        shifted ? x->shifts + (int64_t)c * (x->depth / SHARED) : NULL,
                        scratch->group_sums + (int64_t)c * groups);
    }
}

static void sums_scalar(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                        lutra_scratch *scratch, int64_t *out) {
    sums_of(w, first, last, x, scratch, out, 0);
}

static void sums_shifted_scalar(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                                lutra_scratch *scratch, int64_t *out) {
    sums_of(w, first, last, x, scratch, out, 1);
}

typedef float four_t __attribute__((vector_size(16)));
typedef int32_t mask_t __attribute__((vector_size(16)));

static inline four_t larger(four_t a, four_t b) {
    mask_t first = a > b;
    return (four_t)(((mask_t)a & first) | ((mask_t)b & ~first));
}

static inline four_t smaller(four_t a, four_t b) {
    mask_t first = a < b;
    return (four_t)(((mask_t)a & first) | ((mask_t)b & ~first));
}

static inline four_t nearest(four_t x) {
    const float large = 12582912.0f; /* 1.5 * 2**23 */
    return (x + large) - large;
}

#define F four_t
#define F_LANES 4
#define F_TOGETHER 1
#define F_MAX larger
#define F_MIN smaller
#define F_RINT nearest
#include "ranges.h"

static int available_scalar(void) { return 1; }

#include "attend_plain.h"

const lutra_kernels lutra_scalar = {
    "scalar", available_scalar, 4, 32, 5, 4, 0, sums_scalar, sums_scalar, sums_scalar,
    sums_shifted_scalar, sums_shifted_scalar, VECTOR_FUNCTIONS, key_dots_scalar, scores_scalar,
    weights_scalar, value_sums_scalar, free_ranges_scalar,
    ranges_on_scalar, NULL, NULL, 0};
