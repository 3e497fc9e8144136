/* Products of many columns whose sums fit 32 bits: a register tile of two vectors of rows and up to
 * COLUMNS columns.
 *
 * The including file defines TARGET, NAME, COLUMNS, PACK and, of vectors V of LANES 32-bit numbers,
 * LOAD, STORE, ZERO, SET, ADD, SUB, MUL, and MAC(acc, codes, activations, wide): wide if codes have
 * 8 bits. Where products of bytes are added up in 16 bits it defines instead CHAIN(kind),
 * NIBBLE(codes, high), PAIRS(sum, codes, activations) and WIDEN(acc, sum, high). */

enum { NAME(ROWS) = 2 * LANES };

#define INLINE_ static inline __attribute__((always_inline)) TARGET

#ifdef CHAIN
/* Sums of 16 bits: of products of pairs they stay below 32768 for CHAIN(kind) steps. */
INLINE_ void NAME(steps)(const uint8_t *w, const int8_t *x, int steps, int stride, V (*acc)[2],
                         const int columns, const int kind) {
    for (int done = 0; done < steps; done += CHAIN(kind)) {
        int n = steps - done < CHAIN(kind) ? steps - done : CHAIN(kind);
        /* codes of 8 bits are two nibbles */
        for (int half = 0; half < (kind == WIDE ? 2 : 1); half++) {
            V sum[COLUMNS][2];
            UNROLL for (int c = 0; c < columns; c++) sum[c][0] = sum[c][1] = ZERO;
            for (int s = 0; s < n; s++) {
                V a = LOAD(w + s * 8 * LANES), b = LOAD(w + s * 8 * LANES + 4 * LANES);
                if (kind == WIDE) {
                    a = NIBBLE(a, half);
                    b = NIBBLE(b, half);
                }
                UNROLL for (int c = 0; c < columns; c++) {
                    int32_t four;
                    memcpy(&four, x + 4 * (s * stride + c), 4);
                    V at = SET(four);
                    sum[c][0] = PAIRS(sum[c][0], a, at);
                    sum[c][1] = PAIRS(sum[c][1], b, at);
                }
            }
            UNROLL for (int c = 0; c < columns; c++) {
                acc[c][0] = WIDEN(acc[c][0], sum[c][0], half);
                acc[c][1] = WIDEN(acc[c][1], sum[c][1], half);
            }
        }
        w += n * 8 * LANES;
        x += n * 4 * stride;
    }
}
#else
INLINE_ void NAME(steps)(const uint8_t *w, const int8_t *x, int steps, int stride, V (*acc)[2],
                         const int columns, const int kind) {
    for (int s = 0; s < steps; s++, w += 8 * LANES, x += 4 * stride) {
        V a = LOAD(w), b = LOAD(w + 4 * LANES);
        UNROLL for (int c = 0; c < columns; c++) {
            int32_t four;
            memcpy(&four, x + 4 * c, 4);
            V at = SET(four);
            acc[c][0] = MAC(acc[c][0], a, at, kind == WIDE);
            acc[c][1] = MAC(acc[c][1], b, at, kind == WIDE);
        }
    }
}
#endif

/* What a block of rows is: packed codes, then scales and zero points [groups, ROWS]. */
typedef struct {
    const uint8_t *codes;
    const int32_t *scale, *zero;
    int groups, steps, kind; /* steps of a group */
    int64_t offset;          /* of codes without groups */
} NAME(block_t);

INLINE_ void NAME(tile)(const NAME(block_t) *block, const int8_t *x, const int32_t *sums,
                        int32_t *low, const int columns, const int kind) {
    V acc[COLUMNS][2];
    const uint8_t *w = block->codes;
    for (int g = 0; g < block->groups; g++) {
        UNROLL for (int c = 0; c < columns; c++) acc[c][0] = acc[c][1] = ZERO;
        NAME(steps)(w, x, block->steps, columns, acc, columns, kind);
        w += (int64_t)block->steps * 8 * LANES;
        x += (int64_t)block->steps * 4 * columns;
        if (!block->scale) {
            UNROLL for (int c = 0; c < columns; c++) {
                STORE(low + c * NAME(ROWS), acc[c][0]);
                STORE(low + c * NAME(ROWS) + LANES, acc[c][1]);
            }
            continue;
        }
        const int32_t *scale = block->scale + g * NAME(ROWS), *zero = block->zero + g * NAME(ROWS);
        UNROLL for (int c = 0; c < columns; c++) {
            V a = SET(sums[(int64_t)c * block->groups + g]);
            UNROLL for (int i = 0; i < 2; i++) {
                int32_t *to = low + c * NAME(ROWS) + i * LANES;
                V t = SUB(ADD(acc[c][i], acc[c][i]), MUL(LOAD(zero + i * LANES), a));
                /* the whole sum fits 32 bits, so what its parts wrap around cancels */
                STORE(to, ADD(LOAD(to), MUL(t, LOAD(scale + i * LANES))));
            }
        }
    }
}

INLINE_ void NAME(tiles)(const NAME(block_t) *block, const lutra_columns *x, const int32_t *sums,
                         int rows, int32_t *low, int64_t *out, const int kind) {
    int width;
    for (int first = 0; first < x->count; first += width) {
        width = round_up(x->count - first, 4);
        if (width > COLUMNS) width = COLUMNS;
        const int8_t *at = x->packed + (int64_t)first * x->depth;
        const int32_t *a = sums + (int64_t)first * block->groups;
        memset(low, 0, sizeof(int32_t) * (size_t)(width * NAME(ROWS)));
        if (width == COLUMNS)
            NAME(tile)(block, at, a, low, COLUMNS, kind);
        else if (width == 8)
            NAME(tile)(block, at, a, low, COLUMNS < 8 ? 4 : 8, kind);
        else
            NAME(tile)(block, at, a, low, 4, kind);
        for (int c = 0; c < width && first + c < x->count; c++) {
            int64_t *to = out + (int64_t)(first + c) * rows;
            const int32_t *from = low + c * NAME(ROWS);
            if (!block->scale)
                for (int r = 0; r < rows; r++) to[r] = 2 * (from[r] - block->offset * a[c]);
            else
                for (int r = 0; r < rows; r++) to[r] = from[r];
        }
    }
}

static TARGET void NAME(gemm)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out) {
    NAME(block_t) block = {0};
    int rows = last - first, n = NAME(ROWS);
    block.groups = w->scale ? w->k / w->group : 1;
    block.steps = (w->scale ? w->group : x->depth) / 4;
    block.kind = kind_of_codes(w->bits);
    block.offset = w->bits ? 1 : 128;
    uint8_t *codes = scratch->bytes;
    int32_t *low = (int32_t *)(codes + (int64_t)x->depth * n), *scale = low + COLUMNS * n;
    int32_t *zero = scale + (int64_t)block.groups * n;
    PACK(w, first, last, x->depth, n, codes);
    block.codes = codes;
    if (w->scale) {
        for (int r = 0; r < n; r++) {
            int64_t row = r < rows ? first + r : last - 1, at = row * block.groups;
            for (int g = 0; g < block.groups; g++)
                scale[g * n + r] = w->scale_bytes == 1 ? ((const uint8_t *)w->scale)[at + g]
                                                       : ((const uint16_t *)w->scale)[at + g];
            zeros_of(w, row, n, zero + r);
        }
        block.scale = scale;
        block.zero = zero;
    }
    const int32_t *sums = scratch->group_sums;
#ifndef MACS
    if (block.kind == WIDE) {
        NAME(tiles)(&block, x, sums, rows, low, out, WIDE);
        return;
    }
#endif
#ifdef CHAIN
    if (block.kind == SIX) {
        NAME(tiles)(&block, x, sums, rows, low, out, SIX);
        return;
    }
#endif
    NAME(tiles)(&block, x, sums, rows, low, out, NARROW);
}

#undef INLINE_
