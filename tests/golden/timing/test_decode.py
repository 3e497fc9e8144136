"""Cycles of a decoded token, estimated, beside those of the simulated accelerator."""

from dataclasses import replace

import pytest

from lutra.compile.configure import configure
from lutra.open_model import open_packed_model
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import striped_ports, two_ports
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import linear_shapes
from lutra_golden.timing.decode import decode_cycles, pass_cycles, pass_parts
from lutra_golden.timing.memory import NANO_MEMORY

SIMULATED = 22_542  # of ``tales`` at position 30: docs/results.md, where the cycles of a token go


@pytest.fixture(scope="module")
def tales() -> PackedModel:
    return open_packed_model("tales")


def test_the_estimate_is_what_was_simulated(tales: PackedModel) -> None:
    assert decode_cycles(tales, NANO, 30) == pytest.approx(SIMULATED, rel=0.003)


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
    # whose FIFOs have a beat of each port where the one has a beat, and which attention shares
    assert decode_cycles(tales, four, 30) == pytest.approx(decode_cycles(tales, wide, 30), rel=0.1)
    assert 14_144 * 15 / 8 < decode_cycles(tales, four, 30) < decode_cycles(tales, narrow, 30) / 2


def test_memory_that_gives_less_than_its_ports(tales: PackedModel) -> None:
    """16 bytes a cycle together: four ports of as many are no faster than one."""
    four = NANO.with_(ports=striped_ports(4, 128))
    layers = range(len(tales.layers))
    memory = replace(NANO_MEMORY, total_rate=(16, 1))
    waits = pass_cycles(tales, four, 30, 1, 1, layers=layers, memory=memory)
    assert 14_144 * 7.5 < waits < 14_144 * 7.5 + decode_cycles(tales, four, 30)


def test_a_port_that_is_wider_than_the_boards_waits(tales: PackedModel) -> None:
    """A beat of 1,024 bits on a port of 128 takes eight cycles. What is read ahead is the same."""
    wide = NANO.with_(ports=two_ports(weights=1024, data=128))
    narrow = NANO.with_(ports=two_ports(weights=128, data=128))
    layers = range(len(tales.layers))
    memory = replace(NANO_MEMORY, rates=((1, 8), (1, 1)))
    waits = pass_cycles(tales, wide, 30, 1, 1, layers=layers, memory=memory)
    # words are padded to the wide one's beats
    more = 14_144 * (8 - 7.5)
    assert waits == pytest.approx(decode_cycles(tales, narrow, 30) + more, rel=0.001)


# of a token at 30 in each of six layers: ends of a program that was cut behind each instruction
SIMULATED_PARTS = {
    "input norm": 131,
    "q, k, v": 278,
    "rotary embedding": 150,
    "attention": 258,
    "attention norm": 132,
    "output": 150,
    "residual of attention": 44,
    "feed-forward input norm": 131,
    "gate, up": 790,
    "feed-forward norm": 321,
    "down": 374,
    "residual of feed-forward": 44,
}


def test_the_parts_of_a_pass(tales: PackedModel) -> None:
    """What the RTL counted of a token at 30 (docs/results.md): 14,144 words of 128 bytes by the
    weights' port. Keys and values of 31 positions are read once by each of two heads."""
    layers = range(len(tales.layers))
    parts = pass_parts(tales, NANO, 30, 1, 1, layers=layers)
    assert sum(part.cycles for part in parts) == decode_cycles(tales, NANO, 30)
    found = {part.name: part.cycles / len(layers) for part in parts if part.name != "head"}
    assert found.items() >= SIMULATED_PARTS.items()
    products = [part for part in parts if part.unit == "matmul"]
    assert sum(part.n_bytes for part in products) == 14_144 * 128
    assert not any(part.waits for part in parts)
    shapes = linear_shapes(256, 768, 256, 128)
    weights = len(layers) * sum(n * k for n, k in shapes.values()) + 2048 * 256
    assert sum(part.n_macs for part in products) == weights
    [attention] = [part for part in parts if part.unit == "attention"]
    words = -(-31 * NANO.kv_row_bytes // NANO.word_bytes)
    scales = -(-31 * NANO.kv_scale_bytes // NANO.word_bytes)
    each = (2 * NANO.n_kv_heads * words + scales) * NANO.word_bytes
    assert attention.n_bytes == len(layers) * each
    assert attention.n_macs == len(layers) * 2 * 31 * 256


def test_a_product_waits_for_weights_that_come_late(tales: PackedModel) -> None:
    layers = range(len(tales.layers))
    memory = replace(NANO_MEMORY, rates=((1, 4), (1, 1)))
    late = pass_parts(tales, NANO, 30, 1, 1, layers=layers, memory=memory)
    assert all(part.waits == (part.unit == "matmul") for part in late)
    head = late[-2]
    # what comes while the residual and the final norm run is not waited for
    words = head.n_bytes // 128
    assert head.name == "head"
    assert 4 * words - 131 - 44 < head.cycles < 4 * words


def test_keys_of_four_bits_come_in_whole_words(tales: PackedModel) -> None:
    """Two positions in a word: 31 are 16 words, and the scales are as they were."""
    config = NANO.with_(key_width=4, value_width=4)
    parts = pass_parts(tales, config, 30, 1, 1, layers=range(1))
    [attention] = [part for part in parts if part.unit == "attention"]
    assert attention.n_bytes == (2 * 2 * 16 + 8) * 64


def test_tokens_of_several_sequences_have_keys_of_their_own(tales: PackedModel) -> None:
    layers = range(len(tales.layers))
    one, four = (pass_parts(tales, NANO, 100, 8, 8, layers=layers, n_sequences=n) for n in (1, 4))
    for a, b in zip(one, four, strict=True):
        same = a.unit != "attention"
        assert (a == b) is same
    [a], [b] = ([part for part in parts if part.unit == "attention"] for parts in (one, four))
    assert 3 * a.n_bytes < b.n_bytes < 4 * a.n_bytes
    assert b.cycles > a.cycles


def test_a_range_of_layers_stores_the_stream(tales: PackedModel) -> None:
    names = [part.name for part in pass_parts(tales, NANO, 0, 8, 8, layers=range(2, 3))]
    assert names[0] == "instructions and embedding"
    assert names[-1] == "residual stream"
    first, later = (pass_parts(tales, NANO, 0, 8, 8, layers=range(i, i + 1))[0] for i in (0, 1))
    # its high and its low halves are read
    assert later.n_bytes - first.n_bytes == 2 * 8 * 256
    assert later.cycles - first.cycles >= 8 * 32


def test_slow_keys_and_values_are_waited_for(tales: PackedModel) -> None:
    """31 keys and values of two heads, and 8 words of scales, a word in 8 cycles."""
    layers = range(len(tales.layers))
    memory = replace(NANO_MEMORY, rates=((1, 1), (1, 8)))
    fast, slow = (
        next(
            part
            for part in pass_parts(tales, NANO, 30, 1, 1, layers=layers, memory=each)
            if part.unit == "attention"
        )
        for each in (NANO_MEMORY, memory)
    )
    assert (fast.waits, slow.waits) == (False, True)
    words = fast.n_bytes // NANO.word_bytes
    assert 8 * words < slow.cycles < 8 * words + len(layers) * 100


def test_later_tokens_take_longer(tales: PackedModel) -> None:
    assert decode_cycles(tales, NANO, 31) > decode_cycles(tales, NANO, 30)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
def test_grouped_engines(engine: str, tales: PackedModel) -> None:
    """A step of theirs does less, and ternary weights have two bits."""
    config = configure(tales, "nano", engine)
    assert decode_cycles(tales, config, 30) > decode_cycles(tales, NANO, 30)
