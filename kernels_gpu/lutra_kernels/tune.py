"""``python -m lutra_kernels.tune``: autotune the kernels on this device and write its table.

The product of each candidate is compared with the first one's before it is timed. Candidates that
do not compile or do not fit are skipped. :mod:`.launch` then uses the tiles in the table.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from lutra_kernels import missing
from lutra_kernels.launch import M_BUCKETS, TABLES, Tile, gemm_rule, gemv_rule, key
from lutra_kernels.layout import BLOCK, cdiv
from lutra_kernels.shapes import FORMATS, SHAPES, Shape, Width, parse_width

__all__ = [
    "Tuned",
    "add_arguments",
    "gemm_candidates",
    "gemv_candidates",
    "main",
    "run",
    "tune",
    "write_table",
]

_EXPAND_AT_LEAST = 17


@dataclass
class Tuned:
    """Tiles by shape, and the shapes whose weights are better expanded."""

    tiles: dict[str, Tile] = field(default_factory=dict)
    expand: list[str] = field(default_factory=list)


def gemv_candidates(n: int, k: int, planes: Sequence[int]) -> list[Tile]:
    """The rule's tile first, then others that load 16 bytes per thread."""
    n_blocks, plane = cdiv(k, BLOCK), max(planes)
    tiles = [gemv_rule(n, n_blocks, plane, len(set(planes)) > 1)]
    for lanes in (8, 16, 32, 64):
        for block_n, num_warps in ((2, 1), (4, 1), (8, 1), (8, 2), (16, 4), (32, 4), (32, 8)):
            tile = Tile(block_n=block_n, block_b=max(lanes // plane, 1), num_warps=num_warps)
            if tile not in tiles:
                tiles.append(tile)
    return tiles


def gemm_candidates(n: int, k: int, m: int, grouped: bool) -> list[Tile]:
    """The rule's tile first, then others of the sizes that compile without spills."""
    rule = gemm_rule(n, cdiv(k, BLOCK), m, grouped)
    tiles = [rule]
    sizes = [(16, 64), (16, 128), (16, 256), (32, 64), (32, 128), (64, 64)]
    if not grouped:
        sizes += [(64, 128), (128, 64), (128, 128), (256, 128)]
    for block_m, block_n in sizes:
        if block_m > 2 * max(m, 8):
            continue
        for block_b in (1,) if grouped else (1, 2, 4):
            for split in sorted({1, 2, 4, 8, rule.split}):
                for num_stages in (3, 4):
                    tile = Tile(
                        block_n=block_n,
                        block_m=block_m,
                        block_b=block_b,
                        split=split,
                        num_stages=num_stages,
                        num_warps=8 if block_m * block_n >= 128 * 128 else 4,
                    )
                    if tile not in tiles and split * block_b <= cdiv(k, BLOCK):
                        tiles.append(tile)
    return tiles


def _calls(
    product: Callable[..., object], a: object, matrices: Sequence[object], tile: Tile
) -> list[Callable[[], object]]:
    return [partial(product, a, w, tile) for w in matrices]


def _best(
    candidates: Sequence[Tile], runs: Callable[[Tile], list[Callable[[], object]]]
) -> tuple[Tile, float]:
    """The fastest of the candidates that run and give what the first one gives."""
    from lutra_kernels.timing import time_calls

    torch = import_module("torch")
    best, best_median, expected = candidates[0], float("inf"), None
    for tile in candidates:
        calls = runs(tile)
        try:
            found = calls[0]().clone()
            torch.cuda.synchronize()
        except Exception as error:  # not enough shared memory or registers
            if expected is None:
                raise
            print(f"  {tile}: {type(error).__name__}")
            continue
        if expected is None:
            expected = found
        if not bool((found == expected).all()):
            raise RuntimeError(f"{tile} is wrong")
        median = time_calls(calls).median
        if median < best_median:
            best, best_median = tile, median
    return best, best_median


def tune(
    shapes: Sequence[Shape], widths: Sequence[Width], tokens: Sequence[int]
) -> Iterator[tuple[str, Tile | None, float]]:
    """The best tile of each shape, width and number of tokens; None where expansion is faster."""
    from lutra_kernels.arrays import empty
    from lutra_kernels.matmul.expand import expanded_product
    from lutra_kernels.matmul.fields import PLANES
    from lutra_kernels.matmul.gemm import Workspace, gemm
    from lutra_kernels.matmul.gemv import M_MAX, gemv
    from lutra_kernels.matmul.random import random_activations, random_matrix
    from lutra_kernels.timing import n_copies, time_calls

    for shape in shapes:
        n, k = shape.n, shape.k
        for width in widths:
            first = random_matrix(n, k, width, 0, reference=False)
            matrices = [first.matrix] + [
                random_matrix(n, k, width, seed, reference=False).matrix
                for seed in range(1, n_copies(first.n_bytes))
            ]
            for m in tokens:
                a = random_activations(m, k, width.group, seed=m)
                out, workspace = empty([m, n], "int32"), Workspace(m * n, 4096)
                if m <= M_MAX:
                    kernel, candidates = "gemv", gemv_candidates(n, k, PLANES[width.bits])
                    product = partial(gemv, out=out)
                else:
                    kernel, candidates = "gemm", gemm_candidates(n, k, m, width.group > 0)
                    product = partial(gemm, out=out, workspace=workspace)
                runs = partial(_calls, product, a, matrices)
                tile, median = _best(candidates, runs)
                name = key(kernel, width.bits, width.group, n, k, m)
                yield name, tile, median
                if m >= _EXPAND_AT_LEAST:
                    other = time_calls([partial(expanded_product, a, w) for w in matrices]).median
                    if other < median:
                        yield name, None, other


def write_table(tuned: Tuned, about: dict[str, str], path: Path) -> None:
    """The table that :func:`~lutra_kernels.launch.load_table` reads."""
    tiles = {name: asdict(tile) for name, tile in sorted(tuned.tiles.items())}
    content = {"about": about, "tiles": tiles, "expand": sorted(tuned.expand)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``lutra tune``."""
    models = sorted({shape.model for shape in SHAPES})
    parser.add_argument(
        "--models",
        nargs="+",
        choices=models,
        default=models,
        help="models whose layer shapes are tuned (default: all)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        type=parse_width,
        metavar="FORMAT",
        help=f"weight formats: {', '.join(FORMATS)} (default: all)",
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=list(M_BUCKETS),
        metavar="M",
        help=f"numbers of tokens per pass (default: {' '.join(map(str, M_BUCKETS))})",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="table to write (default: the table of this GPU in the installed package)",
    )


def run(options: argparse.Namespace) -> None:
    """Measure and write; needs a CUDA device."""
    from lutra_kernels.matmul.operands import architecture
    from lutra_kernels.timing import describe

    widths = options.formats or [parse_width(name) for name in FORMATS]
    shapes = [shape for shape in SHAPES if shape.model in options.models]
    tuned = Tuned()
    for name, tile, median in tune(shapes, widths, options.tokens):
        print(f"{name}: {median:.2f} us, {tile or 'expanded'}", flush=True)
        if tile is None:
            tuned.expand.append(name)
        else:
            tuned.tiles[name] = tile
    path = options.output or TABLES / f"sm_{architecture()}.json"
    write_table(tuned, describe(), path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lutra_kernels.tune", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if (why := missing()) is not None:
        print(f"tune: {why}", file=sys.stderr)
        return 2
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
