/* Products of few columns with matrices of one and two bits in strips, with 512-bit vectors.
 *
 * A lane is a row: sums stay where they are, and the scales of a group are a vector. Four codes of
 * a row are multiplied with four activations, which all lanes share. A block of 128 columns has four
 * parts of SHARED columns with an exponent each, and a part two units of 16. Codes stay where they
 * are in their bytes: it is sums that are shifted. */

/* Of rows without groups so many blocks are summed in 32 bits. Processors find a strip's bytes by
 * themselves, so they are asked for a little before they are used. */
enum { NAME(TILES) = STRIP / 16, NAME(PARTS) = BLOCK / SHARED, NAME(PLAIN) = 16, NAME(AHEAD) = 1024 };

INLINE __m512i NAME(load512)(const void *p) { return _mm512_loadu_si512(p); }

INLINE __m512i NAME(macs512)(__m512i acc, __m512i w, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

/* Four activations for all lanes. */
INLINE __m512i NAME(every)(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

/* The lowest bit of codes of part f, or, of one bit, of units [unit, part] as one number. */
INLINE int NAME(lifted)(const int bits, const int f) {
    return bits == 1 ? 7 - (f % 4 * 2 + f / 4) : 6 - 2 * f;
}

/* Codes of 4 j to 4 j + 3 of each part; or, of one bit, of both units of each part: [unit, part]. */
INLINE void NAME(codes_at)(const uint8_t *p, const int bits, const int j, __m512i *code) {
    __m512i v = NAME(load512)(p + (int64_t)j * STRIP * 4);
    UNROLL for (int f = 0; f < 8 / bits; f++)
        code[f] = _mm512_and_si512(
            v, _mm512_set1_epi8((char)(((1 << bits) - 1) << NAME(lifted)(bits, f))));
}

/* Sixteen numbers of a strip's group, of 1 or 2 bytes. */
INLINE __m512i NAME(unsigned16)(const void *from, int size, int64_t at) {
    if (size == 1)
        return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)((const uint8_t *)from + at)));
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const uint16_t *)from + at)));
}

/* total [2] += a * b: products of even lanes, and of odd ones. */
INLINE void NAME(wide16)(__m512i *total, __m512i a, __m512i b, const int shift) {
    __m512i even = _mm512_mul_epi32(a, b);
    __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    total[0] = _mm512_add_epi64(total[0], shift ? _mm512_slli_epi64(even, (unsigned)shift) : even);
    total[1] = _mm512_add_epi64(total[1], shift ? _mm512_slli_epi64(odd, (unsigned)shift) : odd);
}

/* total += scale * (sum - zero * a) + offset * a, for group g of a strip. */
INLINE void NAME(group16)(const lutra_matrix *w, int64_t at, __m512i *total, __m512i sum,
                          int32_t a) {
    __m512i every = _mm512_set1_epi32(a);
    if (w->zero)
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(NAME(unsigned16)(w->zero, 2, at), every));
    else
        sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(w->zero_point * a));
    NAME(wide16)(total, sum, NAME(unsigned16)(w->scale, w->scale_bytes, at), 0);
    if (w->offset) {
        __m256i offset = _mm256_loadu_si256((const __m256i *)(w->offset + at));
        NAME(wide16)(total, _mm512_cvtepi16_epi32(offset), every, w->offset_shift);
    }
}

/* The rows of a tile, of which there are `count`. */
INLINE void NAME(store16)(int64_t *out, const __m512i *total, int count) {
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    __mmask16 in = (__mmask16)(count < 16 ? (1 << (count < 0 ? 0 : count)) - 1 : 0xFFFF);
    _mm512_mask_storeu_epi64(out, (__mmask8)in,
                             _mm512_permutex2var_epi64(total[0], first, total[1]));
    _mm512_mask_storeu_epi64(out + 8, (__mmask8)(in >> 8),
                             _mm512_permutex2var_epi64(total[0], second, total[1]));
}

/* Groups of `unit` columns, or of a multiple of 128 where that is 128, or one per row. */
INLINE void NAME(strips_of)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                            const int32_t *a, int64_t *out, const int bits, const int unit,
                            const int columns) {
    const int steps = bits == 1 ? 4 : 8, sums = 32 / steps, halves = unit == UNIT ? 2 : 1, per = unit / SHARED;
    int blocks = x->depth / BLOCK, group = w->scale ? w->group : w->k, groups = w->k / group;
    const int block_bytes = BLOCK * bits / 8 * STRIP, lines = block_bytes / 64 / steps;
    int whole = w->scale ? group / BLOCK : NAME(PLAIN);
    for (int strip = first; strip < last; strip += STRIP) {
        const uint8_t *p = w->codes + strip * w->row_bytes;
        __m512i total[2][NAME(TILES)][2], pending[2][NAME(TILES)];
        int left = whole, g = 0;
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int t = 0; t < NAME(TILES); t++)
                total[c][t][0] = total[c][t][1] = pending[c][t] = _mm512_setzero_si512();
        for (int b = 0; b < blocks; b++, p += block_bytes) {
            const int8_t *column = x->x + (int64_t)b * BLOCK;
            const int32_t *shifts = x->shifts + (int64_t)b * NAME(PARTS);
            UNROLL for (int h = 0; h < halves; h++) {
                __m512i acc[2][NAME(TILES)][8];
                UNROLL for (int c = 0; c < columns; c++)
                    UNROLL for (int t = 0; t < NAME(TILES); t++)
                        UNROLL for (int f = 0; f < sums; f++)
                            acc[c][t][f] = _mm512_setzero_si512();
                UNROLL for (int i = 0; i < steps / halves; i++) {
                    const int j = h * 4 + i;
                    __m512i code[NAME(TILES)][8];
                    UNROLL for (int t = 0; t < NAME(TILES); t++)
                        NAME(codes_at)(p + 64 * t, bits, j, code[t]);
                    UNROLL for (int k = 0; k < lines; k++)
                        _mm_prefetch((const char *)p + NAME(AHEAD) + 64 * (j * lines + k), _MM_HINT_T0);
                    UNROLL for (int c = 0; c < columns; c++)
                        UNROLL for (int f = 0; f < sums; f++) {
                            const int8_t *at = column + (int64_t)c * x->depth;
                            __m512i four = NAME(every)(at + SHARED * (f % 4) + UNIT * (f / 4) + 4 * j);
                            UNROLL for (int t = 0; t < NAME(TILES); t++)
                                acc[c][t][f] = NAME(macs512)(acc[c][t][f], code[t][f], four);
                        }
                }
                UNROLL for (int c = 0; c < columns; c++) {
                    const int32_t *by = shifts + (int64_t)c * (x->depth / SHARED);
                    const int32_t *of = a + (int64_t)c * groups;
                    UNROLL for (int t = 0; t < NAME(TILES); t++) {
                        __m512i v[NAME(PARTS)];
                        UNROLL for (int f = 0; f < sums; f++) {
                            __m512i sum = acc[c][t][f];
                            if (NAME(lifted)(bits, f))
                                sum = _mm512_srai_epi32(sum, (unsigned)NAME(lifted)(bits, f));
                            v[f % 4] = f < 4 ? sum : _mm512_add_epi32(v[f % 4], sum);
                        }
                        UNROLL for (int f = 0; f < NAME(PARTS); f++)
                            v[f] = _mm512_sllv_epi32(v[f], _mm512_set1_epi32(by[f]));
                        if (unit == BLOCK) {
                            v[0] = _mm512_add_epi32(_mm512_add_epi32(v[0], v[1]),
                                                    _mm512_add_epi32(v[2], v[3]));
                            pending[c][t] = _mm512_add_epi32(pending[c][t], v[0]);
                            continue;
                        }
                        UNROLL for (int f = 0; f < NAME(PARTS); f += unit == 64 ? 2 : 1) {
                            int at = (b * NAME(PARTS) + f) * halves / (per ? per : 1) + h;
                            if (unit == 64) v[f] = _mm512_add_epi32(v[f], v[f + 1]);
                            if (at < groups)
                                NAME(group16)(w, (int64_t)strip * groups + at * STRIP + 16 * t,
                                              total[c][t], v[f], of[at]);
                        }
                    }
                }
            }
            if (unit != BLOCK || (--left > 0 && b < blocks - 1)) continue;
            UNROLL for (int c = 0; c < columns; c++)
                UNROLL for (int t = 0; t < NAME(TILES); t++) {
                    int64_t at = (int64_t)strip * groups + g * STRIP + 16 * t;
                    if (w->scale)
                        NAME(group16)(w, at, total[c][t], pending[c][t], a[(int64_t)c * groups + g]);
                    else
                        NAME(wide16)(total[c][t], pending[c][t], _mm512_set1_epi32(1), 0);
                    pending[c][t] = _mm512_setzero_si512();
                }
            left = whole;
            g++;
        }
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int t = 0; t < NAME(TILES); t++) {
                /* codes of ternary rows stand for a number that is one less */
                __m512i less = _mm512_set1_epi64(w->scale ? 0 : 2 * (int64_t)a[c]);
                UNROLL for (int i = 0; i < 2; i++)
                    total[c][t][i] = _mm512_sub_epi64(total[c][t][i], less);
                NAME(store16)(out + (int64_t)c * (last - first) + strip - first + 16 * t,
                              total[c][t], last - strip - 16 * t);
            }
    }
}

#define STRIPS(bits, unit)                                                                        \
    static TARGET __attribute__((noinline)) void NAME(strips_##bits##_##unit)(                    \
        const lutra_matrix *w, int first, int last, const lutra_columns *x, const int32_t *a,     \
        int64_t *out) {                                                                           \
        if (x->count == 1)                                                                        \
            NAME(strips_of)(w, first, last, x, a, out, bits, unit, 1);                            \
        else                                                                                      \
            NAME(strips_of)(w, first, last, x, a, out, bits, unit, 2);                            \
    }
STRIPS(1, 32)
STRIPS(1, 64)
STRIPS(1, 128)
STRIPS(2, 16)
STRIPS(2, 32)
STRIPS(2, 64)
STRIPS(2, 128)
#undef STRIPS

typedef void (*NAME(strips_t))(const lutra_matrix *, int, int, const lutra_columns *,
                               const int32_t *, int64_t *);

static TARGET void NAME(strips)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                                lutra_scratch *scratch, int64_t *out) {
    static const NAME(strips_t) one[] = {NULL, NAME(strips_1_32), NAME(strips_1_64),
                                         NAME(strips_1_128)};
    static const NAME(strips_t) two[] = {NAME(strips_2_16), NAME(strips_2_32), NAME(strips_2_64),
                                         NAME(strips_2_128)};
    int group = w->scale ? w->group : BLOCK;
    int size = group == 16 ? 0 : group == 32 ? 1 : group == 64 ? 2 : 3;
    NAME(strips_t) function = (w->bits == 1 ? one : two)[size];
    int groups = w->scale ? w->k / w->group : 1;
    lutra_columns some = *x;
    for (int c = 0; c < x->count; c += 2) {
        some.count = x->count - c < 2 ? 1 : 2;
        function(w, first, last, &some, scratch->group_sums + (int64_t)c * groups,
                 out + (int64_t)c * (last - first));
        columns_skip(&some, 2);
    }
}
