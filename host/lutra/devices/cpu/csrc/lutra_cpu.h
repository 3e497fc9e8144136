/* A packed model on a CPU: the interface of the library. All numbers are integers; every result
 * equals the golden model's in lutra_golden, which specifies it. */
#ifndef LUTRA_CPU_H
#define LUTRA_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* everything else is private to the library */
#pragma GCC visibility push(default)

/* m * 2**e with 2**15 <= m < 2**16, or zero: m == 0, e == 0. */
typedef struct {
    int32_t m, e;
} lutra_scale;

/* A matrix [n, k]. bits 1, 2, 3, 4, 5, 6, 8: rows of codes in B128, ternary (0, 1, 2 for -1, 0, 1)
 * where scale is NULL, else with a scale (of scale_bytes) and a zero point per row and group of
 * columns, and an offset of 2**offset_shift where offset is not NULL. Where zero is NULL there are
 * two zero points at most: other_zero for groups whose bit in marks is set, [n, groups / 8 rounded
 * up] with the first group in the lowest bit, and zero_point for others, for all without marks.
 * bits 0: rows of k signed bytes. group is 0 where there are no scales.
 *
 * Where levels is not NULL scales, and offsets with level_offsets, are in two levels instead, and
 * scale and offset are NULL: [n, k / SUPER] records of multiples of multiple_bits and factors, whose
 * products are shifted by level_shift (lutra_golden.model.two_levels). Groups are of 16 or 32.
 *
 * With strip, which lutra_cpu_strip() gives, arrays of codes, scales, zero points, offsets and records
 * are in strips of so many rows, the last one filled up: [n / strip, columns, strip], columns of codes
 * being four bytes and those of records two. Marks are then bits [n / strip, groups, strip]. */
typedef struct {
    const uint8_t *codes;
    const void *scale;
    const uint16_t *zero;
    const uint8_t *marks;
    const int16_t *offset;
    const uint8_t *levels;
    int64_t row_bytes;
    int32_t n, k, bits, group, scale_bytes, shift, offset_shift, zero_point, other_zero, strip;
    int32_t multiple_bits, level_shift, level_offsets;
    lutra_scale unit;
} lutra_matrix;

/* gamma [n] with frac fraction bits; inv_n is 1 / n. Only multiplied by gamma if plain. With group
 * its results are int8 with an exponent of up to group_shift for each group of a run of elements,
 * as integers of up to 8 + group_shift bits. */
typedef struct {
    const int16_t *gamma;
    int32_t frac, plain;
    lutra_scale inv_n;
    int32_t group, run, group_shift, reserved;
} lutra_norm;

typedef struct {
    lutra_matrix q, k, v, o, gate, up, down;
    lutra_norm input, attention, ffn_input, ffn;
    const int16_t *bias;                   /* [(heads + 2 kv_heads) * head_dim], or NULL */
    const int16_t *key_centre;             /* [kv_heads * head_dim], with the bits of bias, or NULL */
    const int16_t *query_norm, *key_norm;  /* [head_dim], or NULL */
    int32_t bias_frac, head_norm_frac, window, reserved;
} lutra_layer;

typedef struct {
    const lutra_layer *layers;
    const int16_t *embedding; /* [vocab, hidden], or NULL: rows of `embedded` times its unit */
    const int16_t *rope;      /* [context, head_dim]: cosines of the half, then sines */
    const int16_t *head_rows; /* [vocab], or NULL: logits are the head's products */
    lutra_matrix head, embedded;
    lutra_norm norm;
    lutra_scale eps, unit; /* unit: of the residual stream */
    /* column_bits: 8 or 16, those of the integers that matrices are multiplied by; or 8 and a shift
     * of 1 to 7: int8 times powers of two up to 2**shift, common to each 32 successive ones */
    int32_t n_layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context;
    int32_t a_bits, column_bits, key_bits, value_bits, swiglu, residual_frac, embedding_shift, head_eps;
} lutra_model;

typedef struct lutra_pool lutra_pool;
typedef struct lutra_meeting lutra_meeting;
typedef struct lutra_cache lutra_cache;
typedef struct lutra_engine lutra_engine;

/* A token of a sequence. Rows of a cache follow one another, at positions that do. */
typedef struct {
    lutra_cache *cache;
    int32_t position, token, wanted, reserved; /* wanted: its logits */
} lutra_row;

/* Rows first..last - 1 of a matrix, or heads. */
typedef struct {
    int32_t first, last;
} lutra_range;

/* A share of every layer: rows of q, of k and v, of o and down, of gate and up, and of the head; and
 * heads of attention. Others compute the rest, into the same memory, of which a pass takes the
 * first rows: sums [heads + 2 kv_heads, head_dim] of q, k and v, attended [heads, head_dim], back
 * [hidden] of o and down, gated [2, intermediate] of gate and up. meet(place) returns when all have
 * arrived: 0 if one of them never will. */
typedef struct {
    int32_t *sums, *attended, *back, *gated;
    int32_t (*meet)(void *place);
    void *place;
    lutra_range queries, keys, heads, hidden, inner, vocab;
} lutra_share;

/* n rows through layers first..last - 1. residual [n, hidden] is the input of the first layer,
 * unless that is layer 0, and receives the output of the last one, unless that is the model's last;
 * then rows that want logits [wanted, vocab] get them, their scale and arg-max. With a share, unless
 * that is NULL, logits are of its rows of the head alone, the arg-max being one of those, or -1. */
typedef struct {
    const lutra_row *rows;
    int32_t *residual, *logits, *argmax;
    lutra_scale *scale;
    const lutra_share *share;
    int32_t n, first, last, reserved;
} lutra_pass;

/* n groups of weights [n, group], of rows of `groups` groups, and what the squared errors of a row
 * count by their columns [groups, group]; NULL where they count the same. levels is the largest
 * code. Steps are tried in proportion to `factors`. odd: half the levels of grids that leave a level
 * out, or 0. ternary: only symmetric grids. lots: room for the groups, n rounded up to
 * 16, on a boundary of 64 bytes: where lutra_cpu_free_ranges() puts w for lutra_cpu_ranges_on(). */
typedef struct {
    const float *w, *weigh;
    float *lots;
    const double *factors;
    int64_t n;
    int32_t groups, group, levels, odd, ternary, scale_max, n_factors, reserved;
} lutra_ranges;

/* Identity of the library: a digest of this file and of golden.h; and the sizes of the
 * structures above and the places of their members, in the order of LAYOUT in golden.h, *n of them:
 * the binding refuses a library that differs. */
const char *lutra_cpu_version(void);
const int32_t *lutra_cpu_layout(int32_t *n);

/* Targets by number, best rank first; NULL after the last one. */
const char *lutra_cpu_target_name(int target);
int lutra_cpu_target_available(int target);
/* Rows of the strips that matrices may have whose products of few columns a target makes, or 0. */
int lutra_cpu_strip(int target);

/* n threads, the caller's included. */
lutra_pool *lutra_cpu_pool_new(int threads);
void lutra_cpu_pool_free(lutra_pool *pool);

/* A place where so many parties meet, each in a thread of its own. */
lutra_meeting *lutra_cpu_meeting_new(int parties);
void lutra_cpu_meeting_free(lutra_meeting *meeting);
/* Returns 1 when all parties have arrived, 0 once one of them has left for ever. */
int32_t lutra_cpu_meet(void *meeting);
void lutra_cpu_meeting_leave(lutra_meeting *meeting);

/* An array [rows, columns] of elements of 1, 2 or 4 bytes, to be copied in strips of so many rows;
 * or, where strip is 0, as it is. Room for a last strip is whole, and zero where there are no rows. */
typedef struct {
    void *to;
    const void *source;
    int64_t rows, columns;
    int32_t size, strip;
} lutra_copy;

void lutra_cpu_copy(lutra_pool *pool, const lutra_copy *copies, int count);

/* The clipped ranges of least squared error: the step [n] of each, and the largest of a symmetric
 * range that is not clipped; negative if there is no memory. */
double lutra_cpu_free_ranges(int target, const lutra_ranges *r, double *free_steps);
/* The same among steps that are 1 to scale_max units, about the free ones: errors, steps and twice
 * the zero points [n]; 0 if there is no memory. */
int lutra_cpu_ranges_on(int target, const lutra_ranges *r, double unit, const double *free_steps,
                        double *error, double *step, double *zero);

/* Memory that the system gives as it is written, NULL if there is none, and gives back: for a while,
 * after which it is zero, or for good. */
void *lutra_cpu_memory_new(int64_t n_bytes);
void lutra_cpu_memory_drop(void *data, int64_t n_bytes);
void lutra_cpu_memory_free(void *data, int64_t n_bytes);

/* Keys and values of a sequence, either of 8 or 4 bits, in pages of `page` positions of all layers, a
 * multiple of 16. A new cache has no pages. */
int64_t lutra_cpu_page_bytes(int layers, int kv_heads, int head_dim, int page, int key_bits,
                             int value_bits);
lutra_cache *lutra_cpu_cache_new(int kv_heads, int head_dim, int positions, int page, int key_bits,
                                 int value_bits);
void lutra_cpu_cache_free(lutra_cache *cache);
/* Where the page number `index` is; several caches may have the same one. */
void lutra_cpu_cache_set(lutra_cache *cache, int index, void *page);
/* The first n positions of a page, of all layers, to another page for caches of this shape. */
void lutra_cpu_page_copy(const lutra_cache *cache, int layers, void *to, const void *from, int n);
/* The first n positions of a layer: k and v [kv_heads, n, head_dim], their scales [n, kv_heads]. */
void lutra_cpu_cache_read(const lutra_cache *cache, int layer, int n, int8_t *k,
                          lutra_scale *k_scale, int8_t *v, lutra_scale *v_scale);
void lutra_cpu_cache_write(lutra_cache *cache, int layer, int n, const int8_t *k,
                           const lutra_scale *k_scale, const int8_t *v,
                           const lutra_scale *v_scale);

/* Working memory for passes of up to `rows` rows: products of one or a few columns by target gemv,
 * of more by target gemm. */
lutra_engine *lutra_cpu_engine_new(const lutra_model *model, int threads, int gemv, int gemm,
                                   int rows);
void lutra_cpu_engine_free(lutra_engine *engine);

/* Runs the rows of a pass. Returns bit 0: a value was saturated; or -1: out of memory;
 * or -2: the pass does not fit the engine, the pool or a cache; or -3: another party of the share has
 * left. */
int lutra_cpu_run(lutra_engine *engine, lutra_pool *pool, const lutra_pass *pass);

/* Single steps of the same code, for tests. Those that can saturate say whether they did;
 * lutra_cpu_attend returns 1, or 2 if it did, or 0 if there is no memory. */

int lutra_cpu_norm_quantize(int target, const int64_t *v, lutra_scale scale, const lutra_norm *norm,
                            lutra_scale eps, int n, int a_bits, int16_t *q, lutra_scale *q_scale);
int lutra_cpu_gate(int target, const int32_t *gate, const int32_t *up, int n, int swiglu,
                   lutra_scale s, lutra_scale w_gate, int64_t *out);
int lutra_cpu_head(int target, const int32_t *acc, int head_dim, lutra_scale s, lutra_scale w,
                   const int16_t *rope, const int16_t *bias, int bias_frac, const int16_t *gamma,
                   int gamma_frac, int eps, const int16_t *centre, int in_fixed, int q_max,
                   int8_t *q, lutra_scale *q_scale);
int lutra_cpu_residual(int target, int32_t *x, const int32_t *acc, int n, lutra_scale s,
                       lutra_scale w, int frac);
/* q [m, heads, head_dim], k and v [kv_heads, position + m, head_dim], their scales [m, heads] and
 * [position + m, kv_heads], in a cache of pages. */
int lutra_cpu_attend(int target, const int8_t *q, const lutra_scale *q_scale, const int8_t *k,
                     const lutra_scale *k_scale, const int8_t *v, const lutra_scale *v_scale, int m,
                     int heads, int kv_heads, int head_dim, int key_bits, int value_bits,
                     int position, int frac, int window, int page, int32_t *out);

/* The same with times, for benchmarks too. */

/* acc [m, n] of count matrices of one shape, one after another, and the seconds of each; 0 if there
 * is no memory. a_bits as column_bits. */
int lutra_cpu_matmul(int target, lutra_pool *pool, const lutra_matrix *w, int count,
                     const int16_t *a, int m, int a_bits, int32_t *acc, double *seconds);
/* The seconds that reading each of count pieces of memory takes; 0 if there is no memory. */
int lutra_cpu_read(lutra_pool *pool, const uint8_t *data, int64_t size, int count,
                   double *seconds);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
