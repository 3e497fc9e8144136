/* Products of few columns with codes of one and two bits, as x86_bits.h has them, with 512-bit
 * vectors: four blocks of one bit or two of two bits side by side, and sixteen groups at once. Two
 * rows of one bit share what is loaded of a column; rows of two bits come from memory twice as fast
 * one after another.
 *
 * A bit stays in its byte where a neighbour does not count for more than eight bits: sums of the
 * upper one of two fields are shifted instead of the codes. */

enum { NAME(SIDE) = 4 };

/* Groups of sixteen that the lanes of a vector have: of one bit of vector i, lane l and of two bits
 * of vector i, half h. */
static void NAME(places)(int bits, int n, int32_t *at) {
    for (int l = 0; l < 4; l++)
        for (int j = 0; j < 4; j++) {
            int i = bits == 1 ? j : 2 * j + l / 2, part = bits == 1 ? l : l % 2;
            at[4 * l + j] = n * (NAME(SIDE) / bits * (i / n) + part) + i % n;
        }
}

INLINE __m512i NAME(load512)(const void *p) { return _mm512_loadu_si512(p); }

INLINE __m512i NAME(macs512)(__m512i acc, __m512i w, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

/* The sums of the lanes of four vectors: four of lane 0, then of lane 1, and so on. */
INLINE __m512i NAME(lane_sums)(const __m512i *v) {
    __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi64(v[0], v[1]),
                                 _mm512_unpackhi_epi64(v[0], v[1]));
    __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi64(v[2], v[3]),
                                 _mm512_unpackhi_epi64(v[2], v[3]));
    __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
}

/* Those of the halves of eight vectors. */
INLINE __m512i NAME(half_sums512)(const __m512i *v) {
    __m512i both[4];
    UNROLL for (int j = 0; j < 4; j++)
        both[j] = _mm512_add_epi32(_mm512_shuffle_i32x4(v[2 * j], v[2 * j + 1], 0x88),
                                   _mm512_shuffle_i32x4(v[2 * j], v[2 * j + 1], 0xDD));
    return NAME(lane_sums)(both);
}

/* The scales of sixteen groups from `at` on; those behind the `left` that a row has are 0. */
INLINE __m512i NAME(scales16)(const lutra_matrix *w, int64_t at, int left, __m256i places) {
    __mmask16 in = (__mmask16)(left < 16 ? (1 << left) - 1 : 0xFFFF);
    __m256i all;
    if (w->scale_bytes == 1)
        all = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(in, (const uint8_t *)w->scale + at));
    else
        all = _mm256_maskz_loadu_epi16(in, (const uint16_t *)w->scale + at);
    return _mm512_cvtepu16_epi32(_mm256_permutexvar_epi16(places, all));
}

/* total += scale * (2 * sums - zero * a), in 32 bits if they hold the whole sum, else in 64. */
INLINE __m512i NAME(scaled16)(__m512i total, __m512i sums, __m512i scale, __m512i zero,
                              const int32_t *a, __m512i places, int narrow) {
    __m512i of = _mm512_permutexvar_epi32(places, NAME(load512)(a));
    sums = _mm512_sub_epi32(_mm512_add_epi32(sums, sums), _mm512_mullo_epi32(zero, of));
    if (narrow) return _mm512_add_epi32(total, _mm512_mullo_epi32(sums, scale));
    __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(sums, 32), _mm512_srli_epi64(scale, 32));
    return _mm512_add_epi64(total, _mm512_add_epi64(_mm512_mul_epi32(sums, scale), odd));
}

/* v [rows, columns] from `first` on, n vectors of four blocks of one bit. */
INLINE void NAME(one_bit)(const __m512i *all, const lutra_columns *x, int quad, __m512i (*v)[8],
                          const int first, const int n, const int rows, const int columns,
                          const int shifted) {
    const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
    int64_t stride = columns_depth(x);
    const int8_t *a = x->pairs + (int64_t)quad * 4 * BLOCK;
    const uint8_t *powers = x->powers + (int64_t)quad * 2 * BLOCK;
    __m512i low[GEMV_COLUMNS][4], high[GEMV_COLUMNS][4];
    UNROLL for (int i = 0; i < rows * columns; i++)
        UNROLL for (int j = 0; j < n; j++) low[i][j] = high[i][j] = _mm512_setzero_si512();
    UNROLL for (int f = 0; f < 8; f += 2) {
        const int to = f * n / 8;
        UNROLL for (int c = 0; c < columns; c++) {
            __m512i upper = NAME(load512)(a + c * stride + 64 * f);
            __m512i lower = NAME(load512)(a + c * stride + 64 * f + 64);
            __m512i power = shifted ? NAME(load512)(powers + c * stride / 2 + 32 * f) : one;
            UNROLL for (int r = 0; r < rows; r++) {
                __m512i *l = &low[r * columns + c][to], *h = &high[r * columns + c][to];
                if (shifted) {
                    __mmask64 bit = _mm512_test_epi8_mask(all[r], _mm512_set1_epi8((char)(128 >> f)));
                    __mmask64 next = _mm512_test_epi8_mask(all[r], _mm512_set1_epi8((char)(64 >> f)));
                    *l = NAME(macs512)(*l, _mm512_maskz_mov_epi8(bit, power), upper);
                    *l = NAME(macs512)(*l, _mm512_maskz_mov_epi8(next, power), lower);
                } else {
                    __m512i both = _mm512_srli_epi16(all[r], 6 - f);
                    *h = NAME(macs512)(*h, _mm512_and_si512(both, two), upper);
                    *l = NAME(macs512)(*l, _mm512_and_si512(both, one), lower);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < rows * columns; i++)
        UNROLL for (int j = 0; j < n; j++)
            v[i][first + j] = shifted ? low[i][j]
                                      : _mm512_add_epi32(low[i][j], _mm512_srai_epi32(high[i][j], 1));
}

/* The same of two blocks of two bits. */
INLINE void NAME(two_bits)(const __m512i *all, const lutra_columns *x, int pair, __m512i (*v)[8],
                           const int first, const int n, const int rows, const int columns,
                           const int shifted) {
    const __m512i lower = _mm512_set1_epi8(3), upper = _mm512_set1_epi8(12);
    int64_t stride = columns_depth(x);
    const int8_t *a = x->digits + (int64_t)pair * 2 * BLOCK;
    const int digits = shifted ? 2 : 1;
    __m512i low[GEMV_COLUMNS][2][4], high[GEMV_COLUMNS][2][4];
    UNROLL for (int i = 0; i < rows * columns; i++)
        UNROLL for (int d = 0; d < digits; d++)
            UNROLL for (int j = 0; j < n; j++)
                low[i][d][j] = high[i][d][j] = _mm512_setzero_si512();
    UNROLL for (int f = 0; f < 4; f += 2)
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int d = 0; d < digits; d++) {
                const int8_t *at = a + (2 * c + d) * stride + 64 * f;
                __m512i one = NAME(load512)(at), two = NAME(load512)(at + 64);
                UNROLL for (int r = 0; r < rows; r++) {
                    __m512i both = f ? all[r] : _mm512_srli_epi16(all[r], 4);
                    __m512i *h = &high[r * columns + c][d][f * n / 4];
                    __m512i *l = &low[r * columns + c][d][(f + 1) * n / 4];
                    *h = NAME(macs512)(*h, _mm512_and_si512(both, upper), one);
                    *l = NAME(macs512)(*l, _mm512_and_si512(both, lower), two);
                }
            }
    UNROLL for (int i = 0; i < rows * columns; i++)
        UNROLL for (int j = 0; j < n; j++) {
            __m512i sum[2];
            UNROLL for (int d = 0; d < digits; d++)
                sum[d] = _mm512_add_epi32(low[i][d][j], _mm512_srai_epi32(high[i][d][j], 2));
            v[i][first + j] = shifted ? _mm512_add_epi32(_mm512_slli_epi32(sum[0], 7), sum[1])
                                      : sum[0];
        }
}

/* Rows in groups of BLOCK / n, of which the last one may come twice. */
INLINE void NAME(rows_of)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                          const int32_t *a, int64_t *out, const int bits, const int n,
                          const int rows, const int columns, const int shifted) {
    const int vectors = 4 * bits, side = NAME(SIDE) / bits, step = vectors / n;
    int32_t at32[16];
    uint16_t at16[16];
    NAME(places)(bits, n, at32);
    for (int i = 0; i < 16; i++) at16[i] = (uint16_t)at32[i];
    const __m512i places = NAME(load512)(at32), zero = _mm512_set1_epi32(w->zero_point);
    const __m256i words = NAME(load)(at16);
    int blocks = x->depth / BLOCK, groups = w->k / w->group, count = last - first;
    int narrow = !shifted && w->shift <= NARROW_SHIFT;
    for (int r = first; r < last; r += rows) {
        const uint8_t *p[2];
        int row[2];
        __m512i total[GEMV_COLUMNS];
        UNROLL for (int i = 0; i < rows; i++) {
            row[i] = r + i < last ? r + i : last - 1;
            p[i] = w->codes + row[i] * w->row_bytes;
        }
        UNROLL for (int i = 0; i < rows * columns; i++) total[i] = _mm512_setzero_si512();
        for (int b = 0, g = 0; b < blocks; b += step * side, g += 16) {
            __m512i v[GEMV_COLUMNS][8];
            if (rows > 1)
                UNROLL for (int i = 0; i < rows; i++)
                    NAME(prefetch)(p[i] + 16 * bits * (int64_t)b, 64 * step);
            UNROLL for (int s = 0; s < step; s++) {
                int from = b + s * side, left = blocks - from;
                if (left <= 0) {
                    UNROLL for (int i = 0; i < rows * columns; i++)
                        UNROLL for (int j = 0; j < n; j++) v[i][s * n + j] = _mm512_setzero_si512();
                    continue;
                }
                __m512i all[2];
                UNROLL for (int i = 0; i < rows; i++) {
                    const uint8_t *codes = p[i] + 16 * bits * (int64_t)from;
                    if (rows == 1) NAME(prefetch)(codes, 64);
                    if (left >= side)
                        all[i] = NAME(load512)(codes);
                    else
                        all[i] = _mm512_maskz_loadu_epi8(((__mmask64)1 << 16 * bits * left) - 1,
                                                         codes);
                }
                if (bits == 1)
                    NAME(one_bit)(all, x, from / side, v, s * n, n, rows, columns, shifted);
                else
                    NAME(two_bits)(all, x, from / side, v, s * n, n, rows, columns, shifted);
            }
            UNROLL for (int i = 0; i < rows; i++) {
                __m512i scale = NAME(scales16)(w, (int64_t)row[i] * groups + g, groups - g, words);
                UNROLL for (int c = 0; c < columns; c++) {
                    const __m512i *of = v[i * columns + c];
                    __m512i sums = bits == 1 ? NAME(lane_sums)(of) : NAME(half_sums512)(of);
                    total[i * columns + c] =
                        NAME(scaled16)(total[i * columns + c], sums, scale, zero,
                                       a + (int64_t)c * groups + g, places, narrow);
                }
            }
        }
        for (int i = 0; i < rows; i++)
            for (int c = 0; c < columns && c < x->count; c++) {
                __m512i sum = total[i * columns + c];
                out[(int64_t)c * count + row[i] - first] =
                    narrow ? _mm512_reduce_add_epi32(sum) : _mm512_reduce_add_epi64(sum);
            }
    }
}

#define ROWS_OF(bits, columns, shifted)                                                           \
    static TARGET __attribute__((noinline)) void NAME(rows_##bits##_##columns##_##shifted)(       \
        const lutra_matrix *w, int first, int last, const lutra_columns *x, const int32_t *a,     \
        int64_t *out) {                                                                           \
        const int rows = columns == 1 && bits == 1 ? 2 : 1;                                       \
        if (w->group == BLOCK)                                                                    \
            NAME(rows_of)(w, first, last, x, a, out, bits, 1, rows, columns, shifted);            \
        else if (w->group == BLOCK / 2)                                                           \
            NAME(rows_of)(w, first, last, x, a, out, bits, 2, rows, columns, shifted);            \
        else                                                                                      \
            NAME(rows_of)(w, first, last, x, a, out, bits, 4, rows, columns, shifted);            \
    }

#include "bits_product.h"
