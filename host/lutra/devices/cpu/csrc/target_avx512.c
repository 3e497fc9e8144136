/* AVX-512 with VNNI: 256-bit vectors (avx512vl), and 512-bit ones for many columns (avx512). */
#if defined(__x86_64__) && !defined(LUTRA_WITHOUT_AVX512)
#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "x86_detect.h"

#define FEATURES "avx2,fma,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define TARGET __attribute__((target(FEATURES)))
#define NAME(x) x##_avx512vl
#define MACS(acc, w, x) macs_avx512vl(acc, w, x)
#define SELECT(v, bit, power) _mm256_maskz_mov_epi8(_mm256_test_epi8_mask(v, bit), power)
#define BLEND(mask, a, b) _mm256_mask_blend_epi32((__mmask8)(mask), a, b)

/* Compilers copy the accumulator around the instruction's intrinsic. With activations from memory
 * instead of a register the loop takes up to half as long again. */
static inline __attribute__((always_inline)) TARGET __m256i macs_avx512vl(__m256i acc, __m256i w,
                                                                          __m256i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

#include "vector_body.h"
#include "x86_gemv.h"
#include "x86_shifted.h"
#include "x86_bits.h"
#include "avx512_strips.h"
#include "avx512_runs.h"
#define VECTORS VECTOR_FUNCTIONS

#define V __m256i
#define LANES 8
#define COLUMNS 12
#define PACK pack_avx512vl
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define ZERO _mm256_setzero_si256()
#define SET(x) _mm256_set1_epi32(x)
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define MUL _mm256_mullo_epi32
#define SHIFT _mm256_sllv_epi32
#define ADD64 _mm256_add_epi64
#define MUL64 _mm256_mul_epi32
#define STRIP 4
#define W __m256i
#define LOAD64(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE64(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define SHIFT64 _mm256_srli_epi64
#define XOR _mm256_xor_si256
#define MAC(acc, w, x, wide) ((void)(wide), MACS(acc, w, x))
#include "gemm.h"
#include "x86_wide.h"
#include "gemm_shifted.h"
#include "x86_attend.h"

#define F __m256
#define F_LANES 8
#define F_TOGETHER 3
#define F_MAX _mm256_max_ps
#define F_MIN _mm256_min_ps
#define F_RINT(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#include "ranges.h"

static int available_avx512vl(void) { return x86_has(X86_AVX512_VNNI); }

const lutra_kernels lutra_avx512vl = {
    "avx512vl", available_avx512vl, COLUMNS, ROWS_avx512vl, 5, 12, SIDE_avx512vl, gemv_avx512vl, few_avx512vl,
    gemm_avx512vl, gemv_shifted_avx512vl, gemm_shifted_avx512vl, VECTOR_FUNCTIONS,
    key_dots_avx512vl, scores_avx512vl, weights_avx512vl, value_sums_avx512vl,
    free_ranges_avx512vl, ranges_on_avx512vl, strips_avx512vl, runs_avx512vl, 1};

#undef V
#undef LANES
#undef LOAD
#undef STORE
#undef ZERO
#undef SET
#undef ADD
#undef SUB
#undef MUL
#undef SHIFT
#undef ADD64
#undef MUL64
#undef W
#undef LOAD64
#undef STORE64
#undef SHIFT64
#undef XOR
#undef NAME
#undef MACS

static inline __attribute__((always_inline)) TARGET __m512i macs_avx512(__m512i acc, __m512i w,
                                                                        __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

#define NAME(x) x##_avx512
#define V __m512i
#define LANES 16
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ZERO _mm512_setzero_si512()
#define SET(x) _mm512_set1_epi32(x)
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define MUL _mm512_mullo_epi32
#define SHIFT _mm512_sllv_epi32
#define ADD64 _mm512_add_epi64
#define MUL64 _mm512_mul_epi32
#define W __m512i
#define LOAD64(p) _mm512_loadu_si512(p)
#define STORE64(p, v) _mm512_storeu_si512(p, v)
#define SHIFT64 _mm512_srli_epi64
#define XOR _mm512_xor_si512
#define MACS(acc, w, x) macs_avx512(acc, w, x)
#include "gemm.h"
#include "gemm_shifted.h"
#include "x86_attend.h"
#include "avx512_few.h"

#define F __m512
#define F_LANES 16
#define F_TOGETHER 3
#define F_MAX _mm512_max_ps
#define F_MIN _mm512_min_ps
#define F_RINT(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#include "ranges.h"

#undef NAME
#define NAME(x) x##_avx512vl
/* a product of few columns is bound by memory, which 256-bit vectors saturate */
const lutra_kernels lutra_avx512 = {
    "avx512", available_avx512vl, COLUMNS, ROWS_avx512, 3, 16, SIDE_avx512vl, gemv_avx512vl, few_avx512,
    gemm_avx512, gemv_shifted_avx512vl, gemm_shifted_avx512, VECTOR_FUNCTIONS, key_dots_avx512,
    scores_avx512vl, weights_avx512vl, value_sums_avx512,
    free_ranges_avx512, ranges_on_avx512, strips_avx512vl, runs_avx512vl, 1};
#else
typedef int nothing_avx512;
#endif
