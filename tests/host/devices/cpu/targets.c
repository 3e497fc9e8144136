/* Prints a digest of steps on numbers made here for every target that this machine has. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lutra_cpu.h"

static uint64_t state, digest;

static int64_t take(int64_t low, int64_t high) {
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return low + (int64_t)((state >> 24) % (uint64_t)(high - low + 1));
}

static lutra_scale scale_at(int low, int high) {
    lutra_scale s = {(int32_t)take(1 << 15, (1 << 16) - 1), (int32_t)take(low, high)};
    return s;
}

static void add(int64_t x) {
    for (int i = 0; i < 8; i++) {
        digest ^= (uint64_t)x >> 8 * i & 255;
        digest *= UINT64_C(1099511628211);
    }
}

static void *memory(size_t n) {
    void *p = calloc(n ? n : 1, 1);
    if (!p) exit(2);
    return p;
}

enum { TERNARY = 2, BLOCK = 128, SUPER = 256 };

/* Activations of a_bits; between 8 and 16 int8 times powers of two, each common to 32 of them. */
static void activations(int16_t *a, int m, int k, int a_bits) {
    int in_groups = a_bits > 8 && a_bits < 16, top = in_groups ? 127 : (1 << (a_bits - 1)) - 1;
    for (int t = 0; t < m; t++)
        for (int i = 0, power = 1; i < k; i++) {
            if (in_groups && i % 32 == 0) power = 1 << take(0, a_bits - 8);
            a[t * k + i] = (int16_t)(take(-top, top) * power);
        }
}

/* bits 0: signed bytes; ternary where grouped is 0; else groups of 16 and more, where grouped is 2
 * with offsets and a zero point for all, where it is 3 with two zero points, where it is 4 in two
 * levels, with offsets in groups of 32. */
static void product(int target, lutra_pool *pool, int n, int k, int m, int bits, int grouped,
                    int a_bits, int shift, int scale_top) {
    int blocks = (k + BLOCK - 1) / BLOCK, group = k % 64 ? 16 : 64, groups = k / group;
    lutra_matrix w = {0};
    w.row_bytes = bits ? (int64_t)blocks * BLOCK * bits / 8 : k;
    uint8_t *codes = memory((size_t)(w.row_bytes * n));
    /* two bits, of which 3 is no ternary weight */
    for (int64_t i = 0; i < w.row_bytes * n; i++)
        codes[i] = grouped || !bits ? (uint8_t)take(0, 255)
                                    : (uint8_t)(take(0, 2) | take(0, 2) << 2 | take(0, 2) << 4 |
                                                take(0, 2) << 6);
    uint16_t *scale = memory(sizeof *scale * (size_t)(n * groups));
    uint16_t *zero = memory(sizeof *zero * (size_t)(n * groups));
    int16_t *offset = memory(sizeof *offset * (size_t)(n * groups));
    uint8_t *marks = memory((size_t)(n * ((groups + 7) / 8)));
    for (int i = 0; i < n * groups; i++) {
        scale[i] = (uint16_t)take(0, scale_top);
        zero[i] = (uint16_t)take(0, 2 * ((1 << bits) - 1));
        offset[i] = (int16_t)take(-32767, 32767);
    }
    for (int i = 0; i < n * ((groups + 7) / 8); i++) marks[i] = (uint8_t)take(0, 255);
    w.codes = codes;
    w.n = n;
    w.k = k;
    w.bits = bits;
    w.shift = shift;
    if (grouped) {
        w.group = group;
        w.scale = scale;
        w.zero = zero;
        w.scale_bytes = 2;
    }
    if (grouped == 2) {
        w.zero = NULL;
        w.zero_point = 1 << bits;
        w.offset = offset;
        w.offset_shift = 5;
    }
    if (grouped == 3) {
        w.zero = NULL;
        w.zero_point = (1 << bits) - 2;
        w.other_zero = 1 << bits;
        w.marks = marks;
    }
    int32_t records = n * (k / SUPER), size = 36;
    uint8_t *levels = memory((size_t)(records * size));
    for (int i = 0; i < records * size; i++) levels[i] = (uint8_t)take(0, 255);
    if (grouped == 4) {
        w.group = bits == 6 ? 16 : 32;
        w.scale = NULL;
        w.scale_bytes = 0;
        w.zero = NULL;
        w.zero_point = 1 << bits;
        w.levels = levels;
        w.multiple_bits = w.level_shift = bits == 6 ? 8 : bits == 5 ? 4 : 6;
        w.level_offsets = bits != 6;
        w.offset_shift = 5;
    }
    int16_t *a = memory(sizeof *a * (size_t)(m * k));
    activations(a, m, k, a_bits);
    int32_t *acc = memory(sizeof *acc * (size_t)(m * n));
    double seconds;
    add(lutra_cpu_matmul(target, pool, &w, 1, a, m, a_bits, acc, &seconds));
    for (int i = 0; i < m * n; i++) add(acc[i]);
    free(codes);
    free(scale);
    free(zero);
    free(offset);
    free(marks);
    free(levels);
    free(a);
    free(acc);
}

static void products(int target, lutra_pool *pool) {
    static const int depths[] = {16, 128, 208, 640}, columns[] = {1, 3, 6, 13};
    static const int widths[] = {1, 2, 3, 4, 5, 6, 8}, every[] = {8, 11, 15, 16};
    for (int d = 0; d < 4; d++)
        for (int c = 0; c < 4; c++)
            for (int b = 0; b < 4; b++) {
                int k = depths[d], m = columns[c], a_bits = every[b];
                product(target, pool, 19, k, m, TERNARY, 0, a_bits, 1, 0);
                product(target, pool, 19, k, m, 0, 0, a_bits, 4, 0);
                for (int i = 0; i < 7; i++) {
                    product(target, pool, 19, k, m, widths[i], 1, a_bits, 16, 255);
                    product(target, pool, 19, k, m, widths[i], 2, a_bits, 16, 255);
                    product(target, pool, 19, k, m, widths[i], 3, a_bits, 16, 255);
                    /* sums of 32 bits */
                    if (a_bits == 8) product(target, pool, 7, k, m, widths[i], 1, 8, 4, 3);
                    if (widths[i] > 2)
                        product(target, pool, 19, 512, m, widths[i], 4, a_bits, 16, 255);
                }
            }
}

static void vectors(int target) {
    enum { N = 128 };
    int64_t v[N], wide[N];
    int32_t x[N], g[N], u[N];
    int16_t gamma[N], rope[N], q[N];
    int8_t narrow[N];
    for (int round = 0; round < 12; round++) {
        int64_t top = (INT64_C(1) << (4 * round + 3)) - 1;
        for (int i = 0; i < N; i++) {
            v[i] = take(-top, top);
            x[i] = (int32_t)take(INT32_MIN, INT32_MAX);
            g[i] = (int32_t)take(-(1 << 19), 1 << 19);
            u[i] = (int32_t)take(-(1 << 19), 1 << 19);
            gamma[i] = (int16_t)take(-32768, 32767);
            rope[i] = (int16_t)take(-32767, 32767);
        }
        lutra_scale inv_n = {1 << 15, -22}, eps = scale_at(-40, -30), s = scale_at(-40, -25), out;
        lutra_norm norm = {gamma, 14, round % 3 == 2, inv_n, 0, 0, 0, 0};
        for (int kind = 0; kind < 4; kind++) {
            int a_bits = kind == 1 ? 16 : 8;
            norm.group = kind < 2 ? 0 : kind == 2 ? 32 : 64;
            norm.run = kind == 3 ? N / 4 : N;
            norm.group_shift = kind == 3 ? 3 : 7;
            for (int i = 0; kind > 1 && i < N; i++) v[i] >>= i / 16 % 4 * 2;
            add(lutra_cpu_norm_quantize(target, v, s, &norm, eps, N, a_bits, q, &out));
            add(out.m);
            add(out.e);
            for (int i = 0; i < N; i++) add(q[i]);
        }
        for (int swiglu = 0; swiglu < 2; swiglu++) {
            add(lutra_cpu_gate(target, g, u, N, swiglu, s, scale_at(-20, -10), wide));
            for (int i = 0; i < N; i++) add(wide[i]);
        }
        for (int fixed = 0; fixed < 2; fixed++) {
            add(lutra_cpu_head(target, u, N, s, scale_at(-20, -10), round % 2 ? rope : NULL,
                               fixed ? gamma : NULL, 12, NULL, 0, 0, round % 3 ? NULL : gamma,
                               fixed, 127, narrow, &out));
            add(out.m);
            add(out.e);
            for (int i = 0; i < N; i++) add(narrow[i]);
        }
        add(lutra_cpu_residual(target, x, u, N, s, scale_at(-16, -15), 14));
        for (int i = 0; i < N; i++) add(x[i]);
    }
}

static void attention(int target) {
    enum { M = 3, HEADS = 4, KV_HEADS = 2, DIM = 64, POSITION = 301, TOTAL = POSITION + M };
    static int8_t q[M * HEADS * DIM], k[KV_HEADS * TOTAL * DIM], v[KV_HEADS * TOTAL * DIM];
    static lutra_scale qs[M * HEADS], ks[TOTAL * KV_HEADS], vs[TOTAL * KV_HEADS];
    static int32_t out[M * HEADS * DIM];
    for (int bits = 4; bits <= 12; bits += 4) /* 12: keys of 8, values of 4 */
        for (int window = 0; window < 18; window += 9) {
            int key_bits = bits > 8 ? 8 : bits, value_bits = bits > 8 ? 4 : bits;
            int key_top = (1 << (key_bits - 1)) - 1, top = (1 << (value_bits - 1)) - 1;
            for (int i = 0; i < M * HEADS * DIM; i++) q[i] = (int8_t)take(-127, 127);
            for (int i = 0; i < KV_HEADS * TOTAL * DIM; i++) {
                k[i] = (int8_t)take(-key_top, key_top);
                v[i] = (int8_t)take(-top, top);
            }
            for (int i = 0; i < M * HEADS; i++) qs[i] = scale_at(-27, -25);
            for (int i = 0; i < TOTAL * KV_HEADS; i++) {
                ks[i] = scale_at(-25, -21);
                vs[i] = scale_at(-40, -21);
            }
            add(lutra_cpu_attend(target, q, qs, k, ks, v, vs, M, HEADS, KV_HEADS, DIM,
                                 key_bits, value_bits, POSITION, 14, window, 64, out));
            for (int i = 0; i < M * HEADS * DIM; i++) add(out[i]);
        }
}

int main(void) {
    lutra_pool *pool = lutra_cpu_pool_new(2);
    if (!pool) return 2;
    for (int target = 0; lutra_cpu_target_name(target); target++) {
        if (!lutra_cpu_target_available(target)) continue;
        state = 1;
        digest = UINT64_C(14695981039346656037);
        products(target, pool);
        vectors(target);
        attention(target);
        printf("%s %016" PRIx64 "\n", lutra_cpu_target_name(target), digest);
    }
    lutra_cpu_pool_free(pool);
    return 0;
}
