/* Products of activations in groups with matrices of three bits and more in strips, with 512-bit
 * vectors: any number of columns.
 *
 * A lane is a row, as in avx512_strips.h. A run of a strip's columns is unpacked into a cache, codes
 * as bytes and numbers of groups as 32 bits, and multiplied with TOGETHER columns of activations at a
 * time, whose sums stay in registers for the run. */

/* Columns of a run: as many as leave room for the next one, which is asked for meanwhile. */
enum { NAME(TOGETHER) = 4, NAME(SHORT_RUN) = 128, NAME(LONG_RUN) = 256 };
/* Columns that are multiplied with codes as they are unpacked, in runs of so many columns, and how
 * many bytes ahead those are asked for. */
enum { NAME(ALONE) = 2, NAME(ALONE_RUN) = 512, NAME(EARLY) = 8192, NAME(EARLY_NUMBERS) = 2048 };

/* A run: codes [columns / 4, STRIP, 4], or as they lie in memory, and numbers [groups, STRIP]. Zero points are NULL where all
 * groups have `middle`, half of it. `ahead` are the next run's codes, of so many lines a group. */
typedef struct {
    const uint8_t *codes;
    int32_t *scale, *zero, *offset;
    int32_t middle;
    const uint8_t *ahead;
    int lines, first, groups, parts; /* first group, groups of the run, parts of a group */
} NAME(run_t);

/* Bits of codes 32 f + 4 j to 32 f + 4 j + 3 of a block in a plane of `width` bits: which four bytes
 * have them, and where. */
INLINE int NAME(four_of)(const int width, const int f, const int j) {
    return width == 4 ? f / 2 * 8 + j : width == 2 ? j : j % 4;
}

INLINE int NAME(lift_of)(const int width, const int f, const int j) {
    return width == 4 ? f % 2 * 4 : width == 2 ? 6 - 2 * f : 7 - 2 * f - j / 4;
}

INLINE __m512i NAME(down512)(__m512i v, const int by) {
    return by > 0   ? _mm512_srli_epi16(v, (unsigned)by)
           : by < 0 ? _mm512_slli_epi16(v, (unsigned)-by)
                    : v;
}

/* Those codes of sixteen rows, whose first four bytes of the block are at p. */
INLINE __m512i NAME(four_codes)(const uint8_t *p, const int bits, const int f, const int j) {
    const int low = bits == 3 ? 2 : 4, high = bits - low;
    const __m512i lower = _mm512_set1_epi8((char)((1 << low) - 1));
    const __m512i upper = _mm512_set1_epi8((char)((1 << bits) - (1 << low)));
    __m512i v = NAME(down512)(NAME(load512)(p + NAME(four_of)(low, f, j) * STRIP * 4),
                              NAME(lift_of)(low, f, j));
    if (!high) return _mm512_and_si512(v, lower);
    const int at = 4 * low + NAME(four_of)(high, f, j);
    __m512i top = NAME(down512)(NAME(load512)(p + at * STRIP * 4), NAME(lift_of)(high, f, j) - low);
    /* v and lower, or top */
    return _mm512_ternarylogic_epi32(v, lower, _mm512_and_si512(top, upper), 0xEA);
}

INLINE void NAME(unpack_run)(const uint8_t *p, int blocks, uint8_t *out, const int bits) {
    for (int b = 0; b < blocks; b++, p += BLOCK * bits / 8 * STRIP, out += BLOCK * STRIP) {
        UNROLL for (int f = 0; f < NAME(PARTS); f += 2) {
            UNROLL for (int j = 0; j < 8; j++)
                UNROLL for (int t = 0; t < NAME(TILES); t++) {
                    /* both of a byte's halves at once */
                    __m512i a = NAME(four_codes)(p + 64 * t, bits, f, j);
                    __m512i b = NAME(four_codes)(p + 64 * t, bits, f + 1, j);
                    _mm512_store_si512(out + (8 * f + j) * STRIP * 4 + 64 * t, a);
                    _mm512_store_si512(out + (8 * f + 8 + j) * STRIP * 4 + 64 * t, b);
                }
        }
    }
}

/* Multiples of `bits` bits of a group of STRIP rows, 16 bits each; p is the first word of a record,
 * `at` the group's place in it. */
INLINE __m512i NAME(multiples)(const uint16_t *p, int bits, int at) {
    int word = at * bits / 16, first = at * bits % 16;
    __m512i v = NAME(load512)(p + word * STRIP);
    v = _mm512_srl_epi16(v, _mm_cvtsi32_si128(first));
    if (first + bits > 16) {
        __m512i next = NAME(load512)(p + (word + 1) * STRIP);
        v = _mm512_or_si512(v, _mm512_sll_epi16(next, _mm_cvtsi32_si128(16 - first)));
    }
    return _mm512_and_si512(v, _mm512_set1_epi16((int16_t)((1 << bits) - 1)));
}

INLINE __m256i NAME(half512)(__m512i v, const int t) {
    return t ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v);
}

/* Scales of groups of a record in two levels, or offsets: multiples from p on times factors. */
INLINE void NAME(record_numbers)(const lutra_matrix *w, const uint16_t *p, const uint16_t *factors,
                                 int first, int last, int32_t *to, const int side) {
    const __m512i half = _mm512_set1_epi32(1 << w->level_shift >> 1);
    const __m128i by = _mm_cvtsi32_si128(w->level_shift);
    const __m128i up = _mm_cvtsi32_si128(side ? w->offset_shift : 0);
    __m512i factor[NAME(TILES)];
    UNROLL for (int t = 0; t < NAME(TILES); t++) {
        __m256i raw = _mm256_loadu_si256((const __m256i *)(factors + 16 * t));
        factor[t] = side ? _mm512_cvtepi16_epi32(raw) : _mm512_cvtepu16_epi32(raw);
    }
    for (int g = first; g < last; g++, to += STRIP) {
        __m512i multiple = NAME(multiples)(p, w->multiple_bits, g);
        UNROLL for (int t = 0; t < NAME(TILES); t++) {
            __m512i of = _mm512_cvtepu16_epi32(NAME(half512)(multiple, t));
            __m512i product = _mm512_add_epi32(_mm512_mullo_epi32(of, factor[t]), half);
            product = _mm512_sra_epi32(product, by);
            if (side) product = _mm512_sll_epi32(product, up);
            _mm512_store_si512(to + 16 * t, product);
        }
    }
}

/* Scales, and offsets if there are any, of a matrix in two levels (lutra_golden.model.two_levels). */
static TARGET void NAME(run_levels)(const lutra_matrix *w, int strip, NAME(run_t) *run) {
    const int words = record_bytes(w) / 2, part = multiples_bytes(w) / 2;
    const int per = SUPER / w->group, sides = 1 + w->level_offsets;
    const uint16_t *records = (const uint16_t *)w->levels + (int64_t)strip * (w->k / SUPER) * words;
    for (int g = 0, last; g < run->groups; g = last) {
        int group = run->first + g, in = group % per;
        const uint16_t *record = records + (int64_t)(group / per) * words * STRIP;
        const uint16_t *factors = record + sides * part * STRIP;
        last = g + per - in < run->groups ? g + per - in : run->groups;
        for (int i = 0; i < words; i++)
            _mm_prefetch((const char *)record + NAME(EARLY_NUMBERS) + 64 * i, _MM_HINT_T1);
        NAME(record_numbers)(w, record, factors, in, in + last - g, run->scale + g * STRIP, 0);
        if (w->level_offsets)
            NAME(record_numbers)(w, record + part * STRIP, factors + STRIP, in, in + last - g,
                                 run->offset + g * STRIP, 1);
    }
}

/* `count` numbers, of 1 or 2 bytes each, from number `at` on. */
INLINE void NAME(run_unsigned)(int32_t *to, const void *from, const int size, int64_t at,
                               int count) {
    const char *line = (const char *)from + at * size + NAME(EARLY_NUMBERS);
    for (int i = 0; i < count; i += STRIP) {
        _mm_prefetch(line + i * size, _MM_HINT_T1);
        UNROLL for (int t = 0; t < NAME(TILES); t++)
            _mm512_store_si512(to + i + 16 * t, NAME(unsigned16)(from, size, at + i + 16 * t));
    }
}

/* Numbers of the run's groups, of rows from `strip` on. */
static TARGET void NAME(run_numbers)(const lutra_matrix *w, int strip, NAME(run_t) *run) {
    int groups = w->k / w->group, count = run->groups * STRIP;
    int64_t at = (int64_t)strip * groups + (int64_t)run->first * STRIP;
    if (w->levels)
        NAME(run_levels)(w, strip, run);
    else if (w->scale_bytes == 1)
        NAME(run_unsigned)(run->scale, w->scale, 1, at, count);
    else
        NAME(run_unsigned)(run->scale, w->scale, 2, at, count);
    if (w->zero) {
        NAME(run_unsigned)(run->zero, w->zero, 2, at, count);
    } else if (run->zero) {
        const __m512i one = _mm512_set1_epi32(w->zero_point);
        const __m512i other = _mm512_set1_epi32(w->marks ? w->other_zero : w->zero_point);
        for (int i = 0; i < count; i += 16) {
            __mmask16 marked = 0;
            if (w->marks) memcpy(&marked, w->marks + (at + i) / 8, sizeof marked);
            _mm512_store_si512(run->zero + i, _mm512_mask_blend_epi32(marked, one, other));
        }
    }
    for (int i = 0; w->offset && i < count; i += 16) {
        __m256i raw = _mm256_loadu_si256((const __m256i *)(w->offset + at + i));
        _mm512_store_si512(run->offset + i, _mm512_slli_epi32(_mm512_cvtepi16_epi32(raw),
                                                              (unsigned)w->offset_shift));
    }
}

/* acc: part number `here` of the run, of `columns` columns from x on. Its codes are unpacked at p,
 * or, of `bits` bits, four of each row from column 32 f + 4 j on of the block at p. */
INLINE void NAME(run_part)(const NAME(run_t) *run, const lutra_columns *x, int here,
                           const uint8_t *p, __m512i (*acc)[NAME(TILES)], const int part,
                           const int columns, const int bits, const int f, const int j) {
    int of = run->first * run->parts + here;
    const int8_t *a = x->x + (int64_t)of * part;
    const int32_t *raw = x->raw + (int64_t)of * part / UNIT;
    const int32_t *by = x->shifts + (int64_t)of * part / SHARED;
    UNROLL for (int c = 0; c < columns; c++) {
        const int32_t *sums = raw + (int64_t)c * (x->depth / UNIT);
        int32_t sum = part == UNIT ? sums[0] : sums[0] + sums[1];
        UNROLL for (int t = 0; t < NAME(TILES); t++)
            acc[c][t] = _mm512_set1_epi32(-run->middle * sum);
    }
    UNROLL for (int s = 0; s < part / 4; s++) {
        __m512i code[NAME(TILES)];
        UNROLL for (int t = 0; t < NAME(TILES); t++)
            code[t] = bits ? NAME(four_codes)(p + 64 * t, bits, f, j + s)
                           : _mm512_load_si512(p + s * STRIP * 4 + 64 * t);
        UNROLL for (int c = 0; c < columns; c++) {
            __m512i four = NAME(every)(a + (int64_t)c * x->depth + 4 * s);
            UNROLL for (int t = 0; t < NAME(TILES); t++)
                acc[c][t] = NAME(macs512)(acc[c][t], code[t], four);
        }
    }
    UNROLL for (int c = 0; c < columns; c++) {
        __m512i shift = _mm512_set1_epi32(by[(int64_t)c * (x->depth / SHARED)]);
        UNROLL for (int t = 0; t < NAME(TILES); t++) acc[c][t] = _mm512_sllv_epi32(acc[c][t], shift);
    }
}

/* Sums of even and odd rows += the run's group g, whose products are acc. */
INLINE void NAME(run_group)(const NAME(run_t) *run, int g, const int32_t *a, int groups,
                            __m512i (*acc)[NAME(TILES)], __m512i (*even)[NAME(TILES)],
                            __m512i (*odd)[NAME(TILES)], const int columns) {
    const int32_t *sums = a + run->first + g;
    UNROLL for (int t = 0; t < NAME(TILES); t++) {
        const int at = g * STRIP + 16 * t;
        if (run->zero) {
            __m512i zero = _mm512_load_si512(run->zero + at);
            UNROLL for (int c = 0; c < columns; c++) {
                __m512i sum = _mm512_set1_epi32(sums[(int64_t)c * groups]);
                acc[c][t] = _mm512_sub_epi32(acc[c][t], _mm512_mullo_epi32(zero, sum));
            }
        }
        __m512i scale = _mm512_load_si512(run->scale + at);
        __m512i half = _mm512_srli_epi64(scale, 32);
        UNROLL for (int c = 0; c < columns; c++) {
            __m512i above = _mm512_srli_epi64(acc[c][t], 32);
            even[c][t] = _mm512_add_epi64(even[c][t], _mm512_mul_epi32(acc[c][t], scale));
            odd[c][t] = _mm512_add_epi64(odd[c][t], _mm512_mul_epi32(above, half));
        }
        if (!run->offset) continue;
        __m512i offset = _mm512_load_si512(run->offset + at);
        half = _mm512_srli_epi64(offset, 32);
        UNROLL for (int c = 0; c < columns; c++) {
            __m512i sum = _mm512_set1_epi32(sums[(int64_t)c * groups]);
            even[c][t] = _mm512_add_epi64(even[c][t], _mm512_mul_epi32(sum, offset));
            odd[c][t] = _mm512_add_epi64(odd[c][t], _mm512_mul_epi32(sum, half));
        }
    }
}

INLINE void NAME(take_totals)(const int64_t *total, __m512i (*even)[NAME(TILES)],
                              __m512i (*odd)[NAME(TILES)], const int columns) {
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int t = 0; t < NAME(TILES); t++) {
            even[c][t] = NAME(load512)(total + (2 * c + t) * 16);
            odd[c][t] = NAME(load512)(total + (2 * c + t) * 16 + 8);
        }
}

INLINE void NAME(keep_totals)(int64_t *total, __m512i (*even)[NAME(TILES)],
                              __m512i (*odd)[NAME(TILES)], const int columns) {
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int t = 0; t < NAME(TILES); t++) {
            _mm512_storeu_si512(total + (2 * c + t) * 16, even[c][t]);
            _mm512_storeu_si512(total + (2 * c + t) * 16 + 8, odd[c][t]);
        }
}

/* total [columns, TILES, 2, 8] += the run's groups: of even rows of each tile, then of odd ones.
 * a [columns, groups of a row]: sums of groups of activations. */
INLINE void NAME(run_product)(const NAME(run_t) *run, const lutra_columns *x, const int32_t *a,
                              int groups, int64_t *total, const int part, const int columns) {
    __m512i even[NAME(TOGETHER)][NAME(TILES)], odd[NAME(TOGETHER)][NAME(TILES)];
    NAME(take_totals)(total, even, odd, columns);
    const uint8_t *ahead = run->ahead, *codes = run->codes;
    for (int g = 0; g < run->groups; g++) {
        __m512i acc[NAME(TOGETHER)][NAME(TILES)];
        for (int i = 0; i < run->lines; i++, ahead += 64)
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
        NAME(run_part)(run, x, g * run->parts, codes, acc, part, columns, 0, 0, 0);
        codes += part * STRIP;
        for (int p = 1; p < run->parts; p++, codes += part * STRIP) {
            __m512i more[NAME(TOGETHER)][NAME(TILES)];
            NAME(run_part)(run, x, g * run->parts + p, codes, more, part, columns, 0, 0, 0);
            UNROLL for (int c = 0; c < columns; c++)
                UNROLL for (int t = 0; t < NAME(TILES); t++)
                    acc[c][t] = _mm512_add_epi32(acc[c][t], more[c][t]);
        }
        NAME(run_group)(run, g, a, groups, acc, even, odd, columns);
    }
    NAME(keep_totals)(total, even, odd, columns);
}

/* As run_product, of so few columns that codes are multiplied as they are unpacked: memory is read
 * all the while. */
INLINE void NAME(direct_product)(const NAME(run_t) *run, const lutra_columns *x, const int32_t *a,
                                 int groups, int64_t *total, const int part, const int columns,
                                 const int bits) {
    const int bytes = BLOCK * bits / 8 * STRIP, halves = SHARED / part, steps = part / 4;
    __m512i even[NAME(ALONE)][NAME(TILES)], odd[NAME(ALONE)][NAME(TILES)];
    __m512i sum[NAME(ALONE)][NAME(TILES)];
    const uint8_t *p = run->codes;
    int left = run->parts, g = 0;
    NAME(take_totals)(total, even, odd, columns);
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int t = 0; t < NAME(TILES); t++) sum[c][t] = _mm512_setzero_si512();
    for (int first = 0; g < run->groups; first += BLOCK / part, p += bytes)
        UNROLL for (int f = 0; f < NAME(PARTS); f++) {
            UNROLL for (int i = 0; i < bytes / 64 / NAME(PARTS); i++)
                _mm_prefetch((const char *)p + NAME(EARLY) + bytes / NAME(PARTS) * f + 64 * i,
                             _MM_HINT_T1);
            UNROLL for (int h = 0; h < halves; h++) {
                __m512i acc[NAME(ALONE)][NAME(TILES)];
                if (g == run->groups) continue;
                NAME(run_part)(run, x, first + f * halves + h, p, acc, part, columns, bits, f,
                               h * steps);
                UNROLL for (int c = 0; c < columns; c++)
                    UNROLL for (int t = 0; t < NAME(TILES); t++)
                        sum[c][t] = _mm512_add_epi32(sum[c][t], acc[c][t]);
                if (--left) continue;
                NAME(run_group)(run, g++, a, groups, sum, even, odd, columns);
                left = run->parts;
                UNROLL for (int c = 0; c < columns; c++)
                    UNROLL for (int t = 0; t < NAME(TILES); t++)
                        sum[c][t] = _mm512_setzero_si512();
            }
        }
    NAME(keep_totals)(total, even, odd, columns);
}

#define RUN(part, columns)                                                                        \
    static TARGET __attribute__((noinline)) void NAME(run_##part##_##columns)(                    \
        const NAME(run_t) *run, const lutra_columns *x, const int32_t *a, int groups,             \
        int64_t *total) {                                                                         \
        NAME(run_product)(run, x, a, groups, total, part, columns);                               \
    }
RUN(16, 1)
RUN(16, 2)
RUN(16, 3)
RUN(16, 4)
RUN(32, 1)
RUN(32, 2)
RUN(32, 3)
RUN(32, 4)
#undef RUN

#define DIRECT(part, columns, bits)                                                               \
    static TARGET __attribute__((noinline)) void NAME(direct_##part##_##columns##_##bits)(        \
        const NAME(run_t) *run, const lutra_columns *x, const int32_t *a, int groups,             \
        int64_t *total) {                                                                         \
        NAME(direct_product)(run, x, a, groups, total, part, columns, bits);                      \
    }
#define DIRECT_OF(part, columns)                                                                  \
    DIRECT(part, columns, 3)                                                                      \
    DIRECT(part, columns, 4)                                                                      \
    DIRECT(part, columns, 5)                                                                      \
    DIRECT(part, columns, 6)                                                                      \
    DIRECT(part, columns, 8)
DIRECT_OF(16, 1)
DIRECT_OF(16, 2)
DIRECT_OF(32, 1)
DIRECT_OF(32, 2)
#undef DIRECT_OF
#undef DIRECT

typedef void (*NAME(run_of))(const NAME(run_t) *, const lutra_columns *, const int32_t *, int,
                             int64_t *);

static TARGET void NAME(run_codes)(const lutra_matrix *w, const uint8_t *p, int blocks,
                                   uint8_t *out) {
    switch (w->bits) {
    case 3: NAME(unpack_run)(p, blocks, out, 3); break;
    case 4: NAME(unpack_run)(p, blocks, out, 4); break;
    case 5: NAME(unpack_run)(p, blocks, out, 5); break;
    case 6: NAME(unpack_run)(p, blocks, out, 6); break;
    default: NAME(unpack_run)(p, blocks, out, 8);
    }
}

/* Functions for so many columns at a time. */
static const NAME(run_of) *NAME(functions_of)(const lutra_matrix *w, int alone) {
    static const NAME(run_of) together[2][1 + NAME(TOGETHER)] = {
        {NULL, NAME(run_16_1), NAME(run_16_2), NAME(run_16_3), NAME(run_16_4)},
        {NULL, NAME(run_32_1), NAME(run_32_2), NAME(run_32_3), NAME(run_32_4)}};
#define BOTH(part, bits) {NULL, NAME(direct_##part##_1_##bits), NAME(direct_##part##_2_##bits)}
#define EACH(part) {BOTH(part, 3), BOTH(part, 4), BOTH(part, 5), BOTH(part, 6), BOTH(part, 8)}
    static const NAME(run_of) direct[2][5][1 + NAME(ALONE)] = {EACH(16), EACH(32)};
#undef EACH
#undef BOTH
    int shared = w->group % SHARED == 0;
    return alone ? direct[shared][w->bits == 8 ? 4 : w->bits - 3] : together[shared];
}

static TARGET void NAME(runs)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out) {
    const int part = w->group % SHARED ? UNIT : SHARED, alone = x->count <= NAME(ALONE);
    const NAME(run_of) *functions = NAME(functions_of)(w, alone);
    int groups = w->k / w->group, rows = last - first;
    /* as many groups as take whole blocks, and those again while they are few columns */
    int most = BLOCK / NAME(unit_of)(w->group);
    int least = alone                          ? NAME(ALONE_RUN)
                : x->count <= NAME(TOGETHER) ? NAME(SHORT_RUN)
                                             : NAME(LONG_RUN);
    while (most * w->group < least) most *= 2;
    int width = round_up(most * w->group < x->depth ? most * w->group : x->depth, BLOCK);
    /* half steps are no integers */
    int own = w->zero || w->marks || w->zero_point % 2;
    uint8_t *codes = scratch->bytes;
    int32_t *scale = (int32_t *)(codes + (int64_t)width * STRIP), *zero = scale + most * STRIP;
    int32_t *offset = zero + most * STRIP;
    NAME(run_t) run = {codes, scale, own ? zero : NULL,
                       w->offset || w->level_offsets ? offset : NULL, own ? 0 : w->zero_point / 2,
                       NULL, 0, 0, 0, w->group / part};
    for (int strip = first; strip < last; strip += STRIP) {
        memset(scratch->totals, 0, sizeof *scratch->totals * (size_t)(x->count * STRIP));
        for (int g = 0; g < groups; g += most) {
            int column = g * w->group, left = x->depth - column;
            run.first = g;
            run.groups = groups - g < most ? groups - g : most;
            if (left > width) left = width;
            const uint8_t *p =
                w->codes + strip * w->row_bytes + (int64_t)column * w->bits / 8 * STRIP;
            run.codes = alone ? p : codes;
            if (!alone) NAME(run_codes)(w, p, left / BLOCK, codes);
            NAME(run_numbers)(w, strip, &run);
            run.ahead = p + (int64_t)left * w->bits / 8 * STRIP;
            run.lines = w->group * w->bits / 8 * STRIP / 64;
            lutra_columns some = *x;
            for (int c = 0; c < x->count; c += NAME(TOGETHER)) {
                int n = x->count - c < NAME(TOGETHER) ? x->count - c : NAME(TOGETHER);
                functions[n](&run, &some, scratch->group_sums + (int64_t)c * groups, groups,
                             scratch->totals + (int64_t)c * STRIP);
                columns_skip(&some, NAME(TOGETHER));
                run.lines = 0;
            }
        }
        for (int c = 0; c < x->count; c++)
            for (int t = 0; t < NAME(TILES); t++) {
                const int64_t *from = scratch->totals + (int64_t)c * STRIP + 16 * t;
                __m512i total[] = {NAME(load512)(from), NAME(load512)(from + 8)};
                NAME(store16)(out + (int64_t)c * rows + strip - first + 16 * t, total,
                              last - strip - 16 * t);
            }
    }
}
