/* Targets, and single steps for tests and benchmarks. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attend.h"
#include "matmul.h"
#include "vector.h"

lutra_tables lutra_table;

static const lutra_kernels *const targets[] = {
#if defined(__x86_64__)
    &lutra_avx512, &lutra_avx512vl, &lutra_avxvnni, &lutra_avx2,
#elif defined(__aarch64__)
    &lutra_neon,
#endif
    &lutra_scalar,
};

enum { N_TARGETS = sizeof targets / sizeof *targets };

int32_t lutra_cpu_abi(void) { return LUTRA_CPU_ABI; }

void lutra_cpu_tables(const lutra_tables *tables) { lutra_table = *tables; }

const lutra_kernels *lutra_target(int target) { return targets[target]; }

const char *lutra_cpu_target_name(int target) {
    return target >= 0 && target < N_TARGETS ? targets[target]->name : NULL;
}

int lutra_cpu_target_available(int target) {
    return target >= 0 && target < N_TARGETS && targets[target]->available();
}

int64_t kernel_bytes(int depth) {
    /* a block of gemm's rows as bytes, their scales, sums of a tile; or a row's sums of units */
    int64_t k = round_up(depth, BLOCK);
    return 64 * k + 64 * (k / UNIT) * 8 + 64 * 16 * 16 + GEMV_COLUMNS * k / UNIT * 64 + 4096;
}

/* When the last thread reached each of a row of barriers: one that sleeps there sees it pass
 * late. */
typedef struct {
    _Atomic int64_t *at;
    int count;
} barriers_t;

static int times_new(barriers_t *times, int count) {
    times->count = count;
    times->at = calloc((size_t)count + 1, sizeof *times->at);
    return times->at != NULL;
}

static void times_reach(barriers_t *times, int barrier) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t now = t.tv_sec * (int64_t)1000000000 + t.tv_nsec, old = times->at[barrier];
    while (old < now && !atomic_compare_exchange_weak(&times->at[barrier], &old, now)) {
    }
}

static void times_take(barriers_t *times, double *seconds) {
    for (int i = 0; i < times->count; i++)
        seconds[i] = 1e-9 * (double)(times->at[i + 1] - times->at[i]);
    free(times->at);
}

typedef struct {
    lutra_choice choice;
    lutra_pool *pool;
    const lutra_matrix *w;
    int count, threads;
    lutra_columns x;
    lutra_scratch *scratch;
    int64_t **sums;
    int32_t *acc;
    barriers_t times;
} product_t;

static void product_job(void *argument, int thread) {
    product_t *p = argument;
    times_reach(&p->times, 0);
    pool_barrier(p->pool);
    for (int i = 0; i < p->count; i++) {
        const lutra_matrix *w = &p->w[i];
        int rows = product_rows(&p->choice, w, &p->x);
        for (int item; (item = pool_next(p->pool)) * (int64_t)rows < w->n;) {
            product_begin(w, &p->x, &p->scratch[thread]);
            int first = item * rows, last = first + rows > w->n ? w->n : first + rows;
            product(&p->choice, w, first, last, &p->x, &p->scratch[thread], p->sums[thread],
                    p->acc + first, w->n);
        }
        times_reach(&p->times, i + 1);
        pool_barrier(p->pool);
    }
}

static int product_new(product_t *p, int target, lutra_pool *pool, const lutra_matrix *w, int count,
                       const int16_t *a, int m, int a_bits, int32_t *acc) {
    memset(p, 0, sizeof *p);
    p->choice.gemv = p->choice.gemm = lutra_target(target);
    p->pool = pool;
    p->w = w;
    p->count = count;
    p->acc = acc;
    p->threads = pool_threads(pool);
    p->scratch = calloc((size_t)p->threads, sizeof *p->scratch);
    p->sums = calloc((size_t)p->threads, sizeof *p->sums);
    int ok = p->scratch && p->sums && columns_new(&p->x, w->k, m, a_bits, p->choice.gemm->tile);
    for (int i = 0; ok && i < p->threads; i++)
        ok = scratch_new(&p->scratch[i], &p->sums[i], w->k, m, a_bits);
    if (!ok) return 0;
    columns_shape(&p->x, w->k, m);
    for (int t = 0; t < m; t++) columns_set(&p->x, p->choice.gemv, t, a + (int64_t)t * w->k);
    return 1;
}

static void product_free(product_t *p) {
    for (int i = 0; p->scratch && p->sums && i < p->threads; i++)
        scratch_free(&p->scratch[i], &p->sums[i]);
    columns_free(&p->x);
    free(p->scratch);
    free(p->sums);
}

int lutra_cpu_matmul(int target, lutra_pool *pool, const lutra_matrix *w, int count,
                     const int16_t *a, int m, int a_bits, int32_t *acc, double *seconds) {
    product_t p;
    int ok = product_new(&p, target, pool, w, count, a, m, a_bits, acc);
    if (ok && (ok = times_new(&p.times, count))) {
        pool_run(pool, product_job, &p);
        times_take(&p.times, seconds);
    }
    product_free(&p);
    return ok;
}

typedef struct {
    const uint8_t *data;
    int64_t size;
    int count;
    lutra_pool *pool;
    barriers_t times;
    _Atomic uint64_t sink;
} read_t;

enum { READ_BYTES = 256 << 10 };

static void read_job(void *argument, int thread) {
    read_t *r = argument;
    uint64_t x[8] = {0}, all = 0;
    (void)thread;
    times_reach(&r->times, 0);
    pool_barrier(r->pool);
    for (int i = 0; i < r->count; i++) {
        const uint8_t *piece = r->data + i * r->size;
        for (int item; (int64_t)(item = pool_next(r->pool)) * READ_BYTES < r->size;) {
            const uint8_t *at = piece + (int64_t)item * READ_BYTES;
            int64_t left = r->size - (int64_t)item * READ_BYTES;
            if (left > READ_BYTES) left = READ_BYTES;
            for (int64_t j = 0; j + 64 <= left; j += 64)
                for (int k = 0; k < 8; k++) x[k] ^= *(const uint64_t *)(at + j + 8 * k);
        }
        times_reach(&r->times, i + 1);
        pool_barrier(r->pool);
    }
    for (int k = 0; k < 8; k++) all ^= x[k];
    r->sink ^= all;
}

int lutra_cpu_read(lutra_pool *pool, const uint8_t *data, int64_t size, int count,
                   double *seconds) {
    read_t r = {data, size, count, pool, {NULL, 0}, 0};
    if (!times_new(&r.times, count)) return 0;
    pool_run(pool, read_job, &r);
    times_take(&r.times, seconds);
    return 1;
}

int lutra_cpu_norm_quantize(int target, const int64_t *v, lutra_scale scale, const lutra_norm *norm,
                            lutra_scale eps, int n, int a_bits, int16_t *q, lutra_scale *q_scale) {
    int32_t *narrow = malloc((size_t)n * 4), *y = malloc((size_t)n * 4);
    int wide = 0, ok = narrow && y;
    for (int i = 0; ok && i < n; i++) {
        narrow[i] = (int32_t)v[i];
        wide |= narrow[i] != v[i];
    }
    lutra_source source = {wide ? NULL : narrow, wide ? v : NULL, scale};
    if (ok)
        *q_scale = norm_quantize(lutra_target(target), source, norm, eps, n,
                                 (1 << (a_bits - 1)) - 1, y, q);
    free(narrow);
    free(y);
    return ok;
}

void lutra_cpu_gate(int target, const int32_t *gate, const int32_t *up, int n, int swiglu,
                    lutra_scale s, lutra_scale w_gate, int64_t *out) {
    gate_product(lutra_target(target), gate, up, n, swiglu, s, w_gate, out);
}

void lutra_cpu_head(int target, const int32_t *acc, int head_dim, lutra_scale s, lutra_scale w,
                    const int16_t *rope, const int16_t *bias, int bias_frac, const int16_t *gamma,
                    int gamma_frac, int eps, int in_fixed, int q_max, int8_t *q,
                    lutra_scale *q_scale) {
    lutra_head_step step = {s,        w,         rope,       bias, gamma,
                            in_fixed, bias_frac, gamma_frac, eps,  q_max};
    *q_scale = head_quantize(lutra_target(target), acc, head_dim, &step, q);
}

int lutra_cpu_residual(int target, int32_t *x, const int32_t *acc, int n, lutra_scale s,
                       lutra_scale w, int frac) {
    return residual_add(lutra_target(target), x, acc, n, s, w, frac);
}

int lutra_cpu_attend(int target, const int8_t *q, const lutra_scale *q_scale, const int8_t *k,
                     const lutra_scale *k_scale, const int8_t *v, const lutra_scale *v_scale, int m,
                     int heads, int kv_heads, int head_dim, int kv_bits, int position, int frac,
                     int window, int32_t *out) {
    int total = position + m, per_kv = heads / kv_heads, ok = 0;
    lutra_attend_scratch scratch = {0};
    lutra_cache *cache = lutra_cpu_cache_new(1, kv_heads, head_dim, total, kv_bits);
    if (cache && attend_scratch(&scratch, total)) {
        for (int g = 0; g < kv_heads; g++)
            for (int p = 0; p < total; p++) {
                int64_t at = (int64_t)g * total + p, s = (int64_t)p * kv_heads + g;
                cache_store(cache, 0, g, p, k + at * head_dim, k_scale[s], v + at * head_dim,
                            v_scale[s]);
            }
        for (int g = 0; g < kv_heads; g++) {
            lutra_head head = cache_head(cache, 0, g);
            for (int first = 0; first < m * per_kv; first += QUERIES) {
                lutra_query queries[QUERIES];
                int count = m * per_kv - first < QUERIES ? m * per_kv - first : QUERIES;
                for (int i = 0; i < count; i++) {
                    int t = (first + i) / per_kv, h = g * per_kv + (first + i) % per_kv;
                    int64_t at = (int64_t)t * heads + h;
                    lutra_query query = {q + at * head_dim, q_scale[at], position + t,
                                         out + at * head_dim};
                    queries[i] = query;
                }
                attend(lutra_target(target), &head, queries, count, frac, window, &scratch);
            }
        }
        ok = 1;
    }
    attend_scratch_free(&scratch);
    lutra_cpu_cache_free(cache);
    return ok;
}
