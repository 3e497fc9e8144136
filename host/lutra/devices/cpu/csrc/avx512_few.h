/* Products of a few columns, FEW_COLUMNS at a time, or half of them where no more are left.
 *
 * A vector holds 32 codes of a block and the same 32 of the next one, as the columns are packed, so
 * that rows are neither transposed nor unpacked twice. Only where a row ends with half a pair, the
 * block stands for its neighbour as well, whose activations are zero. */

enum { CHUNK = 16 }; /* pairs of blocks whose activations stay in the first cache */

#define INLINE_ static inline __attribute__((always_inline)) TARGET

INLINE_ __m512i both(const uint8_t *p, int next) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p)),
                              _mm256_loadu_si256((const __m256i *)(p + next)), 1);
}

/* One plane of two blocks, the second one `next` bytes behind the first. */
INLINE_ void pair_plane(const uint8_t *p, int next, int width, __m512i *w) {
    if (width == 4) {
        const __m512i mask = _mm512_set1_epi8(15);
        for (int i = 0; i < 2; i++) {
            __m512i x = both(p + 32 * i, next);
            w[2 * i] = _mm512_and_si512(x, mask);
            w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(x, 4), mask);
        }
    } else if (width == 2) {
        const __m512i mask = _mm512_set1_epi8(3);
        __m512i x = both(p, next);
        w[0] = _mm512_and_si512(_mm512_srli_epi16(x, 6), mask);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(x, 4), mask);
        w[2] = _mm512_and_si512(_mm512_srli_epi16(x, 2), mask);
        w[3] = _mm512_and_si512(x, mask);
    } else {
        const __m512i mask = _mm512_set1_epi8(1);
        __m256i a = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
        __m256i b = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p + next)));
        __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        for (int i = 0; i < 4; i++) {
            int high = 7 - 2 * i, low = 6 - 2 * i;
            __m512i by = _mm512_setr_epi32(high, high, high, high, low, low, low, low, high, high,
                                           high, high, low, low, low, low);
            w[i] = _mm512_and_si512(_mm512_srlv_epi32(x, by), mask);
        }
    }
}

/* The codes of two blocks; of signed bytes, 128 added to each. */
INLINE_ void pair_unpack(const uint8_t *p, int next, int bits, __m512i *w) {
    if (!bits) {
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        for (int i = 0; i < 4; i++) w[i] = _mm512_xor_si512(both(p + 32 * i, next), flip);
        return;
    }
    int low = bits == 3 ? 2 : bits > 4 ? 4 : bits, high = bits - low;
    pair_plane(p, next, low, w);
    if (!high) return;
    __m512i top[4];
    pair_plane(p + BLOCK * low / 8, next, high, top);
    for (int i = 0; i < 4; i++) w[i] = _mm512_or_si512(w[i], _mm512_slli_epi16(top[i], low));
}

/* The sixteen sums of sixteen vectors. */
INLINE_ __m512i sums16(const __m512i *v) {
    __m512i a[8], b[4], c[2];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]),
                                _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
    UNROLL for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(b[2 * i], b[2 * i + 1], 0x88),
                                _mm512_shuffle_i32x4(b[2 * i], b[2 * i + 1], 0xDD));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(c[0], c[1], 0x88),
                            _mm512_shuffle_i32x4(c[0], c[1], 0xDD));
}

/* Sums of rows r and r + 1, of up to FEW_COLUMNS columns, added to out [columns, rows]. */
INLINE_ void store_sums(const __m512i *v, int columns, int two, int64_t *out, int rows) {
    int32_t sums[2 * FEW_COLUMNS];
    _mm512_storeu_si512(sums, sums16(v));
    for (int c = 0; c < columns; c++, out += rows) {
        out[0] += sums[c];
        if (two) out[1] += sums[FEW_COLUMNS + c];
    }
}

/* Rows without groups: ternary, or signed bytes of whole blocks. */
INLINE_ void few_plain(const lutra_matrix *w, int first, int last, const int8_t *x, int columns,
                       int blocks, const int32_t *sums, int64_t *out, const int bits,
                       const int width) {
    const int size = bits ? BLOCK * bits / 8 : BLOCK;
    int pairs = (blocks + 1) / 2, rows = last - first;
    memset(out, 0, sizeof *out * (size_t)columns * (size_t)rows);
    for (int from = 0; from < pairs; from += CHUNK) {
        int to = from + CHUNK < pairs ? from + CHUNK : pairs;
        for (int r = first; r < last; r += 2) {
            const uint8_t *p = w->codes + r * w->row_bytes + (int64_t)from * 2 * size;
            const uint8_t *q = r + 1 < last ? p + w->row_bytes : p;
            const int8_t *a = x + (int64_t)from * 4 * width * 64;
            __m512i acc[2 * FEW_COLUMNS];
            UNROLL for (int i = 0; i < 2 * FEW_COLUMNS; i++) acc[i] = _mm512_setzero_si512();
            for (int i = from; i < to; i++, p += 2 * size, q += 2 * size) {
                int next = 2 * i + 1 < blocks ? size : 0;
                __m512i v[2][4];
                for (int line = 0; line < 2 * size; line += 64) {
                    _mm_prefetch((const char *)p + 4 * w->row_bytes + line, _MM_HINT_T0);
                    _mm_prefetch((const char *)q + 4 * w->row_bytes + line, _MM_HINT_T0);
                }
                pair_unpack(p, next, bits, v[0]);
                pair_unpack(q, next, bits, v[1]);
                UNROLL for (int f = 0; f < 4; f++)
                    UNROLL for (int c = 0; c < width; c++, a += 64) {
                        __m512i at = _mm512_loadu_si512(a);
                        acc[c] = MACS(acc[c], v[0][f], at);
                        acc[FEW_COLUMNS + c] = MACS(acc[FEW_COLUMNS + c], v[1][f], at);
                    }
            }
            store_sums(acc, columns, r + 1 < last, out + r - first, rows);
        }
    }
    int64_t offset = bits ? 1 : 128;
    for (int c = 0; c < columns; c++)
        for (int r = 0; r < rows; r++) {
            int64_t *at = out + (int64_t)c * rows + r;
            *at = 2 * (*at - offset * sums[c]);
        }
}

/* Rows of groups of a multiple of 32, whose whole sums fit 32 bits: what their parts wrap around
 * cancels. `planes` of a group are added up before they are scaled. */
INLINE_ void few_grouped(const lutra_matrix *w, int first, int last, const int8_t *x, int columns,
                         int blocks, const int32_t *sums, int32_t *scale, int64_t *out,
                         const int bits, const int planes, const int width) {
    const int size = BLOCK * bits / 8;
    int pairs = (blocks + 1) / 2, rows = last - first, groups = w->k / w->group;
    int32_t *lower = scale + groups + 16;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        const int8_t *a = x;
        int64_t at = (int64_t)r * groups;
        __m512i total[2 * FEW_COLUMNS];
        for (int g = 0; g < groups; g++) {
            scale[g] = w->scale_bytes == 1 ? ((const uint8_t *)w->scale)[at + g]
                                           : ((const uint16_t *)w->scale)[at + g];
        }
        if (w->zero || w->marks)
            for (int g = 0; g < groups; g++)
                lower[g] = (int32_t)((uint32_t)scale[g] * (uint32_t)zero_at(w, r, g));
        else
            for (int g = 0; g < groups; g++)
                lower[g] = (int32_t)((uint32_t)scale[g] * (uint32_t)w->zero_point);
        UNROLL for (int i = 0; i < 2 * FEW_COLUMNS; i++) total[i] = _mm512_setzero_si512();
        for (int i = 0; i < pairs; i++, p += 2 * size) {
            int next = 2 * i + 1 < blocks ? size : 0;
            __m512i v[4];
            for (int line = 0; line < 2 * size; line += 64)
                _mm_prefetch((const char *)p + 4096 + line, _MM_HINT_T0);
            pair_unpack(p, next, bits, v);
            UNROLL for (int f = 0; f < 4; f += planes) {
                int g = (2 * i * BLOCK + 32 * f) / w->group;
                int h = next ? ((2 * i + 1) * BLOCK + 32 * f) / w->group : g;
                __m512i s = _mm512_inserti64x4(_mm512_set1_epi32(scale[g]),
                                               _mm256_set1_epi32(scale[h]), 1);
                __m512i acc[FEW_COLUMNS];
                UNROLL for (int c = 0; c < width; c++) acc[c] = _mm512_setzero_si512();
                UNROLL for (int j = 0; j < planes; j++)
                    UNROLL for (int c = 0; c < width; c++, a += 64)
                        acc[c] = MACS(acc[c], v[f + j], _mm512_loadu_si512(a));
                UNROLL for (int c = 0; c < width; c++)
                    total[c] = _mm512_add_epi32(total[c], _mm512_mullo_epi32(acc[c], s));
            }
        }
        UNROLL for (int c = 0; c < width; c++) total[c] = _mm512_slli_epi32(total[c], 1);
        for (int g = 0; g < groups; g += 16) {
            __mmask16 in = (__mmask16)(groups - g < 16 ? (1 << (groups - g)) - 1 : 0xFFFF);
            __m512i by = _mm512_maskz_loadu_epi32(in, lower + g);
            for (int c = 0; c < columns; c++) {
                __m512i sum = _mm512_maskz_loadu_epi32(in, sums + (int64_t)c * groups + g);
                total[c] = _mm512_sub_epi32(total[c], _mm512_mullo_epi32(by, sum));
            }
        }
        int32_t done[2 * FEW_COLUMNS];
        _mm512_storeu_si512(done, sums16(total));
        for (int c = 0; c < columns; c++) out[(int64_t)c * rows + r - first] = done[c];
    }
}

#define PLAIN(bits)                                                                               \
    if (columns > FEW_COLUMNS / 2)                                                                \
        few_plain(w, first, last, a, columns, blocks, sums, to, bits, FEW_COLUMNS);               \
    else                                                                                          \
        few_plain(w, first, last, a, columns, blocks, sums, to, bits, FEW_COLUMNS / 2)

#define GROUPED(bits, planes)                                                                     \
    if (columns > FEW_COLUMNS / 2)                                                                \
        few_grouped(w, first, last, a, columns, blocks, sums, scale, to, bits, planes,            \
                    FEW_COLUMNS);                                                                 \
    else                                                                                          \
        few_grouped(w, first, last, a, columns, blocks, sums, scale, to, bits, planes,            \
                    FEW_COLUMNS / 2)

#define FEW_OF(bits)                                                                              \
    static TARGET __attribute__((noinline)) void few_of_##bits(                                   \
        const lutra_matrix *w, int first, int last, const int8_t *a, int columns, int blocks,     \
        const int32_t *sums, int32_t *scale, int64_t *to) {                                       \
        if (w->group % BLOCK == 0) {                                                              \
            GROUPED(bits, 4);                                                                     \
        } else {                                                                                  \
            GROUPED(bits, 1);                                                                     \
        }                                                                                         \
    }

FEW_OF(1)
FEW_OF(2)
FEW_OF(3)
FEW_OF(4)
FEW_OF(5)
FEW_OF(6)
FEW_OF(8)

static TARGET void few_avx512(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out) {
    int blocks = x->depth / BLOCK, groups = w->scale ? w->k / w->group : 1;
    if ((w->scale && (w->group % 32 || w->shift > NARROW_SHIFT)) || (!w->bits && w->k % BLOCK)) {
        few_avx512vl(w, first, last, x, scratch, out);
        return;
    }
    for (int c = 0; c < x->count; c += FEW_COLUMNS) {
        int columns = x->count - c < FEW_COLUMNS ? x->count - c : FEW_COLUMNS;
        const int8_t *a = x->packed + (int64_t)c * round_up(x->depth, 2 * BLOCK);
        const int32_t *sums = scratch->group_sums + (int64_t)c * groups;
        int64_t *to = out + (int64_t)c * (last - first);
        int32_t *scale = (int32_t *)scratch->bytes;
        if (!w->bits) {
            PLAIN(0);
        } else if (!w->scale) {
            PLAIN(2);
        } else {
            switch (w->bits) {
            case 1: few_of_1(w, first, last, a, columns, blocks, sums, scale, to); break;
            case 2: few_of_2(w, first, last, a, columns, blocks, sums, scale, to); break;
            case 3: few_of_3(w, first, last, a, columns, blocks, sums, scale, to); break;
            case 4: few_of_4(w, first, last, a, columns, blocks, sums, scale, to); break;
            case 5: few_of_5(w, first, last, a, columns, blocks, sums, scale, to); break;
            case 6: few_of_6(w, first, last, a, columns, blocks, sums, scale, to); break;
            default: few_of_8(w, first, last, a, columns, blocks, sums, scale, to);
            }
        }
    }
}

#undef PLAIN
#undef GROUPED
#undef FEW_OF
#undef INLINE_
