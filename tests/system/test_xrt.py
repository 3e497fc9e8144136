"""The driver over XRT on an emulated card: the Verilated kernel, its memory, and faults."""

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.random_model import Shape, write_model
from tests.host.tiles import Compiled, Tiles, compiled, driver, golden
from tests.hw.core.test_accelerator import SMALL

from lutra import LLM, SamplingParams
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.runs import DescriptorRuns
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import DeviceError
from lutra.devices.emulated.card import EmulatedCard, Interface
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.core.ports import Response
from lutra_golden.timing.boards import find_profile
from lutra_sim.rtl.xrt import XrtKernel

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

TOKENS = [1, 2, 3, 4, 5]
PROMPT = "Once upon a time there lived in a small house at the edge of the forest an old woman"


class Board:
    """A card with a small model, and what that must compute."""

    def __init__(self, found: Compiled, interface: Interface = Interface.BUFFERS) -> None:
        self.card = EmulatedCard(find_profile("u55c"), seed=7, interface=interface)
        transport = XrtTransport(xclbin=self.card.image, module=self.card.module, emulated="u55c")
        device = AcceleratorDevice(transport, timeout_s=60.0)
        device.load_program(found.model, found.program)
        self.tiles, self.golden = Tiles(device), golden(found.model)

    @property
    def kernel(self) -> XrtKernel:
        kernel = self.card.kernel
        assert isinstance(kernel, XrtKernel)
        return kernel

    def check(self) -> None:
        """Tiles of several sizes, to the last bit."""
        for tokens, position, first in ((TOKENS, 0, 0), ([6], 5, 0), ([7, 8], 6, 1)):
            result, expected = (
                tiles.run_tile(tokens, position, first) for tiles in (self.tiles, self.golden)
            )
            np.testing.assert_array_equal(result.logits, expected.logits)
            np.testing.assert_array_equal(result.scale, expected.scale)
            np.testing.assert_array_equal(result.argmax, expected.argmax)

    def close(self) -> None:
        self.tiles.close()
        self.card.close()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, Shape(intermediate_size=48, num_hidden_layers=1))
    return compiled(pack_model(load_model(folder)), SMALL)


@pytest.fixture(scope="module")
def board(found: Compiled) -> Iterator[Board]:
    made = Board(found)
    yield made
    made.close()


def test_it_computes_what_golden_does(board: Board) -> None:
    board.check()
    device = driver(board.tiles)
    assert device.counters()["cycles"] > 0
    assert device.facts()["emulated"] == "u55c"


def test_xrt_before_contexts(found: Compiled) -> None:
    board = Board(found, Interface.LOADED)
    board.check()
    board.close()


@pytest.mark.parametrize(
    ("port", "writes", "at", "message"),
    [
        (0, False, 20, r"SLVERR to a read of m_axi_0 \(weights\) at 0x[0-9a-f]+, in matmul instru"),
        (1, False, 3, r"SLVERR to a read of m_axi_1 \(fetch\) at 0x[0-9a-f]+, in instruction 0: "),
        (1, True, 1, r"SLVERR to a write of m_axi_1 \(write\) at 0x[0-9a-f]+, in vector instruct"),
    ],
)
def test_a_bus_error_is_said(port: int, writes: bool, at: int, message: str, board: Board) -> None:
    board.kernel.disturb(port, at, Response.SLVERR, writes=writes)
    try:
        with pytest.raises(DeviceError, match=r"^device xrt") as error:
            board.tiles.run_tile(TOKENS, 0, 0)
    finally:
        board.kernel.disturb(port, None, writes=writes)
    assert "\n" not in str(error.value)
    board.check()


def test_an_interrupt_in_a_run_spoils_nothing(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run cannot be aborted; its end is waited for before the next one begins."""
    transport = driver(board.tiles).transport

    def interrupted(timeout_s: float | None) -> None:
        board.kernel.run(300)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transport, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            board.tiles.run_tile(TOKENS, 0, 0)
    board.check()


def test_the_watchdog_ends_a_run(board: Board) -> None:
    """It came by the descriptor; nobody on the host could stop the kernel."""
    runs = driver(board.tiles).runs
    assert isinstance(runs, DescriptorRuns)
    usual, runs.watchdog_cycles = runs.watchdog_cycles, 3000
    board.check()
    board.kernel.disturb(0, 5, None)
    try:
        with pytest.raises(DeviceError, match=r"^device xrt") as error:
            board.tiles.run_tile(TOKENS, 0, 0)
    finally:
        board.kernel.disturb(0, None)
        runs.watchdog_cycles = usual
    assert "\n" not in str(error.value)
    board.check()


def test_a_missing_sync_shows(board: Board) -> None:
    """What is only in the host's copy is not what the kernel reads."""
    transport = driver(board.tiles).transport
    assert isinstance(transport, XrtTransport)
    module = board.card.module()
    at = transport.allocate(4096)
    (buffer,) = (each for each in transport._buffers if each.address == at)
    buffer.bo.map()[:8] = b"\x01" * 8
    assert board.kernel.peek(at, 8) == bytes(8)
    buffer.bo.sync(module.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE)
    assert board.kernel.peek(at, 8) == b"\x01" * 8
    transport.free(at)


def _tales(n_tokens: int) -> None:
    greedy, texts = SamplingParams(temperature=0.0), list[str]()
    for device, emulate in (("xrt", "u55c"), ("golden", None)):
        llm = LLM("tales", device=device, emulate=emulate)
        texts.append(llm.generate(PROMPT, n_tokens, greedy).text)
        llm.close()
    assert texts[0] == texts[1] and texts[0]


def test_tales() -> None:
    _tales(4)


@pytest.mark.slow
def test_a_long_tale() -> None:
    _tales(64)
