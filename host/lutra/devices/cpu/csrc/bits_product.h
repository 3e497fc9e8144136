/* Which products x86_bits.h and avx512_bits.h make: both include this, with ROWS_OF and SIDE. */

ROWS_OF(1, 1, 0)
ROWS_OF(1, 4, 0)
ROWS_OF(1, 1, 1)
ROWS_OF(1, 4, 1)
ROWS_OF(2, 1, 0)
ROWS_OF(2, 4, 0)
ROWS_OF(2, 1, 1)
ROWS_OF(2, 4, 1)
#undef ROWS_OF

/* True if there is a product for the matrix, which is made then. */
static TARGET int NAME(bits_product)(const lutra_matrix *w, int first, int last,
                                     const lutra_columns *x, lutra_scratch *scratch, int64_t *out,
                                     int shifted) {
    const int32_t *a = scratch->group_sums;
    if (w->bits < 1 || w->bits > 2 || !(x->fields & w->bits) || x->side != NAME(SIDE)) return 0;
    if (!w->scale || w->zero || w->marks || (shifted && w->offset)) return 0;
    if (w->group != BLOCK / 4 && w->group != BLOCK / 2 && w->group != BLOCK) return 0;
    if (w->bits == 1 && shifted)
        (x->count == 1 ? NAME(rows_1_1_1) : NAME(rows_1_4_1))(w, first, last, x, a, out);
    else if (w->bits == 1)
        (x->count == 1 ? NAME(rows_1_1_0) : NAME(rows_1_4_0))(w, first, last, x, a, out);
    else if (shifted)
        (x->count == 1 ? NAME(rows_2_1_1) : NAME(rows_2_4_1))(w, first, last, x, a, out);
    else
        (x->count == 1 ? NAME(rows_2_1_0) : NAME(rows_2_4_0))(w, first, last, x, a, out);
    return 1;
}
