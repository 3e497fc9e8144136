/* Copies of arrays by all threads, in pieces of a large page, which its thread touches first. */
#include <string.h>

#include "kernels.h"
#include "pool.h"

enum { PIECE_BYTES = 2 << 20, LINE = 64 };

typedef struct {
    const lutra_copy *copies;
    int count;
    lutra_pool *pool;
} copies_t;

/* Columns of a strip's rows, a line of each row at a time. */
#define STRIP_OF(type)                                                                            \
    static void strip_##type(type *to, const type *from, int64_t columns, int rows) {             \
        const int line = LINE / sizeof(type);                                                     \
        for (int64_t first = 0; first < columns; first += line) {                                 \
            int64_t last = first + line < columns ? first + line : columns;                       \
            for (int r = 0; r < rows; r++)                                                        \
                for (int64_t c = first; c < last; c++) to[c * STRIP + r] = from[r * columns + c]; \
        }                                                                                         \
    }
STRIP_OF(uint8_t)
STRIP_OF(uint16_t)
STRIP_OF(uint32_t)

static void strips(const lutra_copy *c, int64_t first, int64_t last) {
    for (int64_t s = first; s < last; s++) {
        int64_t left = c->rows - s * STRIP, at = s * STRIP * c->columns;
        int rows = (int)(left < STRIP ? left : STRIP);
        void *to = (uint8_t *)c->to + at * c->size;
        const void *from = (const uint8_t *)c->source + at * c->size;
        if (c->size == 1) strip_uint8_t(to, from, c->columns, rows);
        if (c->size == 2) strip_uint16_t(to, from, c->columns, rows);
        if (c->size == 4) strip_uint32_t(to, from, c->columns, rows);
    }
}

static void copy_job(void *argument, int thread) {
    const copies_t *job = argument;
    int64_t item = pool_next(job->pool), before = 0; /* pieces of the arrays before this one */
    (void)thread;
    for (int i = 0; i < job->count; i++) {
        const lutra_copy *c = &job->copies[i];
        int64_t row = c->columns * c->size, units = c->rows * row, piece = PIECE_BYTES;
        if (c->strip) {
            units = (c->rows + STRIP - 1) / STRIP;
            piece = (PIECE_BYTES + STRIP * row - 1) / (STRIP * row);
        }
        int64_t pieces = (units + piece - 1) / piece;
        for (; item < before + pieces; item = pool_next(job->pool)) {
            int64_t at = (item - before) * piece, last = at + piece < units ? at + piece : units;
            if (c->strip)
                strips(c, at, last);
            else
                memcpy((uint8_t *)c->to + at, (const uint8_t *)c->source + at, (size_t)(last - at));
        }
        before += pieces;
    }
}

void lutra_cpu_copy(lutra_pool *pool, const lutra_copy *copies, int count) {
    copies_t c = {copies, count, pool};
    pool_run(pool, copy_job, &c);
}
