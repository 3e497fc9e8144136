#include "vector.h"

/* int8 with an exponent for each group: the largest with which no element passes y_max. */
static void quantize_groups(const lutra_kernels *kernels, const lutra_norm *norm, const int32_t *y,
                            int64_t y_max, int n, int16_t *q) {
    lutra_scale factor = quantize_factor(y_max, Q_MAX);
    for (int first = 0; first < n; first += norm->run)
        for (int at = 0; at < norm->run; at += norm->group) {
            int rest = norm->run - at, size = rest < norm->group ? rest : norm->group, e = 0;
            const int32_t *from = y + first + at;
            int16_t *to = q + first + at;
            int64_t peak = kernels->abs_max32(from, size);
            while (e < norm->group_shift && peak << (e + 1) <= y_max) e++;
            kernels->quantize(from, scale_lower(factor, -e), Q_MAX, size, to);
            int16_t by = (int16_t)(1 << (norm->group_shift - e));
            for (int i = 0; i < size; i++) to[i] = (int16_t)(to[i] * by);
        }
}

lutra_scale norm_quantize(const lutra_kernels *kernels, lutra_source v, const lutra_norm *norm,
                          lutra_scale eps, int n, int q_max, int32_t *y, int16_t *q) {
    int64_t v_max = v.narrow ? kernels->abs_max32(v.narrow, n) : kernels->abs_max64(v.wide, n);
    int64_t squares, y_max;
    int shift = bit_length((uint64_t)v_max) - (SCALED_WIDTH - 1);
    if (shift < 0) shift = 0;
    const int16_t *gamma = norm->gamma;
    if (v.narrow)
        y_max = kernels->scaled32(v.narrow, shift, gamma, n, y, &squares);
    else
        y_max = kernels->scaled64(v.wide, shift, gamma, n, y, &squares);
    lutra_scale s = scale_lower(v.scale, -shift), unit = s;
    if (!norm->plain) {
        lutra_scale mean =
            scale_mul(scale_mul(scale_from_int(squares, 0), norm->inv_n), scale_mul(s, s));
        unit = scale_mul(s, scale_rsqrt(scale_add(mean, eps)));
    }
    lutra_scale scale = scale_mul(unit, scale_lower(quantize_step(y_max, q_max), norm->frac));
    if (norm->group) {
        quantize_groups(kernels, norm, y, y_max, n, q);
        return scale_lower(scale, norm->group_shift);
    }
    kernels->quantize(y, quantize_factor(y_max, q_max), q_max, n, q);
    return scale;
}

int gate_product(const lutra_kernels *kernels, const int32_t *gate, const int32_t *up, int n,
                 int swiglu, lutra_scale s, lutra_scale w_gate, int64_t *out) {
    if (!swiglu) {
        kernels->relu2(gate, up, n, out);
        return 0;
    }
    lutra_scale c = scale_mul(s, w_gate);
    int shift = clip(-(c.e + SILU_X_FRAC), SWIGLU_SHIFT_MIN, SWIGLU_SHIFT_MAX);
    return kernels->swiglu(gate, up, n, c.m, shift, out);
}

lutra_scale gate_scale(int swiglu, lutra_scale s, lutra_scale w_gate, lutra_scale w_up) {
    if (swiglu) return scale_lower(scale_mul(s, w_up), SILU_X_FRAC);
    lutra_scale gate = scale_mul(s, w_gate);
    return scale_mul(scale_mul(gate, gate), scale_mul(s, w_up));
}

lutra_scale head_quantize(const lutra_kernels *kernels, const int32_t *acc, int head_dim,
                          const lutra_head_step *step, int8_t *q, int *saturated) {
    int64_t y[HEAD_DIM_MAX];
    int32_t v[HEAD_DIM_MAX];
    lutra_scale unit = scale_mul(step->s, step->w);
    if (step->in_fixed) {
        *saturated |=
            kernels->fixed(acc, unit, step->bias, FIXED_FRAC - step->bias_frac, head_dim, v);
        acc = v;
        unit = scale_from_int(1, -FIXED_FRAC);
    }
    if (step->gamma) {
        int64_t squares = (int64_t)head_dim * step->eps;
        for (int i = 0; i < head_dim; i++) squares += (int64_t)v[i] * v[i];
        int log2_dim = bit_length((uint64_t)head_dim) - 1;
        unit = scale_rsqrt(scale_from_int(squares, -(EPS_FRAC + log2_dim)));
        unit = scale_lower(unit, FIXED_FRAC - NORM_SHIFT + step->gamma_frac);
        for (int i = 0; i < head_dim; i++)
            v[i] = (int32_t)round_shift((int64_t)v[i] * step->gamma[i], NORM_SHIFT);
    }
    kernels->rotate(acc, step->rope, head_dim, y);
    if (step->centre) {
        int64_t unit = (int64_t)1 << (FIXED_FRAC + ROPE_FRAC - step->bias_frac);
        for (int i = 0; i < head_dim; i++) y[i] -= step->centre[i] * unit;
    }
    int64_t y_max = kernels->abs_max64(y, head_dim);
    kernels->quantize64(y, quantize_factor(y_max, step->q_max), step->q_max, head_dim, q);
    return scale_mul(scale_lower(quantize_step(y_max, step->q_max), ROPE_FRAC), unit);
}

int residual_add(const lutra_kernels *kernels, int32_t *x, const int32_t *acc, int n, lutra_scale s,
                 lutra_scale w, int frac) {
    lutra_scale c = scale_mul(s, w);
    return kernels->residual(x, acc, n, c.m, clip(c.m ? -(c.e + frac) : 0, -1, 63));
}
