/* Products of many columns with sums of 64 bits, after gemm.h: the sum of a part of a group, of
 * activations that share a power of two, is shifted, that of a group multiplied into the sums. Those
 * of a few columns at a time are in registers.
 *
 * The including file also defines STRIP, columns at a time, of which COLUMNS and 4 are multiples;
 * SHIFT(v, by); W, a vector of LANES / 2 numbers of 64 bits, with LOAD64 and STORE64; EVEN(sum, a, b)
 * and ODD(sum, a, b), which add the products of half of the lanes of a and b each, the latter with b
 * = HALF(v); and PLACE(lane), where a lane's sum is. A group has up to 256 weights: 256 * 255 * 127 *
 * 2**8 is below 2**31. */

#define INLINE_ static inline __attribute__((always_inline)) TARGET

/* Groups of a strip's columns that follow one another: their codes are in the nearest cache. */
enum { NAME(RUN) = 8 };

/* What a block of rows is: packed codes, then numbers of groups [groups, ROWS]; zero and offset may
 * be NULL. */
typedef struct {
    const uint8_t *codes;
    const int32_t *scale, *zero, *offset;
    int groups, parts, steps; /* parts of a group, steps of a part */
    int32_t middle;           /* of the codes of all groups, unless there are zero points of each */
} NAME(shifted_t);

/* Columns in gemm's order, of `stride` in their tile; what the sums of parts begin with [columns,
 * parts]; shifts [columns, depth / SHARED]; sums of groups [columns, groups]. */
typedef struct {
    const int8_t *x;
    const int32_t *start, *shifts, *sums;
    int stride, n_parts, n_shifts, n_groups;
} NAME(columns_t);

/* sum: of a part of a group, of STRIP columns. */
INLINE_ void NAME(part)(const NAME(shifted_t) *block, const NAME(columns_t) *of, int part,
                        V (*sum)[2], const int kind) {
    int64_t step = (int64_t)part * block->steps;
    const int32_t *by = of->shifts + 4 * step / SHARED, *start = of->start + part;
    UNROLL for (int c = 0; c < STRIP; c++)
        sum[c][0] = sum[c][1] = SET(start[(int64_t)c * of->n_parts]);
    NAME(steps)(block->codes + step * 8 * LANES, of->x + step * 4 * of->stride, block->steps,
                of->stride, sum, STRIP, kind);
    UNROLL for (int c = 0; c < STRIP; c++) {
        V at = SET(by[(int64_t)c * of->n_shifts]);
        UNROLL for (int i = 0; i < 2; i++) sum[c][i] = SHIFT(sum[c][i], at);
    }
}

/* acc: the sum of a group, of STRIP columns, before its scale. */
INLINE_ void NAME(group)(const NAME(shifted_t) *block, const NAME(columns_t) *of, int g,
                         V (*acc)[2], const int kind) {
    int first = g * block->parts;
    NAME(part)(block, of, first, acc, kind);
    for (int p = 1; p < block->parts; p++) {
        V sum[STRIP][2];
        NAME(part)(block, of, first + p, sum, kind);
        UNROLL for (int c = 0; c < STRIP; c++)
            UNROLL for (int i = 0; i < 2; i++) acc[c][i] = ADD(acc[c][i], sum[c][i]);
    }
    if (!block->zero) return;
    const int32_t *zero = block->zero + g * NAME(ROWS);
    UNROLL for (int c = 0; c < STRIP; c++) {
        V a = SET(of->sums[(int64_t)c * of->n_groups + g]);
        UNROLL for (int i = 0; i < 2; i++)
            acc[c][i] = SUB(acc[c][i], MUL(LOAD(zero + i * LANES), a));
    }
}

/* out [STRIP, ROWS] += groups first..last - 1, their lanes in their places. */
INLINE_ void NAME(strip)(const NAME(shifted_t) *block, const NAME(columns_t) *of, int first,
                         int last, int64_t *out, const int kind) {
    W even[STRIP][2], odd[STRIP][2];
    UNROLL for (int c = 0; c < STRIP; c++)
        UNROLL for (int i = 0; i < 2; i++) {
            even[c][i] = LOAD64(out + c * NAME(ROWS) + i * LANES);
            odd[c][i] = LOAD64(out + c * NAME(ROWS) + i * LANES + LANES / 2);
        }
    for (int g = first; g < last; g++) {
        V acc[STRIP][2];
        NAME(group)(block, of, g, acc, kind);
        UNROLL for (int i = 0; i < 2; i++) {
            V by = LOAD(block->scale + g * NAME(ROWS) + i * LANES), half = HALF(by);
            UNROLL for (int c = 0; c < STRIP; c++) {
                even[c][i] = EVEN(even[c][i], acc[c][i], by);
                odd[c][i] = ODD(odd[c][i], acc[c][i], half);
            }
        }
        if (!block->offset) continue;
        UNROLL for (int i = 0; i < 2; i++) {
            V by = LOAD(block->offset + g * NAME(ROWS) + i * LANES), half = HALF(by);
            UNROLL for (int c = 0; c < STRIP; c++) {
                V a = SET(of->sums[(int64_t)c * of->n_groups + g]);
                even[c][i] = EVEN(even[c][i], a, by);
                odd[c][i] = ODD(odd[c][i], a, half);
            }
        }
    }
    UNROLL for (int c = 0; c < STRIP; c++)
        UNROLL for (int i = 0; i < 2; i++) {
            STORE64(out + c * NAME(ROWS) + i * LANES, even[c][i]);
            STORE64(out + c * NAME(ROWS) + i * LANES + LANES / 2, odd[c][i]);
        }
}

/* start [columns, parts]: the sums of all parts' activations times `middle`, without their shifts. */
static TARGET void NAME(starts)(const lutra_columns *x, int first, int columns, int parts, int part,
                                int32_t middle, int32_t *start) {
    for (int c = 0; c < columns; c++) {
        const int32_t *raw = x->raw + (int64_t)(first + c) * (x->depth / UNIT);
        int32_t *to = start + (int64_t)c * parts;
        if (part == UNIT)
            for (int p = 0; p < parts; p++) to[p] = -middle * raw[p];
        else
            for (int p = 0; p < parts; p++) to[p] = -middle * (raw[2 * p] + raw[2 * p + 1]);
    }
}

INLINE_ void NAME(shifted_tiles)(const NAME(shifted_t) *block, const lutra_columns *x,
                                 const int32_t *sums, int rows, int32_t *start, int64_t *high,
                                 int64_t *out, const int kind) {
    int n_parts = block->groups * block->parts, n_shifts = x->depth / SHARED, width;
    for (int first = 0; first < x->count; first += width) {
        width = round_up(x->count - first, 4);
        if (width > COLUMNS) width = COLUMNS;
        NAME(starts)(x, first, width, n_parts, 4 * block->steps, block->middle, start);
        memset(high, 0, sizeof(int64_t) * (size_t)(width * NAME(ROWS)));
        for (int g = 0; g < block->groups; g += NAME(RUN)) {
            int end = g + NAME(RUN) < block->groups ? g + NAME(RUN) : block->groups;
            for (int c = 0; c < width; c += STRIP) {
                NAME(columns_t) of = {
                    x->packed + (int64_t)first * x->depth + 4 * c,
                    start + (int64_t)c * n_parts,
                    x->shifts + (int64_t)(first + c) * n_shifts,
                    sums + (int64_t)(first + c) * block->groups,
                    width,
                    n_parts,
                    n_shifts,
                    block->groups,
                };
                NAME(strip)(block, &of, g, end, high + c * NAME(ROWS), kind);
            }
        }
        for (int c = 0; c < width && first + c < x->count; c++) {
            int64_t *to = out + (int64_t)(first + c) * rows;
            const int64_t *from = high + c * NAME(ROWS);
            for (int r = 0; r < rows; r++) to[r] = from[r / LANES * LANES + PLACE(r % LANES)];
        }
    }
}

static TARGET void NAME(gemm_shifted)(const lutra_matrix *w, int first, int last,
                                      const lutra_columns *x, lutra_scratch *scratch,
                                      int64_t *out) {
    int rows = last - first, n = NAME(ROWS), group = w->scale ? w->group : BLOCK;
    int part = group % SHARED ? UNIT : SHARED;
    /* half steps are no integers */
    int own = w->scale && (w->zero || w->marks || w->zero_point % 2);
    NAME(shifted_t) block = {0};
    block.groups = (w->scale ? w->k : x->depth) / group;
    block.parts = group / part;
    block.steps = part / 4;
    int64_t numbers = (int64_t)block.groups * n;
    uint8_t *codes = scratch->bytes;
    int64_t *high = (int64_t *)(codes + (int64_t)x->depth * n);
    int32_t *scale = (int32_t *)(high + COLUMNS * n), *zero = scale + numbers;
    int32_t *offset = zero + (own ? numbers : 0), *start = offset + (w->offset ? numbers : 0);
    PACK(w, first, last, x->depth, n, codes);
    block.codes = codes;
    block.scale = scale;
    block.middle = !w->scale ? w->bits ? 1 : 128 : own ? 0 : w->zero_point / 2;
    if (own) block.zero = zero;
    if (w->offset) block.offset = offset;
    for (int r = 0; w->scale && r < n; r++) {
        int64_t row = r < rows ? first + r : last - 1, at = row * block.groups;
        if (w->scale_bytes == 1)
            for (int g = 0; g < block.groups; g++)
                scale[g * n + r] = ((const uint8_t *)w->scale)[at + g];
        else
            for (int g = 0; g < block.groups; g++)
                scale[g * n + r] = ((const uint16_t *)w->scale)[at + g];
        if (own) zeros_of(w, row, n, zero + r);
        if (w->offset)
            for (int g = 0; g < block.groups; g++)
                offset[g * n + r] = w->offset[at + g] * (1 << w->offset_shift);
    }
    if (!w->scale)
        for (int i = 0; i < numbers; i++) scale[i] = 1;
    const int32_t *sums = scratch->group_sums;
#ifndef MACS
    if (kind_of_codes(w->bits) == WIDE) {
        NAME(shifted_tiles)(&block, x, sums, rows, start, high, out, WIDE);
        return;
    }
#endif
#ifdef CHAIN
    if (kind_of_codes(w->bits) == SIX) {
        NAME(shifted_tiles)(&block, x, sums, rows, start, high, out, SIX);
        return;
    }
#endif
    NAME(shifted_tiles)(&block, x, sums, rows, start, high, out, NARROW);
}

#undef INLINE_
