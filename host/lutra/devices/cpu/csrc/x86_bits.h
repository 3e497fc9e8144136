/* Products of few columns with codes of one and two bits whose groups share a zero point, with
 * 256-bit vectors, after x86_shifted.h: they are bound by arithmetic where more bits are by memory.
 *
 * Sums stay in their lanes until there are eight groups of a row, which are scaled at once. Codes of
 * one bit are taken from two blocks side by side, so a half of a vector is of one group, and columns
 * are as `pairs` has them; a code then is not 1 but the power of two that its activations share.
 * Codes of two bits have no room for that: activations in groups are two digits, 128 * high + low. */

enum { NAME(SIDE) = 2 };

/* Groups of eight that the lanes of a vector have; bytes and words are those of their scales. */
typedef struct {
    __m256i lanes;
    __m128i bytes, words;
} NAME(places_t);

INLINE NAME(places_t) NAME(places)(const int *at) {
    NAME(places_t) out;
    uint8_t bytes[16], words[16];
    int32_t lanes[8];
    for (int i = 0; i < 8; i++) {
        lanes[i] = at[i];
        bytes[i] = (uint8_t)at[i];
        bytes[8 + i] = 0x80;
        words[2 * i] = (uint8_t)(2 * at[i]);
        words[2 * i + 1] = (uint8_t)(2 * at[i] + 1);
    }
    out.lanes = NAME(load)(lanes);
    out.bytes = _mm_loadu_si128((const __m128i *)bytes);
    out.words = _mm_loadu_si128((const __m128i *)words);
    return out;
}

/* The sums of the lower halves of four vectors, then those of their upper halves. */
INLINE __m256i NAME(half_sums)(const __m256i *v) {
    __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi64(v[0], v[1]),
                                 _mm256_unpackhi_epi64(v[0], v[1]));
    __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi64(v[2], v[3]),
                                 _mm256_unpackhi_epi64(v[2], v[3]));
    __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)),
                            _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xDD)));
}

/* The sums of eight vectors. */
INLINE __m256i NAME(whole_sums)(const __m256i *v) {
    __m256i both[4];
    UNROLL for (int i = 0; i < 4; i++)
        both[i] = _mm256_add_epi32(_mm256_blend_epi32(v[i], v[i + 4], 0xF0),
                                   _mm256_permute2x128_si256(v[i], v[i + 4], 0x21));
    return NAME(half_sums)(both);
}

/* The scales of eight groups from `at` on; those behind the `left` that a row has are 0. */
INLINE __m256i NAME(scales8)(const lutra_matrix *w, int64_t at, int left,
                             const NAME(places_t) *places) {
    uint8_t rest[16] = {0};
    const uint8_t *from = (const uint8_t *)w->scale + at * w->scale_bytes;
    if (left < 8) {
        memcpy(rest, from, (size_t)left * (size_t)w->scale_bytes);
        from = rest;
    }
    if (w->scale_bytes == 1) {
        __m128i eight = _mm_loadl_epi64((const __m128i *)from);
        return _mm256_cvtepu8_epi32(places ? _mm_shuffle_epi8(eight, places->bytes) : eight);
    }
    __m128i eight = _mm_loadu_si128((const __m128i *)from);
    return _mm256_cvtepu16_epi32(places ? _mm_shuffle_epi8(eight, places->words) : eight);
}

/* total += scale * (2 * sums - zero * a), in 32 bits if they hold the whole sum, else in 64. */
INLINE __m256i NAME(scaled8)(__m256i total, __m256i sums, __m256i scale, __m256i zero,
                             const int32_t *a, const NAME(places_t) *places, int narrow) {
    __m256i of = NAME(load)(a);
    if (places) of = _mm256_permutevar8x32_epi32(of, places->lanes);
    sums = _mm256_sub_epi32(_mm256_add_epi32(sums, sums), _mm256_mullo_epi32(zero, of));
    if (narrow) return _mm256_add_epi32(total, _mm256_mullo_epi32(sums, scale));
    return NAME(wide)(total, sums, scale);
}

/* Codes times activations, added to sums that widened() makes 32 bits of. */
INLINE __m256i NAME(added)(__m256i sum, __m256i codes, const int8_t *x) {
#ifdef MACS
    return MACS(sum, codes, NAME(load)(x));
#else
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, NAME(load)(x)));
#endif
}

/* `power` has a power of two in each byte, the same in those of a lane. */
INLINE __m256i NAME(widened)(__m256i sum, __m256i power) {
#ifdef MACS
    (void)power;
    return sum;
#else
    return _mm256_madd_epi16(sum, _mm256_and_si256(power, _mm256_set1_epi16(255)));
#endif
}

/* v [columns, n] from `first` on += two blocks of one bit, of which the latter may not be there. */
INLINE void NAME(one_bit)(const uint8_t *p, int both, const lutra_columns *x, int pair,
                          __m256i (*v)[4], const int first, const int n, const int columns,
                          const int shifted) {
    int64_t stride = columns_depth(x);
    const int8_t *a = x->pairs + (int64_t)pair * 2 * BLOCK;
    const uint8_t *powers = x->powers + (int64_t)pair * BLOCK;
    const __m256i one = _mm256_set1_epi8(1);
#ifdef MACS
    const int parts = n;
#else
    const int parts = shifted ? 4 : n;
#endif
    __m256i all = both ? NAME(load)(p)
                       : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p));
    __m256i sum[GEMV_COLUMNS][4];
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int i = 0; i < parts; i++) sum[c][i] = _mm256_setzero_si256();
    UNROLL for (int f = 0; f < 8; f++) {
        const int to = f * parts / 8;
        __m256i code = _mm256_and_si256(_mm256_srli_epi16(all, 7 - f), one);
        UNROLL for (int c = 0; c < columns; c++) {
#ifdef MACS
            if (shifted)
                code = SELECT(all, _mm256_set1_epi8((char)(1 << (7 - f))),
                              NAME(load)(powers + c * stride / 2 + 32 * (f / 2)));
#endif
            sum[c][to] = NAME(added)(sum[c][to], code, a + c * stride + 32 * f);
        }
    }
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int i = 0; i < parts; i++) {
            __m256i power = shifted ? NAME(load)(powers + c * stride / 2 + 32 * i) : one;
            __m256i *to = &v[c][first + i * n / parts];
            *to = _mm256_add_epi32(*to, NAME(widened)(sum[c][i], power));
        }
}

/* Rows of one bit in groups of BLOCK / n. */
INLINE void NAME(rows_of_1)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                            const int32_t *a, int64_t *out, const int n, const int columns,
                            const int shifted) {
    static const int halves[2][8] = {{0, 2, 4, 6, 1, 3, 5, 7}, {0, 1, 4, 5, 2, 3, 6, 7}};
    const int step = 4 / n;
    const NAME(places_t) some = NAME(places)(halves[n > 1]), *places = n < 4 ? &some : NULL;
    const __m256i zero = _mm256_set1_epi32(w->zero_point);
    int blocks = x->depth / BLOCK, groups = w->k / w->group, rows = last - first;
    int narrow = !shifted && w->shift <= NARROW_SHIFT;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        int64_t at = (int64_t)r * groups;
        __m256i total[GEMV_COLUMNS];
        UNROLL for (int c = 0; c < columns; c++) total[c] = _mm256_setzero_si256();
        for (int pair = 0, g = 0; 2 * pair < blocks; pair += step, g += 8) {
            __m256i v[GEMV_COLUMNS][4];
            NAME(prefetch)(p + (int64_t)pair * 32, 32 * step);
            UNROLL for (int c = 0; c < columns; c++)
                UNROLL for (int i = 0; i < 4; i++) v[c][i] = _mm256_setzero_si256();
            UNROLL for (int i = 0; i < step; i++) {
                int b = 2 * (pair + i);
                if (b < blocks)
                    NAME(one_bit)(p + 16 * (int64_t)b, b + 1 < blocks, x, pair + i, v, i * n, n,
                                  columns, shifted);
            }
            __m256i scale = NAME(scales8)(w, at + g, groups - g, places);
            UNROLL for (int c = 0; c < columns; c++)
                total[c] = NAME(scaled8)(total[c], NAME(half_sums)(v[c]), scale, zero,
                                         a + (int64_t)c * groups + g, places, narrow);
        }
        for (int c = 0; c < columns && c < x->count; c++)
            out[(int64_t)c * rows + r - first] =
                narrow ? NAME(sum8)(total[c]) : NAME(sum4)(total[c]);
    }
}

/* v [columns, n] from `first` on of a block of two bits. */
INLINE void NAME(two_bits)(const uint8_t *p, const lutra_columns *x, int block, __m256i (*v)[8],
                           const int first, const int n, const int columns, const int shifted) {
    const __m256i three = _mm256_set1_epi8(3), one = _mm256_set1_epi8(1);
    const __m256i high = _mm256_set1_epi8((char)128);
    const int digits = shifted ? 2 : 1;
    int64_t stride = columns_depth(x);
    const int8_t *a = x->digits + (int64_t)block * BLOCK;
    __m256i all = NAME(load)(p), sum[GEMV_COLUMNS][2][4];
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int d = 0; d < digits; d++)
            UNROLL for (int i = 0; i < n; i++) sum[c][d][i] = _mm256_setzero_si256();
    UNROLL for (int f = 0; f < 4; f++) {
        __m256i code = _mm256_and_si256(_mm256_srli_epi16(all, 6 - 2 * f), three);
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int d = 0; d < digits; d++)
                sum[c][d][f * n / 4] = NAME(added)(sum[c][d][f * n / 4], code,
                                                   a + (2 * c + d) * stride + 32 * f);
    }
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int i = 0; i < n; i++) {
            __m256i low = NAME(widened)(sum[c][digits - 1][i], one);
            if (shifted) {
                __m256i top = NAME(widened)(sum[c][0][i], high);
#ifdef MACS
                top = _mm256_slli_epi32(top, 7);
#endif
                low = _mm256_add_epi32(low, top);
            }
            v[c][first + i] = low;
        }
}

/* Rows of two bits in groups of BLOCK / n. */
INLINE void NAME(rows_of_2)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                            const int32_t *a, int64_t *out, const int n, const int columns,
                            const int shifted) {
    const __m256i zero = _mm256_set1_epi32(w->zero_point);
    int blocks = x->depth / BLOCK, groups = w->k / w->group, rows = last - first;
    int narrow = !shifted && w->shift <= NARROW_SHIFT;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        int64_t at = (int64_t)r * groups;
        __m256i total[GEMV_COLUMNS];
        UNROLL for (int c = 0; c < columns; c++) total[c] = _mm256_setzero_si256();
        for (int b = 0, g = 0; b < blocks; b += 8 / n, g += 8) {
            __m256i v[GEMV_COLUMNS][8];
            NAME(prefetch)(p + (int64_t)b * 32, 32 * 8 / n);
            UNROLL for (int c = 0; c < columns; c++)
                UNROLL for (int i = 0; i < 8; i++) v[c][i] = _mm256_setzero_si256();
            UNROLL for (int i = 0; i < 8 / n; i++)
                if (b + i < blocks)
                    NAME(two_bits)(p + 32 * (int64_t)(b + i), x, b + i, v, i * n, n, columns,
                                   shifted);
            __m256i scale = NAME(scales8)(w, at + g, groups - g, NULL);
            UNROLL for (int c = 0; c < columns; c++)
                total[c] = NAME(scaled8)(total[c], NAME(whole_sums)(v[c]), scale, zero,
                                         a + (int64_t)c * groups + g, NULL, narrow);
        }
        for (int c = 0; c < columns && c < x->count; c++)
            out[(int64_t)c * rows + r - first] =
                narrow ? NAME(sum8)(total[c]) : NAME(sum4)(total[c]);
    }
}

#define ROWS_OF(bits, columns, shifted)                                                           \
    static TARGET __attribute__((noinline)) void NAME(rows_##bits##_##columns##_##shifted)(       \
        const lutra_matrix *w, int first, int last, const lutra_columns *x, const int32_t *a,     \
        int64_t *out) {                                                                           \
        if (w->group == BLOCK)                                                                    \
            NAME(rows_of_##bits)(w, first, last, x, a, out, 1, columns, shifted);                 \
        else if (w->group == BLOCK / 2)                                                           \
            NAME(rows_of_##bits)(w, first, last, x, a, out, 2, columns, shifted);                 \
        else                                                                                      \
            NAME(rows_of_##bits)(w, first, last, x, a, out, 4, columns, shifted);                 \
    }

ROWS_OF(1, 1, 0)
ROWS_OF(1, 4, 0)
ROWS_OF(1, 1, 1)
ROWS_OF(1, 4, 1)
ROWS_OF(2, 1, 0)
ROWS_OF(2, 4, 0)
ROWS_OF(2, 1, 1)
ROWS_OF(2, 4, 1)
#undef ROWS_OF

/* True if there is a product for the matrix, which is made then. */
static TARGET int NAME(bits_product)(const lutra_matrix *w, int first, int last,
                                     const lutra_columns *x, lutra_scratch *scratch, int64_t *out,
                                     int shifted) {
    const int32_t *a = scratch->group_sums;
    if (w->bits < 1 || w->bits > 2 || !(x->fields & w->bits) || x->side != NAME(SIDE)) return 0;
    if (!w->scale || w->zero || w->marks || (shifted && w->offset)) return 0;
    if (w->group != BLOCK / 4 && w->group != BLOCK / 2 && w->group != BLOCK) return 0;
    if (w->bits == 1 && shifted)
        (x->count == 1 ? NAME(rows_1_1_1) : NAME(rows_1_4_1))(w, first, last, x, a, out);
    else if (w->bits == 1)
        (x->count == 1 ? NAME(rows_1_1_0) : NAME(rows_1_4_0))(w, first, last, x, a, out);
    else if (shifted)
        (x->count == 1 ? NAME(rows_2_1_1) : NAME(rows_2_4_1))(w, first, last, x, a, out);
    else
        (x->count == 1 ? NAME(rows_2_1_0) : NAME(rows_2_4_0))(w, first, last, x, a, out);
    return 1;
}
