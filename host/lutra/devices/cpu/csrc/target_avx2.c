/* AVX2: products of bytes are sums of 16 bits, which must not pass 32767. */
#if defined(__x86_64__) && !defined(LUTRA_WITHOUT_AVX2)
#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "x86_detect.h"

#define TARGET __attribute__((target("avx2,fma,bmi2")))
#define NAME(x) x##_avx2
#include "vector_body.h"
#include "x86_gemv.h"
#include "x86_shifted.h"
#include "x86_bits.h"
#include "attend_plain.h"

/* 8 * 2 * 15 * 128 = 30720, 2 * 2 * 63 * 128 = 32256. */
#define CHAIN(kind) ((kind) == SIX ? 2 : 8)
#define NIBBLE(w, high) \
    _mm256_and_si256((high) ? _mm256_srli_epi16(w, 4) : (w), _mm256_set1_epi8(15))
#define PAIRS(sum, w, x) _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))
#define WIDEN(acc, sum, high) \
    _mm256_add_epi32(acc, _mm256_madd_epi16(sum, _mm256_set1_epi16((high) ? 16 : 1)))

#define V __m256i
#define LANES 8
#define COLUMNS 4
#define PACK pack_avx2
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
#define STRIP 2
#define W __m256i
#define LOAD64(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE64(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define SHIFT64 _mm256_srli_epi64
#include "gemm.h"
#include "x86_wide.h"
#include "gemm_shifted.h"

#define F __m256
#define F_LANES 8
#define F_TOGETHER 1
#define F_MAX _mm256_max_ps
#define F_MIN _mm256_min_ps
#define F_RINT(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#include "ranges.h"

static int available_avx2(void) { return x86_has(X86_AVX2); }

const lutra_kernels lutra_avx2 = {
    "avx2", available_avx2, COLUMNS, ROWS_avx2, 5, 12, SIDE_avx2, gemv_avx2, few_avx2, gemm_avx2,
    gemv_shifted_avx2, gemm_shifted_avx2, VECTOR_FUNCTIONS,
    key_dots_avx2, scores_avx2, weights_avx2, value_sums_avx2,
    free_ranges_avx2, ranges_on_avx2, NULL, NULL, 1};
#else
typedef int nothing_avx2;
#endif
