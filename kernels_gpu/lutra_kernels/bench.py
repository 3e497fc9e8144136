"""``python -m lutra_kernels.bench``: times of the products on a CUDA device.

For each shape, width and number of tokens: the product is compared with one computed by other
means, then timed over weights that no cache holds, in CUDA graphs (:mod:`.timing`), beside a plain
reading kernel, cuBLAS bf16, ``torch._int_mm`` and, where it is installed, gemlite.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lutra_kernels import arrays, missing
from lutra_kernels.shapes import FORMATS, SHAPES, Shape, Width, parse_width

if TYPE_CHECKING:
    from lutra_kernels.timing import Time

__all__ = ["TOKENS", "main", "measure", "summary"]

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
_CHECKED_TOKENS = 64
_INT_MM_FROM = 17
Row = dict[str, str | int | float | None]
Call = Callable[[], object]


class _Peers:
    """cuBLAS in bf16 and in int8, and gemlite, on one shape."""

    def __init__(self, shape: Shape, width: Width) -> None:
        from lutra_kernels.timing import n_copies

        torch = import_module("torch")
        self.shape = shape
        cells = shape.n * shape.k
        # ternary values are exact in every format, so that they can be gemlite's weights too
        ternary = torch.randint(-1, 2, (shape.n, shape.k), device=arrays.DEVICE).to(torch.int8)
        self.bf16 = [ternary.to(torch.bfloat16) for _ in range(n_copies(2 * cells))]
        self.int8 = [ternary.clone() for _ in range(n_copies(cells))]
        self.gemlite: list[Callable[[object], object]] = []
        self.gemlite_says: str | None = None
        if width.group == 0:
            self._make_gemlite(n_copies(cells // 4))

    def _make_gemlite(self, copies: int) -> None:
        torch = import_module("torch")
        try:
            helper = import_module("gemlite.helper")
            make = getattr(helper, "A16W158_INT", None) or helper.A16W158
            one = torch.ones(1, device=arrays.DEVICE, dtype=torch.bfloat16)
            self.gemlite = [
                make(device="cuda").from_weights(self.bf16[0], one) for _ in range(copies)
            ]
        except Exception as error:  # a peer that does not run must not end the bench
            self.gemlite_says = f"{type(error).__name__}: {error}".splitlines()[0]

    def time(self, m: int) -> Row:
        from lutra_kernels.timing import time_calls

        torch = import_module("torch")
        x = torch.randint(-127, 128, (m, self.shape.k), device=arrays.DEVICE)
        x16, x8 = x.to(torch.bfloat16), x.to(torch.int8)
        row: Row = {}
        row["bf16_us"] = time_calls([lambda w=w: x16 @ w.t() for w in self.bf16]).median
        row["int_mm_us"] = None
        if m >= _INT_MM_FROM:
            calls: list[Call] = [lambda w=w: torch._int_mm(x8, w.t()) for w in self.int8]
            row["int_mm_us"] = time_calls(calls).median
        row["gemlite_us"] = None
        if self.gemlite:
            try:
                row["gemlite_us"] = time_calls([lambda f=f: f(x16) for f in self.gemlite]).median
            except Exception as error:  # as above
                self.gemlite, self.gemlite_says = [], f"{type(error).__name__}: {error}"
        row["gemlite_says"] = self.gemlite_says
        return row


def _paths(a: object, copies: Sequence[object], m: int) -> dict[str, list[Call]]:
    """The kernels for a product of ``m`` tokens, each over all copies."""
    from lutra_kernels.arrays import empty
    from lutra_kernels.layout import Activations
    from lutra_kernels.matmul.expand import expanded_product
    from lutra_kernels.matmul.gemm import Workspace, gemm
    from lutra_kernels.matmul.gemv import M_MAX, gemv
    from lutra_kernels.matmul.matrix import Matrix

    assert isinstance(a, Activations)
    matrices = [w for w in copies if isinstance(w, Matrix)]
    out = empty([m, matrices[0].n], "int32")
    if m <= M_MAX:
        few: list[Call] = [lambda w=w: gemv(a, w, out=out) for w in matrices]
        return {"gemv": few}
    workspace = Workspace(m * matrices[0].n, 4096)
    paths: dict[str, list[Call]] = {
        "gemm": [lambda w=w: gemm(a, w, out=out, workspace=workspace) for w in matrices]
    }
    if m >= _INT_MM_FROM:
        paths["expand"] = [lambda w=w: expanded_product(a, w) for w in matrices]
    return paths


def measure(
    shapes: Sequence[Shape], widths: Sequence[Width], tokens: Sequence[int], ceiling: float
) -> Iterator[Row]:
    """A row for each shape, width, number of tokens and path; RuntimeError if one is wrong."""
    from lutra_kernels.matmul.random import product, random_activations, random_matrix
    from lutra_kernels.timing import n_copies, time_calls

    torch = import_module("torch")
    for shape in shapes:
        for width in widths:
            first = random_matrix(shape.n, shape.k, width, seed=0, reference=True)
            copies = [first.matrix] + [
                random_matrix(shape.n, shape.k, width, seed, reference=False).matrix
                for seed in range(1, n_copies(first.n_bytes))
            ]
            assert first.doubled is not None
            peers = _Peers(shape, width)
            for m in tokens:
                a = random_activations(m, shape.k, width.group, seed=m)
                some = torch.randperm(m, device=arrays.DEVICE)[:_CHECKED_TOKENS]
                expected = product(a, first.doubled, first.matrix.shift, some)
                beside = peers.time(m)
                for path, calls in _paths(a, copies, m).items():
                    if not bool((calls[0]()[some] == expected).all()):
                        raise RuntimeError(f"{path} of {shape.name}, {width.name}, M={m} is wrong")
                    time = time_calls(calls)
                    row = _row(shape, width, m, path, time, first.n_bytes, ceiling, beside)
                    # one copy of the weights, which stays in the cache where it fits
                    row["us_hot"] = time_calls(calls[:1]).median
                    yield row
            del copies, first, peers
            torch.cuda.empty_cache()


def _row(
    shape: Shape, width: Width, m: int, path: str, time: "Time", n_bytes: int, ceiling: float,
    beside: Row,
) -> Row:  # fmt: skip
    moved = n_bytes + m * shape.k + 4 * m * shape.n
    rate = n_bytes / time.median / 1000
    row: Row = {
        **asdict(shape), "format": width.name, "m": m, "path": path, "us": time.median,
        "us_p10": time.p10, "us_p90": time.p90, "weight_bytes": n_bytes, "moved_bytes": moved,
        "gb_per_s": rate, "read_share": rate / ceiling,
        "tops": 2 * m * shape.n * shape.k / time.median / 1e6, **beside,
    }  # fmt: skip
    for peer in ("bf16", "int_mm", "gemlite"):
        other = beside[f"{peer}_us"]
        row[f"over_{peer}"] = other / time.median if isinstance(other, float) else None
    return row


def summary(row: Row) -> str:
    """A row in one line."""
    over = row["over_bf16"]
    ratio = f"  {over:5.2f}x bf16" if isinstance(over, float) else ""
    return (
        f"{row['model']:>11} {row['name']:<8}{row['format']:<7} M={row['m']:<5}{row['path']:<7}"
        f"{row['us']:9.2f} us  {100 * float(row['read_share'] or 0):5.1f} % of reading{ratio}"
    )


def _plot(rows: Sequence[Row], path: Path) -> str | None:
    """Plot the share of the read rate over bytes, for one token; reason for failure, or None."""
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ImportError as error:
        return f"no plot: {error}"
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in sorted({str(row["format"]) for row in rows}):
        points = sorted(
            (float(row["weight_bytes"] or 0) / 1e6, 100 * float(row["read_share"] or 0))
            for row in rows
            if row["format"] == name and row["m"] == 1
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(
        xscale="log",
        xlabel="weights, MB",
        ylabel="share of the read rate, %",
        title="One token, cold weights",
    )
    axes.legend()
    figure.savefig(path, bbox_inches="tight")
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lutra_kernels.bench", description=__doc__)
    models = sorted({shape.model for shape in SHAPES})
    parser.add_argument("-o", "--output", type=Path, help="write rows as JSON")
    parser.add_argument("--plot", type=Path, help="draw the shares of the read rate, M=1")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--formats", nargs="+", type=parse_width, metavar="W4g128")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), metavar="M")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parser().parse_args(arguments)
    if (why := missing()) is not None:
        print(f"bench: {why}", file=sys.stderr)
        return 2
    from lutra_kernels.timing import describe, read_ceiling

    ceiling = read_ceiling()
    about = describe()
    print(f"{about['device']}: reading {ceiling:.0f} GB/s")
    widths = options.formats or [parse_width(name) for name in FORMATS]
    shapes = [shape for shape in SHAPES if shape.model in options.models]
    rows: list[Row] = []
    for row in measure(shapes, widths, options.tokens, ceiling):
        rows.append(row)
        print(summary(row), flush=True)
    if options.output is not None:
        result = {"about": about, "read_gb_per_s": ceiling, "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None and (hindrance := _plot(rows, options.plot)) is not None:
        print(hindrance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
