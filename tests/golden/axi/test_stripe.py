"""Stripes: what is refused, and values by hand."""

import re

import numpy as np
import pytest

from lutra_golden.axi.stripe import StripeParams, joined, lanes_of, striped
from lutra_golden.axi.width import Transfer


@pytest.mark.parametrize(
    ("lanes", "beat", "message"),
    [
        (0, 4, "n_lanes must be positive, not 0"),
        (3, 4, "n_lanes must be a power of two, not 3"),
        (64, 4, "n_lanes must be at most 32, not 64"),
        (2, 12, "beat_bytes must be a power of two, not 12"),
    ],
)
def test_illegal_values_are_refused(lanes: int, beat: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        StripeParams(n_lanes=lanes, beat_bytes=beat)


def test_lanes_lie_one_behind_the_other() -> None:
    params = StripeParams(n_lanes=4, beat_bytes=2)
    assert params.whole_bytes == 8
    assert lanes_of(params, Transfer(0x100, 3)) == [
        Transfer(0x100, 3), Transfer(0x106, 3), Transfer(0x10C, 3), Transfer(0x112, 3)
    ]  # fmt: skip
    assert lanes_of(params, Transfer(0x100, 0)) == [Transfer(0x100, 0)] * 4


def test_every_lane_has_its_beats_in_a_row() -> None:
    params = StripeParams(n_lanes=2, beat_bytes=2)
    found = striped(params, np.arange(10, dtype=np.uint8))
    assert found.tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 0, 0]
    assert joined(params, found).tolist() == [*range(10), 0, 0]


@pytest.mark.parametrize("lanes", [1, 2, 8, 32])
@pytest.mark.parametrize("n_bytes", [0, 1, 4, 127, 1024])
def test_what_is_striped_is_joined(lanes: int, n_bytes: int) -> None:
    params = StripeParams(n_lanes=lanes, beat_bytes=4)
    data = np.random.default_rng(1).integers(0, 256, n_bytes, np.uint8)
    memory = striped(params, data)
    count, rest = divmod(len(memory), params.whole_bytes)
    assert rest == 0 and count == -(-n_bytes // params.whole_bytes)
    for number, lane in enumerate(lanes_of(params, Transfer(0, count))):
        own = memory[lane.addr : lane.addr + count * params.beat_bytes]
        for beat in range(count):
            at = beat * params.whole_bytes + number * params.beat_bytes
            expected = np.zeros(params.beat_bytes, np.uint8)
            expected[: max(0, min(params.beat_bytes, n_bytes - at))] = data[
                at : at + params.beat_bytes
            ]
            assert own[4 * beat : 4 * beat + 4].tolist() == expected.tolist()
    assert joined(params, memory)[:n_bytes].tolist() == data.tolist()
