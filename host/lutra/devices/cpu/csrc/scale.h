/* Rounding, saturation and scales: lutra_golden.arith in C. */
#ifndef LUTRA_SCALE_H
#define LUTRA_SCALE_H

#include "golden.h"
#include "lutra_cpu.h"

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int clip(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
static inline int64_t abs64(int64_t x) { return x < 0 ? -x : x; }

/* x * 2**-n, rounded half up; -62 <= n <= 63. */
static inline int64_t round_shift(int64_t x, int n) {
    if (n <= 0) return (int64_t)((uint64_t)x << -n);
    return (x >> n) + ((x >> (n - 1)) & 1);
}

static inline int64_t saturate(int64_t x, int width) {
    int64_t limit = (int64_t)1 << (width - 1);
    return x < -limit ? -limit : x > limit - 1 ? limit - 1 : x;
}

static inline int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

static inline lutra_scale scale_from_int(int64_t x, int e) {
    lutra_scale zero = {0, 0}, out;
    if (x == 0) return zero;
    int n = bit_length((uint64_t)x) - SCALE_M_WIDTH;
    int64_t m = round_shift(x, n);
    int carry = (int)(m >> SCALE_M_WIDTH);
    out.m = (int32_t)(m >> carry);
    out.e = e + n + carry;
    return out;
}

static inline lutra_scale scale_mul(lutra_scale a, lutra_scale b) {
    return scale_from_int((int64_t)a.m * b.m, a.e + b.e);
}

static inline lutra_scale scale_add(lutra_scale a, lutra_scale b) {
    int swap = (b.e > a.e || a.m == 0) && b.m != 0;
    lutra_scale large = swap ? b : a, small = swap ? a : b;
    int d = clip(large.e - small.e, 0, 32);
    return scale_from_int(((int64_t)large.m << 16) + (((int64_t)small.m << 16) >> d), large.e - 16);
}

static inline lutra_scale scale_recip(lutra_scale a) {
    lutra_scale zero = {0, 0};
    if (a.m == 0) return zero;
    int64_t y = recip_table[(a.m >> (SCALE_M_WIDTH - 1 - RECIP_BITS)) & ((1 << RECIP_BITS) - 1)];
    int64_t c = ((int64_t)1 << 32) - a.m * y;
    return scale_from_int(round_shift(y * (c >> 15), 16), -31 - a.e);
}

static inline lutra_scale scale_rsqrt(lutra_scale a) {
    lutra_scale zero = {0, 0};
    if (a.m == 0) return zero;
    int parity = a.e & 1;
    int64_t x = (int64_t)a.m << parity;
    int seed = (a.m >> (SCALE_M_WIDTH - 1 - RSQRT_BITS)) & ((1 << RSQRT_BITS) - 1);
    int64_t y = rsqrt_table[(parity << RSQRT_BITS) | seed];
    int64_t c = ((int64_t)3 << 31) - x * ((y * y) >> 15);
    return scale_from_int(round_shift(y * (c >> 16), 16), -23 - ((a.e - parity) >> 1));
}

/* The same value with its exponent lowered; zero stays zero. */
static inline lutra_scale scale_lower(lutra_scale a, int bits) {
    lutra_scale out = {a.m, a.m ? a.e - bits : 0};
    return out;
}

/* Factor of a quantisation, and the scale of its steps. */
static inline lutra_scale quantize_factor(int64_t y_max, int q_max) {
    return scale_mul(scale_recip(scale_from_int(y_max, 0)), scale_from_int(q_max, 0));
}

static inline lutra_scale quantize_step(int64_t y_max, int q_max) {
    return scale_mul(scale_from_int(y_max, 0), scale_recip(scale_from_int(q_max, 0)));
}

static inline int64_t quantize(int64_t y, lutra_scale factor, int q_max) {
    int64_t q = round_shift(y * factor.m, clip(-factor.e, 0, 63));
    return q < -q_max ? -q_max : q > q_max ? q_max : q;
}

#endif
