/* Dot products of attention in plain C. */

static TARGET void NAME(key_dots)(const int8_t *keys, int blocks, const int8_t *const *q,
                                  const int32_t *sums, int count, int head_dim, int32_t *dot,
                                  int64_t stride) {
    (void)sums;
    for (int b = 0; b < blocks; b++, keys += KEY_BLOCK * head_dim)
        for (int c = 0; c < count; c++) {
            int32_t acc[KEY_BLOCK] = {0};
            for (int i = 0; i < head_dim / 4; i++)
                for (int p = 0; p < KEY_BLOCK; p++) {
                    const int8_t *k = keys + (i * KEY_BLOCK + p) * 4, *x = q[c] + 4 * i;
                    acc[p] += k[0] * x[0] + k[1] * x[1] + k[2] * x[2] + k[3] * x[3];
                }
            memcpy(dot + c * stride + b * KEY_BLOCK, acc, sizeof acc);
        }
}

static TARGET void NAME(value_sums)(const int8_t *const *pages, int per, int skip, int blocks,
                                    const uint16_t *const *w, int count, int head_dim,
                                    int64_t *acc) {
    for (int c = 0; c < count; c++) {
        int32_t sums[HEAD_DIM_MAX] = {0};
        for (int b = 0; b < blocks; b++) {
            int in = (b + skip) % per;
            const int8_t *v = pages[(b + skip) / per] + in * VALUE_BLOCK * head_dim;
            const uint16_t *x = w[c] + b * VALUE_BLOCK;
            for (int i = 0; i < head_dim; i++)
                sums[i] += v[4 * i] * x[0] + v[4 * i + 1] * x[1] + v[4 * i + 2] * x[2] +
                           v[4 * i + 3] * x[3];
        }
        for (int i = 0; i < head_dim; i++) acc[c * head_dim + i] += sums[i];
    }
}
