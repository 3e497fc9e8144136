/* Rows through layers of a model. Every thread runs all phases; a barrier is between them. */
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "codes.h"
#include "matmul.h"
#include "vector.h"

typedef struct {
    lutra_scratch scratch;
    lutra_attend_scratch attend;
    int64_t *sums;
    int32_t *y, *values;
    int16_t *q;
    int32_t *best, *best_row; /* [rows] */
    int saturated;
} worker_t;

/* Rows of one sequence, at positions that follow one another. */
typedef struct {
    int first, n, items; /* items: of attention before it */
} segment_t;

struct lutra_engine {
    lutra_model model;
    lutra_choice choice;
    int threads, rows;
    lutra_columns columns;
    int32_t *residual, *acc, *attention;
    int64_t *product;
    int8_t *queries;
    lutra_scale *query_scale, *scale;
    segment_t *segments; /* and one behind the last */
    int32_t *slot;       /* [rows]: which of the wanted logits are a row's, or -1 */
    worker_t *workers;
};

typedef struct {
    lutra_engine *engine;
    lutra_pool *pool;
    const lutra_pass *pass;
    lutra_share share; /* of the whole, in the engine's own memory, unless the pass has one */
    int n, wanted, segments, deserted;
} job_t;

enum { NORM_RESIDUAL, NORM_ATTENTION, NORM_GATE };

static void *take(int64_t n) { return aligned_alloc(64, (size_t)(n + 63) / 64 * 64 + 64); }

static int most(int a, int b) { return a > b ? a : b; }

/* Fields that columns have for any product of the model. */
static int fields_of(const lutra_model *model) {
    int fields = columns_fields(&model->head, 1);
    for (int i = 0; i < model->n_layers; i++) {
        const lutra_layer *l = &model->layers[i];
        const lutra_matrix *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) fields |= columns_fields(all[j], 1);
    }
    return fields;
}

lutra_engine *lutra_cpu_engine_new(const lutra_model *model, int threads, int gemv, int gemm,
                                   int rows) {
    lutra_engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->model = *model;
    e->choice.gemv = lutra_target(gemv);
    e->choice.gemm = lutra_target(gemm);
    e->threads = threads < 1 ? 1 : threads;
    e->rows = rows;
    int64_t m = rows, q = (int64_t)model->heads * model->head_dim;
    int64_t heads = model->heads + 2 * model->kv_heads;
    int depth = most(most(model->hidden, model->intermediate), (int)q);
    e->residual = take(m * model->hidden * 4);
    e->acc = take(m * most((int)heads * model->head_dim, model->hidden) * 4);
    e->attention = take(m * q * 4);
    e->product = take(m * model->intermediate * 8);
    e->queries = take(m * q);
    e->query_scale = take(m * model->heads * (int64_t)sizeof(lutra_scale));
    e->scale = take(m * (int64_t)sizeof(lutra_scale));
    e->segments = take((m + 1) * (int64_t)sizeof(segment_t));
    e->slot = take(m * 4);
    e->workers = calloc((size_t)e->threads, sizeof *e->workers);
    int ok = e->residual && e->acc && e->attention && e->product && e->queries &&
             e->query_scale && e->scale && e->segments && e->slot && e->workers &&
             columns_new(&e->columns, depth, rows, model->column_bits, &e->choice, fields_of(model));
    for (int i = 0; ok && i < e->threads; i++) {
        worker_t *w = &e->workers[i];
        ok = scratch_new(&w->scratch, &w->sums, depth, rows, model->column_bits, &e->choice);
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
    free(e->segments);
    free(e->slot);
    free(e->workers);
    free(e);
}

/* Rows of a matrix in chunks, for threads to take one after another. */
static int chunks(int n, int rows) { return (n + rows - 1) / rows; }

static int length(lutra_range range) { return range.last - range.first; }

/* The rows of a chunk. */
static lutra_range chunk(lutra_range of, int item, int rows) {
    lutra_range range = {of.first + item * rows, of.first + (item + 1) * rows};
    if (range.last > of.last) range.last = of.last;
    return range;
}

/* Wait for all threads, and for those who have the rest of what was computed; 0 if one has left. */
static int all_there(job_t *job, const worker_t *w) {
    pool_barrier(job->pool);
    if (!job->share.meet) return 1;
    if (w == job->engine->workers && !job->share.meet(job->share.place)) job->deserted = 1;
    pool_barrier(job->pool);
    return !job->deserted;
}

/* Accumulators of a matrix go into a row of the residual stream. */
static void add(const job_t *job, worker_t *w, const lutra_matrix *added, int t) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    int64_t at = (int64_t)t * model->hidden;
    w->saturated |= residual_add(e->choice.gemv, e->residual + at, job->share.back + at, model->hidden,
                                 e->scale[t], added->unit, model->residual_frac);
}

/* Norms of rows become the columns of the next product; of `tokens` rows that have a slot, if that
 * is not NULL. Before, accumulators of the matrix `added` go into the residual stream. */
static void norms(job_t *job, worker_t *w, lutra_columns *x, int source, const lutra_norm *norm,
                  const lutra_layer *layer, const lutra_matrix *added, int tokens,
                  const int32_t *slot) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    int widths[] = {model->hidden, model->heads * model->head_dim, model->intermediate};
    int n = widths[source], q_max = (1 << (model->a_bits - 1)) - 1;
    const lutra_kernels *kernels = e->choice.gemv;
    columns_shape(x, n, tokens);
    product_forget(&w->scratch);
    for (int t; (t = pool_next(job->pool)) < job->n;) {
        if (added) add(job, w, added, t);
        if (slot && slot[t] < 0) continue;
        lutra_source v = {NULL, NULL, model->unit};
        if (source == NORM_RESIDUAL) v.narrow = e->residual + (int64_t)t * n;
        if (source == NORM_ATTENTION) v.narrow = job->share.attended + (int64_t)t * n;
        if (source == NORM_GATE) {
            if (job->share.gated) {
                const int32_t *g = job->share.gated + (int64_t)t * 2 * n;
                w->saturated |= gate_product(kernels, g, g + n, n, model->swiglu, e->scale[t],
                                             layer->gate.unit, e->product + (int64_t)t * n);
            }
            v.wide = e->product + (int64_t)t * n;
            v.scale = gate_scale(model->swiglu, e->scale[t], layer->gate.unit, layer->up.unit);
        }
        e->scale[t] = norm_quantize(kernels, v, norm, model->eps, n, q_max, w->y, w->q);
        columns_set(x, kernels, slot ? slot[t] : t, w->q);
    }
    pool_barrier(job->pool);
}

static int heads(job_t *job, worker_t *w, const lutra_columns *x, const lutra_layer *layer,
                  int index) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    const lutra_matrix *matrices[] = {&layer->q, &layer->k, &layer->v};
    int d = model->head_dim, n_heads = model->heads + 2 * model->kv_heads, stride = n_heads * d;
    int counts[] = {model->heads, model->kv_heads, model->kv_heads};
    lutra_range own[] = {job->share.queries, job->share.keys, job->share.keys};
    int total = 0, ends[3], rows[3];
    for (int i = 0; i < 3; i++) {
        rows[i] = product_rows(&e->choice, matrices[i], x);
        ends[i] = total += chunks(length(own[i]), rows[i]);
    }
    for (int item; (item = pool_next(job->pool)) < total;) {
        int i = item < ends[0] ? 0 : item < ends[1] ? 1 : 2;
        product_begin(matrices[i], x, &w->scratch);
        lutra_range part = chunk(own[i], item - (i ? ends[i - 1] : 0), rows[i]);
        int base = i == 0 ? 0 : i == 1 ? model->heads * d : (model->heads + model->kv_heads) * d;
        product(&e->choice, matrices[i], part.first, part.last, x, &w->scratch, w->sums,
                job->share.sums + base + part.first, stride);
    }
    if (!all_there(job, w)) return 0;

    /* keys and values of all heads: everybody has them */
    int queries = length(job->share.heads), each = queries + 2 * model->kv_heads;
    for (int item; (item = pool_next(job->pool)) < job->n * each;) {
        int t = item / each, h = item % each;
        h += h < queries ? job->share.heads.first : model->heads - queries;
        const lutra_row *row = &job->pass->rows[t];
        int kind = h < counts[0] ? 0 : h < counts[0] + counts[1] ? 1 : 2;
        int8_t q[HEAD_DIM_MAX];
        lutra_head_step step = {0};
        step.s = e->scale[t];
        step.w = matrices[kind]->unit;
        step.rope = kind == 2 ? NULL : model->rope + (int64_t)row->position * d;
        step.bias = layer->bias ? layer->bias + (int64_t)h * d : NULL;
        step.bias_frac = layer->bias_frac;
        if (kind == 1 && layer->key_centre)
            step.centre = layer->key_centre + (int64_t)(h - counts[0]) * d;
        step.gamma = kind == 0 ? layer->query_norm : kind == 1 ? layer->key_norm : NULL;
        step.gamma_frac = layer->head_norm_frac;
        step.eps = model->head_eps;
        step.in_fixed = layer->bias || layer->query_norm;
        int bits = kind == 0 ? 8 : kind == 1 ? model->key_bits : model->value_bits;
        step.q_max = (1 << (bits - 1)) - 1;
        const int32_t *acc = job->share.sums + (int64_t)t * stride + (int64_t)h * d;
        lutra_scale s = head_quantize(e->choice.gemv, acc, d, &step, q, &w->saturated);
        if (kind == 0) {
            memcpy(e->queries + ((int64_t)t * model->heads + h) * d, q, (size_t)d);
            e->query_scale[t * model->heads + h] = s;
        } else if (kind == 1) {
            cache_store(row->cache, index, h - counts[0], row->position, q, s, NULL, s);
        } else {
            cache_store(row->cache, index, h - counts[0] - counts[1], row->position, NULL, s, q,
                        s);
        }
    }
    pool_barrier(job->pool);
    return 1;
}

/* Heads of queries that attend to a head of keys here. */
static lutra_range queries_of(const job_t *job, int g) {
    const lutra_model *model = &job->engine->model;
    int per_kv = model->heads / model->kv_heads;
    lutra_range own = {g * per_kv, (g + 1) * per_kv};
    if (own.first < job->share.heads.first) own.first = job->share.heads.first;
    if (own.last > job->share.heads.last) own.last = job->share.heads.last;
    if (own.last < own.first) own.last = own.first;
    return own;
}

static int attention(job_t *job, worker_t *w, const lutra_layer *layer, int index) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    const segment_t *segment = e->segments;
    int d = model->head_dim;
    for (int item; (item = pool_next(job->pool)) < e->segments[job->segments].items;) {
        while (item >= segment[1].items) segment++; /* a thread's items only grow */
        int g = 0, within = item - segment->items, parts;
        while (within >= (parts = chunks(segment->n * length(queries_of(job, g)), QUERIES))) {
            within -= parts;
            g++;
        }
        lutra_range own = queries_of(job, g);
        int per_kv = length(own), n = segment->n * per_kv;
        int first = within * QUERIES, count = n - first;
        const lutra_row *rows = job->pass->rows + segment->first;
        if (count > QUERIES) count = QUERIES;
        lutra_query queries[QUERIES];
        for (int i = 0; i < count; i++) {
            int t = (first + i) / per_kv, h = own.first + (first + i) % per_kv;
            int64_t at = (int64_t)(segment->first + t) * model->heads + h;
            queries[i].q = e->queries + at * d;
            queries[i].scale = e->query_scale[at];
            queries[i].position = rows[t].position;
            queries[i].out = job->share.attended + at * d;
        }
        w->saturated |= attend(e->choice.gemm, rows->cache, index, g, queries, count,
                               model->residual_frac, layer->window, &w->attend);
    }
    return all_there(job, w);
}

/* Accumulators for the residual stream, [tokens, hidden]. */
static int back(job_t *job, worker_t *w, const lutra_columns *x, const lutra_matrix *matrix) {
    lutra_engine *e = job->engine;
    lutra_range own = job->share.hidden;
    int rows = product_rows(&e->choice, matrix, x);
    for (int item; (item = pool_next(job->pool)) < chunks(length(own), rows);) {
        product_begin(matrix, x, &w->scratch);
        lutra_range part = chunk(own, item, rows);
        product(&e->choice, matrix, part.first, part.last, x, &w->scratch, w->sums,
                job->share.back + part.first, matrix->n);
    }
    return all_there(job, w);
}

static int gate(job_t *job, worker_t *w, const lutra_columns *x, const lutra_layer *layer) {
    lutra_engine *e = job->engine;
    const lutra_matrix *pair[] = {&layer->gate, &layer->up};
    lutra_range own = job->share.inner;
    int n = e->model.intermediate, a = product_rows(&e->choice, pair[0], x);
    int b = product_rows(&e->choice, pair[1], x), rows = a < b ? a : b;
    /* chunks begin where strips do */
    if (rows % STRIP) rows = rows < STRIP ? STRIP : rows / STRIP * STRIP;
    for (int item; (item = pool_next(job->pool)) < chunks(length(own), rows);) {
        lutra_range part = chunk(own, item, rows);
        int first = part.first, last = part.last, count = length(part);
        int32_t *values = w->values; /* of gate, then of up: [tokens, rows] */
        for (int i = 0; i < 2; i++) {
            int32_t *to = values + (int64_t)i * job->n * count, stride = count;
            int step = i ? b : a;
            if (job->share.gated) {
                to = job->share.gated + (int64_t)i * n + first;
                stride = 2 * n;
            }
            product_begin(pair[i], x, &w->scratch);
            for (int r = first, end; r < last; r = end) {
                end = r + step < last ? r + step : last;
                product(&e->choice, pair[i], r, end, x, &w->scratch, w->sums, to + r - first,
                        stride);
            }
        }
        for (int t = 0; t < job->n && !job->share.gated; t++) {
            const int32_t *g = values + (int64_t)t * count, *u = g + (int64_t)job->n * count;
            w->saturated |=
                gate_product(e->choice.gemv, g, u, count, e->model.swiglu, e->scale[t],
                             layer->gate.unit, e->product + (int64_t)t * n + first);
        }
    }
    return all_there(job, w);
}

static void head(job_t *job, worker_t *w, const lutra_columns *x) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    lutra_range own = job->share.vocab;
    int rows = product_rows(&e->choice, &model->head, x), tokens = x->tokens, width = length(own);
    for (int t = 0; t < tokens; t++) {
        w->best[t] = INT32_MIN;
        w->best_row[t] = -1;
    }
    for (int item; (item = pool_next(job->pool)) < chunks(width, rows);) {
        product_begin(&model->head, x, &w->scratch);
        lutra_range part = chunk(own, item, rows);
        int first = part.first, last = part.last;
        product_sums(&e->choice, &model->head, first, last, x, &w->scratch, w->sums);
        for (int t = 0; t < tokens; t++) {
            int32_t *out = job->pass->logits + (int64_t)t * width + first - own.first;
            int32_t top = INT32_MIN;
            const int64_t *sums = w->sums + (int64_t)t * (last - first);
            if (model->head_rows)
                e->choice.gemv->logits(sums, model->head_rows + first, last - first,
                                       model->head.shift, out);
            else
                e->choice.gemv->shifted(sums, last - first, model->head.shift, out);
            for (int r = 0; r < last - first; r++) top = out[r] > top ? out[r] : top;
            if (w->best_row[t] >= 0 && top <= w->best[t]) continue;
            w->best[t] = top;
            w->best_row[t] = first;
            while (out[w->best_row[t] - first] != top) w->best_row[t]++;
        }
    }
    pool_barrier(job->pool);
}

/* A row of coded embedding: twice its weights, times what one of them is worth. */
static void embed_codes(const lutra_kernels *kernels, const lutra_matrix *w, int row, int frac,
                        lutra_scratch *scratch, int32_t *out) {
    lutra_matrix flat;
    if (w->strip || w->levels) {
        flat = matrix_rows(kernels, w, row, row + 1, scratch->flat);
        w = &flat;
        row = 0;
    }
    uint8_t *codes = scratch->bytes;
    int group = w->scale ? w->group : w->k, shift = -(w->unit.e + frac);
    codes_of(w->codes + row * w->row_bytes, w->bits, round_up(w->k, BLOCK) / BLOCK, codes);
    for (int g = 0; g < w->k / group; g++) {
        int64_t at = (int64_t)row * (w->k / group) + g, scale = 1, zero = 2, offset = 0;
        if (w->scale) {
            scale = w->scale_bytes == 1 ? ((const uint8_t *)w->scale)[at]
                                        : ((const uint16_t *)w->scale)[at];
            zero = zero_at(w, row, g);
        }
        if (w->offset) offset = w->offset[at] * ((int64_t)1 << w->offset_shift);
        for (int i = g * group; i < (g + 1) * group; i++) {
            int64_t doubled = scale * (2 * (int64_t)codes[i] - zero) + offset;
            out[i] = (int32_t)round_shift(doubled * w->unit.m, shift);
        }
    }
}

static void embed(job_t *job, worker_t *w) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    int hidden = model->hidden;
    for (int t; (t = pool_next(job->pool)) < job->n;) {
        int token = job->pass->rows[t].token;
        const int16_t *row = model->embedding + (int64_t)token * hidden;
        int32_t *to = e->residual + (int64_t)t * hidden;
        if (!model->embedding) {
            embed_codes(e->choice.gemv, &model->embedded, token, model->residual_frac, &w->scratch, to);
            continue;
        }
        for (int i = 0; i < hidden; i++)
            to[i] = (int32_t)((uint32_t)row[i] << model->embedding_shift);
    }
    pool_barrier(job->pool);
}

/* The residual stream of the caller, to the first layer or from the last one. */
static void enter(job_t *job) {
    lutra_engine *e = job->engine;
    size_t n = (size_t)e->model.hidden;
    for (size_t t; (t = (size_t)pool_next(job->pool)) < (size_t)job->n;)
        memcpy(e->residual + t * n, job->pass->residual + t * n, n * 4);
    pool_barrier(job->pool);
}

static void leave(job_t *job, worker_t *w, const lutra_matrix *added) {
    lutra_engine *e = job->engine;
    size_t n = (size_t)e->model.hidden;
    for (int t; (t = pool_next(job->pool)) < job->n;) {
        add(job, w, added, t);
        memcpy(job->pass->residual + (size_t)t * n, e->residual + (size_t)t * n, n * 4);
    }
    pool_barrier(job->pool);
}

static void run(void *argument, int thread) {
    job_t *job = argument;
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    worker_t *w = &e->workers[thread];
    lutra_columns x = e->columns;
    const lutra_matrix *added = NULL;
    int n = job->n;
    if (job->pass->first == 0)
        embed(job, w);
    else
        enter(job);
    for (int i = job->pass->first; i < job->pass->last; i++) {
        const lutra_layer *layer = &model->layers[i];
        norms(job, w, &x, NORM_RESIDUAL, &layer->input, layer, added, n, NULL);
        if (!heads(job, w, &x, layer, i) || !attention(job, w, layer, i)) return;
        norms(job, w, &x, NORM_ATTENTION, &layer->attention, layer, NULL, n, NULL);
        if (!back(job, w, &x, &layer->o)) return;
        norms(job, w, &x, NORM_RESIDUAL, &layer->ffn_input, layer, &layer->o, n, NULL);
        if (!gate(job, w, &x, layer)) return;
        norms(job, w, &x, NORM_GATE, &layer->ffn, layer, NULL, n, NULL);
        if (!back(job, w, &x, &layer->down)) return;
        added = &layer->down;
    }
    if (job->pass->last < model->n_layers) {
        leave(job, w, added);
        return;
    }
    norms(job, w, &x, NORM_RESIDUAL, &model->norm, NULL, added, job->wanted, e->slot);
    if (job->wanted) head(job, w, &x);
}

static void best_of(const job_t *job) {
    const lutra_engine *e = job->engine;
    for (int t = 0; t < job->n; t++) {
        int32_t best = 0, row = -1, slot = e->slot[t];
        if (slot < 0) continue;
        for (int i = 0; i < e->threads; i++) {
            const worker_t *w = &e->workers[i];
            if (w->best_row[slot] < 0) continue;
            if (row < 0 || w->best[slot] > best || (w->best[slot] == best && w->best_row[slot] < row)) {
                best = w->best[slot];
                row = w->best_row[slot];
            }
        }
        job->pass->argmax[slot] = row;
        job->pass->scale[slot] = e->scale[t];
    }
}

/* Rows that follow one another in a cache, and how many items of attention they are. */
static void set_segments(job_t *job) {
    lutra_engine *e = job->engine;
    const lutra_model *model = &e->model;
    const lutra_row *rows = job->pass->rows;
    int items = 0, n = 0;
    for (int t = 0; t < job->n; t++) {
        int follows = t && rows[t].cache == rows[t - 1].cache;
        if (!follows) e->segments[n++] = (segment_t){t, 0, 0};
        e->segments[n - 1].n++;
    }
    for (int i = 0; i < n; i++) {
        e->segments[i].items = items;
        for (int g = 0; g < model->kv_heads; g++)
            items += chunks(e->segments[i].n * length(queries_of(job, g)), QUERIES);
    }
    e->segments[n].items = items;
    job->segments = n;
}

/* All rows and heads of the model, in the engine's own memory. */
static lutra_share whole(lutra_engine *e) {
    const lutra_model *model = &e->model;
    lutra_share share = {e->acc, e->attention, e->acc, NULL, NULL, NULL,
                         {0, model->heads * model->head_dim},
                         {0, model->kv_heads * model->head_dim},
                         {0, model->heads},
                         {0, model->hidden},
                         {0, model->intermediate},
                         {0, model->vocab}};
    return share;
}

int lutra_cpu_run(lutra_engine *engine, lutra_pool *pool, const lutra_pass *pass) {
    job_t job = {engine, pool, pass, pass->share ? *pass->share : whole(engine), pass->n, 0, 0, 0};
    int saturated = 0, positions = 0;
    if (pool_threads(pool) > engine->threads || pass->n > engine->rows) return -2;
    for (int t = 0; t < pass->n; t++) {
        const lutra_row *row = &pass->rows[t];
        if (!cache_holds(row->cache, row->position)) return -2;
        if (row->position >= positions) positions = row->position + 1;
        engine->slot[t] = row->wanted ? job.wanted++ : -1;
    }
    for (int i = 0; i < engine->threads; i++) {
        worker_t *w = &engine->workers[i];
        w->saturated = 0;
        if (!attend_scratch(&w->attend, positions)) return -1;
        for (int t = 0; t < pass->n; t++) w->best_row[t] = -1;
    }
    set_segments(&job);
    pool_run(pool, run, &job);
    if (job.deserted) return -3;
    if (pass->last == engine->model.n_layers) best_of(&job);
    for (int i = 0; i < engine->threads; i++) saturated |= engine->workers[i].saturated;
    return saturated != 0;
}
