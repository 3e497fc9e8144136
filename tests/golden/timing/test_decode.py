"""Cycles of a decoded token, estimated, beside those of the simulated accelerator."""

import pytest

from lutra.compile.configure import configure
from lutra.open_model import open_packed_model
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.decode import decode_cycles, pass_cycles, pass_parts

SIMULATED = 22_542  # of ``tales`` at position 30: docs/results.md, where the cycles of a token go


@pytest.fixture(scope="module")
def tales() -> PackedModel:
    return open_packed_model("tales")


def test_the_estimate_is_a_little_less_than_what_was_simulated(tales: PackedModel) -> None:
    """The latencies of memory are left out."""
    assert 0.95 * SIMULATED < decode_cycles(tales, NANO, 30) < SIMULATED


def test_a_narrow_port_makes_weights_the_limit(tales: PackedModel) -> None:
    """14,144 words of 1,024 bits; a beat has 128."""
    whole = decode_cycles(tales, NANO, 30)
    narrow = decode_cycles(tales, NANO.with_(ports=two_ports(weights=128, data=128)), 30)
    assert 14_144 * 8 < narrow < 14_144 * 8 + whole


def test_a_port_that_is_wider_than_the_boards_waits(tales: PackedModel) -> None:
    """A beat of 1,024 bits on a port of 128 takes eight cycles."""
    wide = NANO.with_(ports=two_ports(weights=1024, data=128))
    narrow = NANO.with_(ports=two_ports(weights=128, data=128))
    layers = range(len(tales.layers))
    waits = pass_cycles(tales, wide, 30, 1, 1, layers=layers, beat_cycles=8)
    assert waits == decode_cycles(tales, narrow, 30)


def test_the_parts_of_a_pass(tales: PackedModel) -> None:
    """What the RTL counted of a token at 30 (docs/results.md): 14,144 words of 128 bytes by the
    weights' port. Keys and values of 31 positions are read once by each of two heads."""
    layers = range(len(tales.layers))
    parts = pass_parts(tales, NANO, 30, 1, 1, layers=layers)
    assert sum(part.cycles * part.times for part in parts) == decode_cycles(tales, NANO, 30)
    products = [part for part in parts if part.unit == "matmul"]
    assert sum(part.n_bytes * part.times for part in products) == 14_144 * 128
    assert not any(part.waits for part in parts)
    [attention] = [part for part in parts if part.unit == "attention"]
    words = -(-31 * NANO.kv_row_bytes // NANO.word_bytes)
    scales = -(-31 * NANO.kv_scale_bytes // NANO.word_bytes)
    assert attention.n_bytes == (2 * NANO.n_kv_heads * words + scales) * NANO.word_bytes
    assert [part.times for part in parts] == [len(layers)] * 12 + [1, 1]


def test_a_product_waits_for_weights_that_come_late(tales: PackedModel) -> None:
    layers = range(len(tales.layers))
    late = pass_parts(tales, NANO, 30, 1, 1, layers=layers, beat_cycles=4)
    assert all(part.waits == (part.unit == "matmul") for part in late)
    head = late[-1]
    assert (head.name, head.cycles) == ("head", head.n_bytes // 128 * 4)


def test_later_tokens_take_longer(tales: PackedModel) -> None:
    assert decode_cycles(tales, NANO, 31) > decode_cycles(tales, NANO, 30)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
def test_grouped_engines(engine: str, tales: PackedModel) -> None:
    """A step of theirs does less, and ternary weights have two bits."""
    config = configure(tales, "nano", engine)
    assert decode_cycles(tales, config, 30) > decode_cycles(tales, NANO, 30)
