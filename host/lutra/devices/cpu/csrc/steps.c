/* Single steps, for tests. */
#include <stdlib.h>

#include "attend.h"
#include "vector.h"

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

int lutra_cpu_gate(int target, const int32_t *gate, const int32_t *up, int n, int swiglu,
                   lutra_scale s, lutra_scale w_gate, int64_t *out) {
    return gate_product(lutra_target(target), gate, up, n, swiglu, s, w_gate, out);
}

int lutra_cpu_head(int target, const int32_t *acc, int head_dim, lutra_scale s, lutra_scale w,
                   const int16_t *rope, const int16_t *bias, int bias_frac, const int16_t *gamma,
                   int gamma_frac, int eps, const int16_t *centre, int in_fixed, int q_max,
                   int8_t *q, lutra_scale *q_scale) {
    int saturated = 0;
    lutra_head_step step = {s,        w,         rope,       bias, gamma, centre,
                            in_fixed, bias_frac, gamma_frac, eps,  q_max};
    *q_scale = head_quantize(lutra_target(target), acc, head_dim, &step, q, &saturated);
    return saturated;
}

int lutra_cpu_residual(int target, int32_t *x, const int32_t *acc, int n, lutra_scale s,
                       lutra_scale w, int frac) {
    return residual_add(lutra_target(target), x, acc, n, s, w, frac);
}

int lutra_cpu_attend(int target, const int8_t *q, const lutra_scale *q_scale, const int8_t *k,
                     const lutra_scale *k_scale, const int8_t *v, const lutra_scale *v_scale, int m,
                     int heads, int kv_heads, int head_dim, int key_bits, int value_bits,
                     int position, int frac, int window, int page, int32_t *out) {
    int total = position + m, per_kv = heads / kv_heads, ok = 0;
    lutra_attend_scratch scratch = {0};
    int saturated = 0;
    int64_t page_bytes = lutra_cpu_page_bytes(1, kv_heads, head_dim, page, key_bits, value_bits);
    int64_t n_bytes = page_bytes * ((total + page - 1) / page);
    lutra_cache *cache = lutra_cpu_cache_new(kv_heads, head_dim, total, page, key_bits, value_bits);
    uint8_t *memory = lutra_cpu_memory_new(n_bytes);
    if (cache && memory && attend_scratch(&scratch, total)) {
        /* the last page comes first: nothing may count on their order */
        for (int i = 0; i * page < total; i++)
            lutra_cpu_cache_set(cache, i, memory + n_bytes - (i + 1) * page_bytes);
        for (int g = 0; g < kv_heads; g++)
            for (int p = 0; p < total; p++) {
                int64_t at = (int64_t)g * total + p, s = (int64_t)p * kv_heads + g;
                cache_store(cache, 0, g, p, k + at * head_dim, k_scale[s], v + at * head_dim,
                            v_scale[s]);
            }
        for (int g = 0; g < kv_heads; g++) {
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
                saturated |= attend(lutra_target(target), cache, 0, g, queries, count, frac, window,
                                    &scratch);
            }
        }
        ok = 1 + saturated;
    }
    attend_scratch_free(&scratch);
    lutra_cpu_cache_free(cache);
    lutra_cpu_memory_free(memory, n_bytes);
    return ok;
}
