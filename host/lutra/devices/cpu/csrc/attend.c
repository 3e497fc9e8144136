#include "attend.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

struct lutra_cache {
    int kv_heads, head_dim, positions, key_bits, value_bits;
    int64_t n_bytes, head_bytes;
    uint8_t *data;
};

enum { KEY_BLOCKS = 8 };

/* Positions are taken in whole blocks. */
static int64_t head_bytes(int head_dim, int positions, int key_bits, int value_bits) {
    int64_t elements = (int64_t)head_dim * (key_bits + value_bits) / 8;
    return round_up(positions, KEY_BLOCK) * (elements + 8);
}

int64_t lutra_cpu_cache_bytes(int layers, int kv_heads, int head_dim, int positions, int key_bits,
                              int value_bits) {
    return head_bytes(head_dim, positions, key_bits, value_bits) * kv_heads * layers;
}

lutra_cache *lutra_cpu_cache_new(int layers, int kv_heads, int head_dim, int positions,
                                 int key_bits, int value_bits) {
    lutra_cache *cache = malloc(sizeof *cache);
    if (!cache) return NULL;
    cache->kv_heads = kv_heads;
    cache->head_dim = head_dim;
    cache->positions = round_up(positions, KEY_BLOCK);
    cache->key_bits = key_bits;
    cache->value_bits = value_bits;
    cache->head_bytes = head_bytes(head_dim, positions, key_bits, value_bits);
    cache->n_bytes = cache->head_bytes * kv_heads * layers;
    /* the system gives pages as they are written */
    cache->data = mmap(NULL, (size_t)cache->n_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cache->data != MAP_FAILED) return cache;
    free(cache);
    return NULL;
}

void lutra_cpu_cache_free(lutra_cache *cache) {
    if (!cache) return;
    munmap(cache->data, (size_t)cache->n_bytes);
    free(cache);
}

int cache_positions(const lutra_cache *cache) { return cache->positions; }

lutra_head cache_head(const lutra_cache *cache, int layer, int head) {
    uint8_t *at = cache->data + ((int64_t)layer * cache->kv_heads + head) * cache->head_bytes;
    int64_t p = cache->positions, d = cache->head_dim;
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

/* Bytes of keys or values of so many bits before a position that begins a block. */
static int64_t row_of(const lutra_head *head, int position, int bits) {
    return (int64_t)position * head->head_dim * bits / 8;
}

static int8_t two(int low, int high) { return (int8_t)((low & 15) | (high & 15) << 4); }

void cache_store(lutra_cache *cache, int layer, int head, int position, const int8_t *k,
                 lutra_scale k_scale, const int8_t *v, lutra_scale v_scale) {
    lutra_head at = cache_head(cache, layer, head);
    int d = at.head_dim;
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

void lutra_cpu_cache_copy(lutra_cache *to, const lutra_cache *from, int n) {
    int64_t heads = from->n_bytes / from->head_bytes, p = from->positions;
    size_t elements = (size_t)round_up(n, KEY_BLOCK) * from->head_dim;
    for (int64_t h = 0; h < heads; h++) {
        const uint8_t *a = from->data + h * from->head_bytes;
        uint8_t *b = to->data + h * from->head_bytes;
        int64_t keys = p * from->head_dim * from->key_bits / 8;
        int64_t both = keys + p * from->head_dim * from->value_bits / 8;
        memcpy(b, a, elements * (size_t)from->key_bits / 8);
        memcpy(b + keys, a + keys, elements * (size_t)from->value_bits / 8);
        for (int part = 0; part < 4; part++)
            memcpy(b + both + part * 2 * p, a + both + part * 2 * p, (size_t)n * 2);
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
        lutra_head head = cache_head(cache, layer, g);
        for (int p = 0; p < n; p++, k += d, v += d) {
            int key_block = p / KEY_BLOCK * KEY_BLOCK, value_block = p / VALUE_BLOCK * VALUE_BLOCK;
            const int8_t *keys = head.keys + row_of(&head, key_block, head.key_bits);
            const int8_t *values = head.values + row_of(&head, value_block, head.value_bits);
            int in_key = p % KEY_BLOCK, in_value = p % VALUE_BLOCK;
            int64_t s = (int64_t)p * cache->kv_heads + g;
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

int attend(const lutra_kernels *kernels, const lutra_head *head, const lutra_query *queries,
           int count, int frac, int window, lutra_attend_scratch *scratch) {
    int d = head->head_dim, low = first_seen(queries[0].position, window), high = 0;
    const int8_t *q[QUERIES] = {NULL};
    const uint16_t *w[QUERIES];
    int64_t acc[QUERIES * HEAD_DIM_MAX] = {0}, den[QUERIES];
    int exponent[QUERIES], saturated = 0;
    for (int c = 0; c < count; c++) {
        int first = first_seen(queries[c].position, window);
        low = first < low ? first : low;
        high = queries[c].position + 1 > high ? queries[c].position + 1 : high;
        q[c] = queries[c].q;
        w[c] = scratch->w + c * scratch->stride;
    }
    int base = low / KEY_BLOCK * KEY_BLOCK;
    const int8_t *keys = head->keys + row_of(head, base, head->key_bits);
    int key_blocks = (high - base + KEY_BLOCK - 1) / KEY_BLOCK;
    if (head->key_bits == 8)
        kernels->key_dots(keys, key_blocks, q, count, d, scratch->dot, scratch->stride);
    for (int b = 0; b < key_blocks && head->key_bits == 4; b += KEY_BLOCKS) {
        int blocks = key_blocks - b < KEY_BLOCKS ? key_blocks - b : KEY_BLOCKS;
        kernels->nibbles(keys + row_of(head, b * KEY_BLOCK, 4), blocks * (d / 8), 4 * KEY_BLOCK,
                         scratch->elements);
        kernels->key_dots(scratch->elements, blocks, q, count, d, scratch->dot + b * KEY_BLOCK,
                          scratch->stride);
    }
    for (int c = 0; c < count; c++) {
        int first = first_seen(queries[c].position, window), n = queries[c].position + 1 - first;
        int32_t *dot = scratch->dot + c * scratch->stride + (first - base);
        uint16_t *to = scratch->w + c * scratch->stride;
        int32_t top = kernels->scores(dot, queries[c].scale, head->key_m + first,
                                      head->key_e + first, n, dot, &saturated);
        int e = SCALE_E_MIN;
        for (int i = first; i < first + n; i++) e = head->value_e[i] > e ? head->value_e[i] : e;
        exponent[c] = e;
        memset(to, 0, (size_t)(first - base) * 2);
        den[c] = kernels->weights(dot, top, head->value_m + first, head->value_e + first, e, n,
                                  to + (first - base));
        int end = first - base + n, whole = round_up(high - base, VALUE_BLOCK);
        memset(to + end, 0, (size_t)(whole - end) * 2);
    }
    const int8_t *values = head->values + row_of(head, base, head->value_bits);
    for (int left = (high - base + VALUE_BLOCK - 1) / VALUE_BLOCK; left > 0; left -= VALUE_BLOCKS) {
        int blocks = left < VALUE_BLOCKS ? left : VALUE_BLOCKS;
        const int8_t *elements = values;
        if (head->value_bits == 4) {
            kernels->nibbles(values, blocks, 2 * d, scratch->elements);
            elements = scratch->elements;
        }
        kernels->value_sums(elements, blocks, w, count, d, acc);
        values += row_of(head, blocks * VALUE_BLOCK, head->value_bits);
        for (int c = 0; c < count; c++) w[c] += blocks * VALUE_BLOCK;
    }
    for (int c = 0; c < count; c++) {
        lutra_scale r = scale_recip(scale_from_int(den[c], 0));
        int exact = -(r.e + exponent[c] + EXP2_Y_FRAC + frac), shift = clip(exact, 0, 63);
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
