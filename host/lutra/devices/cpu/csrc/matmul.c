#include "matmul.h"

#include <stdlib.h>
#include <string.h>

/* Chunks of a product with few columns: large, since a thread's reads start anew with each, but
 * enough of them for threads to end together. */
enum { PACK = 4, GEMV_BYTES = 192 << 10, GEMV_CHUNKS = 16 };
/* Sums of a chunk's rows that a cache holds. */
enum { CHUNK_SUMS = 8 << 10 };
/* Columns in groups that are faster without packing rows. */
enum { SHIFTED_COLUMNS = 2 * GEMV_COLUMNS };
/* Most columns that a product takes without packing rows, whatever the target. */
enum { FIELD_COLUMNS = 2 * FEW_COLUMNS };

static void *take(int64_t n) { return aligned_alloc(64, (size_t)(n + 63) / 64 * 64 + 64); }

static int columns_of(int tokens, int a_bits) { return a_bits < 16 ? tokens : 2 * tokens + 1; }

static int in_groups(const lutra_columns *x) { return x->a_bits > 8 && x->a_bits < 16; }

int columns_fields(const lutra_matrix *w, int count) {
    int fields = 0;
    for (int i = 0; i < count; i++)
        if (w[i].group && w[i].bits <= 2 && !w[i].strip) fields |= w[i].bits == 1 ? ONE_BIT : TWO_BITS;
    return fields;
}

int columns_new(lutra_columns *x, int k, int tokens, int a_bits, const lutra_choice *choice,
                int fields) {
    int64_t depth = round_up(k, 2 * BLOCK);
    int64_t count = round_up(columns_of(tokens, a_bits), FEW_COLUMNS);
    int64_t few = count < FIELD_COLUMNS ? count : FIELD_COLUMNS, fielded = round_up(k, 4 * BLOCK);
    x->a_bits = a_bits;
    x->tile = choice->gemm->tile;
    x->one = choice->gemm->few_least - 1;
    x->few = choice->gemm->few_most;
    x->side = choice->gemv->side;
    x->fields = x->side ? fields : 0;
    x->pairs = x->digits = NULL;
    x->powers = NULL;
    if (x->fields & ONE_BIT) {
        x->pairs = take(few * fielded);
        x->powers = take(few * fielded / 2);
        if (!x->pairs || !x->powers) return 0;
        memset(x->pairs, 0, (size_t)(few * fielded));
        memset(x->powers, 0, (size_t)(few * fielded / 2));
    }
    if (x->fields & TWO_BITS) {
        x->digits = take(few * fielded * 2);
        if (!x->digits) return 0;
        memset(x->digits, 0, (size_t)(few * fielded * 2));
    }
    x->x = take(count * depth);
    x->packed = take(count * depth);
    x->sums = take(count * depth / UNIT * 4);
    x->raw = in_groups(x) ? take(count * depth / UNIT * 4) : x->sums;
    x->shifts = take(count * depth / SHARED * 4);
    if (!x->x || !x->packed || !x->sums || !x->raw || !x->shifts) return 0;
    for (int64_t i = 0; i < count * depth / SHARED; i++) x->shifts[i] = 1;
    memset(x->x, 0, (size_t)(count * depth));
    memset(x->packed, 0, (size_t)(count * depth));
    memset(x->sums, 0, (size_t)(count * depth / UNIT * 4));
    memset(x->raw, 0, (size_t)(count * depth / UNIT * 4));
    return 1;
}

void columns_free(lutra_columns *x) {
    free(x->x);
    free(x->packed);
    if (x->raw != x->sums) free(x->raw);
    free(x->sums);
    free(x->shifts);
    free(x->pairs);
    free(x->powers);
    free(x->digits);
}

/* Which of a target's products takes this many columns. */
enum { ONE, FEW, MANY };

/* True if columns with a matrix in strips are multiplied as it is. */
static int in_strips(const lutra_matrix *w, const lutra_columns *x) {
    if (w->bits > TWO_BITS) return w->strip && in_groups(x);
    return w->strip && x->count <= (in_groups(x) ? SHIFTED_COLUMNS : GEMV_COLUMNS);
}

static int kind_of(const lutra_columns *x) {
    if (in_groups(x)) return x->count <= SHIFTED_COLUMNS ? ONE : MANY;
    return x->count <= x->one ? ONE : x->count <= x->few ? FEW : MANY;
}

static void pair_column(lutra_columns *x, int column) {
    int blocks = x->depth / BLOCK, in_tile = column % FEW_COLUMNS, first = column - in_tile;
    int width = x->count - first > FEW_COLUMNS / 2 ? FEW_COLUMNS : FEW_COLUMNS / 2;
    const int8_t *from = x->x + (int64_t)column * x->depth;
    int8_t *to = x->packed + (int64_t)first * round_up(x->depth, 2 * BLOCK) + 64 * in_tile;
    for (int i = 0; i < round_up(blocks, 2) * 4; i++) {
        int8_t *at = to + (int64_t)(i / 8 * 4 + i % 4) * width * 64 + i / 4 % 2 * 32;
        if (i < blocks * 4)
            memcpy(at, from + 32 * i, 32);
        else
            memset(at, 0, 32);
    }
}

static void pack_column(lutra_columns *x, int column) {
    int first = column / x->tile * x->tile;
    int rest = round_up(x->count - first, PACK), width = rest < x->tile ? rest : x->tile;
    int32_t *to = (int32_t *)(x->packed + (int64_t)first * x->depth) + (column - first);
    const int32_t *from = (const int32_t *)(x->x + (int64_t)column * x->depth);
    for (int i = 0; i < x->depth / 4; i++) to[(int64_t)i * width] = from[i];
}

/* A column for codes of one bit. */
static void set_pairs(lutra_columns *x, int column) {
    int blocks = x->depth / BLOCK, depth = columns_depth(x), side = x->side;
    const int8_t *from = x->x + (int64_t)column * x->depth;
    const int32_t *shifts = x->shifts + (int64_t)column * (x->depth / SHARED);
    int8_t *to = x->pairs + (int64_t)column * depth;
    uint8_t *powers = x->powers + (int64_t)column * depth / 2;
    for (int b = 0; b < depth / BLOCK; b++) {
        int whole = b / side * side, in = b % side * 16;
        int8_t *at = to + whole * BLOCK + in;
        for (int f = 0; f < 8; f++)
            if (b < blocks)
                memcpy(at + 16 * side * f, from + b * BLOCK + 16 * f, 16);
            else
                memset(at + 16 * side * f, 0, 16);
        for (int i = 0; i < 4 && b < blocks; i++)
            memset(powers + whole * (BLOCK / 2) + in + 16 * side * i,
                   1 << (shifts[4 * b + i] - 1), 16);
    }
}

/* A column for codes of two bits, of activations q if they are in groups. */
static void set_digits(lutra_columns *x, int column, const int16_t *q) {
    int depth = columns_depth(x), side = x->side / 2;
    const int8_t *from = x->x + (int64_t)column * x->depth;
    int8_t *high = x->digits + (int64_t)column * 2 * depth, *low = high + depth;
    for (int b = 0; b < depth / BLOCK; b++)
        for (int f = 0; f < 4; f++) {
            int at = b / side * side * BLOCK + b % side * 32 + 32 * side * f;
            int first = b * BLOCK + 32 * f, left = x->k - first;
            int n = left < 0 ? 0 : left < 32 ? left : 32;
            if (n < 32) {
                memset(high + at, 0, 32);
                memset(low + at, 0, 32);
            }
            if (!q) {
                memcpy(high + at, from + first, (size_t)n);
                continue;
            }
            for (int i = 0; i < n; i++) {
                int top = (q[first + i] + 64) >> 7;
                high[at + i] = (int8_t)top;
                low[at + i] = (int8_t)(q[first + i] - 128 * top);
            }
        }
}

void columns_shape(lutra_columns *x, int k, int tokens) {
    x->k = k;
    x->depth = round_up(k, BLOCK);
    x->tokens = tokens;
    x->count = columns_of(tokens, x->a_bits);
}

/* Sums of bytes become those of the activations that they stand for. */
static void shift_sums(lutra_columns *x, int column) {
    int units = x->depth / UNIT;
    int32_t *sums = x->sums + (int64_t)column * units;
    int32_t *shifts = x->shifts + (int64_t)column * (x->depth / SHARED);
    memcpy(x->raw + (int64_t)column * units, sums, sizeof *sums * (size_t)units);
    for (int i = round_up(x->k, SHARED) / SHARED; i < x->depth / SHARED; i++) shifts[i] = 1;
    for (int u = 0; u < units; u++) sums[u] *= 1 << (shifts[u * UNIT / SHARED] - 1);
}

void columns_set(lutra_columns *x, const lutra_kernels *kernels, int token, const int16_t *q) {
    int n = x->a_bits < 16 ? 1 : 2, first = n * token, rest = x->depth - x->k;
    int8_t *to = x->x + (int64_t)first * x->depth;
    if (in_groups(x))
        kernels->shared(q, x->k, x->a_bits - 8, to,
                        x->shifts + (int64_t)first * (x->depth / SHARED));
    else if (n == 1)
        kernels->bytes(q, x->k, to);
    else
        kernels->halves(q, x->k, to, to + x->depth);
    if (n == 2 && token == x->tokens - 1) {
        memset(to + 2 * (int64_t)x->depth, 1, (size_t)x->k);
        n = 3;
    }
    for (int i = 0; i < n; i++) {
        memset(to + (int64_t)i * x->depth + x->k, 0, (size_t)rest);
        kernels->unit_sums(to + (int64_t)i * x->depth, x->depth,
                           x->sums + (int64_t)(first + i) * (x->depth / UNIT));
        if (in_groups(x)) shift_sums(x, first);
        if (kind_of(x) != MANY && x->fields & ONE_BIT) set_pairs(x, first + i);
        if (kind_of(x) != MANY && x->fields & TWO_BITS)
            set_digits(x, first + i, in_groups(x) ? q : NULL);
        if (kind_of(x) == FEW) pair_column(x, first + i);
        if (kind_of(x) == MANY) pack_column(x, first + i);
    }
}

int product_rows(const lutra_choice *choice, const lutra_matrix *w, const lutra_columns *x) {
    int least = w->strip ? STRIP : 16;
    if (kind_of(x) == MANY && !in_strips(w, x)) return choice->gemm->gemm_rows;
    int rows = (int)(GEMV_BYTES / w->row_bytes);
    if (rows > w->n / GEMV_CHUNKS) rows = w->n / GEMV_CHUNKS;
    if (rows > CHUNK_SUMS / x->count) rows = CHUNK_SUMS / x->count;
    rows &= ~(least - 1);
    return rows < least ? least : rows > ROWS_MAX ? ROWS_MAX : rows;
}

/* Most bytes of the rows of a product that takes them one after another, or of their numbers. */
static int64_t flat_bytes(int depth, const lutra_choice *choice) {
    int64_t k = round_up(depth, BLOCK), numbers = k / UNIT * 8, rows = choice->gemm->gemm_rows;
    if (rows < STRIP) rows = STRIP;
    /* as many rows as GEMV_BYTES hold have at least a bit for each column */
    int64_t many = rows * (k + numbers), few = GEMV_BYTES + GEMV_BYTES / (k / 8) * numbers;
    return (few > many ? few : many) + 8 * 64;
}

/* Elements of rows of a strip's array, one row after another, with `columns` each. */
static void flat_rows(uint8_t *to, const void *from, int first, int last, int columns, int size) {
    for (int r = first; r < last; r++) {
        int64_t at = (int64_t)(r - r % STRIP) * columns + r % STRIP;
        uint8_t *row = to + (int64_t)(r - first) * columns * size;
        if (size == 4)
            for (int c = 0; c < columns; c++)
                ((uint32_t *)row)[c] = ((const uint32_t *)from)[at + (int64_t)c * STRIP];
        else if (size == 2)
            for (int c = 0; c < columns; c++)
                ((uint16_t *)row)[c] = ((const uint16_t *)from)[at + (int64_t)c * STRIP];
        else
            for (int c = 0; c < columns; c++)
                row[c] = ((const uint8_t *)from)[at + (int64_t)c * STRIP];
    }
}

/* Marks of rows of strips [groups, STRIP], one row after another. */
static void flat_marks(uint8_t *to, const uint8_t *from, int first, int last, int groups) {
    int size = (groups + 7) / 8;
    memset(to, 0, (size_t)(last - first) * (size_t)size);
    for (int r = first; r < last; r++, to += size)
        for (int g = 0; g < groups; g++) {
            int64_t at = (int64_t)(r - r % STRIP) * groups + (int64_t)g * STRIP + r % STRIP;
            to[g / 8] |= (uint8_t)((from[at / 8] >> at % 8 & 1) << g % 8);
        }
}

static uint8_t *take_part(uint8_t **room, int64_t n) {
    uint8_t *part = *room;
    *room += (n + 63) / 64 * 64;
    return part;
}

/* Rows out of strips. */
static void rows_of_strips(lutra_matrix *w, int first, int last, uint8_t **room) {
    int groups = w->group ? w->k / w->group : 0, supers = w->k / SUPER;
    int64_t rows = last - first, numbers = rows * groups * 2;
    uint8_t *part = take_part(room, rows * w->row_bytes);
    flat_rows(part, w->codes, first, last, (int)(w->row_bytes / 4), 4);
    w->codes = part;
    if (w->scale) {
        part = take_part(room, numbers);
        flat_rows(part, w->scale, first, last, groups, w->scale_bytes);
        w->scale = part;
    }
    if (w->zero) {
        part = take_part(room, numbers);
        flat_rows(part, w->zero, first, last, groups, 2);
        w->zero = (const uint16_t *)part;
    }
    if (w->marks) {
        part = take_part(room, rows * ((groups + 7) / 8));
        flat_marks(part, w->marks, first, last, groups);
        w->marks = part;
    }
    if (w->offset) {
        part = take_part(room, numbers);
        flat_rows(part, w->offset, first, last, groups, 2);
        w->offset = (const int16_t *)part;
    }
    if (w->levels) {
        part = take_part(room, rows * supers * record_bytes(w));
        flat_rows(part, w->levels, first, last, supers * record_bytes(w) / 2, 2);
        w->levels = part;
    }
    w->strip = 0;
    w->n = (int32_t)rows;
}

lutra_matrix matrix_rows(const lutra_kernels *kernels, const lutra_matrix *w, int first, int last,
                         uint8_t *room) {
    lutra_matrix out = *w;
    int groups = w->group ? w->k / w->group : 0;
    int64_t rows = last - first;
    if (w->strip) {
        rows_of_strips(&out, first, last, &room);
        first = 0;
    }
    if (w->levels) {
        uint16_t *scale = (uint16_t *)take_part(&room, rows * groups * 2);
        int16_t *offset = (int16_t *)take_part(&room, rows * groups * 2);
        kernels->numbers(&out, first, first + (int)rows, scale, offset);
        out.levels = NULL;
        out.scale = scale;
        out.scale_bytes = 2;
        if (w->level_offsets) out.offset = offset;
        out.codes += first * w->row_bytes;
        if (out.zero) out.zero += (int64_t)first * groups;
        if (out.marks) out.marks += (int64_t)first * ((groups + 7) / 8);
        out.n = (int32_t)rows;
    }
    return out;
}

void product_begin(const lutra_matrix *w, const lutra_columns *x, lutra_scratch *scratch) {
    int units = x->depth / UNIT, per = w->group ? w->group / UNIT : units;
    int groups = w->group ? w->k / w->group : 1;
    if (scratch->per == per) return;
    scratch->per = per;
    for (int c = 0; c < x->count; c++)
        for (int g = 0; g < groups; g++) {
            const int32_t *from = x->sums + (int64_t)c * units + (int64_t)g * per;
            int32_t sum = 0;
            for (int i = 0; i < per; i++) sum += from[i];
            scratch->group_sums[(int64_t)c * groups + g] = sum;
        }
}

void product_forget(lutra_scratch *scratch) { scratch->per = 0; }

/* Up to SHIFTED_COLUMNS columns in groups, GEMV_COLUMNS at a time: the rows stay in a cache. */
static void few_shifted(const lutra_kernels *kernels, const lutra_matrix *w, int first, int last,
                        const lutra_columns *x, lutra_scratch *scratch, int64_t *sums) {
    int groups = w->group ? w->k / w->group : 1;
    lutra_columns some = *x;
    lutra_scratch of = *scratch;
    for (int c = 0; c < x->count; c += GEMV_COLUMNS) {
        some.count = x->count - c < GEMV_COLUMNS ? x->count - c : GEMV_COLUMNS;
        kernels->gemv_shifted(w, first, last, &some, &of, sums + (int64_t)c * (last - first));
        columns_skip(&some, GEMV_COLUMNS);
        of.group_sums += (int64_t)GEMV_COLUMNS * groups;
    }
}

void product_sums(const lutra_choice *choice, const lutra_matrix *w, int first, int last,
                  const lutra_columns *x, lutra_scratch *scratch, int64_t *sums) {
    int rows = last - first;
    int kind = kind_of(x), whole = in_strips(w, x);
    lutra_matrix flat;
    int levels = in_groups(x) && kind == ONE && choice->gemv->levels;
    if (!whole && (w->strip || (w->levels && !levels))) {
        flat = matrix_rows(choice->gemv, w, first, last, scratch->flat);
        w = &flat;
        first = 0;
        last = rows;
    }
    if (whole && w->bits > TWO_BITS) {
        choice->gemv->runs(w, first, last, x, scratch, sums);
    } else if (whole) {
        choice->gemv->strips(w, first, last, x, scratch, sums);
    } else if (in_groups(x) && kind == ONE) {
        few_shifted(choice->gemv, w, first, last, x, scratch, sums);
        return;
    } else if (kind == ONE) {
        choice->gemv->gemv(w, first, last, x, scratch, sums);
    } else if (kind == FEW) {
        choice->gemm->few(w, first, last, x, scratch, sums);
    }
    int wide = !whole && kind == MANY && (in_groups(x) || (w->group && w->shift > NARROW_SHIFT));
    if (wide)
        choice->gemm->gemm_shifted(w, first, last, x, scratch, sums);
    else if (!whole && kind == MANY)
        choice->gemm->gemm(w, first, last, x, scratch, sums);
    if (w->offset && !wide && !whole) {
        int groups = w->k / w->group;
        for (int c = 0; c < x->count; c++) {
            int64_t *to = sums + (int64_t)c * rows;
            choice->gemv->offsets(w->offset + (int64_t)first * groups,
                                  scratch->group_sums + (int64_t)c * groups, groups, rows,
                                  w->offset_shift, to);
            /* both parts may have wrapped around, the whole does not */
            if (w->shift <= NARROW_SHIFT)
                for (int r = 0; r < rows; r++) to[r] = (int32_t)to[r];
        }
    }
    if (x->a_bits < 16) return;
    const int64_t *ones = sums + (int64_t)(x->count - 1) * rows;
    for (int t = 0; t < x->tokens; t++) {
        const int64_t *high = sums + (int64_t)2 * t * rows, *low = high + rows;
        int64_t *to = sums + (int64_t)t * rows;
        for (int r = 0; r < rows; r++) to[r] = 256 * high[r] + low[r] + 128 * ones[r];
        /* each of the three may have wrapped around */
        if (w->shift <= NARROW_SHIFT)
            for (int r = 0; r < rows; r++) to[r] = (int32_t)to[r];
    }
}

void product(const lutra_choice *choice, const lutra_matrix *w, int first, int last,
             const lutra_columns *x, lutra_scratch *scratch, int64_t *sums, int32_t *acc,
             int64_t stride) {
    int rows = last - first;
    product_sums(choice, w, first, last, x, scratch, sums);
    for (int t = 0; t < x->tokens; t++)
        choice->gemv->shifted(sums + (int64_t)t * rows, rows, w->shift, acc + t * stride);
}

/* Bytes of scratch that kernels need for depths up to `depth`: a block of gemm's rows as bytes,
 * their scales, sums of a tile; or sums of the units of a row for each column. */
static int64_t kernel_bytes(int depth) {
    int64_t k = round_up(depth, BLOCK);
    return 64 * k + 64 * (k / UNIT) * 8 + 64 * 16 * 16 + GEMV_COLUMNS * k / UNIT * 64 + 4096;
}

int scratch_new(lutra_scratch *scratch, int64_t **sums, int depth, int tokens, int a_bits,
                const lutra_choice *choice) {
    int64_t columns = round_up(columns_of(tokens, a_bits), FEW_COLUMNS) + FEW_COLUMNS;
    scratch->per = 0;
    scratch->group_sums = take(columns * (round_up(depth, BLOCK) / UNIT) * 4);
    scratch->bytes = take(kernel_bytes(depth));
    scratch->flat = take(flat_bytes(depth, choice));
    scratch->totals = take(columns * STRIP * 8);
    *sums = take(columns * ROWS_MAX * 8);
    return scratch->group_sums && scratch->bytes && scratch->flat &&
           scratch->totals && *sums;
}

void scratch_free(lutra_scratch *scratch, int64_t **sums) {
    free(scratch->group_sums);
    free(scratch->bytes);
    free(scratch->flat);
    free(scratch->totals);
    free(*sums);
}
