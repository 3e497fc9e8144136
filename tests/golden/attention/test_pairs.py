"""The order of fetches and pairs."""

import pytest

from lutra_golden.attention.pairs import fetches, pairs
from lutra_golden.core.configs import NANO

SMALL = NANO.with_(
    name="small",
    head_dim=16,
    n_heads=3,
    n_kv_heads=1,
    pass_tokens=4,
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


def test_fetches_of_two_positions_to_a_beat() -> None:
    config = NANO.with_(key_width=4, value_width=4)
    base, head = 0x1000, 256 * 32
    values, scales = base + 2 * head, base + 4 * head
    for position, n, window, first, beats in (
        (0, 1, 0, 0, 1),
        (1, 1, 0, 0, 1),
        (5, 4, 0, 0, 5),
        (5, 3, 0, 0, 4),
        (35, 4, 3, 16, 4),  # 33..38
        (35, 3, 2, 17, 2),  # 34..37
        (36, 1, 2, 17, 2),  # 35, 36
        (255, 1, 1, 127, 1),
    ):
        found = list(fetches(config, base, position, n, window))
        assert found[0].addr >= scales
        offset = 64 * first
        assert found[1:] == [
            (base + offset, beats),
            (values + offset, beats),
            (base + head + offset, beats),
            (values + head + offset, beats),
        ]
    # the pairs are those of 8 bits
    for case in ((5, 4, 0), (35, 4, 3)):
        assert list(pairs(config, *case)) == list(pairs(NANO, *case))


def test_fetches_of_a_window() -> None:
    base, head, beats = 0x1000, 256 * 64, 6  # positions 33..38; 33 is the second of its beat
    values, scales = base + 2 * head, base + 4 * head
    assert list(fetches(NANO, base, 35, 4, 3)) == [
        (scales + 8 * 64, 2),
        (base + 33 * 64, beats),
        (values + 33 * 64, beats),
        (base + head + 33 * 64, beats),
        (values + head + 33 * 64, beats),
    ]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 7, 9, 28, 31, 32, 40])
@pytest.mark.parametrize(("position", "token_count"), [(0, 1), (0, 4), (5, 1), (5, 3), (28, 4)])
def test_every_pair_within_the_window_once(position: int, token_count: int, window: int) -> None:
    issued = list(pairs(SMALL, position, token_count, window))
    everything = pairs(SMALL, position, token_count)
    assert issued == [p for p in everything if position + p.token - p.position < window]
    seen = sorted({pair.position for pair in issued})
    keys = list(fetches(SMALL, 0, position, token_count, window))[1]
    assert seen == list(range(seen[0], seen[-1] + 1))
    first, last = (each * SMALL.kv_row_bytes // SMALL.word_bytes for each in (seen[0], seen[-1]))
    # nothing is fetched but the words in which they lie
    assert keys == (first * SMALL.word_bytes, last - first + 1)


@pytest.mark.parametrize(("position", "token_count"), [(0, 1), (0, 4), (5, 1), (5, 3), (28, 4)])
def test_every_visible_pair_once(position: int, token_count: int) -> None:
    issued = list(pairs(SMALL, position, token_count))
    assert len(issued) == len(set(issued)) == 2 * sum(position + m + 1 for m in range(token_count))
    assert all(pair.position <= position + pair.token for pair in issued)
    assert issued == sorted(issued)


def test_parts_come_one_after_another() -> None:
    halves = SMALL.with_(pair_cycles=2)
    for case in ((0, 4, 0), (5, 3, 2)):
        whole = list(pairs(SMALL, *case))
        assert {pair.part for pair in whole} == {0}
        expected = [pair._replace(part=part) for pair in whole for part in (0, 1)]
        assert list(pairs(halves, *case)) == expected
        assert list(fetches(halves, 0, *case)) == list(fetches(SMALL, 0, *case))


def test_no_tokens() -> None:
    assert list(fetches(SMALL, 0, 7, 0)) == []
    assert list(pairs(SMALL, 7, 0)) == []
