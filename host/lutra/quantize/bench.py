"""Processor time of rounding to nearest: ``python -m lutra.quantize.bench``."""

import argparse
import time

import numpy as np

from lutra.quantize import DEFAULT_GROUP
from lutra.quantize.ranges import can_compile
from lutra.quantize.rtn import choose_grid
from lutra_golden.matmul.format import W_BITS

__all__ = ["main"]

_SHAPE = (1536, 1536)
_REPEATS = 3


def main() -> None:
    """Print the nanoseconds that choosing the grid of a weight takes, in C and in NumPy."""
    parser = argparse.ArgumentParser(prog="python -m lutra.quantize.bench", description=__doc__)
    parser.add_argument("--bits", type=int, choices=W_BITS, default=4)
    parser.add_argument("--group", type=int, default=DEFAULT_GROUP)
    options = parser.parse_args()
    w = np.random.default_rng(0).standard_normal(_SHAPE, np.float32)

    def nanoseconds(*, compiled: bool) -> float:
        begin = time.process_time()
        choose_grid(w, options.bits, options.group, compiled=compiled)
        return (time.process_time() - begin) / w.size * 1e9

    for compiled in (True, False) if can_compile(w) else (False,):
        best = min(nanoseconds(compiled=compiled) for _ in range(_REPEATS))
        print(f"{'C' if compiled else 'NumPy'}: {best:.1f} ns of processor time a weight")


if __name__ == "__main__":
    main()
