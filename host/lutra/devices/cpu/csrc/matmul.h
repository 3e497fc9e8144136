/* Products of matrices with the activations of several tokens. */
#ifndef LUTRA_MATMUL_H
#define LUTRA_MATMUL_H

#include "kernels.h"
#include "pool.h"

enum { ROWS_MAX = 512 }; /* of product_rows() */

/* Targets for products of the fewest columns, and of more than those. */
typedef struct {
    const lutra_kernels *gemv, *gemm;
} lutra_choice;

/* Which fields of columns products with these matrices take. */
int columns_fields(const lutra_matrix *w, int count);
/* Columns for up to `tokens` tokens of depth k, with `fields`. */
int columns_new(lutra_columns *x, int k, int tokens, int a_bits, const lutra_choice *choice,
                int fields);
void columns_free(lutra_columns *x);
/* Set the depth and the number of tokens of the next product. */
void columns_shape(lutra_columns *x, int k, int tokens);
/* Write the activations of a token. */
void columns_set(lutra_columns *x, const lutra_kernels *kernels, int token, const int16_t *q);

/* Rows of a matrix that a thread takes at a time. */
int product_rows(const lutra_choice *choice, const lutra_matrix *w, const lutra_columns *x);
/* Sums of this matrix's groups, before product(); nothing to do if they are there already. */
void product_begin(const lutra_matrix *w, const lutra_columns *x, lutra_scratch *scratch);
/* New columns: the sums of groups are not theirs. */
void product_forget(lutra_scratch *scratch);
/* Rows of a matrix as one of their own, one after another if it is in strips, their scales and
 * offsets as numbers of their own if they are in two levels; what it has no other way is in `room`. */
lutra_matrix matrix_rows(const lutra_kernels *kernels, const lutra_matrix *w, int first, int last,
                         uint8_t *room);
/* sums [tokens, last - first] of rows, before the matrix's shift. */
void product_sums(const lutra_choice *choice, const lutra_matrix *w, int first, int last,
                  const lutra_columns *x, lutra_scratch *scratch, int64_t *sums);
/* The same, shifted. */
void product(const lutra_choice *choice, const lutra_matrix *w, int first, int last,
             const lutra_columns *x, lutra_scratch *scratch, int64_t *sums, int32_t *acc,
             int64_t stride);

/* Scratch of a thread, and memory for the sums of `tokens` tokens. */
int scratch_new(lutra_scratch *scratch, int64_t **sums, int depth, int tokens, int a_bits,
                const lutra_choice *choice);
void scratch_free(lutra_scratch *scratch, int64_t **sums);

#endif
