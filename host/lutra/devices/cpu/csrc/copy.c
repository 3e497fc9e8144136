/* Copies of arrays by all threads, in pieces of a large page, which its thread touches first. */
#include <string.h>

#include "pool.h"

enum { PIECE_BYTES = 2 << 20 };

typedef struct {
    void *const *to;
    const void *const *from;
    const int64_t *sizes;
    int count;
    lutra_pool *pool;
} copies_t;

static void copy_job(void *argument, int thread) {
    const copies_t *c = argument;
    int64_t item = pool_next(c->pool), before = 0; /* pieces of the arrays before this one */
    (void)thread;
    for (int i = 0; i < c->count; i++) {
        int64_t pieces = (c->sizes[i] + PIECE_BYTES - 1) / PIECE_BYTES;
        for (; item < before + pieces; item = pool_next(c->pool)) {
            int64_t at = (item - before) * PIECE_BYTES, left = c->sizes[i] - at;
            memcpy((uint8_t *)c->to[i] + at, (const uint8_t *)c->from[i] + at,
                   (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES));
        }
        before += pieces;
    }
}

void lutra_cpu_copy(lutra_pool *pool, void *const *to, const void *const *from,
                    const int64_t *sizes, int count) {
    copies_t c = {to, from, sizes, count, pool};
    pool_run(pool, copy_job, &c);
}
