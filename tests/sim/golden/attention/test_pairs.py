"""The order of fetches and pairs."""

import dataclasses

import pytest

from lutra.sim.golden.attention.pairs import fetches, pairs
from lutra.sim.golden.core.config import NANO

SMALL = dataclasses.replace(
    NANO,
    name="small",
    head_dim=16,
    data_axi_width=128,
    n_heads=3,
    n_kv_heads=1,
    m_tile=4,
    max_context=32,
)


def test_fetches_of_nano() -> None:
    base, head, beats = 0x1000, 256 * 64, 9
    values, scales = base + 2 * head, base + 4 * head
    assert list(fetches(NANO, base, 5, 4)) == [
        (scales, 3),  # four positions of 16 bytes per beat
        (base, beats),
        (values, beats),
        (base + head, beats),
        (values + head, beats),
    ]


@pytest.mark.parametrize(("position", "token_count"), [(0, 1), (0, 4), (5, 1), (5, 3), (28, 4)])
def test_every_visible_pair_once(position: int, token_count: int) -> None:
    issued = list(pairs(SMALL, position, token_count))
    assert len(issued) == len(set(issued)) == 2 * sum(position + m + 1 for m in range(token_count))
    assert all(pair.position <= position + pair.token for pair in issued)
    assert issued == sorted(issued)


def test_no_tokens() -> None:
    assert list(fetches(SMALL, 0, 7, 0)) == []
    assert list(pairs(SMALL, 7, 0)) == []
