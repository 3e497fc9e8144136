/* A tile of tokens through a whole model. Every thread runs all phases; a barrier is between
 * them. */
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "matmul.h"
#include "vector.h"

typedef struct {
    lutra_scratch scratch;
    lutra_attend_scratch attend;
    int64_t *sums;
    int32_t *y, *values;
    int16_t *q;
    int32_t *best, *best_row; /* [tile] */
    int saturated;
} worker_t;

struct lutra_engine {
    lutra_model model;
    lutra_choice choice;
    int threads, tile;
    lutra_columns columns;
    int32_t *residual, *acc, *attention;
    int64_t *product;
    int8_t *queries;
    lutra_scale *query_scale, *scale;
    worker_t *workers;
};

typedef struct {
    lutra_engine *engine;
    lutra_pool *pool;
    lutra_cache *cache;
    const int32_t *tokens;
    int n, position, from;
    int32_t *logits, *argmax;
    lutra_scale *scale;
} tile_t;

enum { NORM_RESIDUAL, NORM_ATTENTION, NORM_GATE };

static void *take(int64_t n) { return aligned_alloc(64, (size_t)(n + 63) / 64 * 64 + 64); }

static int most(int a, int b) { return a > b ? a : b; }

lutra_engine *lutra_cpu_engine_new(const lutra_model *model, int threads, int gemv, int gemm,
                                   int tile) {
    lutra_engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->model = *model;
    e->choice.gemv = lutra_target(gemv);
    e->choice.gemm = lutra_target(gemm);
    e->threads = threads < 1 ? 1 : threads;
    e->tile = tile;
    int64_t m = tile, q = (int64_t)model->heads * model->head_dim;
    int64_t heads = model->heads + 2 * model->kv_heads;
    int depth = most(most(model->hidden, model->intermediate), (int)q);
    e->residual = take(m * model->hidden * 4);
    e->acc = take(m * most((int)heads * model->head_dim, model->hidden) * 4);
    e->attention = take(m * q * 4);
    e->product = take(m * model->intermediate * 8);
    e->queries = take(m * q);
    e->query_scale = take(m * model->heads * (int64_t)sizeof(lutra_scale));
    e->scale = take(m * (int64_t)sizeof(lutra_scale));
    e->workers = calloc((size_t)e->threads, sizeof *e->workers);
    int ok = e->residual && e->acc && e->attention && e->product && e->queries &&
             e->query_scale && e->scale && e->workers &&
             columns_new(&e->columns, depth, tile, model->a_bits, e->choice.gemm->tile);
    for (int i = 0; ok && i < e->threads; i++) {
        worker_t *w = &e->workers[i];
        ok = scratch_new(&w->scratch, &w->sums, depth, tile, model->a_bits);
        w->y = take(depth * 4);
        w->q = take(depth * 2);
        w->values = take(2 * (m + 1) * ROWS_MAX * 4);
        w->best = take(m * 4);
        w->best_row = take(m * 4);
        ok = ok && w->y && w->q && w->values && w->best && w->best_row;
    }
    if (ok) return e;
    lutra_cpu_engine_free(e);
    return NULL;
}

void lutra_cpu_engine_free(lutra_engine *e) {
    if (!e) return;
    for (int i = 0; e->workers && i < e->threads; i++) {
        worker_t *w = &e->workers[i];
        scratch_free(&w->scratch, &w->sums);
        attend_scratch_free(&w->attend);
        free(w->y);
        free(w->q);
        free(w->values);
        free(w->best);
        free(w->best_row);
    }
    columns_free(&e->columns);
    free(e->residual);
    free(e->acc);
    free(e->attention);
    free(e->product);
    free(e->queries);
    free(e->query_scale);
    free(e->scale);
    free(e->workers);
    free(e);
}

/* Rows of a matrix in chunks, for threads to take one after another. */
static int chunks(int n, int rows) { return (n + rows - 1) / rows; }

/* Norms of tokens from `first` on become the columns of the next product. Before, accumulators of
 * the matrix `added` go into the residual stream of all tokens. */
static void norms(tile_t *tile, worker_t *w, lutra_columns *x, int source, const lutra_norm *norm,
                  const lutra_layer *layer, const lutra_matrix *added, int first) {
    lutra_engine *e = tile->engine;
    const lutra_model *model = &e->model;
    int widths[] = {model->hidden, model->heads * model->head_dim, model->intermediate};
    int n = widths[source], tokens = tile->n - first;
    const lutra_kernels *kernels = e->choice.gemv;
    lutra_scale unit = {1 << 15, -15 - model->residual_frac};
    columns_shape(x, n, tokens);
    product_forget(&w->scratch);
    for (int t; (t = pool_next(tile->pool)) < tile->n;) {
        if (added)
            w->saturated |= residual_add(kernels, e->residual + (int64_t)t * n,
                                         e->acc + (int64_t)t * n, n, e->scale[t], added->unit,
                                         model->residual_frac);
        if (t < first) continue;
        lutra_source v = {NULL, NULL, unit};
        if (source == NORM_RESIDUAL) v.narrow = e->residual + (int64_t)t * n;
        if (source == NORM_ATTENTION) v.narrow = e->attention + (int64_t)t * n;
        if (source == NORM_GATE) {
            v.wide = e->product + (int64_t)t * n;
            v.scale = gate_scale(model->swiglu, e->scale[t], layer->gate.unit, layer->up.unit);
        }
        int q_max = (1 << (model->a_bits - 1)) - 1;
        e->scale[t] = norm_quantize(kernels, v, norm, model->eps, n, q_max, w->y, w->q);
        columns_set(x, kernels, t - first, w->q);
    }
    pool_barrier(tile->pool);
}

static void heads(tile_t *tile, worker_t *w, const lutra_columns *x, const lutra_layer *layer,
                  int index) {
    lutra_engine *e = tile->engine;
    const lutra_model *model = &e->model;
    const lutra_matrix *matrices[] = {&layer->q, &layer->k, &layer->v};
    int d = model->head_dim, n_heads = model->heads + 2 * model->kv_heads, stride = n_heads * d;
    int counts[] = {model->heads, model->kv_heads, model->kv_heads};
    int total = 0, ends[3], rows[3];
    for (int i = 0; i < 3; i++) {
        rows[i] = product_rows(&e->choice, matrices[i], x);
        ends[i] = total += chunks(matrices[i]->n, rows[i]);
    }
    for (int item; (item = pool_next(tile->pool)) < total;) {
        int i = item < ends[0] ? 0 : item < ends[1] ? 1 : 2;
        product_begin(matrices[i], x, &w->scratch);
        int first = (item - (i ? ends[i - 1] : 0)) * rows[i], last = first + rows[i];
        if (last > matrices[i]->n) last = matrices[i]->n;
        int base = i == 0 ? 0 : i == 1 ? model->heads * d : (model->heads + model->kv_heads) * d;
        product(&e->choice, matrices[i], first, last, x, &w->scratch, w->sums,
                e->acc + base + first, stride);
    }
    pool_barrier(tile->pool);

    for (int item; (item = pool_next(tile->pool)) < tile->n * n_heads;) {
        int t = item / n_heads, h = item % n_heads, position = tile->position + t;
        int kind = h < counts[0] ? 0 : h < counts[0] + counts[1] ? 1 : 2;
        int8_t q[HEAD_DIM_MAX];
        lutra_head_step step = {0};
        step.s = e->scale[t];
        step.w = matrices[kind]->unit;
        step.rope = kind == 2 ? NULL : model->rope + (int64_t)position * d;
        step.bias = layer->bias ? layer->bias + (int64_t)h * d : NULL;
        step.bias_frac = layer->bias_frac;
        step.gamma = kind == 0 ? layer->query_norm : kind == 1 ? layer->key_norm : NULL;
        step.gamma_frac = layer->head_norm_frac;
        step.eps = model->head_eps;
        step.in_fixed = layer->bias || layer->query_norm;
        step.q_max = kind == 0 ? 127 : (1 << (model->kv_bits - 1)) - 1;
        const int32_t *acc = e->acc + (int64_t)t * stride + (int64_t)h * d;
        lutra_scale s = head_quantize(e->choice.gemv, acc, d, &step, q);
        if (kind == 0) {
            memcpy(e->queries + ((int64_t)t * model->heads + h) * d, q, (size_t)d);
            e->query_scale[t * model->heads + h] = s;
        } else if (kind == 1) {
            cache_store(tile->cache, index, h - counts[0], position, q, s, NULL, s);
        } else {
            cache_store(tile->cache, index, h - counts[0] - counts[1], position, NULL, s, q, s);
        }
    }
    pool_barrier(tile->pool);
}

static void attention(tile_t *tile, worker_t *w, const lutra_layer *layer, int index) {
    lutra_engine *e = tile->engine;
    const lutra_model *model = &e->model;
    int d = model->head_dim, per_kv = model->heads / model->kv_heads, n = tile->n * per_kv;
    int items = chunks(n, QUERIES);
    for (int item; (item = pool_next(tile->pool)) < items * model->kv_heads;) {
        int g = item / items, first = item % items * QUERIES, count = n - first;
        if (count > QUERIES) count = QUERIES;
        lutra_query queries[QUERIES];
        for (int i = 0; i < count; i++) {
            int t = (first + i) / per_kv, h = g * per_kv + (first + i) % per_kv;
            int64_t at = (int64_t)t * model->heads + h;
            queries[i].q = e->queries + at * d;
            queries[i].scale = e->query_scale[at];
            queries[i].position = tile->position + t;
            queries[i].out = e->attention + at * d;
        }
        lutra_head head = cache_head(tile->cache, index, g);
        attend(e->choice.gemm, &head, queries, count, model->residual_frac, layer->window,
               &w->attend);
    }
    pool_barrier(tile->pool);
}

/* Accumulators for the residual stream, [tokens, hidden]. */
static void back(tile_t *tile, worker_t *w, const lutra_columns *x, const lutra_matrix *matrix) {
    lutra_engine *e = tile->engine;
    int rows = product_rows(&e->choice, matrix, x);
    for (int item; (item = pool_next(tile->pool)) < chunks(matrix->n, rows);) {
        product_begin(matrix, x, &w->scratch);
        int first = item * rows, last = first + rows > matrix->n ? matrix->n : first + rows;
        product(&e->choice, matrix, first, last, x, &w->scratch, w->sums, e->acc + first,
                matrix->n);
    }
    pool_barrier(tile->pool);
}

static void gate(tile_t *tile, worker_t *w, const lutra_columns *x, const lutra_layer *layer) {
    lutra_engine *e = tile->engine;
    const lutra_matrix *pair[] = {&layer->gate, &layer->up};
    int n = e->model.intermediate, a = product_rows(&e->choice, pair[0], x);
    int b = product_rows(&e->choice, pair[1], x), rows = a < b ? a : b;
    for (int item; (item = pool_next(tile->pool)) < chunks(n, rows);) {
        int first = item * rows, last = first + rows > n ? n : first + rows, count = last - first;
        int32_t *values = w->values; /* of gate, then of up: [tokens, rows] */
        for (int i = 0; i < 2; i++) {
            product_begin(pair[i], x, &w->scratch);
            product(&e->choice, pair[i], first, last, x, &w->scratch, w->sums,
                    values + (int64_t)i * tile->n * count, count);
        }
        for (int t = 0; t < tile->n; t++) {
            const int32_t *g = values + (int64_t)t * count, *u = g + (int64_t)tile->n * count;
            gate_product(e->choice.gemv, g, u, count, e->model.swiglu, e->scale[t],
                         layer->gate.unit, e->product + (int64_t)t * n + first);
        }
    }
    pool_barrier(tile->pool);
}

static void head(tile_t *tile, worker_t *w, const lutra_columns *x) {
    lutra_engine *e = tile->engine;
    const lutra_model *model = &e->model;
    int rows = product_rows(&e->choice, &model->head, x), tokens = x->tokens;
    for (int t = 0; t < tokens; t++) {
        w->best[t] = INT32_MIN;
        w->best_row[t] = -1;
    }
    for (int item; (item = pool_next(tile->pool)) < chunks(model->vocab, rows);) {
        product_begin(&model->head, x, &w->scratch);
        int first = item * rows, last = first + rows;
        if (last > model->vocab) last = model->vocab;
        product_sums(&e->choice, &model->head, first, last, x, &w->scratch, w->sums);
        for (int t = 0; t < tokens; t++) {
            int32_t *out = tile->logits + (int64_t)t * model->vocab + first;
            e->choice.gemv->logits(w->sums + (int64_t)t * (last - first), model->head_rows + first,
                                   last - first, model->head.shift, out);
            for (int r = 0; r < last - first; r++)
                if (out[r] > w->best[t] || w->best_row[t] < 0) {
                    w->best[t] = out[r];
                    w->best_row[t] = first + r;
                }
        }
    }
    pool_barrier(tile->pool);
}

static void run(void *argument, int thread) {
    tile_t *tile = argument;
    lutra_engine *e = tile->engine;
    const lutra_model *model = &e->model;
    worker_t *w = &e->workers[thread];
    lutra_columns x = e->columns;
    const lutra_matrix *added = NULL;
    int hidden = model->hidden;
    for (int t; (t = pool_next(tile->pool)) < tile->n;) {
        const int16_t *row = model->embedding + (int64_t)tile->tokens[t] * hidden;
        int32_t *to = e->residual + (int64_t)t * hidden;
        for (int i = 0; i < hidden; i++)
            to[i] = (int32_t)((uint32_t)row[i] << model->embedding_shift);
    }
    pool_barrier(tile->pool);
    for (int i = 0; i < model->n_layers; i++) {
        const lutra_layer *layer = &model->layers[i];
        norms(tile, w, &x, NORM_RESIDUAL, &layer->input, layer, added, 0);
        heads(tile, w, &x, layer, i);
        attention(tile, w, layer, i);
        norms(tile, w, &x, NORM_ATTENTION, &layer->attention, layer, NULL, 0);
        back(tile, w, &x, &layer->o);
        norms(tile, w, &x, NORM_RESIDUAL, &layer->ffn_input, layer, &layer->o, 0);
        gate(tile, w, &x, layer);
        norms(tile, w, &x, NORM_GATE, &layer->ffn, layer, NULL, 0);
        back(tile, w, &x, &layer->down);
        added = &layer->down;
    }
    norms(tile, w, &x, NORM_RESIDUAL, &model->norm, NULL, added, tile->from);
    if (tile->from < tile->n) head(tile, w, &x);
}

static void best_of(tile_t *tile) {
    lutra_engine *e = tile->engine;
    for (int t = 0; t < tile->n - tile->from; t++) {
        int32_t best = 0, row = -1;
        for (int i = 0; i < e->threads; i++) {
            worker_t *w = &e->workers[i];
            if (w->best_row[t] < 0) continue;
            if (row < 0 || w->best[t] > best || (w->best[t] == best && w->best_row[t] < row)) {
                best = w->best[t];
                row = w->best_row[t];
            }
        }
        tile->argmax[t] = row;
        tile->scale[t] = e->scale[tile->from + t];
    }
}

int lutra_cpu_run(lutra_engine *engine, lutra_pool *pool, lutra_cache *cache, const int32_t *tokens,
                  int n, int position, int logits_from, int32_t *logits, lutra_scale *scale,
                  int32_t *argmax) {
    int saturated = 0;
    if (pool_threads(pool) > engine->threads || position + n > cache_positions(cache)) return -2;
    for (int i = 0; i < engine->threads; i++) {
        engine->workers[i].saturated = 0;
        if (!attend_scratch(&engine->workers[i].attend, position + n)) return -1;
    }
    for (int first = 0; first < n; first += engine->tile) {
        int count = n - first < engine->tile ? n - first : engine->tile;
        int from = clip(logits_from - first, 0, count);
        tile_t tile = {engine, pool, cache,  tokens + first, count, position + first,
                       from,   logits, argmax, scale};
        for (int i = 0; i < engine->threads; i++)
            for (int t = 0; t < count; t++) engine->workers[i].best_row[t] = -1;
        pool_run(pool, run, &tile);
        best_of(&tile);
        logits += (int64_t)(count - from) * engine->model.vocab;
        scale += count - from;
        argmax += count - from;
    }
    for (int i = 0; i < engine->threads; i++) saturated |= engine->workers[i].saturated;
    return saturated != 0;
}
