/* NEON with dot products of signed bytes. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define NAME(x) x##_neon
#define DOT vdotq_s32
#include "neon.h"

#define F float32x4_t
#define F_LANES 4
#define F_TOGETHER 3
#define F_MAX vmaxq_f32
#define F_MIN vminq_f32
#define F_RINT vrndnq_f32
#include "ranges.h"

static int available_neon(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#else
    return 1;
#endif
}

const lutra_kernels lutra_neon = {
    "neon", available_neon, COLUMNS, ROWS_neon, 5, 4, 0, gemv_neon, gemv_neon, gemm_neon,
    gemv_shifted_neon, gemm_shifted_neon, VECTOR_FUNCTIONS, key_dots_neon, scores_neon,
    weights_neon, value_sums_neon, free_ranges_neon, ranges_on_neon, NULL, NULL, 0};
#else
typedef int nothing_neon;
#endif
