/* The targets of this kind of machine. */
#include "kernels.h"

static const lutra_kernels *const targets[] = {
#if defined(__x86_64__)
    &lutra_avx512, &lutra_avx512vl, &lutra_avxvnni, &lutra_avx2,
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

int lutra_cpu_target_available(int target) {
    return target >= 0 && target < N_TARGETS && targets[target]->available();
}
