"""Runs on the simulated accelerator that fail or are interrupted: the error, and the next run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.random_model import Shape, write_model
from tests.host.tiles import Tiles, compiled, driver, golden, on_transport
from tests.hw.core.test_accelerator import SMALL

from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.accelerator.runs import DescriptorRuns, RegisterRuns
from lutra.devices.base import DeviceError, StepResult
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.core.ports import Response

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

TOKENS = [1, 2, 3, 4, 5]


class Counting(RtlTransport):
    """Counts resets; a run can be interrupted after some cycles."""

    def __init__(self) -> None:
        super().__init__()
        self.resets, self.interrupt_after = 0, 0

    def wait(self, timeout_s: float | None) -> int | None:
        if self.interrupt_after:
            cycles, self.interrupt_after = self.interrupt_after, 0
            self.simulator.run(cycles)
            raise KeyboardInterrupt
        return super().wait(timeout_s)

    def reset(self) -> None:
        self.resets += 1
        super().reset()


class ByRegisters(Counting):
    """Has no doorbell."""

    ring = cast("Any", None)


class Sound:
    """A small model on the simulated accelerator, and what it must compute."""

    def __init__(self, folder: Path, transport: Counting) -> None:
        write_model(folder, Shape(intermediate_size=48, num_hidden_layers=1))
        model = pack_model(load_model(folder))
        self.transport = transport
        self.tiles: Tiles = on_transport(compiled(model, SMALL), self.transport)
        self.expected: StepResult = golden(model).run_tile(TOKENS, 0, 0)

    def check(self) -> None:
        result = self.tiles.run_tile(TOKENS, 0, 0)
        np.testing.assert_array_equal(result.logits, self.expected.logits)
        np.testing.assert_array_equal(result.argmax, self.expected.argmax)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    found = Sound(tmp_path_factory.mktemp("model"), Counting())
    assert isinstance(driver(found.tiles).runs, DescriptorRuns)
    found.check()
    yield found
    found.tiles.close()


@pytest.mark.parametrize("cycles", [1, 50, 300, 700, 1000])
def test_an_interrupt_in_a_run_spoils_nothing(cycles: int, sound: Sound) -> None:
    """It is ended by an abort; a reset is not needed."""
    before = sound.transport.resets
    sound.transport.interrupt_after = cycles
    with pytest.raises(KeyboardInterrupt):
        sound.tiles.run_tile(TOKENS, 0, 0)
    sound.check()
    assert sound.transport.resets == before


@pytest.mark.parametrize(
    ("port", "writes", "at", "message"),
    [
        (0, False, 20, r"SLVERR to a read of m_axi_0 \(weights\) at 0x[0-9a-f]+, in matmul instru"),
        (1, False, 3, r"SLVERR to a read of m_axi_1 \(fetch\) at 0x[0-9a-f]+, in instruction 0: "),
        # behind the descriptor's 8 beats
        (1, False, 11, r"SLVERR to a read of m_axi_1 \(fetch\) at 0x0, in instruction \d+: check "),
        (1, True, 1, r"SLVERR to a write of m_axi_1 \(write\) at 0x[0-9a-f]+, in vector instruct"),
    ],
)
def test_a_bus_error_is_said(port: int, writes: bool, at: int, message: str, sound: Sound) -> None:
    simulator, before = sound.transport.simulator, sound.transport.resets
    simulator.disturb(port, at, Response.SLVERR, writes=writes)
    with pytest.raises(
        DeviceError, match=rf"^device rtl, after \d+ cycles: the memory answered {message}"
    ):
        sound.tiles.run_tile(TOKENS, 0, 0)
    simulator.disturb(port, None, writes=writes)
    sound.check()
    assert sound.transport.resets == before


def test_a_silent_port_ends_in_a_reset(sound: Sound) -> None:
    """The accelerator's own watchdog notices it; the memory owes answers, so ports are reset."""
    simulator, before = sound.transport.simulator, sound.transport.resets
    runs = driver(sound.tiles).runs
    assert isinstance(runs, DescriptorRuns)
    usual, runs.watchdog_cycles = runs.watchdog_cycles, 3000
    # it is set by a descriptor that can be read
    sound.check()
    simulator.disturb(1, 12, None)
    with pytest.raises(
        DeviceError, match=r"^device rtl, after \d+ cycles: nothing moved for too long after \d"
    ):
        sound.tiles.run_tile(TOKENS, 0, 0)
    simulator.disturb(1, None)
    runs.watchdog_cycles = usual
    sound.check()
    assert sound.transport.resets == before + 1
    assert simulator.read_register("WATCHDOG") == 1 << 20


def test_registers_start_runs_without_a_doorbell(tmp_path: Path) -> None:
    """Refusals are said, and the results are those of descriptors."""
    sound = Sound(tmp_path, ByRegisters())
    assert isinstance(driver(sound.tiles).runs, RegisterRuns)
    sound.check()
    addresses = driver(sound.tiles).addresses
    transport = sound.transport
    transport.write_register("LOGITS_BASE", addresses["LOGITS_BASE"] + 4)
    with pytest.raises(
        DeviceError, match=r": LOGITS_BASE and LOGITS_STRIDE must be multiples of 32"
    ):
        sound.tiles.run_tile(TOKENS, 0, 0)
    transport.write_register("LOGITS_BASE", addresses["LOGITS_BASE"])
    sound.check()
    sound.tiles.close()
