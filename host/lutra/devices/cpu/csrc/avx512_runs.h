/* Products of activations in groups with matrices of three bits and more in strips, with 512-bit
 * vectors: any number of columns.
 *
 * A lane is a row, as in avx512_strips.h. A run of a strip's columns is unpacked into a cache, codes
 * as bytes and numbers of groups as 32 bits, and multiplied with TOGETHER columns of activations at a
 * time, whose sums stay in registers for the run. */

/* Columns of a run: as many as leave room for the next one, which is asked for meanwhile. */
enum { NAME(TOGETHER) = 4, NAME(SHORT_RUN) = 128, NAME(LONG_RUN) = 256 };

/* A run: codes [columns / 4, STRIP, 4] and numbers [groups, STRIP]. Zero points are NULL where all
 * groups have `middle`, half of it. `ahead` are the next run's codes, of so many lines a group. */
typedef struct {
    uint8_t *codes;
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

/* Scales, and offsets if there are any, of a matrix in two levels (lutra_golden.model.two_levels). */
static TARGET void NAME(run_levels)(const lutra_matrix *w, int strip, NAME(run_t) *run) {
    const int words = record_bytes(w) / 2, part = multiples_bytes(w) / 2, bits = w->multiple_bits;
    const int per = SUPER / w->group, sides = 1 + w->level_offsets;
    const uint16_t *records = (const uint16_t *)w->levels + (int64_t)strip * (w->k / SUPER) * words;
    const __m512i half = _mm512_set1_epi32(1 << w->level_shift >> 1);
    const __m128i by = _mm_cvtsi32_si128(w->level_shift);
    for (int g = 0; g < run->groups; g++) {
        int group = run->first + g;
        const uint16_t *record = records + (int64_t)(group / per) * words * STRIP;
        for (int side = 0; side < sides; side++) {
            const uint16_t *factors = record + (sides * part + side) * STRIP;
            __m512i multiple = NAME(multiples)(record + side * part * STRIP, bits, group % per);
            int32_t *to = (side ? run->offset : run->scale) + g * STRIP;
            UNROLL for (int t = 0; t < NAME(TILES); t++) {
                __m256i raw = _mm256_loadu_si256((const __m256i *)(factors + 16 * t));
                __m512i factor = side ? _mm512_cvtepi16_epi32(raw) : _mm512_cvtepu16_epi32(raw);
                __m512i of = _mm512_cvtepu16_epi32(NAME(half512)(multiple, t));
                __m512i product = _mm512_add_epi32(_mm512_mullo_epi32(of, factor), half);
                product = _mm512_sra_epi32(product, by);
                if (side) product = _mm512_slli_epi32(product, (unsigned)w->offset_shift);
                _mm512_store_si512(to + 16 * t, product);
            }
        }
    }
}

/* Numbers of the run's groups, of rows from `strip` on. */
static TARGET void NAME(run_numbers)(const lutra_matrix *w, int strip, NAME(run_t) *run) {
    int groups = w->k / w->group;
    int64_t first = (int64_t)strip * groups + (int64_t)run->first * STRIP;
    if (w->levels) NAME(run_levels)(w, strip, run);
    for (int i = 0; i < run->groups * STRIP; i += 16) {
        int64_t at = first + i, next = at + run->groups * STRIP;
        if (!w->levels)
            _mm_prefetch((const char *)w->scale + next * w->scale_bytes, _MM_HINT_T0);
        if (!w->levels)
            _mm512_store_si512(run->scale + i, NAME(unsigned16)(w->scale, w->scale_bytes, at));
        if (w->zero) {
            _mm512_store_si512(run->zero + i, NAME(unsigned16)(w->zero, 2, at));
        } else if (w->marks) {
            __mmask16 marked;
            memcpy(&marked, w->marks + at / 8, sizeof marked);
            _mm512_store_si512(run->zero + i,
                               _mm512_mask_blend_epi32(marked, _mm512_set1_epi32(w->zero_point),
                                                       _mm512_set1_epi32(w->other_zero)));
        } else if (run->zero) {
            _mm512_store_si512(run->zero + i, _mm512_set1_epi32(w->zero_point));
        }
        if (w->offset) {
            __m256i raw = _mm256_loadu_si256((const __m256i *)(w->offset + at));
            _mm512_store_si512(run->offset + i, _mm512_slli_epi32(_mm512_cvtepi16_epi32(raw),
                                                                  (unsigned)w->offset_shift));
        }
    }
}

/* acc: a part of the run's group g, of `columns` columns from x on. */
INLINE void NAME(run_part)(const NAME(run_t) *run, const lutra_columns *x, int g, int p,
                           __m512i (*acc)[NAME(TILES)], const int part, const int columns) {
    int here = g * run->parts + p, of = run->first * run->parts + here;
    const uint8_t *codes = run->codes + (int64_t)here * part * STRIP;
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
            code[t] = _mm512_load_si512(codes + s * STRIP * 4 + 64 * t);
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

/* total [columns, TILES, 2, 8] += the run's groups: of even rows of each tile, then of odd ones.
 * a [columns, groups of a row]: sums of groups of activations. */
INLINE void NAME(run_product)(const NAME(run_t) *run, const lutra_columns *x, const int32_t *a,
                              int groups, int64_t *total, const int part, const int columns) {
    __m512i even[NAME(TOGETHER)][NAME(TILES)], odd[NAME(TOGETHER)][NAME(TILES)];
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int t = 0; t < NAME(TILES); t++) {
            even[c][t] = NAME(load512)(total + (2 * c + t) * 16);
            odd[c][t] = NAME(load512)(total + (2 * c + t) * 16 + 8);
        }
    const uint8_t *ahead = run->ahead;
    for (int g = 0; g < run->groups; g++) {
        __m512i acc[NAME(TOGETHER)][NAME(TILES)];
        for (int i = 0; i < run->lines; i++, ahead += 64)
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
        NAME(run_part)(run, x, g, 0, acc, part, columns);
        for (int p = 1; p < run->parts; p++) {
            __m512i more[NAME(TOGETHER)][NAME(TILES)];
            NAME(run_part)(run, x, g, p, more, part, columns);
            UNROLL for (int c = 0; c < columns; c++)
                UNROLL for (int t = 0; t < NAME(TILES); t++)
                    acc[c][t] = _mm512_add_epi32(acc[c][t], more[c][t]);
        }
        UNROLL for (int t = 0; t < NAME(TILES); t++) {
            const int at = g * STRIP + 16 * t;
            const int32_t *sums = a + run->first + g;
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
    UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int t = 0; t < NAME(TILES); t++) {
            _mm512_storeu_si512(total + (2 * c + t) * 16, even[c][t]);
            _mm512_storeu_si512(total + (2 * c + t) * 16 + 8, odd[c][t]);
        }
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

typedef void (*NAME(run_of))(const NAME(run_t) *, const lutra_columns *, const int32_t *, int,
                             int64_t *);

static TARGET void NAME(run_codes)(const lutra_matrix *w, int strip, int column, int blocks,
                                   uint8_t *out) {
    const uint8_t *p = w->codes + strip * w->row_bytes + (int64_t)column * w->bits / 8 * STRIP;
    switch (w->bits) {
    case 3: NAME(unpack_run)(p, blocks, out, 3); break;
    case 4: NAME(unpack_run)(p, blocks, out, 4); break;
    case 5: NAME(unpack_run)(p, blocks, out, 5); break;
    case 6: NAME(unpack_run)(p, blocks, out, 6); break;
    default: NAME(unpack_run)(p, blocks, out, 8);
    }
}

static TARGET void NAME(runs)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                              lutra_scratch *scratch, int64_t *out) {
    static const NAME(run_of) sixteen[] = {NULL, NAME(run_16_1), NAME(run_16_2), NAME(run_16_3),
                                           NAME(run_16_4)};
    static const NAME(run_of) thirty_two[] = {NULL, NAME(run_32_1), NAME(run_32_2), NAME(run_32_3),
                                              NAME(run_32_4)};
    const int part = w->group % SHARED ? UNIT : SHARED;
    const NAME(run_of) *functions = part == UNIT ? sixteen : thirty_two;
    int groups = w->k / w->group, rows = last - first;
    /* as many groups as take whole blocks, and those again while they are few columns */
    int most = BLOCK / NAME(unit_of)(w->group);
    int least = x->count <= NAME(TOGETHER) ? NAME(SHORT_RUN) : NAME(LONG_RUN);
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
            NAME(run_codes)(w, strip, column, left / BLOCK, codes);
            NAME(run_numbers)(w, strip, &run);
            run.ahead = w->codes + strip * w->row_bytes +
                        (int64_t)(column + left) * w->bits / 8 * STRIP;
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
