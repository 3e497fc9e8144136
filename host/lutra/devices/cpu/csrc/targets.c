/* The targets of this kind of machine, but those that a library for one machine goes without. */
#include "kernels.h"

static const lutra_kernels *const targets[] = {
#if defined(__x86_64__)
#ifndef LUTRA_WITHOUT_AVX512
    &lutra_avx512, &lutra_avx512vl,
#endif
#ifndef LUTRA_WITHOUT_AVXVNNI
    &lutra_avxvnni,
#endif
#ifndef LUTRA_WITHOUT_AVX2
    &lutra_avx2,
#endif
#elif defined(__aarch64__)
    &lutra_neon, &lutra_armv8,
#endif
    &lutra_scalar,
};

enum { N_TARGETS = sizeof targets / sizeof *targets };

const lutra_kernels *lutra_target(int target) { return targets[target]; }

const char *lutra_cpu_target_name(int target) {
    return target >= 0 && target < N_TARGETS ? targets[target]->name : NULL;
}

int lutra_cpu_strip(int target) { return targets[target]->strips ? STRIP : 0; }

int lutra_cpu_target_available(int target) {
    return target >= 0 && target < N_TARGETS && targets[target]->available();
}
