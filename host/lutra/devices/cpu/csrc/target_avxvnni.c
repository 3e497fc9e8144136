/* AVX2 with VNNI in its VEX form, which processors without AVX-512 have. */
#if defined(__x86_64__) && !defined(LUTRA_WITHOUT_AVXVNNI)
#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "x86_detect.h"

#define TARGET __attribute__((target("avx2,fma,bmi2,avxvnni")))
#define NAME(x) x##_avxvnni
#define MACS(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)
#define SELECT(v, bit, power) \
    _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit), power)
#include "vector_body.h"
#include "x86_gemv.h"
#include "x86_shifted.h"
#include "x86_bits.h"

#define V __m256i
#define LANES 8
#define COLUMNS 4
#define PACK pack_avxvnni
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
#define XOR _mm256_xor_si256
#define MAC(acc, w, x, wide) ((void)(wide), MACS(acc, w, x))
#include "gemm.h"
#include "x86_wide.h"
#include "gemm_shifted.h"
#include "x86_attend.h"

#define F __m256
#define F_LANES 8
#define F_TOGETHER 1
#define F_MAX _mm256_max_ps
#define F_MIN _mm256_min_ps
#define F_RINT(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#include "ranges.h"

static int available_avxvnni(void) { return x86_has(X86_AVX_VNNI); }

const lutra_kernels lutra_avxvnni = {
    "avxvnni", available_avxvnni, COLUMNS, ROWS_avxvnni, 5, 12, SIDE_avxvnni, gemv_avxvnni, few_avxvnni,
    gemm_avxvnni, gemv_shifted_avxvnni, gemm_shifted_avxvnni, VECTOR_FUNCTIONS, key_dots_avxvnni,
    scores_avxvnni, weights_avxvnni, value_sums_avxvnni,
    free_ranges_avxvnni, ranges_on_avxvnni, NULL, NULL, 1};
#else
typedef int nothing_avxvnni;
#endif
