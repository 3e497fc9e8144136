/* Products by NEON; codes of 8 bits are multiplied by nibbles.
 *
 * The including file defines TARGET, NAME and DOT(acc, w, x): acc [4] and, to each, the product of
 * four signed bytes of w [16] with those of x. */
#define INLINE static inline __attribute__((always_inline)) TARGET
#include "vector_body.h"
#include "attend_plain.h"

INLINE int32x4_t NAME(mac)(int32x4_t acc, uint8x16_t w, int8x16_t x, const int wide) {
    if (!wide) return DOT(acc, vreinterpretq_s8_u8(w), x);
    int32x4_t high = DOT(vdupq_n_s32(0), vreinterpretq_s8_u8(vshrq_n_u8(w, 4)), x);
    acc = DOT(acc, vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15))), x);
    return vaddq_s32(acc, vshlq_n_s32(high, 4));
}

/* One plane of a block as eight vectors. */
INLINE void NAME(plane)(const uint8_t *p, int width, uint8x16_t *w) {
    for (int i = 0; i < width; i++) {
        uint8x16_t x = vld1q_u8(p + 16 * i);
        if (width == 4) {
            int at = i / 2 * 4 + i % 2;
            w[at] = vandq_u8(x, vdupq_n_u8(15));
            w[at + 2] = vshrq_n_u8(x, 4);
        } else if (width == 2) {
            w[i] = vshrq_n_u8(x, 6);
            w[2 + i] = vandq_u8(vshrq_n_u8(x, 4), vdupq_n_u8(3));
            w[4 + i] = vandq_u8(vshrq_n_u8(x, 2), vdupq_n_u8(3));
            w[6 + i] = vandq_u8(x, vdupq_n_u8(3));
        } else {
            for (int f = 0; f < 8; f++)
                w[f] = vandq_u8(vshlq_u8(x, vdupq_n_s8((int8_t)(f - 7))), vdupq_n_u8(1));
        }
    }
}

/* The 128 codes of a block; of signed bytes, 128 added to each and zeros behind them. */
INLINE void NAME(unpack)(const uint8_t *p, int bits, int left, uint8x16_t *w) {
    if (!bits) {
        uint8_t rest[BLOCK] = {0};
        if (left < BLOCK) {
            memcpy(rest, p, (size_t)left);
            p = rest;
        }
        for (int i = 0; i < 8; i++) w[i] = veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0x80));
        return;
    }
    int low = bits == 3 ? 2 : bits > 4 ? 4 : bits, high = bits - low;
    NAME(plane)(p, low, w);
    if (!high) return;
    uint8x16_t top[8];
    NAME(plane)(p + BLOCK * low / 8, high, top);
    for (int i = 0; i < 8; i++)
        w[i] = vorrq_u8(w[i], vshlq_u8(top[i], vdupq_n_s8((int8_t)low)));
}

/* Of four units from part `part` of a column on, those of activations in groups. */
INLINE int32x4_t NAME(shifts)(const lutra_columns *x, int column, int part) {
    int32x2_t two = vld1_s32(x->shifts + (int64_t)column * (x->depth / SHARED) + part);
    return vcombine_s32(vdup_lane_s32(two, 0), vdup_lane_s32(two, 1));
}

INLINE void NAME(rows)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                      lutra_scratch *scratch, int64_t *out, const int bits, const int shifted) {
    int blocks = x->depth / BLOCK, rows = last - first, groups = w->scale ? w->k / w->group : 1;
    int per = w->scale ? w->group / UNIT : x->depth / UNIT;
    const int wide = bits == 0 || bits == 8;
    int64_t offset = bits ? 1 : 128;
    int32_t *sums = (int32_t *)scratch->bytes; /* [columns, depth / UNIT] */
    for (int r = first; r < last; r++) {
        const uint8_t *p = w->codes + r * w->row_bytes;
        for (int b = 0; b < blocks; b++) {
            uint8x16_t codes[8];
            __builtin_prefetch(p + 4096);
            NAME(unpack)(p, bits, w->k - b * BLOCK, codes);
            p += bits ? BLOCK * bits / 8 : BLOCK;
            for (int c = 0; c < x->count; c++) {
                const int8_t *a = x->x + (int64_t)c * x->depth + b * BLOCK;
                int32_t *to = sums + (int64_t)c * (x->depth / UNIT) + b * 8;
                int32x4_t dots[8];
                for (int i = 0; i < 8; i++)
                    dots[i] = NAME(mac)(vdupq_n_s32(0), codes[i], vld1q_s8(a + 16 * i), wide);
                for (int i = 0; i < 8; i += 4) {
                    int32x4_t four = vpaddq_s32(vpaddq_s32(dots[i], dots[i + 1]),
                                                vpaddq_s32(dots[i + 2], dots[i + 3]));
                    if (shifted) four = vshlq_s32(four, NAME(shifts)(x, c, b * 4 + i / 2));
                    vst1q_s32(to + i, four);
                }
            }
        }
        for (int c = 0; c < x->count; c++) {
            const int32_t *from = sums + (int64_t)c * (x->depth / UNIT);
            const int32_t *a = scratch->group_sums + (int64_t)c * groups;
            int64_t total = 0, at = (int64_t)r * groups;
            for (int g = 0; g < groups; g++, from += per) {
                int64_t sum = 0;
                for (int i = 0; i < per; i++) sum += from[i];
                if (!w->scale) {
                    total = (shifted ? sum : 2 * sum) - 2 * offset * a[0];
                    break;
                }
                int64_t scale = w->scale_bytes == 1 ? ((const uint8_t *)w->scale)[at + g]
                                                    : ((const uint16_t *)w->scale)[at + g];
                int64_t zero = zero_at(w, r, g);
                total += scale * ((shifted ? sum : 2 * sum) - zero * a[g]);
                if (shifted && w->offset)
                    total += (int64_t)w->offset[at + g] * a[g] * (1 << w->offset_shift);
            }
            out[(int64_t)c * rows + r - first] = total;
        }
    }
}

#define GEMV(name, shifted)                                                                       \
    static TARGET void name(const lutra_matrix *w, int first, int last, const lutra_columns *x,   \
                            lutra_scratch *scratch, int64_t *out) {                               \
        switch (w->bits) {                                                                        \
        case 0: NAME(rows)(w, first, last, x, scratch, out, 0, shifted); break;                   \
        case 1: NAME(rows)(w, first, last, x, scratch, out, 1, shifted); break;                   \
        case 2: NAME(rows)(w, first, last, x, scratch, out, 2, shifted); break;                   \
        case 3: NAME(rows)(w, first, last, x, scratch, out, 3, shifted); break;                   \
        case 4: NAME(rows)(w, first, last, x, scratch, out, 4, shifted); break;                   \
        case 5: NAME(rows)(w, first, last, x, scratch, out, 5, shifted); break;                   \
        case 6: NAME(rows)(w, first, last, x, scratch, out, 6, shifted); break;                   \
        default: NAME(rows)(w, first, last, x, scratch, out, 8, shifted);                         \
        }                                                                                         \
    }

GEMV(NAME(gemv), 0)
GEMV(NAME(gemv_shifted), 1)
#undef GEMV

/* Rows as gemm takes them, [depth / 4, rows, 4]; those behind the last one repeat it. */
static TARGET void NAME(pack)(const lutra_matrix *w, int first, int last, int depth, int rows,
                             uint8_t *out) {
    for (int r = 0; r < rows; r++) {
        const uint8_t *p = w->codes + (first + r < last ? first + r : last - 1) * w->row_bytes;
        for (int b = 0; b < depth / BLOCK; b++) {
            uint8x16_t codes[8];
            uint8_t bytes[BLOCK];
            NAME(unpack)(p, w->bits, w->k - b * BLOCK, codes);
            p += w->bits ? BLOCK * w->bits / 8 : BLOCK;
            for (int i = 0; i < 8; i++) vst1q_u8(bytes + 16 * i, codes[i]);
            for (int i = 0; i < BLOCK / 4; i++)
                memcpy(out + ((int64_t)(b * BLOCK / 4 + i) * rows + r) * 4, bytes + 4 * i, 4);
        }
    }
}

#define V int32x4_t
#define LANES 4
#define COLUMNS 8
#define PACK NAME(pack)
#define LOAD(p) vld1q_s32((const int32_t *)(const void *)(p))
#define STORE(p, v) vst1q_s32(p, v)
#define ZERO vdupq_n_s32(0)
#define SET(x) vdupq_n_s32(x)
#define ADD vaddq_s32
#define SUB vsubq_s32
#define MUL vmulq_s32
#define MAC(acc, w, x, wide) NAME(mac)(acc, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(x), wide)
#include "gemm.h"

/* Sums of 64 bits of products of 32. */
#define SHIFT vshlq_s32
#define STRIP 4
#define W int64x2_t
#define LOAD64(p) vld1q_s64(p)
#define STORE64(p, v) vst1q_s64(p, v)
#define HALF(v) (v)
#define EVEN(sum, a, b) vmlal_s32(sum, vget_low_s32(a), vget_low_s32(b))
#define ODD(sum, a, b) vmlal_high_s32(sum, a, b)
#define PLACE(lane) (lane)
#include "gemm_shifted.h"
