/* Sums of 64 bits of products of 32: those of even lanes, and those of odd ones. */
#define HALF(v) SHIFT64(v, 32)
#define EVEN(sum, a, b) ADD64(sum, MUL64(a, b))
#define ODD(sum, a, b) ADD64(sum, MUL64(SHIFT64(a, 32), b))
#define PLACE(lane) ((lane) % 2 * (LANES / 2) + (lane) / 2)
