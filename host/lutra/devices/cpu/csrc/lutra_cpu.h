/* A packed model on a CPU: what the library takes and gives. All numbers are integers; every result
 * equals that of the golden model in lutra_golden, which specifies it. */
#ifndef LUTRA_CPU_H
#define LUTRA_CPU_H

#include <stddef.h>
#include <stdint.h>

/* Counts changes of this file: the binding refuses a library that was built from another one. */
#define LUTRA_CPU_ABI 2

#ifdef __cplusplus
extern "C" {
#endif
/* all else stays within the library */
#pragma GCC visibility push(default)

/* m * 2**e with 2**15 <= m < 2**16, or zero: m == 0, e == 0. */
typedef struct {
    int32_t m, e;
} lutra_scale;

/* Values of tables that the golden model defines. */
typedef struct {
    int32_t recip[256], rsqrt[256];
    int32_t exp2_base[32], exp2_drop[32];
    int32_t silu_base[512], silu_rise[512];
} lutra_tables;

/* A matrix [n, k]. bits 1, 2, 3, 4, 6, 8: rows of codes in B128, ternary (0, 1, 2 for -1, 0, 1)
 * where scale is NULL, else with a scale (of scale_bytes) and a zero point per row and group of
 * columns.
 * bits 0: rows of k signed bytes. */
typedef struct {
    const uint8_t *codes;
    const void *scale;
    const uint16_t *zero;
    int64_t row_bytes;
    int32_t n, k, bits, group, scale_bytes, shift;
    lutra_scale unit;
} lutra_matrix;

/* gamma [n] with frac fraction bits; inv_n is 1 / n. Only multiplied by gamma if plain. */
typedef struct {
    const int16_t *gamma;
    int32_t frac, plain;
    lutra_scale inv_n;
} lutra_norm;

typedef struct {
    lutra_matrix q, k, v, o, gate, up, down;
    lutra_norm input, attention, ffn_input, ffn;
    const int16_t *bias;                   /* [(heads + 2 kv_heads) * head_dim], or NULL */
    const int16_t *query_norm, *key_norm;  /* [head_dim], or NULL */
    int32_t bias_frac, head_norm_frac, window, reserved;
} lutra_layer;

typedef struct {
    const lutra_layer *layers;
    const int16_t *embedding; /* [vocab, hidden] */
    const int16_t *rope;      /* [context, head_dim]: cosines of the half, then sines */
    const int16_t *head_rows; /* [vocab] */
    lutra_matrix head;
    lutra_norm norm;
    lutra_scale eps;
    int32_t n_layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context;
    int32_t a_bits, kv_bits, swiglu, residual_frac, embedding_shift, head_eps;
} lutra_model;

typedef struct lutra_pool lutra_pool;
typedef struct lutra_cache lutra_cache;
typedef struct lutra_engine lutra_engine;

int32_t lutra_cpu_abi(void);
void lutra_cpu_tables(const lutra_tables *tables);

/* Targets by number, best rank first; NULL behind the last one. */
const char *lutra_cpu_target_name(int target);
int lutra_cpu_target_available(int target);

/* n threads, the caller's included. */
lutra_pool *lutra_cpu_pool_new(int threads);
void lutra_cpu_pool_free(lutra_pool *pool);

/* Keys and values of a sequence, of 8 or 4 bits; memory is taken as positions are written. */
lutra_cache *lutra_cpu_cache_new(int layers, int kv_heads, int head_dim, int positions, int bits);
void lutra_cpu_cache_free(lutra_cache *cache);

/* Working memory of a model: products of few columns by target gemv, of many by target gemm. */
lutra_engine *lutra_cpu_engine_new(const lutra_model *model, int threads, int gemv, int gemm,
                                   int tile);
void lutra_cpu_engine_free(lutra_engine *engine);

/* Runs n tokens from position on; logits [n - logits_from, vocab], their scale and arg-max. Returns
 * bit 0: the residual stream was saturated; or -1: out of memory. */
int lutra_cpu_run(lutra_engine *engine, lutra_pool *pool, lutra_cache *cache, const int32_t *tokens,
                  int n, int position, int logits_from, int32_t *logits, lutra_scale *scale,
                  int32_t *argmax);

/* Single steps of the same code, for tests and benchmarks. */

/* acc [m, n] of count matrices of one shape, one after another, and the seconds of each; 0 if there
 * is no memory. */
int lutra_cpu_matmul(int target, lutra_pool *pool, const lutra_matrix *w, int count,
                     const int16_t *a, int m, int a_bits, int32_t *acc, double *seconds);
/* The seconds that reading each of count pieces of memory takes; 0 if there is no memory. */
int lutra_cpu_read(lutra_pool *pool, const uint8_t *data, int64_t size, int count,
                   double *seconds);
int lutra_cpu_norm_quantize(int target, const int64_t *v, lutra_scale scale, const lutra_norm *norm,
                            lutra_scale eps, int n, int a_bits, int16_t *q, lutra_scale *q_scale);
void lutra_cpu_gate(int target, const int32_t *gate, const int32_t *up, int n, int swiglu,
                    lutra_scale s, lutra_scale w_gate, int64_t *out);
void lutra_cpu_head(int target, const int32_t *acc, int head_dim, lutra_scale s, lutra_scale w,
                    const int16_t *rope, const int16_t *bias, int bias_frac, const int16_t *gamma,
                    int gamma_frac, int eps, int in_fixed, int q_max, int8_t *q,
                    lutra_scale *q_scale);
int lutra_cpu_residual(int target, int32_t *x, const int32_t *acc, int n, lutra_scale s,
                       lutra_scale w, int frac);
/* q [m, heads, head_dim], k and v [kv_heads, position + m, head_dim], their scales [m, heads] and
 * [position + m, kv_heads]. */
int lutra_cpu_attend(int target, const int8_t *q, const lutra_scale *q_scale, const int8_t *k,
                     const lutra_scale *k_scale, const int8_t *v, const lutra_scale *v_scale, int m,
                     int heads, int kv_heads, int head_dim, int kv_bits, int position, int frac,
                     int window, int32_t *out);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
