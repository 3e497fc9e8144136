"""Launch shapes: a table per architecture where one was measured, else a rule.

Nothing is tuned at run time. ``tables/sm_NN.json`` maps ``kernel/bits/group/N/K/M`` to a tile, as
:mod:`lutra_kernels.tune` writes it; shapes that are not there take the rule's choice.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from lutra_kernels.layout import BLOCK, cdiv

__all__ = ["TABLES", "Tile", "choose", "expands", "gemm_rule", "gemv_rule", "key", "load_table"]

TABLES = Path(__file__).parent / "tables"
M_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
"""Tokens are rounded up to one of these."""
_EXPAND_FROM = 512
_SMS = 132  # of the device that the rule has in mind


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows, tokens and blocks of 128 weights of a program's step; ``split`` programs share a
    depth."""

    block_n: int
    block_b: int
    num_warps: int
    block_m: int = 1
    split: int = 1
    num_stages: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("block_n", "block_b", "block_m", "num_warps") and value & (value - 1):
                raise ValueError(f"{name} must be a power of two, not {value}")
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")


def gemv_rule(n: int, n_blocks: int, plane: int, mixed: bool = False) -> Tile:
    """``plane`` is the width of the widest plane, ``mixed`` if there are narrower ones. Sixteen
    bytes per thread; lanes along the depth as far as it is even, since blocks that hang over are
    fetched for nothing."""
    if mixed:
        return Tile(block_n=16, block_b=8, num_warps=4)
    block_b = max(32 // plane, 1)
    while block_b > max(8 // plane, 1) and n_blocks % block_b:
        block_b //= 2
    lanes = block_b * plane
    # rows of a warp: four per thread while enough programs are left
    block_n, num_warps = {32: (4, 1), 16: (16, 4), 8: (32, 4)}.get(lanes, (16, 4))
    while block_n > 4 and cdiv(n, block_n) < 2 * _SMS:
        block_n //= 2
    return Tile(block_n=block_n, block_b=block_b, num_warps=min(num_warps, max(1, block_n // 4)))


def gemm_rule(n: int, n_blocks: int, m: int, grouped: bool, a_bytes: int = 1) -> Tile:
    """The fewest token tiles that registers allow: grouped sums are kept twice, those of 16-bit
    activations too. The depth is split until every multiprocessor has two programs."""
    max_block_m = (64 if grouped else 128) // a_bytes
    block_m = 16
    while block_m < min(m, max_block_m):
        block_m *= 2
    if grouped:
        block_n, block_b = (128 if block_m == 16 else 64), 1
    else:
        block_n, block_b = (128, 2) if block_m == 128 else (64, 4)
        while n_blocks % block_b:
            block_b //= 2
    programs = cdiv(n, block_n) * cdiv(m, block_m)
    split = 1
    while programs * split < 2 * _SMS and n_blocks >= 8 * split * block_b:
        split *= 2
    return Tile(
        block_n=block_n,
        block_m=block_m,
        block_b=block_b,
        num_warps=8 if block_m * block_n >= 128 * 128 else 4,
        split=split,
    )


def key(kernel: str, bits: int, group: int, n: int, k: int, m: int) -> str:
    """A shape's name in a table."""
    bucket = next((size for size in M_BUCKETS if m <= size), M_BUCKETS[-1])
    return f"{kernel}/w{bits}/g{group}/{n}x{k}/{bucket}"


@lru_cache
def load_table(arch: int) -> dict[str, Tile]:
    """Measured tiles of an architecture; empty where none were."""
    path = TABLES / f"sm_{arch}.json"
    if not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: Tile(**values) for name, values in table["tiles"].items()}


@lru_cache
def _expanding(arch: int) -> frozenset[str]:
    path = TABLES / f"sm_{arch}.json"
    if not path.exists():
        return frozenset()
    return frozenset(json.loads(path.read_text(encoding="utf-8"))["expand"])


def expands(*, arch: int, bits: int, group: int, n: int, k: int, m: int) -> bool:
    """True if expanding the weights pays off for ``m`` tokens.

    The rule expands from 512 tokens on, where expansion is a small part of the product.
    """
    if load_table(arch):
        return key("gemm", bits, group, n, k, m) in _expanding(arch)
    return m >= _EXPAND_FROM


def choose(
    kernel: str,
    *,
    arch: int,
    bits: int,
    group: int,
    n: int,
    k: int,
    m: int,
    a_bytes: int,
    planes: tuple[int, ...],
) -> Tile:
    """The measured tile of a shape, or the rule's."""
    found = load_table(arch).get(key(kernel, bits, group, n, k, m))
    if found is not None and a_bytes == 1:
        return found
    n_blocks = cdiv(k, BLOCK)
    if kernel == "gemv":
        return gemv_rule(n, n_blocks, max(planes), len(set(planes)) > 1)
    return gemm_rule(n, n_blocks, m, group > 0, a_bytes)
