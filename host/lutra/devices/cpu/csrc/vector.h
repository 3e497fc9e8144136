/* Steps on one token: norms, gates and heads. */
#ifndef LUTRA_VECTOR_H
#define LUTRA_VECTOR_H

#include "kernels.h"

/* Values of either width: one of the pointers is NULL. */
typedef struct {
    const int32_t *narrow;
    const int64_t *wide;
    lutra_scale scale;
} lutra_source;

/* q [n] and its scale; y [n] is working memory. */
lutra_scale norm_quantize(const lutra_kernels *kernels, lutra_source v, const lutra_norm *norm,
                          lutra_scale eps, int n, int q_max, int32_t *y, int16_t *q);

/* relu(gate)**2 * up or silu(gate) * up, with s the activation scale; true if it was saturated. */
int gate_product(const lutra_kernels *kernels, const int32_t *gate, const int32_t *up, int n,
                  int swiglu, lutra_scale s, lutra_scale w_gate, int64_t *out);
lutra_scale gate_scale(int swiglu, lutra_scale s, lutra_scale w_gate, lutra_scale w_up);

/* Everything that a head is rotated and quantised with. */
typedef struct {
    lutra_scale s, w;
    const int16_t *rope, *bias, *gamma, *centre; /* NULL where there is none */
    int in_fixed, bias_frac, gamma_frac, eps, q_max;
} lutra_head_step;

/* q [head_dim] and its scale; *saturated is set if an element was. */
lutra_scale head_quantize(const lutra_kernels *kernels, const int32_t *acc, int head_dim,
                          const lutra_head_step *step, int8_t *q, int *saturated);

/* x += acc * s * w with frac fraction bits; true if it was saturated. */
int residual_add(const lutra_kernels *kernels, int32_t *x, const int32_t *acc, int n, lutra_scale s,
                 lutra_scale w, int frac);

#endif
