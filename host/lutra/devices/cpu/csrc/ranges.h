/* Searches for the grids of groups of weights that leave the least squared error. F_LANES groups
 * lie side by side in vectors F, so that the squares of each are added up in the order that
 * lutra.quantize.ranges has, which specifies every rounding; nothing is contracted.
 *
 * F_MAX, F_MIN and F_RINT, of 0 to 255, are a target's. Numbers are finite. */
#include <float.h>
#include <math.h>

typedef F __attribute__((may_alias)) NAME(lanes);
typedef double NAME(doubles)[F_LANES];

typedef struct {
    const NAME(lanes) *w, *weigh; /* [group], as sums take them; zeros where no group is */
    int count, group, levels;
    NAME(doubles) peak, full, span, centre; /* full, span: of symmetric ranges, of the weights' */
} NAME(lot);

typedef struct {
    NAME(doubles) error, step, zero;
} NAME(best);

/* To even; x is less than 2**50. */
static inline double NAME(whole)(double x) {
    const double large = 6755399441055744.0; /* 1.5 * 2**52 */
    return (x + large) - large;
}

/* count groups of w [cycle, group] from the first on, side by side; of sixteen numbers the last
 * four are added up first. */
static TARGET void NAME(beside)(const float *w, int64_t first, int64_t cycle, int count, int group,
                                float *out) {
    int whole = group / 16 * 16;
    for (int lane = 0; lane < F_LANES; lane++) {
        const float *from = w + (first + lane) % cycle * group;
        float *to = out + lane;
        if (lane >= count) {
            for (int i = 0; i < group; i++) to[(int64_t)i * F_LANES] = 0;
            continue;
        }
        for (int i = 0; i < whole; i += 16)
            UNROLL for (int j = 0; j < 16; j++) to[(int64_t)(i + (j ^ 12)) * F_LANES] = from[i + j];
        for (int i = whole; i < group; i++) to[(int64_t)i * F_LANES] = from[i];
    }
}

static TARGET void NAME(measure)(NAME(lot) *lot) {
    float low[F_LANES], high[F_LANES];
    F least = {0}, most = {0};
    for (int i = 0; i < lot->group; i++) {
        least = F_MIN(least, lot->w[i]);
        most = F_MAX(most, lot->w[i]);
    }
    memcpy(low, &least, sizeof low);
    memcpy(high, &most, sizeof high);
    for (int i = 0; i < F_LANES; i++) {
        double down = -(double)low[i], up = high[i];
        lot->peak[i] = down > up ? down : up;
        lot->full[i] = 2 * lot->peak[i] / lot->levels;
        lot->span[i] = (up + down) / lot->levels;
        lot->centre[i] = (up - down) / 2;
    }
}

/* The lot that begins with a group, and no choice of it yet. */
static TARGET void NAME(begin)(const lutra_ranges *r, int64_t first, int fresh, float *room,
                               NAME(lot) *lot, NAME(best) *best) {
    float *lots = r->lots + first * r->group;
    lot->count = r->n - first < F_LANES ? (int)(r->n - first) : F_LANES;
    lot->group = r->group;
    lot->levels = r->levels;
    lot->w = (const NAME(lanes) *)lots;
    lot->weigh = r->weigh ? (const NAME(lanes) *)room : NULL;
    if (fresh) NAME(beside)(r->w, first, r->n, lot->count, r->group, lots);
    if (r->weigh) NAME(beside)(r->weigh, first, r->groups, lot->count, r->group, room);
    NAME(measure)(lot);
    for (int i = 0; i < F_LANES; i++) {
        best->error[i] = INFINITY;
        best->step[i] = 0;
        best->zero[i] = r->levels;
    }
}

/* Takes a step and each of n zero points, one after another, wherever they leave a smaller error:
 * F_TOGETHER of them in a pass, as many as registers hold the sums of. */
static inline __attribute__((always_inline)) TARGET void NAME(offer)(const NAME(lot) *lot,
                                                                     const double *step,
                                                                     const NAME(doubles) *zero,
                                                                     int n, NAME(best) *best) {
    float steps[F_LANES], parts[F_LANES], halves[F_LANES], error[F_LANES];
    for (int i = 0; i < F_LANES; i++) {
        steps[i] = (float)step[i];
        parts[i] = 1 / steps[i];
    }
    F s, part, none = {0}, top = none + (float)lot->levels;
    memcpy(&s, steps, sizeof s);
    memcpy(&part, parts, sizeof part);
    for (int first = 0; first < n; first += F_TOGETHER) {
        int some = n - first < F_TOGETHER ? n - first : F_TOGETHER;
        F half[F_TOGETHER], sums[F_TOGETHER][4];
        UNROLL for (int z = 0; z < some; z++) {
            for (int i = 0; i < F_LANES; i++) halves[i] = (float)(zero[first + z][i] / 2);
            memcpy(&half[z], halves, sizeof half[z]);
            UNROLL for (int j = 0; j < 4; j++) sums[z][j] = none;
        }
#define ADD_SQUARES(i, j)                                                        \
    do {                                                                         \
        F w = lot->w[i], at = w * part;                                          \
        UNROLL for (int z = 0; z < some; z++) {                                  \
            F level = F_RINT(F_MIN(F_MAX(at + half[z], none), top));             \
            F rest = (level - half[z]) * s - w;                                  \
            rest *= rest;                                                        \
            if (lot->weigh) rest *= lot->weigh[i];                               \
            sums[z][j] += rest;                                                  \
        }                                                                        \
    } while (0)
        int i = 0;
        for (; i + 4 <= lot->group; i += 4)
            UNROLL for (int j = 0; j < 4; j++) ADD_SQUARES(i + j, j);
        UNROLL for (int j = 0; j < 3; j++)
            if (i + j < lot->group) ADD_SQUARES(i + j, j);
#undef ADD_SQUARES
        UNROLL for (int z = 0; z < some; z++) {
            F total = (sums[z][0] + sums[z][1]) + (sums[z][2] + sums[z][3]);
            memcpy(error, &total, sizeof error);
            for (int j = 0; j < F_LANES; j++) {
                int better = error[j] < best->error[j];
                best->error[j] = better ? error[j] : best->error[j];
                best->step[j] = better ? step[j] : best->step[j];
                best->zero[j] = better ? zero[first + z][j] : best->zero[j];
            }
        }
    }
}

/* The zero points that suit a step: in half levels, and in whole ones. */
static TARGET void NAME(zeros_of)(const NAME(lot) *lot, const double *step, NAME(doubles) *zero) {
    for (int i = 0; i < F_LANES; i++) {
        double top = 2 * lot->levels, x = NAME(whole)(lot->levels - 2 * lot->centre[i] / step[i]);
        x = x > 0 ? x : 0;
        zero[0][i] = x < top ? x : top;
        x = 2 * NAME(whole)(zero[0][i] / 2);
        zero[1][i] = x < top ? x : top;
    }
}

/* A share of each width, but no step whose inverse is beyond float32. */
static TARGET void NAME(share)(const double *width, double factor, double *step) {
    for (int i = 0; i < F_LANES; i++)
        step[i] = width[i] * factor > FLT_MIN ? width[i] * factor : FLT_MIN;
}

static TARGET double NAME(free_ranges)(const lutra_ranges *r, float *room, double *free) {
    NAME(lot) lot;
    NAME(best) best;
    NAME(doubles) step, odd, zero[3];
    double whole = 0;
    for (int i = 0; i < F_LANES; i++) zero[0][i] = r->levels;
    for (int64_t first = 0; first < r->n; first += F_LANES) {
        NAME(begin)(r, first, 1, room, &lot, &best);
        for (int c = 0; c < r->n_factors; c++) {
            NAME(share)(lot.full, r->factors[c], step);
            NAME(offer)(&lot, step, zero, 1, &best);
            if (r->ternary) continue;
            NAME(share)(lot.span, r->factors[c], step);
            NAME(zeros_of)(&lot, step, zero + 1);
            NAME(offer)(&lot, step, zero + 1, 2, &best);
        }
        if (r->odd) {
            for (int i = 0; i < F_LANES; i++) odd[i] = lot.peak[i] / r->odd;
            NAME(share)(odd, 1, step);
            NAME(zeros_of)(&lot, step, zero + 1);
            NAME(offer)(&lot, step, zero + 2, 1, &best);
        }
        for (int i = 0; i < lot.count; i++) {
            whole = lot.full[i] > whole ? lot.full[i] : whole;
            free[first + i] = best.step[i];
        }
    }
    return whole;
}

static TARGET void NAME(ranges_on)(const lutra_ranges *r, float *room, double unit,
                                   const double *free, double *error, double *step, double *zero) {
    NAME(lot) lot;
    NAME(best) best;
    NAME(doubles) about = {0}, steps, zeros[3];
    for (int i = 0; i < F_LANES; i++) zeros[0][i] = r->levels;
    for (int64_t first = 0; first < r->n; first += F_LANES) {
        NAME(begin)(r, first, 0, room, &lot, &best);
        memcpy(about, free + first, (size_t)lot.count * sizeof *about);
        for (int t = 0; t < r->n_factors + 2; t++) {
            const double *width = t == 0 ? lot.full : t == 1 ? lot.span : about;
            double factor = t < 2 ? 1 : r->factors[t - 2];
            for (int i = 0; i < F_LANES; i++) {
                double x = NAME(whole)(width[i] * factor / unit);
                x = x > 1 ? x : 1;
                steps[i] = (x < r->scale_max ? x : r->scale_max) * unit;
            }
            if (r->ternary) {
                NAME(offer)(&lot, steps, zeros, 1, &best);
                continue;
            }
            NAME(zeros_of)(&lot, steps, zeros + 1);
            NAME(offer)(&lot, steps, zeros, 3, &best);
        }
        memcpy(error + first, best.error, (size_t)lot.count * sizeof *error);
        memcpy(step + first, best.step, (size_t)lot.count * sizeof *step);
        memcpy(zero + first, best.zero, (size_t)lot.count * sizeof *zero);
    }
}

#undef F
#undef F_LANES
#undef F_MAX
#undef F_MIN
#undef F_RINT
#undef F_TOGETHER
