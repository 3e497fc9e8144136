/* Searches for the grids of groups of weights, by a target. */
#include <stdlib.h>

#include "kernels.h"

enum { LANES_MAX = 16 };

/* Room for what the weights of a lot of groups count. */
static float *room_of(const lutra_ranges *r) {
    return aligned_alloc(64, sizeof(float) * LANES_MAX * (size_t)r->group);
}

double lutra_cpu_free_ranges(int target, const lutra_ranges *r, double *free_steps) {
    float *room = room_of(r);
    if (!room) return -1;
    double whole = lutra_target(target)->free_ranges(r, room, free_steps);
    free(room);
    return whole;
}

int lutra_cpu_ranges_on(int target, const lutra_ranges *r, double unit, const double *free_steps,
                        double *error, double *step, double *zero) {
    float *room = room_of(r);
    if (room) lutra_target(target)->ranges_on(r, room, unit, free_steps, error, step, zero);
    free(room);
    return room != NULL;
}
