/* Sums of 64 bits of products of 32: those of even lanes, then those of odd ones. */
#define PRODUCTS(to, a, b, odd)                                                                   \
    do {                                                                                          \
        STORE(to, ADD64(LOAD(to), MUL64(a, b)));                                                  \
        STORE((to) + LANES / 2, ADD64(LOAD((to) + LANES / 2), MUL64(ODD(a), odd)));               \
    } while (0)
#define PLACE(lane) ((lane) % 2 * (LANES / 2) + (lane) / 2)
