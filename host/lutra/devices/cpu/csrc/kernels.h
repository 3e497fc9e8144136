/* Functions that a target implements, and the data that they share. */
#ifndef LUTRA_KERNELS_H
#define LUTRA_KERNELS_H

#include "groups.h"
#include "scale.h"

enum { UNIT = 16, GEMV_COLUMNS = 4, FEW_COLUMNS = 8, KEY_BLOCK = 16, VALUE_BLOCK = 4 };
/* Activations in groups: so many successive ones share a power of two. */
enum { SHARED = 32 };
/* Rows of a strip (lutra_matrix). */
enum { STRIP = 32 };
/* Up to this shift a product's sum fits 32 bits. */
enum { NARROW_SHIFT = 32 - ACC_WIDTH };
/* Largest element of a norm after its block shift. */
enum { SCALED_MAX = (1 << (SCALED_WIDTH - 1)) - 1 };
enum { QUERIES = 4, VALUE_BLOCKS = 64 };

static inline int round_up(int x, int to) { return (x + to - 1) / to * to; }

/* Registers hold arrays only where loops over them are unrolled. */
#define UNROLL _Pragma("GCC unroll 16")

/* Codes of these bits have products of their own, for which columns lie in another way. */
enum { ONE_BIT = 1, TWO_BITS = 2 };

/* Columns of signed bytes that matrices are multiplied by. Activations of 8 bits are a column per
 * token. Those of 16 bits are a = 256 high + low + 128 with bytes high and low: two columns per
 * token, and a last one of ones, times 128. Those of 9 to 15 bits are in groups, a column of bytes
 * per token, each SHARED of them times a power of two; shifts are those of twice the activations.
 *
 * x is [count, depth], zero beyond k. packed holds the same as gemm or few takes it. For gemm in
 * tiles of `tile` columns, the last one of a multiple of four: [depth / 4, columns of the tile, 4].
 * For few, of more than `one` and up to `few` columns, in tiles of FEW_COLUMNS, the last one of
 * half of them if they are enough, and two blocks of 128 side by side: [depth / 256, 4, columns of
 * the tile, 2, 32].
 *
 * For codes of one bit pairs has `side` blocks of 128 side by side, with zeros for those that are
 * not there, [count, depth / (128 side), 8, side, 16], and powers what groups of activations share
 * in each two of the eight, [count, depth / (128 side), 4, side, 16]. For codes of two bits digits
 * has half as many side by side, [count, 2, depth / (64 side), 4, side / 2, 32]: the activations, or
 * of those in groups the digits of 128 * high + low. The depth of these is columns_depth(). */
typedef struct {
    int8_t *x, *packed;
    int32_t *sums;   /* [count, depth / UNIT], of activations */
    int32_t *raw;    /* the same of bytes, which are sums' unless in groups */
    int32_t *shifts; /* [count, depth / SHARED], 1..8; ones unless in groups */
    int8_t *pairs, *digits;
    uint8_t *powers;
    int fields, side; /* which of them there are: ONE_BIT, TWO_BITS or both */
    int k, depth, count, tokens, a_bits, tile, one, few;
} lutra_columns;

static inline int columns_depth(const lutra_columns *x) { return round_up(x->depth, 4 * BLOCK); }

static inline void columns_skip(lutra_columns *x, int columns) {
    int64_t n = columns, depth = columns_depth(x);
    x->x += n * x->depth;
    x->shifts += n * (x->depth / SHARED);
    x->raw += n * (x->depth / UNIT);
    if (x->fields & ONE_BIT) {
        x->pairs += n * depth;
        x->powers += n * depth / 2;
    }
    if (x->fields & TWO_BITS) x->digits += n * 2 * depth;
}

/* Sums of a column's groups, and working memory of a thread's functions. */
typedef struct {
    int32_t *group_sums; /* [count, groups], of groups of `per` units */
    int per;
    uint8_t *bytes;      /* for any use of a kernel, 64-byte aligned */
    int64_t *totals;     /* [count, STRIP] of a strip */
    uint8_t *flat;       /* rows of a matrix in strips, one after another, and numbers of groups of
                          * rows of one in two levels */
} lutra_scratch;

/* Keys [position / KEY_BLOCK, head_dim / 4, KEY_BLOCK, 4], values [position / VALUE_BLOCK,
 * head_dim, VALUE_BLOCK], scales [position] of one head in a page. Those of 4 bits are runs of bytes, whose
 * lower halves are a run of elements and whose upper halves are the next one: of 4 * KEY_BLOCK for
 * keys, of 2 * head_dim for values. */
typedef struct {
    const int8_t *keys, *values;
    const uint16_t *key_m, *value_m;
    const int16_t *key_e, *value_e;
    int head_dim, key_bits, value_bits;
} lutra_head;

typedef struct {
    const char *name;
    int (*available)(void);
    int tile;      /* columns of a tile of gemm */
    int gemm_rows; /* rows of a block of gemm */
    int few_least, few_most; /* columns that few is faster for than gemv and gemm */
    int side;      /* blocks of one bit that gemv takes side by side, 0 if there is no such gemv */

    /* out [columns, rows]: for rows first..last - 1 of a matrix, twice the product before its
     * shift. gemv takes up to GEMV_COLUMNS columns, few up to few_most; sums of gemm's groups fit
     * 32 bits. */
    void (*gemv)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                 lutra_scratch *scratch, int64_t *out);
    void (*few)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                lutra_scratch *scratch, int64_t *out);
    void (*gemm)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                 lutra_scratch *scratch, int64_t *out);

    /* The same of activations times powers of two, with the offsets of the matrix's groups and
     * sums of 64 bits. */
    void (*gemv_shifted)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                         lutra_scratch *scratch, int64_t *out);
    void (*gemm_shifted)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                         lutra_scratch *scratch, int64_t *out);

    /* out [rows] += sum of offset [rows, groups] times sums [groups], times 2**shift */
    void (*offsets)(const int16_t *offset, const int32_t *sums, int groups, int rows, int shift,
                    int64_t *out);

    /* scale and, if there are any, offset [last - first, groups] of rows of a matrix in two levels */
    void (*numbers)(const lutra_matrix *w, int first, int last, uint16_t *scale, int16_t *offset);

    int64_t (*abs_max32)(const int32_t *v, int n);
    int64_t (*abs_max64)(const int64_t *v, int n);
    /* y = saturate16(round_shift(v, shift)) * gamma; returns the largest |y|. */
    int64_t (*scaled32)(const int32_t *v, int shift, const int16_t *gamma, int n, int32_t *y,
                        int64_t *squares);
    int64_t (*scaled64)(const int64_t *v, int shift, const int16_t *gamma, int n, int32_t *y,
                        int64_t *squares);
    void (*quantize)(const int32_t *y, lutra_scale factor, int q_max, int n, int16_t *q);
    /* A token's activations as its columns, each of `depth` bytes. */
    void (*bytes)(const int16_t *q, int n, int8_t *x);
    void (*halves)(const int16_t *q, int n, int8_t *high, int8_t *low);
    /* Activations in groups as bytes, and a shift for each SHARED of them: up to `top`. */
    void (*shared)(const int16_t *q, int n, int top, int8_t *x, int32_t *shifts);
    void (*unit_sums)(const int8_t *x, int depth, int32_t *sums);

    /* out = round_shift(sums, shift) */
    void (*shifted)(const int64_t *sums, int n, int shift, int32_t *out);
    /* y of a head, rotated or, without a table, shifted by 14 bits. */
    void (*rotate)(const int32_t *x, const int16_t *table, int n, int64_t *y);
    void (*quantize64)(const int64_t *y, lutra_scale factor, int q_max, int n, int8_t *q);
    /* v = saturate28(acc * c in Q16 + bias << bias_shift); bias may be NULL; true if saturated. */
    int (*fixed)(const int32_t *acc, lutra_scale c, const int16_t *bias, int bias_shift, int n,
                  int32_t *v);

    void (*relu2)(const int32_t *gate, const int32_t *up, int n, int64_t *out);
    /* silu(gate * m) * up; true if the argument was above its range. */
    int (*swiglu)(const int32_t *gate, const int32_t *up, int n, int m, int shift, int64_t *out);
    /* x += round_shift(acc * m, shift), saturated to 32 bits; true if it was. A negative shift is
     * none, and true unless acc is zero. */
    int (*residual)(int32_t *x, const int32_t *acc, int n, int m, int shift);
    void (*logits)(const int64_t *sums, const int16_t *rows, int n, int shift, int32_t *out);

    /* Runs of bytes of a cache of 4 bits to twice as many elements. */
    void (*nibbles)(const int8_t *data, int runs, int size, int8_t *out);
    /* dot [columns, stride] of `count` (up to QUERIES) queries, whose elements have these sums, with
     * `blocks` blocks of keys. */
    void (*key_dots)(const int8_t *keys, int blocks, const int8_t *const *q, const int32_t *sums,
                     int count, int head_dim, int32_t *dot, int64_t stride);
    /* score [n] of dot products with n keys, and the largest of them; *saturated is set if one was,
     * or would have to be shifted to the left. */
    int32_t (*scores)(const int32_t *dot, lutra_scale q, const uint16_t *key_m,
                      const int16_t *key_e, int n, int32_t *score, int *saturated);
    /* w [n] of scores, and the sum of their exponentials. */
    int64_t (*weights)(const int32_t *score, int32_t top, const uint16_t *value_m,
                       const int16_t *value_e, int e, int n, uint16_t *w);
    /* acc [columns, head_dim] += w * values of `blocks` blocks, at most VALUE_BLOCKS of them: those
     * of pages of `per` blocks, without the first `skip` ones of the first page. */
    void (*value_sums)(const int8_t *const *pages, int per, int skip, int blocks,
                       const uint16_t *const *w, int count, int head_dim, int64_t *acc);

    /* lutra_cpu_free_ranges() and lutra_cpu_ranges_on(), with room for the weights of a lot. */
    double (*free_ranges)(const lutra_ranges *r, float *room, double *free);
    void (*ranges_on)(const lutra_ranges *r, float *room, double unit, const double *free,
                      double *error, double *step, double *zero);

    /* As gemv and gemv_shifted, with any number of columns, for matrices of one and two bits in
     * strips; NULL if there is no such product. `first` is the first row of a strip. */
    void (*strips)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                   lutra_scratch *scratch, int64_t *out);
    /* As gemv_shifted for such matrices of more bits, in groups. */
    void (*runs)(const lutra_matrix *w, int first, int last, const lutra_columns *x,
                 lutra_scratch *scratch, int64_t *out);

    int levels; /* gemv_shifted takes matrices in two levels as they are */
} lutra_kernels;

extern const lutra_kernels lutra_scalar, lutra_avx2, lutra_avxvnni, lutra_avx512vl, lutra_avx512,
    lutra_neon, lutra_armv8;
const lutra_kernels *lutra_target(int target);

#endif
