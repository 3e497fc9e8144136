/* Features that the processor has and the operating system saves; not every run-time library has
 * the compilers' own detection. */
#ifndef LUTRA_X86_DETECT_H
#define LUTRA_X86_DETECT_H

#include <cpuid.h>

enum { X86_AVX2, X86_AVX_VNNI, X86_AVX512_VNNI };

static inline int x86_has(int what) {
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, basic = fma | osxsave | avx;
    const unsigned avx2 = 1u << 5, bmi2 = 1u << 8, f = 1u << 16, dq = 1u << 17, bw = 1u << 30,
                   vl = 1u << 31, vnni = 1u << 11, wide = f | dq | bw | vl;
    unsigned a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & basic) != basic) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((b & (avx2 | bmi2)) != (avx2 | bmi2)) return 0;
    if (what == X86_AVX512_VNNI)
        return (saved & 0xE6) == 0xE6 && (b & wide) == wide && (c & vnni) != 0;
    if (what == X86_AVX_VNNI) {
        unsigned leaves = a;
        return leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    }
    return 1;
}

#endif
