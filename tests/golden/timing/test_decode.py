"""Cycles of a decoded token, estimated, beside those of the simulated accelerator."""

import pytest

from lutra.compile.configure import configure
from lutra.open_model import open_packed_model
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import striped_ports, two_ports
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.decode import decode_cycles, pass_cycles

SIMULATED = 22_542  # of ``tales`` at position 30: docs/results.md, where the cycles of a token go


@pytest.fixture(scope="module")
def tales() -> PackedModel:
    return open_packed_model("tales")


def test_the_estimate_is_a_little_less_than_what_was_simulated(tales: PackedModel) -> None:
    """The latencies of memory are left out."""
    assert 0.95 * SIMULATED < decode_cycles(tales, NANO, 30) < SIMULATED


def test_a_narrow_port_makes_weights_the_limit(tales: PackedModel) -> None:
    """14,144 words of 960 bits; a beat has 128."""
    whole = decode_cycles(tales, NANO, 30)
    narrow = decode_cycles(tales, NANO.with_(ports=two_ports(weights=128, data=128)), 30)
    assert 14_144 * 7.5 < narrow < 14_144 * 7.5 + whole


def test_striped_weights_come_side_by_side(tales: PackedModel) -> None:
    """Four ports of 128 bits are one of 512: 15 cycles for 8 words, where one port takes 60."""
    wide = NANO.with_(ports=two_ports(weights=512, data=128))
    four = NANO.with_(ports=striped_ports(4, 128))
    narrow = NANO.with_(ports=two_ports(weights=128, data=128))
    assert decode_cycles(tales, four, 30) == decode_cycles(tales, wide, 30)
    assert 14_144 * 15 / 8 < decode_cycles(tales, four, 30) < decode_cycles(tales, narrow, 30) / 2


def test_a_port_that_is_wider_than_the_boards_waits(tales: PackedModel) -> None:
    """A beat of 1,024 bits on a port of 128 takes eight cycles."""
    wide = NANO.with_(ports=two_ports(weights=1024, data=128))
    layers = range(len(tales.layers))
    waits = pass_cycles(tales, wide, 30, 1, 1, layers=layers, beat_cycles=8)
    assert 14_144 * 8 < waits < 14_144 * 8 + decode_cycles(tales, wide, 30)


def test_later_tokens_take_longer(tales: PackedModel) -> None:
    assert decode_cycles(tales, NANO, 31) > decode_cycles(tales, NANO, 30)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
def test_grouped_engines(engine: str, tales: PackedModel) -> None:
    """A step of theirs does less, and ternary weights have two bits."""
    config = configure(tales, "nano", engine)
    assert decode_cycles(tales, config, 30) > decode_cycles(tales, NANO, 30)
