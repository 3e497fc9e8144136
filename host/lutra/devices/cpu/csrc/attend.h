/* The KV cache and attention over it. */
#ifndef LUTRA_ATTEND_H
#define LUTRA_ATTEND_H

#include "kernels.h"

/* True if a cache has the page of a position. */
int cache_holds(const lutra_cache *cache, int position);
/* A head's keys and values in the page of a position. */
lutra_head cache_head(const lutra_cache *cache, int layer, int head, int position);
void cache_store(lutra_cache *cache, int layer, int head, int position, const int8_t *k,
                 lutra_scale k_scale, const int8_t *v, lutra_scale v_scale);

/* A query and where its output goes. */
typedef struct {
    const int8_t *q;
    lutra_scale scale;
    int position;
    int32_t *out;
} lutra_query;

/* What a thread needs for queries over this many positions. */
typedef struct {
    int32_t *dot;
    uint16_t *w;
    int8_t *elements; /* of a piece of a cache of 4 bits */
    int64_t stride;
} lutra_attend_scratch;

int attend_scratch(lutra_attend_scratch *scratch, int positions);
void attend_scratch_free(lutra_attend_scratch *scratch);

/* Attention of up to QUERIES queries over the positions that they see; true if a score or an output
 * was saturated. */
int attend(const lutra_kernels *kernels, const lutra_cache *cache, int layer, int kv_head,
           const lutra_query *queries, int count, int frac, int window,
           lutra_attend_scratch *scratch);

#endif
