"""The order in which attention works on a token tile: fetches, and (position, token) pairs."""

from collections.abc import Iterator
from typing import NamedTuple

from lutra.sim.golden.attention.attention import first_seen
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
    config: AcceleratorConfig, kv_addr: int, position: int, token_count: int, window: int = 0
) -> Iterator[Fetch]:
    """What a tile reads of the layer's cache at ``kv_addr``: scales, then keys and values by head.

    Each key and value that a token sees is one beat and is read once; scales are read by whole
    beats.
    """
    first, n = first_seen(position, window), position + token_count
    first_row = first * config.kv_scale_bytes // config.data_bytes
    n_rows = -(-n * config.kv_scale_bytes // config.data_bytes)
    if token_count:
        yield Fetch(
            kv_addr + config.kv_s_offset + first_row * config.data_bytes, n_rows - first_row
        )
    for group in range(config.n_kv_heads if token_count else 0):
        keys = kv_addr + group * config.kv_head_bytes + first * config.head_dim
        yield Fetch(keys, n - first)
        yield Fetch(keys + config.kv_v_offset, n - first)


def pairs(
    config: AcceleratorConfig, position: int, token_count: int, window: int = 0
) -> Iterator[Pair]:
    """Every pair that neither the causal mask nor the window hides, in the order of the beats."""
    for group in range(config.n_kv_heads):
        for values in (False, True):
            for p in range(first_seen(position, window), position + token_count):
                for token in range(token_count):
                    if first_seen(position + token, window) <= p <= position + token:
                        yield Pair(group, values, p, token)
