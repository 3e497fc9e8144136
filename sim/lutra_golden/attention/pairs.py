"""The order in which attention works on a token tile: fetches, and (position, token) pairs."""

from collections.abc import Iterator
from typing import NamedTuple

from lutra_golden.attention.attention import first_seen
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["Fetch", "Pair", "fetches", "pairs"]


class Fetch(NamedTuple):
    """Consecutive data words."""

    addr: int
    beats: int


class Pair(NamedTuple):
    """A position and a token that sees it, in pass K (scores) or V (``values``) of a KV head.

    ``part`` counts the cycles of a pair, in each of which a part of a head's elements is used.
    """

    group: int
    values: bool
    position: int
    token: int
    part: int = 0


def fetches(
    config: AcceleratorConfig, kv_addr: int, position: int, token_count: int, window: int = 0
) -> Iterator[Fetch]:
    """Reads of a tile from the layer's cache at ``kv_addr``: scales, then keys and values by head.

    Each key and value that a token sees is read once, in the order of their positions; scales, keys
    and values are read by whole words.
    """
    if not token_count:
        return
    first, n = first_seen(position, window), position + token_count

    def rows(addr: int, row_bytes: int) -> Fetch:
        first_beat = first * row_bytes // config.word_bytes
        end_beat = -(-n * row_bytes // config.word_bytes)
        return Fetch(addr + first_beat * config.word_bytes, end_beat - first_beat)

    yield rows(kv_addr + config.kv_s_offset, config.kv_scale_bytes)
    for group in range(config.n_kv_heads):
        keys = kv_addr + group * config.kv_head_bytes
        yield rows(keys, config.kv_row_bytes)
        yield rows(keys + config.kv_v_offset, config.kv_row_bytes)


def pairs(
    config: AcceleratorConfig, position: int, token_count: int, window: int = 0
) -> Iterator[Pair]:
    """Every pair that neither the causal mask nor the window hides, in the order of the beats.

    Each comes ``pair_cycles`` times, once for each of its parts.
    """
    for group in range(config.n_kv_heads):
        for values in (False, True):
            for p in range(first_seen(position, window), position + token_count):
                for token in range(token_count):
                    if first_seen(position + token, window) <= p <= position + token:
                        for part in range(config.attention.pair_cycles):
                            yield Pair(group, values, p, token, part)
