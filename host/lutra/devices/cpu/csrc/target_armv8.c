/* NEON of every 64-bit Arm, as Cortex-A53 has it: without dot products. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "kernels.h"

#define TARGET
#define NAME(x) x##_armv8
#define DOT dot_armv8

/* Each product of bytes fits 16 bits, and pairs of them are added in 32. */
static inline __attribute__((always_inline)) int32x4_t dot_armv8(int32x4_t acc, int8x16_t w,
                                                                 int8x16_t x) {
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    int32x4_t high = vpaddlq_s16(vmull_high_s8(w, x));
    return vaddq_s32(acc, vpaddq_s32(low, high));
}

#include "neon.h"

#define F float32x4_t
#define F_LANES 4
#define F_TOGETHER 3
#define F_MAX vmaxq_f32
#define F_MIN vminq_f32
#define F_RINT vrndnq_f32
#include "ranges.h"

static int available_armv8(void) { return 1; }

const lutra_kernels lutra_armv8 = {
    "armv8", available_armv8, COLUMNS, ROWS_armv8, 5, 4, 0, gemv_armv8, gemv_armv8, gemm_armv8,
    gemv_shifted_armv8, gemm_shifted_armv8, VECTOR_FUNCTIONS, key_dots_armv8, scores_armv8,
    weights_armv8, value_sums_armv8, free_ranges_armv8, ranges_on_armv8, NULL, NULL, 0};
#else
typedef int nothing_armv8;
#endif
