"""The driver of PYNQ boards on an emulated KV260: every logit is golden's, and every fault is said.

The package pynq is the real one, and so is the accelerator, simulated; docs/pynq.md says what else
is emulated. After each fault keys and values are those of the last finished token, and the next run
is right.
"""

import asyncio
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")
pytest.importorskip("gguf")

from tests.host.greedy_tokens import check_greedy
from tests.host.random_model import Shape, write_model
from tests.host.tiles import Compiled, Tiles, assert_a_story_moves, compiled, driver, golden
from tests.hw.core.test_accelerator import SMALL
from tests.system.small_architectures import config_of_engine, make

from lutra import LLM, SamplingParams
from lutra.compile.program import SegmentKind
from lutra.devices import auto, boards
from lutra.devices.accelerator import pynq as transport_module
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.pynq import PynqTransport
from lutra.devices.accelerator.runs import DescriptorRuns
from lutra.devices.auto import AutoDevices
from lutra.devices.base import DeviceError, Step
from lutra.devices.boards import BOARD_DRIVERS
from lutra.devices.emulated.board import EmulatedBoard, Faults
from lutra.devices.emulated.pynq_board import EmulatedPynq
from lutra.devices.emulated.zynq import Cached
from lutra.devices.estimate import Rate
from lutra.diagnose.selftest import Check, selftest
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Response
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import find_profile

pytestmark = [pytest.mark.pynq, pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

TOKENS = [1, 2, 3, 4, 5]
PROMPT = "Once upon a time there lived in a small house at the edge of the forest an old woman"
WATCHDOG = 3000


class Rig:
    """A small model, an emulated board that stays, and what must be computed."""

    def __init__(self, folder: Path) -> None:
        write_model(folder, Shape(intermediate_size=48, num_hidden_layers=1))
        self.found: Compiled = compiled(pack_model(load_model(folder)), SMALL)
        self.emulated = EmulatedPynq(EmulatedBoard(find_profile("kv260"), seed=5))
        self.tiles: Tiles | None = None

    @property
    def board(self) -> EmulatedBoard:
        return self.emulated.board

    def transport(self) -> PynqTransport:
        """A driver of the board as the process of a user has it."""
        emulated = self.emulated
        emulated.device().uio.forget()
        return PynqTransport(device=emulated.device, bitstream=emulated.bitstream, emulated="kv260")

    def load(self, transport: PynqTransport | None = None) -> Tiles:
        """The model on the board, in a new process so to speak."""
        device = AcceleratorDevice(transport or self.transport(), watchdog_cycles=WATCHDOG)
        device.load_program(self.found.model, self.found.program)
        return Tiles(device)

    def check(self, tiles: Tiles, tokens: list[int], position: int) -> None:
        """Tokens from ``position`` on have golden's logits, keys and values."""
        expected = golden(self.found.model)
        whole = expected.run_tile(TOKENS[:position] + tokens, 0, 0)
        found = tiles.run_tile(tokens, position, 0)
        np.testing.assert_array_equal(found.logits, whole.logits[position:])
        np.testing.assert_array_equal(found.argmax, whole.argmax[position:])
        np.testing.assert_array_equal(found.scale, whole.scale[position:])
        assert found.cycles
        assert tiles.session.export().to_bytes() == expected.session.export().to_bytes()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("model"))
    yield made
    made.emulated.close()


@pytest.fixture
def tiles(rig: Rig) -> Iterator[Tiles]:
    """The model on the board, which had no faults, and three tokens of a sequence."""
    rig.board.faults = Faults()
    loaded = rig.load()
    rig.check(loaded, TOKENS[:3], 0)
    yield loaded
    loaded.close()
    rig.board.faults = Faults()
    assert rig.board.n_buffers == 0


def held(tiles: Tiles) -> bytes:
    """Keys and values of the sequence."""
    return tiles.session.export().to_bytes()


def fails(rig: Rig, tiles: Tiles, message: str) -> None:
    """The fourth token ends in one line, and leaves the three before it."""
    before = held(tiles)
    with pytest.raises(DeviceError, match=message) as error:
        tiles.run_tile([TOKENS[3]], 3, 0)
    assert "\n" not in str(error.value)
    assert held(tiles) == before


def goes_on(rig: Rig, tiles: Tiles) -> None:
    """The fourth token and the fifth are right."""
    rig.board.faults = Faults()
    for number, port in enumerate(SMALL.ports):
        rig.board.disturb(number, None)
        if port.writes:
            rig.board.disturb(number, None, writes=True)
    rig.check(tiles, [TOKENS[3]], 3)
    rig.check(tiles, [TOKENS[4]], 4)


# -- tokens


def test_a_token_is_one_flush_two_invalidations_and_no_new_buffer(rig: Rig, tiles: Tiles) -> None:
    """The descriptor goes out; the result block and the logits come in."""
    before = dict(rig.emulated.calls)
    tiles.run_tile([TOKENS[3]], 3, 0)
    counts = {name: n - before[name] for name, n in rig.emulated.calls.items()}
    assert counts == {"allocate": 0, "flush": 1, "invalidate": 2}


def test_greedy_tokens_are_one_flush_and_one_invalidation(rig: Rig, tiles: Tiles) -> None:
    """Their logits are not read."""
    before = dict(rig.emulated.calls)
    tiles.device.greedy(tiles.session, TOKENS[3], 5)
    counts = {name: n - before[name] for name, n in rig.emulated.calls.items()}
    assert counts == {"allocate": 0, "flush": 1, "invalidate": 1}
    check_greedy(tiles.device, golden(rig.found.model).device)


def test_sessions_take_no_new_buffer(rig: Rig, tiles: Tiles) -> None:
    before = rig.emulated.calls["allocate"]
    other = tiles.session.fork()
    tiles.device.run([Step(session=other, tokens=[7])])
    other.close()
    assert rig.emulated.calls["allocate"] == before


def test_keys_and_values_go_to_the_board_and_come_from_it(rig: Rig, tiles: Tiles) -> None:
    other = golden(rig.found.model).device
    assert_a_story_moves(tiles.device, other, TOKENS)
    assert_a_story_moves(other, tiles.device, TOKENS)


def test_a_missing_flush_shows(rig: Rig, tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator finds the descriptor of the run before."""
    device_class = type(rig.emulated.device())
    before = held(tiles)
    with monkeypatch.context() as patch:
        patch.setattr(device_class, "flush", lambda *_: None)
        with pytest.raises(DeviceError, match=r"^device pynq wrote no result of its run: "):
            tiles.run_tile([TOKENS[3]], 3, 0)
    assert held(tiles) == before
    goes_on(rig, tiles)


def test_a_missing_invalidation_shows(
    rig: Rig, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver sees the zeros that it wrote, not the result."""
    device_class = type(rig.emulated.device())
    with monkeypatch.context() as patch:
        patch.setattr(device_class, "invalidate", lambda *_: None)
        with pytest.raises(DeviceError, match=r"^device pynq wrote no result of its run: "):
            tiles.run_tile([TOKENS[3]], 3, 0)
    goes_on(rig, tiles)


# -- the memory behind the ports


@pytest.mark.parametrize("response", [Response.SLVERR, Response.DECERR], ids=["slverr", "decerr"])
@pytest.mark.parametrize(
    ("port", "writes", "at", "what"),
    [
        (0, False, 20, "read of m_axi_0 (weights)"),
        (1, False, 1, "read of m_axi_1 (fetch)"),
        (1, False, 30, "read of m_axi_1 "),
        (1, True, 1, "write of m_axi_1 (write)"),
    ],
)
def test_a_bus_error(
    port: int, writes: bool, at: int, what: str, response: Response, rig: Rig, tiles: Tiles
) -> None:
    rig.board.disturb(port, at, response, writes=writes)
    line = f", after [0-9]+ cycles: the memory answered {response.name} to a {re.escape(what)}"
    fails(rig, tiles, f"^device pynq({line}|: {line.partition(': ')[2]})")
    goes_on(rig, tiles)


@pytest.mark.parametrize("port", [0, 1])
def test_a_port_that_does_not_answer(port: int, rig: Rig, tiles: Tiles) -> None:
    """The accelerator's watchdog; what the memory owes is forgotten when the board is loaded."""
    rig.board.disturb(port, 5, None)
    before = held(tiles)
    with pytest.raises(DeviceError, match=r"^device pynq.*: nothing moved for too long after \d"):
        tiles.run_tile([TOKENS[3]], 3, 0)
    rig.board.disturb(port, None)
    assert held(tiles) == before
    goes_on(rig, tiles)


# -- interrupts


def test_an_interrupt_that_never_comes(
    rig: Rig, tiles: Tiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three that were waited for registers are read instead, and one line says so."""
    monkeypatch.setattr(transport_module, "_SLICE_S", 0.2)
    rig.board.faults.lost_interrupts = True
    with caplog.at_level(logging.WARNING):
        for token in (3, 4, 4, 4):
            rig.check(tiles, [TOKENS[token]], token)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the interrupt of device pynq does not arrive, registers are read instead"
    ]


def test_an_interrupt_that_comes_twice(rig: Rig, tiles: Tiles) -> None:
    rig.board.faults.extra_interrupts = 5
    rig.check(tiles, [TOKENS[3]], 3)
    rig.board.faults.extra_interrupts = 1
    rig.check(tiles, [TOKENS[4]], 4)
    assert rig.board.faults.extra_interrupts == 0


@pytest.mark.parametrize("again", ["abort", "reset", "close"])
def test_a_wait_that_was_interrupted_takes_no_interrupt_of_later_runs(
    again: str, rig: Rig, tiles: Tiles, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nor if the bitstream was loaded again, by this driver or by the next in this process."""
    monkeypatch.setattr(transport_module, "_SLICE_S", 0.2)
    advance = rig.board.advance

    def interrupted(n_cycles: int) -> bool:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise KeyboardInterrupt
        return advance(n_cycles)

    with monkeypatch.context() as patch:
        patch.setattr(rig.board, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiles.run_tile([TOKENS[3]], 3, 0)
    if again == "reset":
        driver(tiles).transport.reset()
    elif again == "close":
        tiles.close()
        emulated = rig.emulated
        transport = PynqTransport(device=emulated.device, bitstream=emulated.bitstream)
        tiles = rig.load(transport)
        rig.check(tiles, TOKENS[:3], 0)
    with caplog.at_level(logging.WARNING):
        for token in (3, 4, 4, 4, 4):
            rig.check(tiles, [TOKENS[token]], token)
    assert not caplog.records
    tiles.close()


def test_a_run_that_does_not_end(rig: Rig, tiles: Tiles) -> None:
    """The time limit of the host says what is waiting; the accelerator's watchdog is off."""
    device = driver(tiles)
    assert isinstance(device.runs, DescriptorRuns)
    device.runs.watchdog_cycles = 0
    rig.board.simulator.write_register("WATCHDOG", 0)
    rig.board.disturb(0, 5, None)
    device._timeout_s = 0.5
    fails(
        rig, tiles,
        r"^a run of device pynq is not over after 0\.5 s: load \w+, matmul \w+, vector \w+, "
        r"attention \w+, fetch \w+; load the model again$",
    )  # fmt: skip
    device._timeout_s, device.runs.watchdog_cycles = None, WATCHDOG
    goes_on(rig, tiles)


def test_in_a_loop_of_events_registers_are_read(rig: Rig, tiles: Tiles) -> None:
    """A notebook's loop runs already: nothing can be awaited in it."""

    async def cell() -> None:
        rig.check(tiles, [TOKENS[3]], 3)

    asyncio.run(cell())
    rig.check(tiles, [TOKENS[4]], 4)


# -- the board


@pytest.mark.parametrize("cycles", [500, 1500, 3000])
def test_a_reset_in_mid_token(cycles: int, rig: Rig, tiles: Tiles) -> None:
    """Its registers are as at power-up, its memory is not."""
    before = held(tiles)
    rig.board.faults.reset_after = cycles
    with pytest.raises(
        DeviceError,
        match=r"^device pynq was reset during a run: see that no other program uses the board, "
        r"and run again$",
    ):
        tiles.run_tile([TOKENS[3]], 3, 0)
    assert held(tiles) == before
    goes_on(rig, tiles)


def refused(rig: Rig, message: str, transport: PynqTransport | None = None) -> None:
    """The model is not loaded, in one line, and the board is free again."""
    with pytest.raises(LutraError, match=message) as error:
        rig.load(transport)
    assert "\n" not in str(error.value)
    # its traceback holds what it was raised among
    error = None
    gc.collect()
    assert rig.board.n_buffers == 0


def loads(rig: Rig) -> None:
    """The board is usable after it was refused."""
    rig.board.faults = Faults()
    tiles = rig.load()
    rig.check(tiles, TOKENS, 0)
    tiles.close()


def test_a_buffer_that_is_too_small(rig: Rig) -> None:
    rig.board.faults.short_buffers = True
    refused(rig, r"^the board gave [\d,]+ bytes of memory instead of [\d,]+: close other programs ")
    loads(rig)


def test_memory_in_pieces(rig: Rig) -> None:
    """Sessions take the largest piece there is; a piece too small for the model is refused."""
    rig.board.faults.hole_bytes = 1 << 24
    tiles = rig.load()
    assert driver(tiles).memory.free_bytes < 1 << 24
    rig.check(tiles, TOKENS, 0)
    tiles.close()
    rig.board.faults.hole_bytes = 4096
    refused(
        rig,
        r"^device pynq: the board has no [\d,]+ bytes of memory in a row \(BO allocation failed: "
        r"no \d+ bytes in a row\): close other programs that use the fabric, or raise cma= of the ",
    )
    loads(rig)


def test_a_bitstream_of_another_configuration(rig: Rig) -> None:
    """It is built from the configuration of the program that it refuses."""
    model, program = rig.found
    other = SMALL.with_(max_context=2 * SMALL.max_context)
    emulated = rig.emulated
    transport = PynqTransport(
        device=emulated.device, bitstream=lambda _: emulated.bitstream(SMALL), emulated="kv260"
    )
    device = AcceleratorDevice(transport, watchdog_cycles=WATCHDOG)
    message = (
        f"^device pynq is built from configuration {SMALL.fingerprint:016x}, the program for small "
        rf"\({other.fingerprint:016x}\): build the accelerator again, or use the configuration"
    )
    with pytest.raises(DeviceError, match=message):
        device.load_program(model, replace(program, config=other))
    assert rig.board.n_buffers == 0
    loads(rig)


def test_an_image_that_loses_a_bit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator's checksum of the weights is not that of what was written."""
    flush = Cached.flush
    weights = rig.found.program.n_bytes(SegmentKind.WEIGHTS)

    def weak(self: Cached, offset: int, n_bytes: int) -> None:
        flush(self, offset, n_bytes)
        if self.n_bytes > weights // 2 and offset + n_bytes >= weights // 2 > offset:
            at = self.address + weights // 2
            bit = rig.board.simulator.peek(at, 1)[0] ^ 1
            rig.board.simulator.write(at, bytes([bit]))

    with monkeypatch.context() as patch:
        patch.setattr(Cached, "flush", weak)
        refused(
            rig,
            r"^the accelerator of device pynq reads other bytes of the model's weights than were "
            "written, from 0x[0-9a-f]+ to 0x[0-9a-f]+: check the memory of the board$",
        )
    loads(rig)


def another(rig: Rig) -> EmulatedBoard:
    """Another board of this process, which has run the model and is left."""
    emulated = EmulatedPynq(EmulatedBoard(find_profile("kv260"), seed=6))
    tiles = rig.load(PynqTransport(device=emulated.device, bitstream=emulated.bitstream))
    rig.check(tiles, TOKENS[:2], 0)
    tiles.close()
    return emulated.board


def stands(board: EmulatedBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nobody waits at this board."""

    def advance(_: int) -> bool:
        raise AssertionError("the wrong board's clock runs, for ever")

    monkeypatch.setattr(board, "advance", advance)


def test_a_board_after_another_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYNQ has one board in a process, whose interrupt and clocks are those of the one loaded last:
    a wait at another would last for ever."""
    loads(rig)
    other = another(rig)
    stands(other, monkeypatch)
    loads(rig)
    rig.board.faults.slow_clock = True
    rig.emulated.power_up()
    refused(rig, r"^the fabric of device pynq runs at 100\.0 MHz, ")
    loads(rig)
    monkeypatch.undo()
    other.close()


def test_a_board_that_another_one_took_the_place_of(
    rig: Rig, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run fails, and the bitstream is loaded again."""
    other = another(rig)
    stands(other, monkeypatch)
    fails(rig, tiles, r"^device pynq: the interrupt could not be awaited \(Interrupt invalidated ")
    goes_on(rig, tiles)
    monkeypatch.undo()
    other.close()


def test_a_fabric_left_at_another_clock(rig: Rig) -> None:
    rig.board.faults.slow_clock = True
    rig.emulated.power_up()
    refused(
        rig,
        r"^the fabric of device pynq runs at 100\.0 MHz, its bitstream is built for 187\.5 MHz: ",
    )
    loads(rig)


# -- auto


class Fast:
    """A profile in which the board is the fastest."""

    def decode(
        self, device: str, model: PackedModel, config: AcceleratorConfig | None = None
    ) -> Rate:
        return Rate(tokens_per_s=float(device == "pynq"))


def chosen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AutoDevices:
    """Devices of a machine that is this board; its configuration has no name of its own."""
    emulated = rig.emulated
    here = replace(
        BOARD_DRIVERS["pynq"],
        is_here=lambda: True,
        transport=lambda path: PynqTransport(
            device=emulated.device, bitstream=path, emulated="kv260"
        ),
    )
    monkeypatch.setattr(auto, "BOARD_DRIVERS", {"pynq": here})
    monkeypatch.setattr(boards, "configure", lambda *_: SMALL)
    return AutoDevices(rig.found.model, bitstream=emulated.bitstream(SMALL), profile=Fast())


def test_auto_takes_the_board(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(rig, monkeypatch)
    device = found.load(rig.found.model)
    assert (device.name, found.reasons) == ("pynq", [])
    tiles = Tiles(device)
    rig.check(tiles, TOKENS[:3], 0)
    tiles.close()
    assert rig.board.n_buffers == 0


def test_auto_goes_on_without_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.board.faults.slow_clock = True
    rig.emulated.power_up()
    found = chosen(rig, monkeypatch)
    device = found.load(rig.found.model)
    (reason,) = found.reasons
    assert device.name != "pynq" and reason.startswith("the fabric of device pynq runs at 100.0 MH")
    device.close()
    loads(rig)


def edited(rig: Rig, edit: Callable[[str], str]) -> PynqTransport:
    """A driver whose .hwh is another."""
    path = rig.emulated.bitstream(SMALL)
    handoff = path.with_suffix(".hwh")
    handoff.write_text(edit(handoff.read_text()))
    return PynqTransport(device=rig.emulated.device, bitstream=path, emulated="kv260")


def test_bitstreams_of_something_else(rig: Rig) -> None:
    """Another block, another version of this one, no handoff file, no file at all."""
    other = edited(rig, lambda text: text.replace("lutra:ip:accelerator", "acme:ip:fft"))
    refused(rig, r"has no Lutra accelerator: load one that Lutra built$", other)
    newer = edited(rig, lambda text: re.sub(r"(lutra:ip:accelerator:)\d+", r"\g<1>99", text))
    refused(
        rig, r"has lutra:ip:accelerator:99\.0, this Lutra drives lutra:ip:accelerator:\d", newer
    )
    bare = edited(rig, str)
    rig.emulated.bitstream(SMALL).with_suffix(".hwh").unlink()
    refused(rig, r"has no \.hwh file beside it: copy both from the build$", bare)
    nowhere = PynqTransport(device=rig.emulated.device)
    refused(rig, r"^there is no bitstream of configuration small ", nowhere)
    loads(rig)


def test_a_bitstream_without_an_interrupt(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Registers are read instead."""
    ends = '<CONNECTION INSTANCE="(axi_intc_0" PORT="intr"|accelerator_0" PORT="interrupt") />'
    transport = edited(rig, lambda text: re.sub(ends, "", text))
    with caplog.at_level(logging.WARNING):
        tiles = rig.load(transport)
    assert [record.getMessage() for record in caplog.records] == [
        "device pynq has no interrupt and reads registers instead: the bitstream has none"
    ]
    rig.check(tiles, TOKENS, 0)
    tiles.close()
    loads(rig)


def test_a_board_that_is_closed(rig: Rig) -> None:
    transport = rig.transport()
    for use in (
        lambda: transport.read_register("STATUS"),
        lambda: transport.allocate(1),
        transport.reset,
    ):
        with pytest.raises(DeviceError, match=r"^device pynq is closed: load the model again$"):
            use()
    transport.close()


def test_an_address_in_no_buffer(rig: Rig, tiles: Tiles) -> None:
    transport = driver(tiles).transport
    with pytest.raises(DeviceError, match=r"^4 bytes at 0x10 lie in no buffer of device pynq: "):
        transport.read(0x10, 4)


# -- models


@pytest.mark.parametrize(
    ("model", "format"),
    [("tales", None), pytest.param("tales-llama", "W4A8", marks=pytest.mark.slow)],
)
def test_a_story(model: str, format: str | None) -> None:
    """Every logit of a prompt of two passes and of single tokens is golden's."""
    with LLM(model, "pynq", emulate="kv260", format=format, check=True) as llm:
        done = llm.generate(PROMPT, 3, SamplingParams(temperature=0))
        assert done.stats.bit_exact
        assert done.stats.decode_cycles
        assert llm.device.facts()["emulated"] == "kv260"


def test_the_self_test(rig: Rig) -> None:
    """Everything is right; an error of a memory port ends it, and is named."""
    rig.board.faults = Faults()
    device = AcceleratorDevice(rig.transport(), SMALL, watchdog_cycles=WATCHDOG)
    checks = list(selftest(device, rig.found.model))
    assert [check.problem or check.left_out for check in checks] == [None] * 7
    seen: list[Check] = []
    for check in selftest(device, rig.found.model):
        seen.append(check)
        if check.name == "memory, as the accelerator reads it":
            rig.board.disturb(0, 3)
    rig.board.disturb(0, None)
    assert seen[-1].name == "units"
    problem = seen[-1].problem
    assert problem is not None
    assert "SLVERR to a read of m_axi_0 (weights) at 0x" in problem
    loads(rig)


@pytest.mark.slow
def test_biases_and_norms_of_heads(tmp_path: Path) -> None:
    model = make(tmp_path)("qwen-both")
    assert model.biased and model.head_normed
    config = config_of_engine("lut")
    emulated = EmulatedPynq(EmulatedBoard(find_profile("kv260"), seed=6))
    transport = PynqTransport(
        device=emulated.device, bitstream=emulated.bitstream, emulated="kv260"
    )
    device = AcceleratorDevice(transport)
    device.load_program(model, compiled(model, config).program)
    found, expected = Tiles(device), golden(model)
    for tokens, position in (([5, 4, 3, 2], 0), ([1], 4), ([9, 8, 7], 5), ([6], 8)):
        a, b = (tiles.run_tile(tokens, position, 0) for tiles in (found, expected))
        np.testing.assert_array_equal(a.logits, b.logits)
        np.testing.assert_array_equal(a.argmax, b.argmax)
    assert found.session.export().to_bytes() == expected.session.export().to_bytes()
    found.close()
    emulated.close()


# -- processes

_OTHER = """
import sys
from lutra.devices.accelerator.lock import BoardLock
BoardLock(sys.argv[1]).acquire("pynq")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_second_process_on_the_board(rig: Rig) -> None:
    """It is refused while the first one lives, however that ends."""
    command = [sys.executable, "-c", _OTHER, rig.emulated.tag]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        refused(
            rig,
            f"^device pynq is in use by process {other.pid}: wait until it is done, or end it$",
        )
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    loads(rig)


def test_a_process_that_is_killed_between_tokens(rig: Rig) -> None:
    """Nothing of it is undone: a run is under way, its interrupt is enabled, buffers are full.

    Its lock and its buffers are gone, which the system sees to.
    """
    tiles = rig.load()
    rig.check(tiles, TOKENS[:3], 0)
    transport = driver(tiles).transport
    assert isinstance(transport, PynqTransport)
    for address in [each.address for each in transport._buffers]:
        transport.free(address)
    assert transport._lock is not None
    transport._lock.release()
    rig.board.advance(100)
    loads(rig)


_STORY = """
import sys
from lutra import LLM, SamplingParams
llm = LLM("tales", "pynq", emulate="kv260")
for piece in llm.stream(sys.argv[1], 4, SamplingParams(temperature=0)):
    print(piece.token, flush=True)
"""


@pytest.mark.slow
def test_a_story_that_is_killed_and_told_again() -> None:
    """With kill -9, by a real process; the next one tells the same story."""
    command = [sys.executable, "-c", _STORY, "Once upon a time"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        begun = [first.stdout.readline() for _ in range(2)]
        os.kill(first.pid, signal.SIGKILL)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines(keepends=True)[:2] == begun
    assert len(done.stdout.splitlines()) == 4


def test_warnings_of_pynq_do_not_reach_the_user(rig: Rig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loads(rig)
