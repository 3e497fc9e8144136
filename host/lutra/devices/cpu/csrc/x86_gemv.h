/* Products of few columns with 256-bit vectors, for the TARGET that includes this.
 *
 * Codes are the unsigned operand of a multiplication, activations the signed one, so codes that
 * mean numbers from -1 or -128 on are put right by the sum of the activations. Where there is no
 * VNNI, sums of 16 bits go into 32 bits before they could pass 32767; MACS is defined where there
 * is. */

#define INLINE static inline __attribute__((always_inline)) TARGET

enum { NAME(PREFETCH) = 4096 };

INLINE __m256i NAME(load)(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* acc += four vectors of codes of `bits` bits times activations. */
INLINE __m256i NAME(dot4)(__m256i acc, const __m256i *w, const int8_t *x, int n, int bits) {
#ifdef MACS
    (void)bits;
    /* two chains, for the instruction has a latency of several cycles */
    __m256i odd = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 2) {
        acc = MACS(acc, w[i], NAME(load)(x + 32 * i));
        if (n > 1) odd = MACS(odd, w[i + 1], NAME(load)(x + 32 * i + 32));
    }
    if (n > 1) acc = _mm256_add_epi32(acc, odd);
#else
    const __m256i one = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    __m256i sum = _mm256_setzero_si256(), high = sum;
    for (int i = 0; i < n; i++) {
        __m256i a = NAME(load)(x + 32 * i);
        if (bits == 8) {
            /* two nibbles: 2 * 4 * 15 * 128 = 15360 */
            __m256i top = _mm256_and_si256(_mm256_srli_epi16(w[i], 4), low);
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_and_si256(w[i], low), a));
            high = _mm256_add_epi16(high, _mm256_maddubs_epi16(top, a));
        } else if (bits == 6) {
            /* 2 * 63 * 128 = 16128, so two of them at most */
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[i], a));
            if (i & 1 || i == n - 1) {
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(sum, one));
                sum = _mm256_setzero_si256();
            }
        } else {
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[i], a));
        }
    }
    if (bits == 6) return acc;
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(sum, one));
    if (bits == 8)
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
#endif
    return acc;
}

/* One plane of a block. */
INLINE void NAME(plane)(const uint8_t *p, int width, __m256i *w) {
    if (width == 4) {
        const __m256i mask = _mm256_set1_epi8(15);
        for (int i = 0; i < 2; i++) {
            __m256i x = NAME(load)(p + 32 * i);
            w[2 * i] = _mm256_and_si256(x, mask);
            w[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
        }
    } else if (width == 2) {
        const __m256i mask = _mm256_set1_epi8(3);
        __m256i x = NAME(load)(p);
        w[0] = _mm256_and_si256(_mm256_srli_epi16(x, 6), mask);
        w[1] = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
        w[2] = _mm256_and_si256(_mm256_srli_epi16(x, 2), mask);
        w[3] = _mm256_and_si256(x, mask);
    } else {
        const __m256i mask = _mm256_set1_epi8(1);
        __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
        for (int i = 0; i < 4; i++) {
            int high = 7 - 2 * i, low = 6 - 2 * i;
            __m256i by = _mm256_setr_epi32(high, high, high, high, low, low, low, low);
            w[i] = _mm256_and_si256(_mm256_srlv_epi32(x, by), mask);
        }
    }
}

/* The 128 codes of a block as four vectors. */
INLINE void NAME(unpack)(const uint8_t *p, int bits, __m256i *w) {
    int low = bits == 3 ? 2 : bits > 4 ? 4 : bits;
    NAME(plane)(p, low, w);
    if (bits == low) return;
    p += BLOCK * low / 8;
    if (bits == 3) {
        __m256i top[4];
        NAME(plane)(p, 1, top);
        for (int i = 0; i < 4; i++) w[i] = _mm256_or_si256(w[i], _mm256_slli_epi16(top[i], low));
        return;
    }
    /* upper bits go to their places before they are cut out */
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 16));
    __m256i top[4];
    if (bits == 5) {
        const __m256i first = _mm256_setr_epi32(3, 3, 3, 3, 2, 2, 2, 2);
        const __m256i second = _mm256_setr_epi32(1, 1, 1, 1, 0, 0, 0, 0);
        __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
        __m256i lower = _mm256_slli_epi16(x, 4);
        top[0] = _mm256_srlv_epi32(x, first);
        top[1] = _mm256_srlv_epi32(x, second);
        top[2] = _mm256_srlv_epi32(lower, first);
        top[3] = _mm256_srlv_epi32(lower, second);
    } else if (bits == 6) {
        __m256i x = NAME(load)(p);
        top[0] = _mm256_srli_epi16(x, 2);
        top[1] = x;
        top[2] = _mm256_slli_epi16(x, 2);
        top[3] = _mm256_slli_epi16(x, 4);
    } else {
        top[1] = NAME(load)(p);
        top[3] = NAME(load)(p + 32);
        top[0] = _mm256_slli_epi16(top[1], 4);
        top[2] = _mm256_slli_epi16(top[3], 4);
    }
    for (int i = 0; i < 4; i++) w[i] = _mm256_or_si256(w[i], _mm256_and_si256(top[i], mask));
}

INLINE void NAME(prefetch)(const uint8_t *p, int n) {
    for (int i = 0; i < n; i += 64) _mm_prefetch((const char *)p + NAME(PREFETCH) + i, _MM_HINT_T0);
}

INLINE int32_t NAME(sum8)(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
}

/* Sums of neighbours in two vectors, of each 128 bits those of `a` first; `fits` if their numbers
 * have 16 bits. */
INLINE __m256i NAME(pairs)(__m256i a, __m256i b, const int fits) {
    if (!fits) return _mm256_hadd_epi32(a, b);
    return _mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(1));
}

/* Of four vectors whose numbers are sums of four codes times activations: 4 * 63 * 127 is below
 * 32768, and so is 8 * 31 * 127. */
INLINE __m256i NAME(fours)(const __m256i *v, const int bits) {
    __m256i a = NAME(pairs)(v[0], v[1], bits <= 6), b = NAME(pairs)(v[2], v[3], bits <= 6);
    return NAME(pairs)(a, b, bits <= 5);
}

/* The eight sums of eight vectors. */
INLINE __m256i NAME(sums8)(const __m256i *v) {
    __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                            _mm256_permute2x128_si256(a, b, 0x31));
}

/* The sums of the halves of four vectors. */
INLINE __m256i NAME(halves8)(const __m256i *v) {
    __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

#define COMBINE(name, type)                                                                     \
    static TARGET int64_t name(const lutra_matrix *w, int64_t row, const int32_t *sums,          \
                               const int32_t *a, int groups) {                                  \
        const type *scale = (const type *)w->scale + row * groups;                              \
        int64_t total = 0;                                                                      \
        if (!w->zero && !w->marks)                                                              \
            for (int g = 0; g < groups; g++)                                                    \
                total += (int64_t)(int32_t)scale[g] * (2 * sums[g] - w->zero_point * a[g]);     \
        else                                                                                    \
            for (int g = 0; g < groups; g++)                                                    \
                total += (int64_t)(int32_t)scale[g] *                                           \
                         (2 * sums[g] - zero_at(w, row, g) * a[g]);                             \
        return total;                                                                           \
    }

COMBINE(NAME(combine8), uint8_t)
COMBINE(NAME(combine16), uint16_t)
#undef COMBINE

/* A row's product from the vectors of its units. */
static TARGET int64_t NAME(grouped)(const lutra_matrix *w, int row, __m256i *v, int n, int unit,
                                    int32_t *sums, const int32_t *a) {
    int groups = w->k / w->group, per = w->group / unit;
    if (unit == UNIT)
        for (int i = 0; i < n; i += 4)
            _mm256_store_si256((__m256i *)(sums + 2 * i), NAME(halves8)(v + i));
    else
        for (int i = 0; i < n; i += 8)
            _mm256_store_si256((__m256i *)(sums + i), NAME(sums8)(v + i));
    if (per > 1)
        for (int g = 0; g < groups; g++) {
            int32_t sum = 0;
            for (int i = 0; i < per; i++) sum += sums[g * per + i];
            sums[g] = sum;
        }
    return w->scale_bytes == 1
               ? NAME(combine8)(w, row, sums, a, groups)
               : NAME(combine16)(w, row, sums, a, groups);
}

/* Of `b` those numbers whose group of eight from g on has a mark, of `a` the others. */
INLINE __m256i NAME(marked)(const lutra_matrix *w, int64_t row, int groups, int g, __m256i a,
                            __m256i b) {
    uint8_t eight = w->marks[row * ((groups + 7) / 8) + g / 8];
#ifdef BLEND
    return BLEND(eight, a, b);
#else
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32(eight), bit);
    return _mm256_blendv_epi8(a, b, _mm256_cmpeq_epi32(set, bit));
#endif
}

/* Zero points of eight groups from g on, a multiple of eight. */
INLINE __m256i NAME(zeros)(const lutra_matrix *w, int64_t row, int groups, int g) {
    const __m256i common = _mm256_set1_epi32(w->zero_point);
    if (w->zero)
        return _mm256_cvtepu16_epi32(
            _mm_loadu_si128((const __m128i *)(w->zero + row * groups + g)));
    if (!w->marks) return common;
    return NAME(marked)(w, row, groups, g, common, _mm256_set1_epi32(w->other_zero));
}

/* The same where units are groups, and vectors may read on behind the row. Zero points are those of
 * the groups, or `one` for all. */
INLINE int64_t NAME(grouped_units)(const lutra_matrix *w, int64_t row, const __m256i *v, int groups,
                                   int unit, const int32_t *a, const int one) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i common = _mm256_set1_epi32(w->zero_point);
    int64_t at = row * groups;
    int narrow = w->shift <= NARROW_SHIFT;
    __m256i total = _mm256_setzero_si256();
    for (int g = 0; g < groups; g += 8) {
        __m256i sums = unit == UNIT ? NAME(halves8)(v + g / 2) : NAME(sums8)(v + g), scale;
        __m256i zero = one ? common : NAME(zeros)(w, row, groups, g);
        __m256i t = _mm256_sub_epi32(_mm256_add_epi32(sums, sums),
                                     _mm256_mullo_epi32(zero, NAME(load)(a + g)));
        if (w->scale_bytes == 1)
            scale = _mm256_cvtepu8_epi32(
                _mm_loadl_epi64((const __m128i *)((const uint8_t *)w->scale + at + g)));
        else
            scale = _mm256_cvtepu16_epi32(
                _mm_loadu_si128((const __m128i *)((const uint16_t *)w->scale + at + g)));
        if (g + 8 > groups)
            t = _mm256_and_si256(t, _mm256_cmpgt_epi32(_mm256_set1_epi32(groups - g), places));
        if (narrow) {
            /* the whole sum fits 32 bits, so what its parts wrap around cancels */
            total = _mm256_add_epi32(total, _mm256_mullo_epi32(t, scale));
        } else {
            __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(t, 32), _mm256_srli_epi64(scale, 32));
            total = _mm256_add_epi64(total, _mm256_add_epi64(_mm256_mul_epi32(t, scale), odd));
        }
    }
    if (narrow) return NAME(sum8)(total);
    int64_t four[4];
    _mm256_storeu_si256((__m256i *)four, total);
    return four[0] + four[1] + four[2] + four[3];
}

static inline int NAME(unit_of)(int group) {
    return group % 128 == 0 ? 128 : group % 64 == 0 ? 64 : group % 32 == 0 ? 32 : 16;
}

INLINE void NAME(rows_grouped)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                               lutra_scratch *scratch, int64_t *out, const int bits,
                               const int columns) {
    int blocks = x->depth / BLOCK, unit = NAME(unit_of)(w->group), rows = last - first;
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
                __m256i *to = v + c * stride + b * per, none = _mm256_setzero_si256();
                if (per == 1) {
                    to[0] = NAME(dot4)(none, codes, a, 4, bits);
                } else if (per == 2) {
                    to[0] = NAME(dot4)(none, codes, a, 2, bits);
                    to[1] = NAME(dot4)(none, codes + 2, a + 64, 2, bits);
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
            __m256i *of = v + c * stride;
            out[(int64_t)c * rows + r - first] =
                !units                 ? NAME(grouped)(w, r, of, n, unit, sums, a)
                : w->zero || w->marks ? NAME(grouped_units)(w, r, of, groups, unit, a, 0)
                                      : NAME(grouped_units)(w, r, of, groups, unit, a, 1);
        }
    }
}

/* Ternary rows: one group, of scale 1. */
INLINE void NAME(rows_ternary)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                               lutra_scratch *scratch, int64_t *out, const int columns) {
    int blocks = x->depth / BLOCK, rows = last - first;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        __m256i acc[GEMV_COLUMNS][4];
        for (int c = 0; c < columns; c++)
            for (int i = 0; i < 4; i++) acc[c][i] = _mm256_setzero_si256();
        for (int b = 0; b < blocks; b++, p += 32) {
            __m256i codes[4];
            NAME(prefetch)(p, 32);
#ifdef MACS
            /* codes stay where they are in their bytes, and the sums are shifted at the end */
            __m256i all = NAME(load)(p);
            for (int i = 0; i < 4; i++)
                codes[i] = _mm256_and_si256(all, _mm256_set1_epi8((char)(3 << (6 - 2 * i))));
            for (int c = 0; c < columns; c++) {
                const int8_t *a = x->x + (int64_t)c * x->depth + b * BLOCK;
                for (int i = 0; i < 4; i++)
                    acc[c][i] = MACS(acc[c][i], codes[i], NAME(load)(a + 32 * i));
            }
#else
            NAME(unpack)(p, 2, codes);
            for (int c = 0; c < columns; c++) {
                const int8_t *a = x->x + (int64_t)c * x->depth + b * BLOCK;
                acc[c][0] = NAME(dot4)(acc[c][0], codes, a, 4, 2);
            }
#endif
        }
        for (int c = 0; c < columns && c < x->count; c++) {
#ifdef MACS
            for (int i = 0; i < 3; i++) acc[c][i] = _mm256_srai_epi32(acc[c][i], 6 - 2 * i);
            acc[c][0] = _mm256_add_epi32(_mm256_add_epi32(acc[c][0], acc[c][1]),
                                         _mm256_add_epi32(acc[c][2], acc[c][3]));
#endif
            int32_t sum = NAME(sum8)(acc[c][0]);
            out[(int64_t)c * rows + r - first] = 2 * (int64_t)(sum - scratch->group_sums[c]);
        }
    }
}

/* Up to a block of signed bytes, 128 added to each, zeros behind them where there are no more. */
INLINE void NAME(signed_block)(const uint8_t *p, int n, __m256i *w) {
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    uint8_t rest[BLOCK];
    if (n < BLOCK) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, p, (size_t)n);
        p = rest;
    }
    for (int i = 0; i < 4; i++) w[i] = _mm256_xor_si256(NAME(load)(p + 32 * i), flip);
}

INLINE void NAME(rows_signed)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out, const int columns) {
    int blocks = x->depth / BLOCK, rows = last - first;
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        __m256i acc[GEMV_COLUMNS][4];
        for (int c = 0; c < columns; c++)
            for (int i = 0; i < 4; i++) acc[c][i] = _mm256_setzero_si256();
        for (int b = 0; b < blocks; b++, p += BLOCK) {
            __m256i codes[4];
            NAME(prefetch)(p, BLOCK);
            NAME(signed_block)(p, w->k - b * BLOCK, codes);
            for (int c = 0; c < columns; c++) {
                const int8_t *a = x->x + (int64_t)c * x->depth + b * BLOCK;
                for (int i = 0; i < 4; i++)
                    acc[c][i] = NAME(dot4)(acc[c][i], codes + i, a + 32 * i, 1, 8);
            }
        }
        for (int c = 0; c < columns && c < x->count; c++) {
            acc[c][0] = _mm256_add_epi32(_mm256_add_epi32(acc[c][0], acc[c][1]),
                                         _mm256_add_epi32(acc[c][2], acc[c][3]));
            int32_t sum = NAME(sum8)(acc[c][0]);
            out[(int64_t)c * rows + r - first] =
                2 * ((int64_t)sum - 128 * (int64_t)scratch->group_sums[c]);
        }
    }
}

#define ROWS(suffix, columns)                                                                     \
    static TARGET void NAME(gemv##suffix)(const lutra_matrix *w, int first, int last,             \
                                          const lutra_columns *x, lutra_scratch *s,               \
                                          int64_t *out) {                                         \
        if (!w->bits) NAME(rows_signed)(w, first, last, x, s, out, columns);                      \
        else if (!w->scale) NAME(rows_ternary)(w, first, last, x, s, out, columns);               \
        else if (w->bits == 1) NAME(rows_grouped)(w, first, last, x, s, out, 1, columns);         \
        else if (w->bits == 2) NAME(rows_grouped)(w, first, last, x, s, out, 2, columns);         \
        else if (w->bits == 3) NAME(rows_grouped)(w, first, last, x, s, out, 3, columns);         \
        else if (w->bits == 4) NAME(rows_grouped)(w, first, last, x, s, out, 4, columns);         \
        else if (w->bits == 5) NAME(rows_grouped)(w, first, last, x, s, out, 5, columns);         \
        else if (w->bits == 6) NAME(rows_grouped)(w, first, last, x, s, out, 6, columns);         \
        else NAME(rows_grouped)(w, first, last, x, s, out, 8, columns);                           \
    }

ROWS(1, 1)
ROWS(2, 2)
ROWS(4, 4)
#undef ROWS

/* x86_bits.h; true if it has the product. */
static TARGET int NAME(bits_product)(const lutra_matrix *w, int first, int last,
                                     const lutra_columns *x, lutra_scratch *scratch, int64_t *out,
                                     int shifted);

static TARGET void NAME(gemv)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out) {
    if (NAME(bits_product)(w, first, last, x, scratch, out, 0)) return;
    if (x->count == 1)
        NAME(gemv1)(w, first, last, x, scratch, out);
    else if (x->count == 2)
        NAME(gemv2)(w, first, last, x, scratch, out);
    else
        NAME(gemv4)(w, first, last, x, scratch, out);
}

/* More columns, GEMV_COLUMNS at a time: the rows stay in a cache. */
static TARGET void NAME(few)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                             lutra_scratch *scratch, int64_t *out) {
    int groups = w->scale ? w->k / w->group : 1;
    lutra_columns some = *x;
    lutra_scratch of = *scratch;
    for (int c = 0; c < x->count; c += GEMV_COLUMNS) {
        some.count = x->count - c < GEMV_COLUMNS ? x->count - c : GEMV_COLUMNS;
        NAME(gemv)(w, first, last, &some, &of, out + (int64_t)c * (last - first));
        columns_skip(&some, GEMV_COLUMNS);
        of.group_sums += (int64_t)GEMV_COLUMNS * groups;
    }
}

/* Blocks of rows whose packed codes are in the nearest cache. */
enum { NAME(PACKED) = 4 };

/* What gemm multiplies by: rows from `first` on, a multiple of eight, [depth / 4, rows, 4]. Those
 * behind the last one repeat it. */
INLINE void NAME(pack_rows)(const lutra_matrix *w, int first, int last, int depth, int rows,
                            uint8_t *out, const int bits) {
    int size = bits ? BLOCK * bits / 8 : BLOCK, blocks = depth / BLOCK;
    for (int from = 0; from < blocks; from += NAME(PACKED))
        for (int r = 0; r < rows; r += 8)
            for (int b = from; b < blocks && b < from + NAME(PACKED); b++) {
                __m256i v[8][4];
                for (int i = 0; i < 8; i++) {
                    int row = first + r + i < last ? first + r + i : last - 1;
                    const uint8_t *p = w->codes + row * w->row_bytes + (int64_t)b * size;
                    if (bits)
                        NAME(unpack)(p, bits, v[i]);
                    else
                        NAME(signed_block)(p, w->k - b * BLOCK, v[i]);
                }
                for (int f = 0; f < 4; f++) {
                    __m256i a[8], c[8];
                    for (int i = 0; i < 4; i++) {
                        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i][f], v[2 * i + 1][f]);
                        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i][f], v[2 * i + 1][f]);
                    }
                    for (int i = 0; i < 8; i += 4)
                        for (int j = 0; j < 2; j++) {
                            c[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + 2 + j]);
                            c[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + 2 + j]);
                        }
                    uint8_t *to = out + ((int64_t)(b * 32 + f * 8) * rows + r) * 4;
                    for (int j = 0; j < 4; j++) {
                        _mm256_storeu_si256((__m256i *)(to + (int64_t)j * rows * 4),
                                            _mm256_permute2x128_si256(c[j], c[4 + j], 0x20));
                        _mm256_storeu_si256((__m256i *)(to + (int64_t)(4 + j) * rows * 4),
                                            _mm256_permute2x128_si256(c[j], c[4 + j], 0x31));
                    }
                }
            }
}

static TARGET void NAME(pack)(const lutra_matrix *w, int first, int last, int depth, int rows,
                              uint8_t *out) {
    switch (w->bits) {
    case 0: NAME(pack_rows)(w, first, last, depth, rows, out, 0); break;
    case 1: NAME(pack_rows)(w, first, last, depth, rows, out, 1); break;
    case 2: NAME(pack_rows)(w, first, last, depth, rows, out, 2); break;
    case 3: NAME(pack_rows)(w, first, last, depth, rows, out, 3); break;
    case 4: NAME(pack_rows)(w, first, last, depth, rows, out, 4); break;
    case 5: NAME(pack_rows)(w, first, last, depth, rows, out, 5); break;
    case 6: NAME(pack_rows)(w, first, last, depth, rows, out, 6); break;
    default: NAME(pack_rows)(w, first, last, depth, rows, out, 8);
    }
}
