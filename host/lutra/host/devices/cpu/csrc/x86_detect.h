/* What the processor has, and the operating system saves. */
#ifndef LUTRA_X86_DETECT_H
#define LUTRA_X86_DETECT_H

#include <cpuid.h>

enum { X86_AVX2, X86_AVX_VNNI, X86_AVX512_VNNI };

static inline int x86_has(int what) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi2"))
        return 0;
    if (what == X86_AVX2) return 1;
    if (what == X86_AVX_VNNI) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

#endif
