/* Products of few columns in groups with 256-bit vectors, after x86_gemv.h: sums of SHARED
 * activations are shifted as they are, and sums of groups go into 64 bits.
 *
 * A group has up to 256 weights: 256 * 255 * 127 * 2**8 is below 2**31. */

/* The sum of `n` vectors of codes times activations, shifted for each. */
INLINE __m256i NAME(dots_shifted)(const __m256i *w, const int8_t *x, const int32_t *shifts, int n,
                                  int bits) {
    __m256i acc = _mm256_setzero_si256();
    for (int i = 0; i < n; i++) {
        __m256i by = _mm256_set1_epi32(shifts[i]);
#ifdef MACS
        (void)bits;
        __m256i dot = MACS(_mm256_setzero_si256(), w[i], NAME(load)(x + 32 * i));
        acc = _mm256_add_epi32(acc, _mm256_sllv_epi32(dot, by));
#else
        /* pairs of products, at most 2 * 63 * 128, times the power of two, at most 16 * 2**8 */
        __m256i power = _mm256_sllv_epi32(_mm256_set1_epi32(0x10001), by);
        __m256i a = NAME(load)(x + 32 * i), code = w[i];
        if (bits == 8) {
            const __m256i low = _mm256_set1_epi8(15);
            __m256i top = _mm256_and_si256(_mm256_srli_epi16(code, 4), low);
            code = _mm256_and_si256(code, low);
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(top, a),
                                                          _mm256_slli_epi16(power, 4)));
        }
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(code, a), power));
#endif
    }
    return acc;
}

/* Sums of eight units of 16 or 32 from `v` on, shifted; `shifts` are those of the vectors. */
INLINE __m256i NAME(units_shifted)(const __m256i *v, const int32_t *shifts, int unit) {
    if (unit > UNIT) return _mm256_sllv_epi32(NAME(sums8)(v), NAME(load)(shifts));
    __m256i by = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)shifts));
    by = _mm256_permutevar8x32_epi32(by, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    return _mm256_sllv_epi32(NAME(halves8)(v), by);
}

/* acc += a * b, of eight numbers of 32 bits. */
INLINE __m256i NAME(wide)(__m256i acc, __m256i a, __m256i b) {
    __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_add_epi64(acc, _mm256_add_epi64(_mm256_mul_epi32(a, b), odd));
}

INLINE int64_t NAME(sum4)(__m256i v) {
    int64_t four[4];
    _mm256_storeu_si256((__m256i *)four, v);
    return four[0] + four[1] + four[2] + four[3];
}

INLINE int64_t NAME(scale_at)(const lutra_matrix *w, int64_t at) {
    return w->scale_bytes == 1 ? ((const uint8_t *)w->scale)[at] : ((const uint16_t *)w->scale)[at];
}

/* A row's product from the vectors of its units, shifted where units have more than 32. */
static TARGET int64_t NAME(grouped_shifted)(const lutra_matrix *w, int64_t row, const __m256i *v,
                                            int n, int unit, const int32_t *shifts, int32_t *sums,
                                            const int32_t *a) {
    int groups = w->k / w->group, per = w->group / unit;
    int64_t at = row * groups, total = 0, side = 0;
    for (int i = 0; i < n; i += unit == UNIT ? 4 : 8) {
        __m256i s = unit > SHARED ? NAME(sums8)(v + i)
                                  : NAME(units_shifted)(v + i, shifts + i, unit);
        _mm256_store_si256((__m256i *)(sums + (unit == UNIT ? 2 * i : i)), s);
    }
    for (int g = 0; g < groups; g++) {
        int32_t sum = 0;
        for (int i = 0; i < per; i++) sum += sums[g * per + i];
        total += NAME(scale_at)(w, at + g) * (sum - zero_at(w, row, g) * a[g]);
        if (w->offset) side += (int64_t)w->offset[at + g] * a[g];
    }
    return total + side * ((int64_t)1 << w->offset_shift);
}

/* The same where units are groups, and vectors may read on behind the row. */
INLINE int64_t NAME(units_shifted_product)(const lutra_matrix *w, int64_t row, const __m256i *v,
                                           int groups, int unit, const int32_t *shifts,
                                           const int32_t *a) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i total = _mm256_setzero_si256(), side = total;
    int64_t at = row * groups;
    for (int g = 0; g < groups; g += 8) {
        const __m256i *from = unit == UNIT ? v + g / 2 : v + g;
        __m256i sums = unit > SHARED ? NAME(sums8)(from)
                                     : NAME(units_shifted)(from, shifts + (from - v), unit);
        __m256i scale, of = NAME(load)(a + g);
        if (w->scale_bytes == 1)
            scale = _mm256_cvtepu8_epi32(
                _mm_loadl_epi64((const __m128i *)((const uint8_t *)w->scale + at + g)));
        else
            scale = _mm256_cvtepu16_epi32(
                _mm_loadu_si128((const __m128i *)((const uint16_t *)w->scale + at + g)));
        if (g + 8 > groups) {
            __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32(groups - g), places);
            scale = _mm256_and_si256(scale, in);
            of = _mm256_and_si256(of, in);
        }
        sums = _mm256_sub_epi32(sums, _mm256_mullo_epi32(NAME(zeros)(w, row, groups, g), of));
        total = NAME(wide)(total, sums, scale);
        if (w->offset) {
            __m128i eight = _mm_loadu_si128((const __m128i *)(w->offset + at + g));
            side = NAME(wide)(side, of, _mm256_cvtepi16_epi32(eight));
        }
    }
    return NAME(sum4)(total) + NAME(sum4)(side) * ((int64_t)1 << w->offset_shift);
}

INLINE void NAME(rows_shifted)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                               lutra_scratch *scratch, int64_t *out, int rows, const int bits,
                               const int columns) {
    int blocks = x->depth / BLOCK, unit = NAME(unit_of)(w->group);
    int per = unit >= 32 ? BLOCK / unit : 4, n = blocks * per, groups = w->k / w->group;
    int stride = round_up(n, 8);
    __m256i *v = (__m256i *)scratch->bytes;
    int32_t *sums = (int32_t *)(v + columns * stride);
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        for (int b = 0; b < blocks; b++, p += BLOCK * bits / 8) {
            __m256i codes[4];
            NAME(prefetch)(p, BLOCK * bits / 8);
            NAME(unpack)(p, bits, codes);
            for (int c = 0; c < columns; c++) {
                const int8_t *a = x->x + (int64_t)c * x->depth + b * BLOCK;
                const int32_t *by = x->shifts + (int64_t)c * (x->depth / SHARED) + 4 * b;
                __m256i *to = v + c * stride + b * per, none = _mm256_setzero_si256();
                if (per == 1) {
                    to[0] = NAME(dots_shifted)(codes, a, by, 4, bits);
                } else if (per == 2) {
                    to[0] = NAME(dots_shifted)(codes, a, by, 2, bits);
                    to[1] = NAME(dots_shifted)(codes + 2, a + 64, by + 2, 2, bits);
                } else {
                    for (int i = 0; i < 4; i++)
                        to[i] = NAME(dot4)(none, codes + i, a + 32 * i, 1, bits);
                }
            }
        }
        int64_t at = (int64_t)r * groups;
        int units = w->group == unit && at + round_up(groups, 8) <= (int64_t)w->n * groups;
        for (int c = 0; c < columns && c < x->count; c++) {
            const int32_t *a = scratch->group_sums + (int64_t)c * groups;
            const int32_t *by = x->shifts + (int64_t)c * (x->depth / SHARED);
            const __m256i *of = v + c * stride;
            out[(int64_t)c * rows + r] =
                units ? NAME(units_shifted_product)(w, r, of, groups, unit, by, a)
                      : NAME(grouped_shifted)(w, r, of, n, unit, by, sums, a);
        }
    }
}

/* What eight groups of a column have, [columns, groups in eights], zeros behind the last one. */
typedef struct {
    int32_t *shifts, *sums; /* of activations */
    int32_t *middles, *others; /* sums times zero_point, and times other_zero */
    int stride;
} NAME(eights_t);

INLINE NAME(eights_t) NAME(eights)(const lutra_matrix *w, const lutra_columns *x,
                                   lutra_scratch *scratch, int unit, int columns) {
    int groups = w->k / unit, stride = round_up(groups, 8), n = columns * stride;
    int32_t *at = (int32_t *)scratch->bytes;
    NAME(eights_t) e = {at, at + n, at + 2 * n, at + 3 * n, stride};
    memset(at, 0, sizeof *at * 4 * (size_t)n);
    for (int c = 0; c < columns && c < x->count; c++) {
        const int32_t *shifts = x->shifts + (int64_t)c * (x->depth / SHARED);
        const int32_t *sums = scratch->group_sums + (int64_t)c * groups;
        for (int g = 0; g < groups; g++) {
            e.shifts[c * stride + g] = shifts[g * unit / SHARED];
            e.sums[c * stride + g] = sums[g];
            e.middles[c * stride + g] = w->zero_point * sums[g];
            e.others[c * stride + g] = w->other_zero * sums[g];
        }
    }
    return e;
}

/* Products of a factor and eight multiples of `bits` bits from p on, rounded by `half` and shifted
 * (lutra_golden.model.two_levels). */
INLINE __m256i NAME(eight_products)(const uint8_t *p, int bits, int32_t factor, __m256i half,
                                    __m128i shift) {
    __m256i multiple;
    if (bits == 8) {
        multiple = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    } else {
        uint64_t fields = 0x0101010101010101u * ((1u << bits) - 1);
        uint64_t bytes = _pdep_u64(eight_multiples(p, bits), fields);
        multiple = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
    }
    __m256i product = _mm256_mullo_epi32(multiple, _mm256_set1_epi32(factor));
    return _mm256_sra_epi32(_mm256_add_epi32(product, half), shift);
}

/* Eight scales, and eight offsets behind them, of a record of 16 bytes: multiples of six bits and a
 * shift by six. A product's rounding is that of _mm256_mulhrs_epi16, whose factors have signs: those
 * of scales from 2**15 on lack 2**16 times their multiples. */
INLINE __m256i NAME(record16)(const uint8_t *p) {
    const __m256i windows = _mm256_setr_epi8(0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5, 5, 6, 6, 7, 6,
                                             7, 7, 8, 8, 9, 9, 10, 9, 10, 10, 11, 11, 12);
    const __m256i to_top = _mm256_set1_epi64x(0x0100004000100400);
    const __m256i factors = _mm256_setr_epi8(12, 13, 12, 13, 12, 13, 12, 13, 12, 13, 12, 13, 12, 13,
                                             12, 13, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15,
                                             14, 15, 14, 15);
    const __m256i top = _mm256_set1_epi16((int16_t)0xFC00);
    const __m256i of_scales = _mm256_setr_epi64x(-1, -1, 0, 0);
    __m256i record = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    __m256i multiple = _mm256_shuffle_epi8(record, windows);
    multiple = _mm256_and_si256(_mm256_mullo_epi16(multiple, to_top), top);
    __m256i factor = _mm256_shuffle_epi8(record, factors);
    __m256i product = _mm256_mulhrs_epi16(factor, _mm256_srli_epi16(multiple, 1));
    __m256i large = _mm256_and_si256(_mm256_srai_epi16(factor, 15), of_scales);
    return _mm256_add_epi16(product, _mm256_and_si256(large, multiple));
}

/* Rows whose groups are of 16 or 32 weights, eight groups after another; numbers of groups are read
 * in eights. */
INLINE void NAME(rows_eights)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out, int rows, const int bits,
                              const int unit, const int columns) {
    const int per = unit / UNIT, size = BLOCK * bits / 8; /* blocks of eight groups */
    const int offsets = w->offset || w->level_offsets;
    const int record = w->levels ? record_bytes(w) : 0, behind = record ? multiples_bytes(w) : 0;
    const int sixes = record == 16 && w->multiple_bits == 6 && w->level_shift == 6;
    const __m256i half = _mm256_set1_epi32(1 << w->level_shift >> 1);
    const __m128i by = _mm_cvtsi32_si128(w->level_shift);
    NAME(eights_t) e = NAME(eights)(w, x, scratch, unit, columns);
    int blocks = x->depth / BLOCK, groups = w->k / unit;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        int64_t at = (int64_t)r * groups;
        const uint8_t *levels = record ? w->levels + (int64_t)r * (w->k / SUPER) * record : NULL;
        __m256i total[GEMV_COLUMNS], side[GEMV_COLUMNS];
        for (int c = 0; c < columns; c++) total[c] = side[c] = _mm256_setzero_si256();
        for (int g = 0; g < groups; g += 8, at += 8, p += per * size) {
            int block = g / 8 * per, whole = per == 1 || block + 1 < blocks;
            __m256i codes[8], scale, zero, offset;
            NAME(prefetch)(p, per * size);
            NAME(unpack)(p, bits, codes);
            if (per == 2 && whole) NAME(unpack)(p + size, bits, codes + 4);
            if (unit == SHARED && sixes) {
                __m256i both = NAME(record16)(levels);
                scale = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(both));
                offset = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(both, 1));
                levels += record;
            } else if (record) {
                const int width = w->multiple_bits;
                const uint8_t *eight = levels + (g * unit % SUPER ? width : 0);
                scale = NAME(eight_products)(eight, width, scale_factor(w, levels), half, by);
                if (offsets)
                    offset = NAME(eight_products)(eight + behind, width, offset_factor(w, levels),
                                                  half, by);
                if ((g + 8) * unit % SUPER == 0) levels += record;
            } else if (w->scale_bytes == 1)
                scale = _mm256_cvtepu8_epi32(
                    _mm_loadl_epi64((const __m128i *)((const uint8_t *)w->scale + at)));
            else
                scale = _mm256_cvtepu16_epi32(
                    _mm_loadu_si128((const __m128i *)((const uint16_t *)w->scale + at)));
            if (w->zero)
                zero = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(w->zero + at)));
            if (w->offset)
                offset = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(w->offset + at)));
            for (int c = 0; c < columns; c++) {
                const int8_t *a = x->x + (int64_t)c * x->depth + block * BLOCK;
                const int i = c * e.stride + g;
                __m256i v[8], none = _mm256_setzero_si256(), sums;
                for (int j = 0; j < 4; j++)
                    v[j] = NAME(dot4)(none, codes + j, a + 32 * j, 1, bits);
                for (int j = 4; j < 4 * per; j++)
                    v[j] = whole ? NAME(dot4)(none, codes + j, a + 32 * j, 1, bits) : none;
                __m256i low = NAME(fours)(v, bits), high = low;
                if (per == 1) {
                    sums = _mm256_permutevar8x32_epi32(
                        low, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                } else {
                    high = NAME(fours)(v + 4, bits);
                    sums = _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                                            _mm256_permute2x128_si256(low, high, 0x31));
                }
                sums = _mm256_sllv_epi32(sums, NAME(load)(e.shifts + i));
                __m256i middle = NAME(load)(e.middles + i);
                if (w->zero)
                    middle = _mm256_mullo_epi32(zero, NAME(load)(e.sums + i));
                else if (w->marks)
                    middle = NAME(marked)(w, r, groups, g, middle, NAME(load)(e.others + i));
                sums = _mm256_sub_epi32(sums, middle);
                total[c] = NAME(wide)(total[c], sums, scale);
                if (offsets) side[c] = NAME(wide)(side[c], NAME(load)(e.sums + i), offset);
            }
        }
        for (int c = 0; c < columns && c < x->count; c++)
            out[(int64_t)c * rows + r] =
                NAME(sum4)(total[c]) + NAME(sum4)(side[c]) * ((int64_t)1 << w->offset_shift);
    }
}

/* Blocks whose sums fit 32 bits: 16 * 16 * 255 * 127 * 2**8 is below 2**31. */
enum { NAME(CHAINED) = 16 };

/* Rows without groups: ternary, or signed bytes. */
INLINE void NAME(plain_shifted)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                                lutra_scratch *scratch, int64_t *out, const int bits,
                                const int columns) {
    const int size = bits ? BLOCK * bits / 8 : BLOCK;
    int blocks = x->depth / BLOCK, rows = last - first;
    int64_t offset = bits ? 1 : 128;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        __m256i total[GEMV_COLUMNS], acc[GEMV_COLUMNS];
        for (int c = 0; c < columns; c++) total[c] = _mm256_setzero_si256();
        for (int from = 0; from < blocks; from += NAME(CHAINED)) {
            int to = from + NAME(CHAINED) < blocks ? from + NAME(CHAINED) : blocks;
            for (int c = 0; c < columns; c++) acc[c] = _mm256_setzero_si256();
            for (int b = from; b < to; b++, p += size) {
                __m256i codes[4];
                NAME(prefetch)(p, size);
                if (bits)
                    NAME(unpack)(p, bits, codes);
                else
                    NAME(signed_block)(p, w->k - b * BLOCK, codes);
                for (int c = 0; c < columns; c++) {
                    const int8_t *a = x->x + (int64_t)c * x->depth + b * BLOCK;
                    const int32_t *by = x->shifts + (int64_t)c * (x->depth / SHARED) + 4 * b;
                    acc[c] = _mm256_add_epi32(
                        acc[c], NAME(dots_shifted)(codes, a, by, 4, bits ? bits : 8));
                }
            }
            for (int c = 0; c < columns; c++)
                total[c] = NAME(wide)(total[c], acc[c], _mm256_set1_epi32(1));
        }
        for (int c = 0; c < columns && c < x->count; c++)
            out[(int64_t)c * rows + r - first] =
                NAME(sum4)(total[c]) - 2 * offset * scratch->group_sums[c];
    }
}

/* Rows in groups: those whose numbers may be read in eights, and the last ones. */
INLINE void NAME(grouped_rows)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                               lutra_scratch *scratch, int64_t *out, const int bits,
                               const int columns) {
    int end = first, rows = last - first;
    if (w->group == UNIT || w->group == SHARED) {
        int groups = w->k / w->group, over = round_up(groups, 8) - groups;
        end = w->n - (over + groups - 1) / groups;
        end = end < first ? first : end > last ? last : end;
        if (w->group == UNIT)
            NAME(rows_eights)(w, first, end, x, scratch, out - first, rows, bits, UNIT, columns);
        else
            NAME(rows_eights)(w, first, end, x, scratch, out - first, rows, bits, SHARED, columns);
    }
    if (end < last) NAME(rows_shifted)(w, end, last, x, scratch, out - first, rows, bits, columns);
}

#define SHIFTED(suffix, columns)                                                                  \
    static TARGET void NAME(shifted##suffix)(const lutra_matrix *w, int first, int last,          \
                                             const lutra_columns *x, lutra_scratch *s,            \
                                             int64_t *out) {                                      \
        if (!w->bits) NAME(plain_shifted)(w, first, last, x, s, out, 0, columns);                 \
        else if (!w->group) NAME(plain_shifted)(w, first, last, x, s, out, 2, columns);           \
        else if (w->bits == 1) NAME(grouped_rows)(w, first, last, x, s, out, 1, columns);         \
        else if (w->bits == 2) NAME(grouped_rows)(w, first, last, x, s, out, 2, columns);         \
        else if (w->bits == 3) NAME(grouped_rows)(w, first, last, x, s, out, 3, columns);         \
        else if (w->bits == 4) NAME(grouped_rows)(w, first, last, x, s, out, 4, columns);         \
        else if (w->bits == 5) NAME(grouped_rows)(w, first, last, x, s, out, 5, columns);         \
        else if (w->bits == 6) NAME(grouped_rows)(w, first, last, x, s, out, 6, columns);         \
        else NAME(grouped_rows)(w, first, last, x, s, out, 8, columns);                           \
    }

SHIFTED(1, 1)
SHIFTED(2, 2)
SHIFTED(4, 4)
#undef SHIFTED

static TARGET void NAME(gemv_shifted)(const lutra_matrix *w, int first, int last,
                                      const lutra_columns *x, lutra_scratch *scratch,
                                      int64_t *out) {
    if (NAME(bits_product)(w, first, last, x, scratch, out, 1)) return;
    if (x->count == 1)
        NAME(shifted1)(w, first, last, x, scratch, out);
    else if (x->count == 2)
        NAME(shifted2)(w, first, last, x, scratch, out);
    else
        NAME(shifted4)(w, first, last, x, scratch, out);
}
