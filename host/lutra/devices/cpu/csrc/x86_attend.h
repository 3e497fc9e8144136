/* Dot products of attention with VNNI: MACS(acc, unsigned, signed) of vectors V of LANES 32-bit
 * numbers, with LOAD, STORE, SET, XOR, ZERO. */

#define INLINE_ static inline __attribute__((always_inline)) TARGET

INLINE_ void NAME(key_dots_of)(const int8_t *keys, int blocks, const int8_t *const *q,
                               const int32_t *sums, int head_dim, int32_t *dot, int64_t stride,
                               const int count) {
    int32_t offset[QUERIES];
    const V flip = SET((int32_t)0x80808080);
    for (int c = 0; c < count; c++) offset[c] = -128 * sums[c];
    for (int b = 0; b < blocks; b++, keys += KEY_BLOCK * head_dim)
        for (int first = 0; first < KEY_BLOCK; first += LANES) {
            V acc[QUERIES];
            UNROLL for (int c = 0; c < count; c++) acc[c] = SET(offset[c]);
            for (int i = 0; i < head_dim / 4; i++) {
                V k = XOR(LOAD(keys + (i * KEY_BLOCK + first) * 4), flip);
                UNROLL for (int c = 0; c < count; c++) {
                    int32_t four;
                    memcpy(&four, q[c] + 4 * i, 4);
                    acc[c] = MACS(acc[c], k, SET(four));
                }
            }
            for (int c = 0; c < count; c++) STORE(dot + c * stride + b * KEY_BLOCK + first, acc[c]);
        }
}

static TARGET void NAME(key_dots)(const int8_t *keys, int blocks, const int8_t *const *q,
                                  const int32_t *sums, int count, int head_dim, int32_t *dot,
                                  int64_t stride) {
    switch (count) {
    case 1: NAME(key_dots_of)(keys, blocks, q, sums, head_dim, dot, stride, 1); break;
    case 2: NAME(key_dots_of)(keys, blocks, q, sums, head_dim, dot, stride, 2); break;
    case 3: NAME(key_dots_of)(keys, blocks, q, sums, head_dim, dot, stride, 3); break;
    default: NAME(key_dots_of)(keys, blocks, q, sums, head_dim, dot, stride, 4);
    }
}

INLINE_ void NAME(value_sums_of)(const int8_t *const *pages, int per, int skip, int blocks,
                                 const uint16_t *const *w, int head_dim, int64_t *acc,
                                 const int count) {
    /* high and low bytes of the weights of a block's positions */
    int32_t low[QUERIES][VALUE_BLOCKS], high[QUERIES][VALUE_BLOCKS];
    for (int c = 0; c < count; c++)
        for (int b = 0; b < blocks; b++) {
            const uint16_t *x = w[c] + b * VALUE_BLOCK;
            uint32_t l = 0, h = 0;
            for (int i = 0; i < VALUE_BLOCK; i++) {
                l |= (uint32_t)(x[i] & 255) << 8 * i;
                h |= (uint32_t)(x[i] >> 8) << 8 * i;
            }
            low[c][b] = (int32_t)l;
            high[c][b] = (int32_t)h;
        }
    for (int first = 0; first < head_dim; first += LANES) {
        V l[QUERIES], h[QUERIES];
        UNROLL for (int c = 0; c < count; c++) l[c] = h[c] = ZERO;
        for (int b = 0, page = 0, in = skip; b < blocks; page++, in = 0) {
            const int8_t *at = pages[page] + ((int64_t)in * head_dim + first) * VALUE_BLOCK;
            int end = b + per - in < blocks ? b + per - in : blocks;
            for (; b < end; b++, at += head_dim * VALUE_BLOCK) {
                V v = LOAD(at);
                UNROLL for (int c = 0; c < count; c++) {
                    l[c] = MACS(l[c], SET(low[c][b]), v);
                    h[c] = MACS(h[c], SET(high[c][b]), v);
                }
            }
        }
        for (int c = 0; c < count; c++) {
            int32_t a[LANES], b[LANES];
            STORE(a, l[c]);
            STORE(b, h[c]);
            for (int i = 0; i < LANES; i++)
                acc[c * head_dim + first + i] += a[i] + 256 * (int64_t)b[i];
        }
    }
}

static TARGET void NAME(value_sums)(const int8_t *const *pages, int per, int skip, int blocks,
                                    const uint16_t *const *w, int count, int head_dim,
                                    int64_t *acc) {
    switch (count) {
    case 1: NAME(value_sums_of)(pages, per, skip, blocks, w, head_dim, acc, 1); break;
    case 2: NAME(value_sums_of)(pages, per, skip, blocks, w, head_dim, acc, 2); break;
    case 3: NAME(value_sums_of)(pages, per, skip, blocks, w, head_dim, acc, 3); break;
    default: NAME(value_sums_of)(pages, per, skip, blocks, w, head_dim, acc, 4);
    }
}

#undef INLINE_
