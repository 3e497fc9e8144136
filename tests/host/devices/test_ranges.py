"""Ranges of layers on accelerators: every split of a model, several sequences, kept programs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import cast

import numpy as np
import pytest
from tests.host.devices.test_runs import Counting, Registers
from tests.host.interrupt import Interrupt
from tests.host.random_model import LLAMAS, SHAPES, config_for
from tests.host.splits import check_split
from tests.host.tiles import Compiled, Tiles, compiled, driver, golden, on_transport

from lutra.compile.program import Program
from lutra.compile.ranges import range_code
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.programs import RANGES_KEPT, Programs
from lutra.devices.accelerator.transport import Transport
from lutra.devices.base import DeviceError, Step
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

Packed = Callable[[str], PackedModel]
Find = Callable[[str], Compiled]
TEXTS = [[3, 200, 7, 90, 11, 5, 260, 41, 9], [1, 2, 3], [77], [5, 260, 41, 8, 8, 8, 8, 8, 8, 8, 8]]


@pytest.fixture(scope="module")
def found(
    packed: Packed,
    packed_llama: Callable[[str, str], PackedModel],
    program: Callable[[str], Program],
) -> Find:
    """A model of three layers: ternary, or in W4A8, with a cache of four bits if so named."""

    def make(name: str) -> Compiled:
        if name == "ternary":
            return Compiled(packed("odd"), program("odd"))
        model = packed_llama("llama-odd", "W4A8")
        config = config_for(LLAMAS["llama-odd"], "mac")
        if name == "llama-kv4":
            model = replace(model, key_bits=4, value_bits=4)
            config = config.with_(key_width=4, value_width=4)
        return compiled(model, config)

    return cache(make)


def splits(n_layers: int) -> list[tuple[int, ...]]:
    """Every way to cut a model into ranges, all layers in one included."""
    inner = range(1, n_layers)
    found = [c for n in range(n_layers) for c in combinations(inner, n)]
    return [(0, *cuts, n_layers) for cuts in found]


@pytest.mark.parametrize("kind", [Counting, Registers])
@pytest.mark.parametrize("name", ["ternary", "llama", "llama-kv4"])
def test_every_split_is_the_whole(name: str, kind: type[Counting], found: Find) -> None:
    """By descriptors and by registers; several sequences share passes of a range."""
    each = found(name)
    tiles = on_transport(each, cast(Transport, kind()))
    cuts = splits(each.program.n_layers)
    assert len(cuts) == 4
    for seed, split in enumerate(cuts):
        devices = [tiles.device] * (len(split) - 1)
        check_split(devices, golden(each.model).device, TEXTS, split, seed)


def step(tiles: Tiles, layers: range, *tokens: int) -> None:
    """The next tokens of a new session go through some layers."""
    model = driver(tiles).model
    stream = np.full((len(tokens), model.hidden_size), 70_000, np.int32)
    session = tiles.device.session()
    residual = stream if layers.start else None
    tiles.device.run([Step(session=session, tokens=tokens, layers=layers, residual=residual)])
    session.close()


def test_a_large_stream_keeps_every_bit(found: Find) -> None:
    """Also where a half is 0x8000, at both ends of 32 bits, and of tokens of any id."""
    each = found("ternary")
    stream = np.random.default_rng(1).integers(
        -(1 << 31), 1 << 31, (3, each.model.hidden_size), np.int32
    )
    stream[:, :6] = -(1 << 31), (1 << 31) - 1, 0x8000, -0x8000, 0x7FFF, -1
    results = []
    for tiles in (on_transport(each), golden(each.model)):
        layers = Step(
            session=tiles.session, tokens=[1 << 40] * 3, layers=range(1, 2), residual=stream
        )
        results.append(tiles.device.run([layers])[0])
    np.testing.assert_array_equal(results[0].residual, results[1].residual)
    assert results[0].saturated == results[1].saturated


def test_programs_of_ranges_are_written_once_and_kept(found: Find) -> None:
    transport = Counting()
    tiles = on_transport(found("ternary"), cast(Transport, transport))
    ranges = [range(a, b) for a in range(3) for b in range(a + 1, 4) if b - a < 3]
    assert len(ranges) == RANGES_KEPT + 1

    def writes(layers: range) -> int:
        transport.calls.clear()
        step(tiles, layers, 1, 2)
        # a descriptor, and two halves of a stream
        return transport.calls["write"] - 1 - 2 * (layers.start > 0)

    for layers in (*ranges[:RANGES_KEPT], range(3)):
        assert writes(layers) == (layers != range(3))
    for layers in (*ranges[1:RANGES_KEPT], ranges[0]):
        assert writes(layers) == 0
    # the one that was used longest ago makes room
    assert [writes(layers) for layers in (ranges[-1], ranges[2], ranges[1])] == [1, 0, 1]


def test_an_interrupt_in_any_line_loses_no_place(found: Find) -> None:
    program = found("ternary").program
    transport = InterpretedTransport()
    transport.open(program.config, Programs.n_bytes(program))
    programs, trace = Programs(program, transport), Interrupt("programs.py", 0)
    ranges = [range(a, b) for a in range(3) for b in range(a + 1, 4) if b - a < 3]
    for n in range(1, 100):
        trace = Interrupt("programs.py", n)
        with suppress(KeyboardInterrupt), trace:
            # one that is kept, then one that is not
            programs.of(ranges[-1])
            programs.of(ranges[n % RANGES_KEPT])
        for layers in ranges:
            placed = programs.of(layers)
            code = range_code(program, layers)
            assert transport.read(placed.address, placed.n_bytes) == code
        assert len({programs.of(layers).address for layers in ranges[1:]}) == RANGES_KEPT
        if trace.left > 0:
            break
    assert trace.left > 0  # every line was interrupted


def test_memory_of_programs_is_allocated_with_the_model(
    found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that sessions cannot take it, and none of it is left when the model goes."""
    each = found("ternary")
    transport = InterpretedTransport()
    tiles = on_transport(each, transport)
    with monkeypatch.context() as patch:
        patch.delattr(InterpretedTransport, "allocate")
        for layers in (range(1), range(1, 3), range(1, 2), range(2), range(2, 3)):
            step(tiles, layers, 1)
    small = InterpretedTransport()
    small.open(each.program.config, Programs.n_bytes(each.program) - 1)
    message = r"^the accelerator's memory has no [\d,]+ bytes in a row: "
    with pytest.raises(DeviceError, match=message):
        Programs(each.program, small)


def test_a_stream_that_does_not_fill_words_is_refused(packed: Packed) -> None:
    """Heads of 256 are stored by words of 64 elements, and there is no room for so many."""
    model = packed("odd")
    config = config_for(SHAPES["odd"])
    each = compiled(model, config)
    wide = replace(each.program, config=config.with_(head_dim=256))
    device = AcceleratorDevice(InterpretedTransport())
    device.load_program(model, wide)
    message = (
        "^configuration .* is too small for the model: the residual buffer needs 192, has 160 "
        r"\(32 missing\): set hidden_max=192 or more$"
    )
    with pytest.raises(LutraError, match=message):
        device.run([Step(session=device.session(), tokens=[1], layers=range(1))])
