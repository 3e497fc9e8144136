/* Codes of a row in B128, one in a byte, in plain C. */
#ifndef LUTRA_CODES_H
#define LUTRA_CODES_H

#include <string.h>

#include "golden.h"

static inline void codes_of(const uint8_t *row, int bits, int blocks, uint8_t *codes) {
    static const int planes[9][2] = {{0}, {1}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {0}, {4, 4}};
    for (int b = 0; b < blocks; b++, codes += BLOCK) {
        memset(codes, 0, BLOCK);
        for (int p = 0, low = 0; p < 2 && planes[bits][p]; low += planes[bits][p++]) {
            int width = planes[bits][p], mask = (1 << width) - 1;
            if (width == 4) {
                for (int i = 0; i < 64; i++) {
                    int at = i / 32 * 64 + i % 32;
                    codes[at] |= (uint8_t)((row[i] & mask) << low);
                    codes[at + 32] |= (uint8_t)((row[i] >> 4) << low);
                }
            } else {
                int per = 8 / width, size = BLOCK / per;
                for (int f = 0; f < per; f++)
                    for (int i = 0; i < size; i++)
                        codes[f * size + i] |=
                            (uint8_t)(((row[i] >> (8 - width * (f + 1))) & mask) << low);
            }
            row += BLOCK * width / 8;
        }
    }
}

#endif
