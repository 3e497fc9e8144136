"""Speeds of the C library's products: ``python -m lutra.devices.cpu.bench``.

Matrices of one shape lie one behind another in more memory than a cache holds, so that a product
with one token reads from memory; beside it stands what a loop that only reads reaches in the same
run. On a machine with other work a best says more than a median.
"""

import argparse
import json
import os
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from lutra.devices.cpu.library import target_names
from lutra.devices.cpu.steps import Matrix, Pool, matmul_seconds, read_seconds
from lutra_golden.arith.quantize import ACTIVATION_GROUPS, ActivationGroups
from lutra_golden.arith.scale import scale_from_float
from lutra_golden.model.b128 import row_bytes
from lutra_golden.model.packed import PackedLinear
from lutra_golden.model.stored import StoredWeights

__all__ = ["Row", "main", "measure"]

_GROUP = 128
_COLD_BYTES = 256 << 20
_FORMATS = ("w1.58", "w1", "w1.58g", "w2", "w3", "w4", "w6", "w8", "head")


class Row(TypedDict):
    """Measured medians and bests of a product: bytes of the matrix and operations per second."""

    format: str
    target: str
    tokens: int
    us: float
    best_us: float
    gb_s: float
    best_gb_s: float
    read_gb_s: float
    best_read_gb_s: float
    tops: float
    best_tops: float
    load: float
    kind: str


def _matrices(
    name: str, n: int, k: int, n_bytes: int, scale_bits: int, groups: ActivationGroups | None
) -> list[Matrix]:
    """Enough matrices to fill ``n_bytes``, each in memory of its own."""
    rng = np.random.default_rng(1)
    ternary, one_scale = name.startswith("w1.58"), name == "w1.58"
    bits = 2 if ternary else 8 if name == "head" else int(name[1:])
    each = n * (k if name == "head" else row_bytes(k, bits))
    count = max(1, n_bytes // each)
    pool = rng.integers(0, 256, (1 << 20) + 7, dtype=np.uint8)
    if ternary:
        pool &= ~(pool & pool >> 1 & 0x55)  # no code is 3
    data = np.resize(pool, (count, n, each // n))
    if name == "head":
        return [Matrix.signed(codes.view(np.int8), 4) for codes in data]
    shape = (n, k // _GROUP)
    middle = 2 if ternary else (1 << bits) - 1
    top = np.uint8(200) if scale_bits == 8 else np.uint16(60_000)
    zero = np.full(shape, middle, np.uint16)
    shift = 4 if scale_bits == 8 else 12
    matrices: list[Matrix] = []
    for codes in data:
        stored = StoredWeights(
            codes=codes,
            depth=k,
            bits=bits,
            group=None if one_scale else _GROUP,
            scale=None if one_scale else np.full(shape, top),
            zero=None if one_scale else zero,
        )
        matrices.append(Matrix.of(PackedLinear(stored, scale_from_float(1.0), shift), groups))
    return matrices


def measure(
    targets: Sequence[str],
    formats: Sequence[str],
    shape: tuple[int, int],
    tokens: Sequence[int],
    threads: int,
    repeats: int,
    cold_bytes: int = _COLD_BYTES,
    *,
    scale_bits: int = 8,
    groups: ActivationGroups | None = None,
) -> list[Row]:
    """A row per format, target and number of tokens, with activations in ``groups`` if any."""
    pool, (n, k) = Pool(threads), shape
    rows: list[Row] = []
    memory = np.ones(cold_bytes, np.uint8)
    for name in formats:
        matrices = _matrices(name, n, k, cold_bytes, scale_bits, groups)
        size = matrices[0].n_bytes
        for m in tokens:
            a = np.random.default_rng(2).integers(-127, 128, (m, k)).astype(np.int16)
            a_bits = 8
            if groups is not None:
                exponents = np.random.default_rng(3).integers(0, groups.shift_max + 1, (m, k))
                a <<= (
                    exponents[:, :: groups.size].repeat(groups.size, axis=1)[:, :k].astype(np.int16)
                )
                a_bits += groups.shift_max
            # many tokens are bound by arithmetic: a few matrices are enough
            some = matrices if m <= 4 else matrices[: max(1, 64 // m)]
            for target in targets:
                seconds = np.concatenate(
                    [matmul_seconds(target, pool, some, a, a_bits) for _ in range(repeats)]
                )
                reading = size / read_seconds(pool, memory, size) / 1e9
                rows.append(
                    Row(
                        format=name,
                        target=target,
                        tokens=m,
                        us=float(np.median(seconds)) * 1e6,
                        best_us=float(seconds.min()) * 1e6,
                        gb_s=size / float(np.median(seconds)) / 1e9,
                        best_gb_s=size / float(seconds.min()) / 1e9,
                        read_gb_s=float(np.median(reading)),
                        best_read_gb_s=float(reading.max()),
                        tops=2 * n * k * m / float(np.median(seconds)) / 1e12,
                        best_tops=2 * n * k * m / float(seconds.min()) / 1e12,
                        load=os.getloadavg()[0],
                        kind="measured",
                    )
                )
    pool.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, or JSON."""
    available = [name for name, there in target_names().items() if there]
    parser = argparse.ArgumentParser(description="Speeds of the CPU device's products.")
    parser.add_argument(
        "--rows", type=int, default=13824, help="rows of a matrix (default %(default)s)"
    )
    parser.add_argument(
        "--depth", type=int, default=2560, help="depth of a matrix (default %(default)s)"
    )
    parser.add_argument(
        "-M",
        "--tokens",
        type=int,
        nargs="+",
        default=[1, 128],
        help="tokens that a matrix is multiplied with (default 1 and 128)",
    )
    parser.add_argument(
        "-t", "--threads", type=int, default=os.cpu_count() or 1, help="threads (default all cores)"
    )
    parser.add_argument(
        "-r", "--repeats", type=int, default=5, help="repetitions of each product (default 5)"
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        default=available[:-1] or available,
        help=f"instruction sets, of {', '.join(available)} here (default all but plain C)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        default=list(_FORMATS),
        choices=_FORMATS,
        help="formats of the weights (default all)",
    )
    parser.add_argument(
        "--scale-bits",
        type=int,
        choices=(8, 16),
        default=8,
        help="bits of a group's scale (default 8; imported ones have 16)",
    )
    parser.add_argument(
        "--a-group",
        type=int,
        choices=ACTIVATION_GROUPS,
        help="activations that share an exponent (default none)",
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args(arguments)
    rows = measure(
        args.targets, args.formats, (args.rows, args.depth), args.tokens, args.threads,
        args.repeats, scale_bits=args.scale_bits,
        groups=None if args.a_group is None else ActivationGroups(size=args.a_group),
    )  # fmt: skip
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(
        f"{args.rows} x {args.depth}, {args.threads} threads, measured: medians, and bests in "
        "brackets\n"
    )
    print("| format | target | tokens | us | GB/s | reading alone | TOPS | load |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['format']} | {row['target']} | {row['tokens']} "
            f"| {row['us']:.0f} ({row['best_us']:.0f}) "
            f"| {row['gb_s']:.1f} ({row['best_gb_s']:.1f}) "
            f"| {row['read_gb_s']:.1f} ({row['best_read_gb_s']:.1f}) "
            f"| {row['tops']:.3f} ({row['best_tops']:.3f}) | {row['load']:.1f} |"
        )


if __name__ == "__main__":
    main()
