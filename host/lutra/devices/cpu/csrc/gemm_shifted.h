/* Products of many columns with sums of 64 bits, after gemm.h: the sum of a part of a group, of
 * activations that share a power of two, is shifted, that of a group multiplied into the sums.
 *
 * The including file also defines SHIFT(v, by); PRODUCTS(to, a, b, odd), which adds the LANES
 * products of a and b to `to`, with odd = ODD(b); and PLACE(lane), where a lane's sum is. A group
 * has up to 256 weights: 256 * 255 * 127 * 2**8 is below 2**31. */

#define INLINE_ static inline __attribute__((always_inline)) TARGET

/* What a block of rows is: packed codes, then numbers of groups [groups, ROWS]; zero and offset may
 * be NULL. */
typedef struct {
    const uint8_t *codes;
    const int32_t *scale, *zero, *offset;
    int groups, parts, steps; /* parts of a group, steps of a part */
    int32_t zero_point;       /* of all groups */
    int32_t least;            /* what codes without groups begin with, or 0 */
} NAME(shifted_t);

/* out [columns, ROWS] of a tile, its lanes in their places. `sums` and `middle` [columns, groups]:
 * of the groups' activations, and times the zero point that all groups share. */
INLINE_ void NAME(shifted_tile)(const NAME(shifted_t) *block, const int8_t *x,
                                const int32_t *shifts, int stride, const int32_t *sums,
                                const int32_t *middle, int32_t *low, int64_t *out,
                                const int columns, const int kind) {
    V acc[COLUMNS][2];
    const uint8_t *w = block->codes;
    for (int g = 0, step = 0; g < block->groups; g++) {
        for (int p = 0; p < block->parts; p++, step += block->steps) {
            const int32_t *by = shifts + 4 * step / SHARED;
            UNROLL for (int c = 0; c < columns; c++) acc[c][0] = acc[c][1] = ZERO;
            NAME(steps)(w, x, block->steps, acc, columns, kind);
            w += (int64_t)block->steps * 8 * LANES;
            x += (int64_t)block->steps * 4 * columns;
            UNROLL for (int c = 0; c < columns; c++) {
                V at = SET(by[(int64_t)c * stride]);
                acc[c][0] = SHIFT(acc[c][0], at);
                acc[c][1] = SHIFT(acc[c][1], at);
            }
            if (p)
                UNROLL for (int c = 0; c < columns; c++)
                    UNROLL for (int i = 0; i < 2; i++)
                        acc[c][i] = ADD(acc[c][i], LOAD(low + c * NAME(ROWS) + i * LANES));
            if (p < block->parts - 1)
                UNROLL for (int c = 0; c < columns; c++)
                    UNROLL for (int i = 0; i < 2; i++)
                        STORE(low + c * NAME(ROWS) + i * LANES, acc[c][i]);
        }
        const int32_t *scale = block->scale + g * NAME(ROWS);
        if (block->zero) {
            const int32_t *zero = block->zero + g * NAME(ROWS);
            UNROLL for (int c = 0; c < columns; c++) {
                V a = SET(sums[(int64_t)c * block->groups + g]);
                acc[c][0] = SUB(acc[c][0], MUL(LOAD(zero), a));
                acc[c][1] = SUB(acc[c][1], MUL(LOAD(zero + LANES), a));
            }
        } else {
            UNROLL for (int c = 0; c < columns; c++) {
                V a = SET(middle[(int64_t)c * block->groups + g]);
                acc[c][0] = SUB(acc[c][0], a);
                acc[c][1] = SUB(acc[c][1], a);
            }
        }
        UNROLL for (int i = 0; i < 2; i++) {
            V by = LOAD(scale + i * LANES), odd = ODD(by);
            UNROLL for (int c = 0; c < columns; c++)
                PRODUCTS(out + c * NAME(ROWS) + i * LANES, acc[c][i], by, odd);
        }
        if (!block->offset) continue;
        UNROLL for (int i = 0; i < 2; i++) {
            V by = LOAD(block->offset + g * NAME(ROWS) + i * LANES), odd = ODD(by);
            UNROLL for (int c = 0; c < columns; c++)
                PRODUCTS(out + c * NAME(ROWS) + i * LANES,
                         SET(sums[(int64_t)c * block->groups + g]), by, odd);
        }
    }
}

INLINE_ void NAME(shifted_tiles)(const NAME(shifted_t) *block, const lutra_columns *x,
                                 const int32_t *sums, int rows, int32_t *middle, int32_t *low,
                                 int64_t *high, int64_t *out, const int kind) {
    int width, stride = x->depth / SHARED, groups = block->groups;
    for (int first = 0; first < x->count; first += width) {
        width = round_up(x->count - first, 4);
        if (width > COLUMNS) width = COLUMNS;
        const int8_t *at = x->packed + (int64_t)first * x->depth;
        const int32_t *a = sums + (int64_t)first * (block->least ? 1 : groups);
        const int32_t *shifts = x->shifts + (int64_t)first * stride;
        for (int i = 0; i < width * groups; i++)
            middle[i] = block->least ? 0 : block->zero_point * a[i];
        memset(high, 0, sizeof(int64_t) * (size_t)(width * NAME(ROWS)));
        if (width == COLUMNS)
            NAME(shifted_tile)(block, at, shifts, stride, a, middle, low, high, COLUMNS, kind);
        else if (width == 8)
            NAME(shifted_tile)(block, at, shifts, stride, a, middle, low, high,
                               COLUMNS < 8 ? 4 : 8, kind);
        else
            NAME(shifted_tile)(block, at, shifts, stride, a, middle, low, high, 4, kind);
        for (int c = 0; c < width && first + c < x->count; c++) {
            int64_t *to = out + (int64_t)(first + c) * rows;
            const int64_t *from = high + c * NAME(ROWS);
            int64_t less = 2 * (int64_t)block->least * a[c];
            for (int r = 0; r < rows; r++)
                to[r] = from[r / LANES * LANES + PLACE(r % LANES)] - (block->least ? less : 0);
        }
    }
}

static TARGET void NAME(gemm_shifted)(const lutra_matrix *w, int first, int last,
                                      const lutra_columns *x, lutra_scratch *scratch,
                                      int64_t *out) {
    int rows = last - first, n = NAME(ROWS), group = w->scale ? w->group : BLOCK;
    int part = group % SHARED ? UNIT : SHARED;
    NAME(shifted_t) block = {0};
    block.groups = (w->scale ? w->k : x->depth) / group;
    block.parts = group / part;
    block.steps = part / 4;
    uint8_t *codes = scratch->bytes;
    int64_t *high = (int64_t *)(codes + (int64_t)x->depth * n);
    int32_t *low = (int32_t *)(high + COLUMNS * n), *scale = low + COLUMNS * n;
    int32_t *zero = scale + (int64_t)block.groups * n, *offset = zero + (int64_t)block.groups * n;
    int32_t *middle = offset + (int64_t)block.groups * n;
    PACK(w, first, last, x->depth, n, codes);
    block.codes = codes;
    block.scale = scale;
    block.zero_point = w->zero_point;
    block.least = w->scale ? 0 : w->bits ? 1 : 128;
    if (w->scale) {
        if (w->zero) block.zero = zero;
        if (w->offset) block.offset = offset;
        for (int r = 0; r < n; r++) {
            int64_t at = (int64_t)(r < rows ? first + r : last - 1) * block.groups;
            if (w->scale_bytes == 1)
                for (int g = 0; g < block.groups; g++)
                    scale[g * n + r] = ((const uint8_t *)w->scale)[at + g];
            else
                for (int g = 0; g < block.groups; g++)
                    scale[g * n + r] = ((const uint16_t *)w->scale)[at + g];
            if (w->zero)
                for (int g = 0; g < block.groups; g++) zero[g * n + r] = w->zero[at + g];
            if (w->offset)
                for (int g = 0; g < block.groups; g++)
                    offset[g * n + r] = w->offset[at + g] * (1 << w->offset_shift);
        }
    } else {
        for (int i = 0; i < block.groups * n; i++) scale[i] = 1;
    }
    const int32_t *sums = scratch->group_sums;
#ifndef MACS
    if (w->bits == 0 || w->bits == 8) {
        NAME(shifted_tiles)(&block, x, sums, rows, middle, low, high, out, WIDE);
        return;
    }
#endif
#ifdef CHAIN
    if (w->bits == 6) {
        NAME(shifted_tiles)(&block, x, sums, rows, middle, low, high, out, SIX);
        return;
    }
#endif
    NAME(shifted_tiles)(&block, x, sums, rows, middle, low, high, out, NARROW);
}

#undef INLINE_
