/* Timed products and reads. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "matmul.h"

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
    int ok = p->scratch && p->sums &&
             columns_new(&p->x, w->k, m, a_bits, &p->choice, columns_fields(w, count));
    for (int i = 0; ok && i < p->threads; i++)
        ok = scratch_new(&p->scratch[i], &p->sums[i], w->k, m, a_bits, &p->choice);
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
