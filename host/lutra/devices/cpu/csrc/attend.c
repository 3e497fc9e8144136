#include "attend.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* pages [n_pages], each [layers, kv_heads, what head_bytes() counts], NULL where there is none. */
struct lutra_cache {
    int kv_heads, head_dim, page, n_pages, key_bits, value_bits;
    int64_t head_bytes;
    uint8_t *pages[];
};

enum { KEY_BLOCKS = 8 };

/* Of one head's positions in a page: keys, values, then key_m, value_m, key_e, value_e. */
static int64_t head_bytes(int head_dim, int page, int key_bits, int value_bits) {
    int64_t elements = (int64_t)head_dim * (key_bits + value_bits) / 8;
    return page * (elements + 8);
}

int64_t lutra_cpu_page_bytes(int layers, int kv_heads, int head_dim, int page, int key_bits,
                             int value_bits) {
    return head_bytes(head_dim, page, key_bits, value_bits) * kv_heads * layers;
}

void *lutra_cpu_memory_new(int64_t n_bytes) {
    /* the system gives memory as it is written */
    void *data = mmap(NULL, (size_t)n_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    /* a head's positions are far apart, each in another page of the system */
    madvise(data, (size_t)n_bytes, MADV_HUGEPAGE);
#endif
    return data;
}

void lutra_cpu_memory_drop(void *data, int64_t n_bytes) {
    madvise(data, (size_t)n_bytes, MADV_DONTNEED);
}

void lutra_cpu_memory_free(void *data, int64_t n_bytes) {
    if (data) munmap(data, (size_t)n_bytes);
}

lutra_cache *lutra_cpu_cache_new(int kv_heads, int head_dim, int positions, int page, int key_bits,
                                 int value_bits) {
    int n_pages = (positions + page - 1) / page;
    lutra_cache *cache = calloc(1, sizeof *cache + (size_t)n_pages * sizeof *cache->pages);
    if (!cache || page % KEY_BLOCK) {
        free(cache);
        return NULL;
    }
    cache->kv_heads = kv_heads;
    cache->head_dim = head_dim;
    cache->page = page;
    cache->n_pages = n_pages;
    cache->key_bits = key_bits;
    cache->value_bits = value_bits;
    cache->head_bytes = head_bytes(head_dim, page, key_bits, value_bits);
    return cache;
}

void lutra_cpu_cache_free(lutra_cache *cache) { free(cache); }

void lutra_cpu_cache_set(lutra_cache *cache, int index, void *page) { cache->pages[index] = page; }

int cache_holds(const lutra_cache *cache, int position) {
    int index = position / cache->page;
    return index < cache->n_pages && cache->pages[index];
}

lutra_head cache_head(const lutra_cache *cache, int layer, int head, int position) {
    const uint8_t *at = cache->pages[position / cache->page] +
                        ((int64_t)layer * cache->kv_heads + head) * cache->head_bytes;
    int64_t p = cache->page, d = cache->head_dim;
    int64_t keys = p * d * cache->key_bits / 8, values = p * d * cache->value_bits / 8;
    lutra_head out;
    out.keys = (const int8_t *)at;
    out.values = (const int8_t *)(at + keys);
    at += keys + values;
    out.key_m = (const uint16_t *)at;
    out.value_m = (const uint16_t *)(at + 2 * p);
    out.key_e = (const int16_t *)(at + 4 * p);
    out.value_e = (const int16_t *)(at + 6 * p);
    out.head_dim = (int)d;
    out.key_bits = cache->key_bits;
    out.value_bits = cache->value_bits;
    return out;
}

/* Bytes of keys or values of so many bits in a page before a position that begins a block. */
static int64_t row_of(const lutra_head *head, int position, int bits) {
    return (int64_t)position * head->head_dim * bits / 8;
}

static int8_t two(int low, int high) { return (int8_t)((low & 15) | (high & 15) << 4); }

void cache_store(lutra_cache *cache, int layer, int head, int position, const int8_t *k,
                 lutra_scale k_scale, const int8_t *v, lutra_scale v_scale) {
    lutra_head at = cache_head(cache, layer, head, position);
    int d = at.head_dim;
    position %= cache->page;
    int8_t *keys = (int8_t *)at.keys + row_of(&at, position / KEY_BLOCK * KEY_BLOCK, at.key_bits);
    int8_t *values =
        (int8_t *)at.values + row_of(&at, position / VALUE_BLOCK * VALUE_BLOCK, at.value_bits);
    int in_key = position % KEY_BLOCK, in_value = position % VALUE_BLOCK;
    if (k) {
        for (int i = 0; i < d / 4 && at.key_bits == 8; i++)
            memcpy(keys + (i * KEY_BLOCK + in_key) * 4, k + 4 * i, 4);
        for (int i = 0; i < d / 2 && at.key_bits == 4; i++) {
            int from = i / 4 * 8 + i % 4;
            keys[(i / 4 * KEY_BLOCK + in_key) * 4 + i % 4] = two(k[from], k[from + 4]);
        }
        ((uint16_t *)at.key_m)[position] = (uint16_t)k_scale.m;
        ((int16_t *)at.key_e)[position] = (int16_t)k_scale.e;
    }
    if (v) {
        for (int i = 0; i < d && at.value_bits == 8; i++) values[i * VALUE_BLOCK + in_value] = v[i];
        for (int i = 0; i < d / 2 && at.value_bits == 4; i++)
            values[i * VALUE_BLOCK + in_value] = two(v[i], v[i + d / 2]);
        ((uint16_t *)at.value_m)[position] = (uint16_t)v_scale.m;
        ((int16_t *)at.value_e)[position] = (int16_t)(v_scale.m ? v_scale.e : SCALE_E_MIN);
    }
}

void lutra_cpu_page_copy(const lutra_cache *cache, int layers, void *to, const void *from, int n) {
    int64_t p = cache->page, d = cache->head_dim, blocks = round_up(n, KEY_BLOCK);
    int64_t keys = p * d * cache->key_bits / 8, values = p * d * cache->value_bits / 8;
    for (int64_t h = 0; h < (int64_t)layers * cache->kv_heads; h++) {
        const uint8_t *a = (const uint8_t *)from + h * cache->head_bytes;
        uint8_t *b = (uint8_t *)to + h * cache->head_bytes;
        memcpy(b, a, (size_t)(blocks * d * cache->key_bits / 8));
        memcpy(b + keys, a + keys, (size_t)(blocks * d * cache->value_bits / 8));
        for (int64_t at = keys + values; at < cache->head_bytes; at += 2 * p)
            memcpy(b + at, a + at, (size_t)n * 2);
    }
}

void lutra_cpu_cache_write(lutra_cache *cache, int layer, int n, const int8_t *k,
                           const lutra_scale *k_scale, const int8_t *v,
                           const lutra_scale *v_scale) {
    for (int g = 0; g < cache->kv_heads; g++)
        for (int p = 0; p < n; p++) {
            int64_t at = ((int64_t)g * n + p) * cache->head_dim;
            int64_t s = (int64_t)p * cache->kv_heads + g;
            cache_store(cache, layer, g, p, k + at, k_scale[s], v + at, v_scale[s]);
        }
}

static int8_t half_of(int8_t byte, int high) {
    return (int8_t)((((high ? byte >> 4 : byte) & 15) ^ 8) - 8);
}

void lutra_cpu_cache_read(const lutra_cache *cache, int layer, int n, int8_t *k,
                          lutra_scale *k_scale, int8_t *v, lutra_scale *v_scale) {
    int d = cache->head_dim;
    for (int g = 0; g < cache->kv_heads; g++) {
        for (int at = 0; at < n; at++, k += d, v += d) {
            lutra_head head = cache_head(cache, layer, g, at);
            int p = at % cache->page;
            int key_block = p / KEY_BLOCK * KEY_BLOCK, value_block = p / VALUE_BLOCK * VALUE_BLOCK;
            const int8_t *keys = head.keys + row_of(&head, key_block, head.key_bits);
            const int8_t *values = head.values + row_of(&head, value_block, head.value_bits);
            int in_key = p % KEY_BLOCK, in_value = p % VALUE_BLOCK;
            int64_t s = (int64_t)at * cache->kv_heads + g;
            for (int i = 0; i < d; i++) {
                k[i] = head.key_bits == 8
                           ? keys[(i / 4 * KEY_BLOCK + in_key) * 4 + i % 4]
                           : half_of(keys[(i / 8 * KEY_BLOCK + in_key) * 4 + i % 4], i / 4 % 2);
                v[i] = head.value_bits == 8
                           ? values[i * VALUE_BLOCK + in_value]
                           : half_of(values[i % (d / 2) * VALUE_BLOCK + in_value], i >= d / 2);
            }
            k_scale[s] = (lutra_scale){head.key_m[p], head.key_e[p]};
            v_scale[s] = (lutra_scale){head.value_m[p], head.value_m[p] ? head.value_e[p] : 0};
        }
    }
}

int attend_scratch(lutra_attend_scratch *scratch, int positions) {
    int64_t stride = round_up(positions, KEY_BLOCK) + 2 * KEY_BLOCK;
    if (stride <= scratch->stride) return 1;
    attend_scratch_free(scratch);
    stride += stride / 2;
    stride = (stride + 15) / 16 * 16;
    scratch->dot = aligned_alloc(64, (size_t)(QUERIES * stride * 4));
    scratch->w = aligned_alloc(64, (size_t)(QUERIES * stride * 2 + 63) / 64 * 64);
    scratch->elements = aligned_alloc(64, VALUE_BLOCKS * VALUE_BLOCK * HEAD_DIM_MAX);
    scratch->stride = stride;
    return scratch->dot && scratch->w && scratch->elements;
}

void attend_scratch_free(lutra_attend_scratch *scratch) {
    free(scratch->dot);
    free(scratch->w);
    free(scratch->elements);
    scratch->dot = NULL;
    scratch->w = NULL;
    scratch->elements = NULL;
    scratch->stride = 0;
}

static int first_seen(int position, int window) {
    return window && position >= window ? position - window + 1 : 0;
}

/* Queries over the positions of one head that they see, `low` to `high` - 1 of them together. */
typedef struct {
    const lutra_kernels *kernels;
    const lutra_cache *cache;
    const lutra_query *queries;
    const int8_t *q[QUERIES];
    int32_t sums[QUERIES]; /* of the elements of q */
    int32_t top[QUERIES];
    int layer, kv_head, count, low, high, first[QUERIES], exponent[QUERIES], saturated;
    lutra_attend_scratch *scratch;
} seen_t;

/* Where the page of a position ends, or what is looked at before that. */
static int page_end(const lutra_cache *cache, int position, int stop) {
    int end = (position / cache->page + 1) * cache->page;
    return end < stop ? end : stop;
}

/* What query c sees of positions `from` to `to` - 1; false if nothing. */
static int sees(const seen_t *s, int c, int *from, int *to) {
    if (s->first[c] > *from) *from = s->first[c];
    if (s->queries[c].position + 1 < *to) *to = s->queries[c].position + 1;
    return *from < *to;
}

enum { LINE = 64, AHEAD = 1 << 12 };

/* Ask for what comes soon: processors find it by themselves only where it follows what was read. */
static void ask_for(const void *data, int64_t n_bytes) {
    for (int64_t i = 0; i < n_bytes && i < AHEAD; i += LINE)
        __builtin_prefetch((const char *)data + i, 0, 2);
}

/* Scores, the largest of them and the largest exponent of the values, page by page. */
static void all_scores(seen_t *s) {
    int d = s->cache->head_dim;
    for (int at = s->low, end; at < s->high; at = end) {
        lutra_head head = cache_head(s->cache, s->layer, s->kv_head, at);
        end = page_end(s->cache, at, s->high);
        int page = at - at % s->cache->page, blocks = (end - at + KEY_BLOCK - 1) / KEY_BLOCK;
        const int8_t *keys = head.keys + row_of(&head, at - page, head.key_bits);
        int32_t *dots = s->scratch->dot + (at - s->low);
        if (end < s->high) {
            lutra_head next = cache_head(s->cache, s->layer, s->kv_head, end);
            int n = page_end(s->cache, end, s->high) - end;
            ask_for(next.keys, row_of(&next, n, next.key_bits));
        }
        if (head.key_bits == 8)
            s->kernels->key_dots(keys, blocks, s->q, s->sums, s->count, d, dots,
                                 s->scratch->stride);
        for (int b = 0; b < blocks && head.key_bits == 4; b += KEY_BLOCKS) {
            int some = blocks - b < KEY_BLOCKS ? blocks - b : KEY_BLOCKS;
            s->kernels->nibbles(keys + row_of(&head, b * KEY_BLOCK, 4), some * (d / 8),
                                4 * KEY_BLOCK, s->scratch->elements);
            s->kernels->key_dots(s->scratch->elements, some, s->q, s->sums, s->count, d,
                                 dots + b * KEY_BLOCK, s->scratch->stride);
        }
        for (int c = 0; c < s->count; c++) {
            int from = at, to = end;
            if (!sees(s, c, &from, &to)) continue;
            int32_t *dot = s->scratch->dot + c * s->scratch->stride + (from - s->low);
            int32_t most = s->kernels->scores(dot, s->queries[c].scale, head.key_m + (from - page),
                                              head.key_e + (from - page), to - from, dot,
                                              &s->saturated);
            s->top[c] = most > s->top[c] ? most : s->top[c];
            for (int i = from - page; i < to - page; i++)
                s->exponent[c] = head.value_e[i] > s->exponent[c] ? head.value_e[i] : s->exponent[c];
        }
    }
}

/* Weights of positions `at` to `end` - 1, of one page; zeros where a query sees nothing. */
static void page_weights(const seen_t *s, const lutra_head *head, int at, int end, int64_t *den) {
    int page = at - at % s->cache->page, whole = at + round_up(end - at, VALUE_BLOCK);
    for (int c = 0; c < s->count; c++) {
        uint16_t *w = s->scratch->w + c * s->scratch->stride;
        int from = at, to = end;
        if (!sees(s, c, &from, &to)) from = to = at;
        memset(w + (at - s->low), 0, (size_t)(from - at) * 2);
        memset(w + (to - s->low), 0, (size_t)(whole - to) * 2);
        if (from == to) continue;
        const int32_t *scores = s->scratch->dot + c * s->scratch->stride + (from - s->low);
        den[c] += s->kernels->weights(scores, s->top[c], head->value_m + (from - page),
                                      head->value_e + (from - page), s->exponent[c], to - from,
                                      w + (from - s->low));
    }
}

/* acc [count, head_dim] += weights times values, of as many pages at a time as sums have room for. */
static void all_values(const seen_t *s, int64_t *den, int64_t *acc) {
    int d = s->cache->head_dim, size = s->cache->page;
    for (int at = s->low, stop; at < s->high; at = stop) {
        const int8_t *pages[VALUE_BLOCKS * VALUE_BLOCK / KEY_BLOCK + 1];
        const uint16_t *w[QUERIES];
        int begin = at, n = 0, per = size / VALUE_BLOCK, skip = at % size / VALUE_BLOCK;
        int8_t *elements = s->scratch->elements;
        stop = s->high - at < VALUE_BLOCKS * VALUE_BLOCK ? s->high : at + VALUE_BLOCKS * VALUE_BLOCK;
        for (int end; at < stop; at = end) {
            lutra_head head = cache_head(s->cache, s->layer, s->kv_head, at);
            end = page_end(s->cache, at, stop);
            ask_for(head.values + row_of(&head, at % size, head.value_bits),
                    row_of(&head, end - at, head.value_bits));
            page_weights(s, &head, at, end, den);
            pages[n++] = head.values;
            if (head.value_bits == 4) {
                int blocks = (end - at + VALUE_BLOCK - 1) / VALUE_BLOCK;
                s->kernels->nibbles(head.values + row_of(&head, at % size, 4), blocks, 2 * d,
                                    elements);
                elements += blocks * VALUE_BLOCK * d;
            }
        }
        if (s->cache->value_bits == 4) {
            pages[0] = s->scratch->elements;
            per = VALUE_BLOCKS;
            skip = 0;
        }
        for (int c = 0; c < s->count; c++)
            w[c] = s->scratch->w + c * s->scratch->stride + (begin - s->low);
        s->kernels->value_sums(pages, per, skip, (stop - begin + VALUE_BLOCK - 1) / VALUE_BLOCK, w,
                               s->count, d, acc);
    }
}

int attend(const lutra_kernels *kernels, const lutra_cache *cache, int layer, int kv_head,
           const lutra_query *queries, int count, int frac, int window,
           lutra_attend_scratch *scratch) {
    int d = cache->head_dim;
    int64_t acc[QUERIES * HEAD_DIM_MAX] = {0}, den[QUERIES] = {0};
    seen_t s = {kernels, cache, queries, {NULL}, {0}, {0}, layer, kv_head, count, 0, 0, {0}, {0}, 0,
                scratch};
    s.low = first_seen(queries[0].position, window);
    for (int c = 0; c < count; c++) {
        s.first[c] = first_seen(queries[c].position, window);
        s.low = s.first[c] < s.low ? s.first[c] : s.low;
        s.high = queries[c].position + 1 > s.high ? queries[c].position + 1 : s.high;
        s.q[c] = queries[c].q;
        for (int i = 0; i < d; i++) s.sums[c] += s.q[c][i];
        s.top[c] = INT32_MIN;
        s.exponent[c] = SCALE_E_MIN;
    }
    s.low = s.low / KEY_BLOCK * KEY_BLOCK;
    all_scores(&s);
    all_values(&s, den, acc);
    int saturated = s.saturated;
    for (int c = 0; c < count; c++) {
        lutra_scale r = scale_recip(scale_from_int(den[c], 0));
        int exact = -(r.e + s.exponent[c] + EXP2_Y_FRAC + frac), shift = clip(exact, 0, 63);
        int64_t outside = 0;
        for (int i = 0; i < d; i++) {
            int64_t x = round_shift(acc[c * d + i] * r.m, shift);
            queries[c].out[i] = (int32_t)saturate(x, SOURCE_WIDTH);
            outside |= (x ^ queries[c].out[i]) | (exact < 0 ? x : 0);
        }
        saturated |= outside != 0;
    }
    return saturated;
}
