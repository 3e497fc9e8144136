"""The order in which attention works on a token tile: fetches, and (position, token) pairs."""

from collections.abc import Iterator
from typing import NamedTuple

from lutra.sim.golden.core.config import AcceleratorConfig

__all__ = ["Fetch", "Pair", "fetches", "pairs"]


class Fetch(NamedTuple):
    """Consecutive beats of the data port."""

    addr: int
    beats: int


class Pair(NamedTuple):
    """A position and a token that sees it, in pass K (scores) or V (``values``) of a KV head."""

    group: int
    values: bool
    position: int
    token: int


def fetches(
    config: AcceleratorConfig, kv_addr: int, position: int, token_count: int
) -> Iterator[Fetch]:
    """What a tile reads of the layer's cache at ``kv_addr``: scales, then keys and values by head.

    Each key and value is one beat and is read once.
    """
    n = position + token_count
    if token_count:
        yield Fetch(
            kv_addr + config.kv_s_offset, -(-n * config.kv_scale_bytes // config.data_bytes)
        )
    for group in range(config.n_kv_heads if token_count else 0):
        keys = kv_addr + group * config.kv_head_bytes
        yield Fetch(keys, n)
        yield Fetch(keys + config.kv_v_offset, n)


def pairs(config: AcceleratorConfig, position: int, token_count: int) -> Iterator[Pair]:
    """Every pair that the causal mask does not hide, in the order of the beats."""
    for group in range(config.n_kv_heads):
        for values in (False, True):
            for p in range(position + token_count if token_count else 0):
                for token in range(max(p - position, 0), token_count):
                    yield Pair(group, values, p, token)
