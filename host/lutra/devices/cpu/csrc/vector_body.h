/* Vector operations in plain C, which compilers vectorise for the TARGET that includes this. */

static TARGET void NAME(offsets)(const int16_t *offset, const int32_t *sums, int groups, int rows,
                                 int shift, int64_t *out) {
    for (int r = 0; r < rows; r++, offset += groups) {
        int64_t total = 0;
        for (int g = 0; g < groups; g++) total += (int64_t)offset[g] * sums[g];
        out[r] += total * ((int64_t)1 << shift);
    }
}

static TARGET void NAME(numbers)(const lutra_matrix *w, int first, int last, uint16_t *scale,
                                 int16_t *offset) {
    const int bits = w->multiple_bits, shift = w->level_shift, half = 1 << shift >> 1;
    const int groups = SUPER / w->group, size = record_bytes(w), all = (1 << bits) - 1;
    const int64_t records = w->k / SUPER;
    const uint8_t *p = w->levels + first * records * size;
    for (int64_t i = 0; i < (last - first) * records; i++, p += size) {
        const int32_t factor = scale_factor(w, p);
        for (int g = 0; g < groups; g += 8) {
            uint64_t eight = eight_multiples(p + g / 8 * bits, bits);
            for (int j = 0; j < 8; j++) {
                int32_t multiple = (int32_t)(eight >> (bits * j)) & all;
                *scale++ = (uint16_t)((factor * multiple + half) >> shift);
            }
        }
        if (!w->level_offsets) continue;
        const int32_t signed_factor = offset_factor(w, p);
        for (int g = 0; g < groups; g += 8) {
            uint64_t eight = eight_multiples(p + multiples_bytes(w) + g / 8 * bits, bits);
            for (int j = 0; j < 8; j++) {
                int32_t multiple = (int32_t)(eight >> (bits * j)) & all;
                *offset++ = (int16_t)((signed_factor * multiple + half) >> shift);
            }
        }
    }
}

static TARGET int64_t NAME(abs_max32)(const int32_t *v, int n) {
    int32_t high = 0, low = 0;
    for (int i = 0; i < n; i++) {
        high = v[i] > high ? v[i] : high;
        low = v[i] < low ? v[i] : low;
    }
    return max64(high, -(int64_t)low);
}

static TARGET int64_t NAME(abs_max64)(const int64_t *v, int n) {
    int64_t high = 0, low = 0;
    for (int i = 0; i < n; i++) {
        high = v[i] > high ? v[i] : high;
        low = v[i] < low ? v[i] : low;
    }
    return max64(high, -low);
}

#define SCALED(name, type)                                                                       \
    static TARGET int64_t name(const type *v, int shift, const int16_t *gamma, int n, int32_t *y, \
                               int64_t *squares) {                                               \
        int64_t sum = 0;                                                                         \
        int32_t high = 0, low = 0;                                                               \
        if (shift == 0)                                                                          \
            for (int i = 0; i < n; i++) y[i] = (int32_t)v[i];                                    \
        else                                                                                     \
            for (int i = 0; i < n; i++) {                                                        \
                int64_t rounded = ((v[i] >> (shift - 1)) + (int64_t)1) >> 1;                     \
                y[i] = (int32_t)(rounded > SCALED_MAX ? SCALED_MAX : rounded);                   \
            }                                                                                    \
        for (int i = 0; i < n; i++) sum += (int64_t)(y[i] * y[i]);                               \
        for (int i = 0; i < n; i++) {                                                            \
            y[i] *= gamma ? gamma[i] : 1 << ONE_FRAC;                                            \
            high = y[i] > high ? y[i] : high;                                                    \
            low = y[i] < low ? y[i] : low;                                                       \
        }                                                                                        \
        *squares = sum;                                                                          \
        return max64(high, -(int64_t)low);                                                       \
    }

SCALED(NAME(scaled32), int32_t)
SCALED(NAME(scaled64), int64_t)
#undef SCALED

static TARGET void NAME(quantize)(const int32_t *y, lutra_scale factor, int q_max, int n,
                                  int16_t *q) {
    int shift = clip(-factor.e, 0, 63), before = shift ? shift - 1 : 0;
    int64_t m = factor.m;
    if (shift == 0) {
        for (int i = 0; i < n; i++) {
            int64_t x = y[i] * m;
            q[i] = (int16_t)(x > q_max ? q_max : x < -q_max ? -q_max : x);
        }
        return;
    }
    for (int i = 0; i < n; i++) {
        int64_t x = (((y[i] * m) >> before) + 1) >> 1;
        q[i] = (int16_t)(x > q_max ? q_max : x < -q_max ? -q_max : x);
    }
}

static TARGET void NAME(bytes)(const int16_t *q, int n, int8_t *x) {
    for (int i = 0; i < n; i++) x[i] = (int8_t)q[i];
}

static TARGET void NAME(halves)(const int16_t *q, int n, int8_t *high, int8_t *low) {
    for (int i = 0; i < n; i++) {
        high[i] = (int8_t)(q[i] >> 8);
        low[i] = (int8_t)((q[i] & 255) - 128);
    }
}

static TARGET void NAME(shared)(const int16_t *q, int n, int top, int8_t *x, int32_t *shifts) {
    for (int from = 0; from < n; from += SHARED) {
        int size = n - from < SHARED ? n - from : SHARED, all = 1 << top;
        for (int i = 0; i < size; i++) all |= q[from + i];
        int shift = __builtin_ctz((unsigned)all);
        for (int i = 0; i < size; i++) x[from + i] = (int8_t)(q[from + i] >> shift);
        shifts[from / SHARED] = 1 + shift;
    }
}

static TARGET void NAME(unit_sums)(const int8_t *x, int depth, int32_t *sums) {
    for (int u = 0; u < depth / UNIT; u++) {
        int32_t sum = 0;
        for (int i = 0; i < UNIT; i++) sum += x[u * UNIT + i];
        sums[u] = sum;
    }
}

static TARGET void NAME(shifted)(const int64_t *sums, int n, int shift, int32_t *out) {
    if (shift == 0)
        for (int i = 0; i < n; i++) out[i] = (int32_t)sums[i];
    else
        for (int i = 0; i < n; i++) out[i] = (int32_t)(((sums[i] >> (shift - 1)) + 1) >> 1);
}

static TARGET void NAME(rotate)(const int32_t *x, const int16_t *table, int n, int64_t *y) {
    if (!table) {
        for (int i = 0; i < n; i++) y[i] = (int64_t)x[i] * (1 << ROPE_FRAC);
        return;
    }
    const int half = n / 2;
    const int16_t *cosine = table, *sine = table + half;
    for (int i = 0; i < half; i++) {
        int64_t low = x[i], high = x[half + i];
        y[i] = low * cosine[i] - high * sine[i];
        y[half + i] = high * cosine[i] + low * sine[i];
    }
}

static TARGET void NAME(quantize64)(const int64_t *y, lutra_scale factor, int q_max, int n,
                                    int8_t *q) {
    int shift = clip(-factor.e, 0, 63), before = shift ? shift - 1 : 0, after = shift ? 1 : 0;
    int64_t m = factor.m;
    for (int i = 0; i < n; i++) {
        int64_t x = (((y[i] * m) >> before) + after) >> after;
        q[i] = (int8_t)(x > q_max ? q_max : x < -q_max ? -q_max : x);
    }
}

static TARGET int NAME(fixed)(const int32_t *acc, lutra_scale c, const int16_t *bias,
                              int bias_shift, int n, int32_t *v) {
    int64_t outside = 0;
    int shift = clip(-(c.e + FIXED_FRAC), FIXED_SHIFT_MIN, FIXED_SHIFT_MAX);
    for (int i = 0; i < n; i++) {
        int64_t x = round_shift((int64_t)acc[i] * c.m, shift);
        if (bias) x += (int64_t)bias[i] * (1 << bias_shift);
        v[i] = (int32_t)saturate(x, FIXED_WIDTH);
        outside |= x ^ v[i];
    }
    return outside != 0;
}

static TARGET void NAME(relu2)(const int32_t *gate, const int32_t *up, int n, int64_t *out) {
    for (int i = 0; i < n; i++) {
        int64_t g = gate[i] > 0 ? gate[i] : 0;
        out[i] = g * g * up[i];
    }
}

/* A gap is below a half, so that even before it is rounded it fits 32 bits. */
_Static_assert(SILU_TABLE_FRAC + SILU_X_FRAC - SILU_COARSE_BITS <= 32, "the gap's width");

enum { NAME(GATED) = 256 };

/* A loop for the arguments, one for their segments, one for what the table says, one for products. */
static TARGET int NAME(swiglu)(const int32_t *gate, const int32_t *up, int n, int m, int shift,
                               int64_t *out) {
    const int32_t limit = 1 << (SILU_X_WIDTH - 1), segments = 1 << SILU_HALF_BITS;
    const int fine_rest = SILU_X_FRAC - SILU_FINE_BITS, rest_bits = SILU_X_FRAC - SILU_COARSE_BITS;
    const int rounded = SILU_TABLE_FRAC + rest_bits - SILU_X_FRAC;
    const int before = shift > 0 ? shift - 1 : 0, after = shift > 0, left = shift < 0 ? -shift : 0;
    int64_t above = 0; /* negative once an argument was above its range */
    int32_t x[NAME(GATED)], rest[NAME(GATED)], segment[NAME(GATED)];
    for (int first = 0; first < n; first += NAME(GATED)) {
        int count = n - first < NAME(GATED) ? n - first : NAME(GATED);
        const int32_t *g = gate + first, *u = up + first;
        int64_t *to = out + first;
        for (int i = 0; i < count; i++) {
            int64_t wide = (int64_t)((uint64_t)((int64_t)g[i] * m) << left);
            wide = ((wide >> before) + after) >> after;
            above |= limit - 1 - wide;
            x[i] = (int32_t)(wide < -limit ? -limit : wide > limit - 1 ? limit - 1 : wide);
        }
        for (int i = 0; i < count; i++) {
            int32_t v = x[i] < 0 ? -x[i] : x[i];
            int fine = v < 1 << (SILU_X_FRAC + SILU_SPLIT_BITS);
            int32_t near = v >> fine_rest, far = segments + ((v >> rest_bits) & (segments - 1));
            int32_t in_near = (v & ((1 << fine_rest) - 1)) << (rest_bits - fine_rest);
            segment[i] = fine ? near : far;
            rest[i] = fine ? in_near : v & ((1 << rest_bits) - 1);
        }
        for (int i = 0; i < count; i++) {
            int32_t y = (silu_base[segment[i]] << rest_bits) + silu_rise[segment[i]] * rest[i];
            rest[i] = ((y >> (rounded - 1)) + 1) >> 1;
        }
        for (int i = 0; i < count; i++) {
            int outside = x[i] >= 1 << (SILU_X_FRAC + SILU_LIMIT_BITS) ||
                          x[i] <= -(1 << (SILU_X_FRAC + SILU_LIMIT_BITS));
            int32_t gap = outside ? 0 : rest[i];
            to[i] = (int64_t)((x[i] > 0 ? x[i] : 0) - gap) * u[i];
        }
    }
    return above < 0;
}

static TARGET int NAME(residual)(int32_t *x, const int32_t *acc, int n, int m, int shift) {
    int before = shift > 0 ? shift - 1 : 0, after = shift > 0;
    int64_t outside = 0, left = shift < 0 ? -1 : 0;
    for (int i = 0; i < n; i++) {
        int64_t sum = x[i] + (((((int64_t)acc[i] * m) >> before) + after) >> after);
        int64_t kept = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
        outside |= (sum ^ kept) | (left & acc[i]);
        x[i] = (int32_t)kept;
    }
    return outside != 0;
}

static TARGET void NAME(logits)(const int64_t *sums, const int16_t *rows, int n, int shift,
                                int32_t *out) {
    for (int i = 0; i < n; i++) {
        int64_t acc = shift ? ((sums[i] >> (shift ? shift - 1 : 0)) + 1) >> 1 : sums[i];
        int64_t x = ((((int64_t)(int32_t)acc * rows[i]) >> (LOGIT_SHIFT - 1)) + 1) >> 1;
        out[i] = (int32_t)(x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : x);
    }
}

static TARGET int32_t NAME(scores)(const int32_t *dot, lutra_scale q, const uint16_t *key_m,
                                   const int16_t *key_e, int n, int32_t *score,
                                   int *saturated) {
    const int32_t limit = 1 << (SCORE_WIDTH - 1);
    int32_t top = -limit;
    int64_t outside = 0;
    for (int i = 0; i < n; i++) {
        /* the product of two scales, in 2**30..2**32 unless zero, to 16 bits */
        uint64_t x = (uint64_t)q.m * key_m[i];
        int bits = SCALE_M_WIDTH - !(x >> (2 * SCALE_M_WIDTH - 1));
        int64_t m = (int64_t)(((x >> (bits - 1)) + 1) >> 1);
        int carry = (int)(m >> SCALE_M_WIDTH);
        m >>= carry;
        int e = x ? q.e + key_e[i] + bits + carry : 0;
        int exact = -(e + SCORE_FRAC), shift = clip(exact, 0, 63);
        int before = shift ? shift - 1 : 0, after = shift > 0;
        int64_t y = (((dot[i] * m) >> before) + after) >> after;
        int32_t s = (int32_t)(y > limit - 1 ? limit - 1 : y < -limit ? -limit : y);
        outside |= (y ^ s) | (exact < 0 ? y : 0);
        score[i] = s;
        top = s > top ? s : top;
    }
    *saturated |= outside != 0;
    return top;
}

static TARGET int64_t NAME(weights)(const int32_t *score, int32_t top, const uint16_t *value_m,
                                    const int16_t *value_e, int e, int n, uint16_t *w) {
    const int rest_bits = EXP2_D_FRAC - EXP2_SEGMENT_BITS, guard = EXP2_TABLE_FRAC - EXP2_Y_FRAC;
    const uint32_t segments = 1 << EXP2_SEGMENT_BITS;
    int64_t sum = 0;
    for (int i = 0; i < n; i++) {
        uint32_t d = (uint32_t)(top - score[i]);
        uint32_t whole = d >> EXP2_D_FRAC, segment = (d >> rest_bits) & (segments - 1);
        uint32_t rest = d & ((1u << rest_bits) - 1);
        uint32_t y = (uint32_t)exp2_base[segment] -
                     (((uint32_t)exp2_drop[segment] * rest) >> rest_bits);
        /* more bits than y has give zero */
        whole = whole > 31u - guard + 1 ? 31u - guard + 1 : whole;
        uint32_t p = ((y >> (whole + guard - 1)) + 1) >> 1;
        sum += p;
        int below = e - value_e[i];
        uint32_t shift = EXP2_Y_FRAC - 1u + (uint32_t)(below < 0 ? 0 : below > 17 ? 17 : below);
        w[i] = (uint16_t)(((p * value_m[i] >> shift) + 1) >> 1);
    }
    return sum;
}

static TARGET void NAME(nibbles)(const int8_t *data, int runs, int size, int8_t *out) {
    for (int r = 0; r < runs; r++, data += size, out += 2 * size)
        for (int i = 0; i < size; i++) {
            out[i] = (int8_t)(((data[i] & 15) ^ 8) - 8);
            out[size + i] = (int8_t)(((data[i] >> 4 & 15) ^ 8) - 8);
        }
}

#define VECTOR_FUNCTIONS                                                                          \
    NAME(offsets), NAME(numbers), NAME(abs_max32), NAME(abs_max64), NAME(scaled32),               \
        NAME(scaled64), NAME(quantize), NAME(bytes), NAME(halves), NAME(shared), NAME(unit_sums), NAME(shifted),  \
        NAME(rotate), NAME(quantize64), NAME(fixed), NAME(relu2), NAME(swiglu), NAME(residual),   \
        NAME(logits), NAME(nibbles)
