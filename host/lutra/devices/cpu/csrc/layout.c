/* Identity of the library. */
#include "golden.h"
#include "lutra_cpu.h"

static const int32_t layout[] = {LAYOUT};

const char *lutra_cpu_version(void) { return VERSION; }

const int32_t *lutra_cpu_layout(int32_t *n) {
    *n = sizeof layout / sizeof *layout;
    return layout;
}
