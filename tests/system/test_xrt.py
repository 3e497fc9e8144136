"""The driver over XRT on an emulated card: the Verilated kernel, its memory, and faults."""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.host.greedy_tokens import check_fault, check_greedy
from tests.host.random_model import Shape, write_model
from tests.host.tiles import Compiled, Tiles, compiled, driver, golden
from tests.hw.core.test_accelerator import SMALL
from tests.system.small_architectures import config_of_engine, make

from lutra import LLM, SamplingParams
from lutra.devices.accelerator import xrt as transport_module
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.runs import DescriptorRuns
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import DeviceError
from lutra.devices.emulated.card import CardFaults, EmulatedCard, Interface
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

    def __init__(
        self,
        found: Compiled,
        interface: Interface = Interface.BUFFERS,
        card: EmulatedCard | None = None,
    ) -> None:
        self.found = found
        self.card = card or EmulatedCard(find_profile("u55c"), seed=7, interface=interface)
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


def test_greedy_tokens_share_a_run(board: Board) -> None:
    started = board.card.calls["start"]
    check_greedy(board.tiles.device, board.golden.device)
    assert board.card.calls["start"] == started + 4


def test_a_fault_among_greedy_tokens(board: Board) -> None:
    @contextmanager
    def fault() -> Generator[None]:
        kernel = board.kernel
        size = kernel.transfers(0)
        kernel.disturb(0, size * 2 // 5, Response.SLVERR)
        try:
            yield
        finally:
            kernel.disturb(0, None)

    device, golden = board.tiles.device, board.golden.device
    board.kernel.disturb(0, None)
    session = device.session()
    device.greedy(session, 1, 6)
    session.close()
    check_fault(device, golden, fault)


def test_xrt_before_contexts(found: Compiled) -> None:
    board = Board(found, Interface.LOADED)
    board.check()
    board.close()


# -- faults, in the fourth token: it ends in one line, and the three before it are kept


@pytest.fixture
def begun(board: Board) -> Iterator[Board]:
    """The card without faults, and three tokens of a sequence."""
    board.card.faults = CardFaults()
    board.tiles.run_tile(TOKENS[:3], 0, 0)
    yield board
    board.card.faults = CardFaults()
    board.check()


def held(board: Board) -> bytes:
    """Keys and values of the sequence."""
    return board.tiles.session.export().to_bytes()


def fails(board: Board, message: str) -> None:
    before = held(board)
    with pytest.raises(DeviceError, match=message) as error:
        board.tiles.run_tile([TOKENS[3]], 3, 0)
    assert "\n" not in str(error.value)
    assert held(board) == before


def goes_on(board: Board) -> None:
    """The fourth token and the fifth are right."""
    board.card.faults = CardFaults()
    for number, port in enumerate(SMALL.ports):
        board.kernel.disturb(number, None)
        if port.writes:
            board.kernel.disturb(number, None, writes=True)
    expected = golden(board.found.model)
    expected.run_tile(TOKENS[:3], 0, 0)
    for at in (3, 4):
        a, b = (each.run_tile([TOKENS[at]], at, 0) for each in (board.tiles, expected))
        np.testing.assert_array_equal(a.logits, b.logits)
        np.testing.assert_array_equal(a.argmax, b.argmax)
    assert held(board) == expected.session.export().to_bytes()


@pytest.mark.parametrize("response", [Response.SLVERR, Response.DECERR], ids=["slverr", "decerr"])
@pytest.mark.parametrize(
    ("port", "writes", "at", "what"),
    [
        (0, False, 20, "read of m_axi_0 (weights)"),
        (1, False, 1, None),
        (1, False, 30, "read of m_axi_1 "),
        (1, True, 1, "write of m_axi_1 (write)"),
    ],
)
def test_a_bus_error(
    port: int, writes: bool, at: int, what: str | None, response: Response, begun: Board
) -> None:
    """One of the header of the descriptor, and XRT has no register that would say it."""
    begun.kernel.disturb(port, at, response, writes=writes)
    if what is None:
        fails(begun, r"^device xrt wrote no result of its run: ")
    else:
        line = f": the memory answered {response.name} to a {re.escape(what)}"
        fails(begun, f"^device xrt(, after [0-9]+ cycles)?{line}")
    goes_on(begun)


@pytest.mark.parametrize("port", [0, 1])
def test_a_port_that_does_not_answer(port: int, begun: Board) -> None:
    """The watchdog that came by the descriptor ends the run: XRT could not.

    While its memory owes data, the accelerator writes no result block.
    """
    runs = driver(begun.tiles).runs
    assert isinstance(runs, DescriptorRuns)
    usual, runs.watchdog_cycles = runs.watchdog_cycles, 3000
    begun.tiles.run_tile(TOKENS[:3], 0, 0)
    begun.kernel.disturb(port, 20, None)
    fails(begun, r"^device xrt wrote no result of its run: its memory does not answer, or gives ")
    runs.watchdog_cycles = usual
    goes_on(begun)


@pytest.mark.parametrize("cycles", [500, 1500, 3000])
def test_a_reset_in_mid_token(cycles: int, begun: Board) -> None:
    begun.card.faults.reset_after = cycles
    fails(begun, r"^a run of device xrt failed with .*ABORT.*: run `xbutil reset -d emulated-u55c-")
    goes_on(begun)


def test_an_interrupt_that_never_comes(begun: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """XRT does not see the end of the run, and nothing else tells it to Python."""
    device = driver(begun.tiles)
    monkeypatch.setattr(device, "_timeout_s", 0.3)
    monkeypatch.setattr(transport_module, "_DRAIN_S", 0.3)
    begun.card.faults.lost_interrupts = True
    for _ in range(2):
        fails(begun, r"^a run of device xrt does not end: run `xbutil reset -d emulated-u55c-")
    goes_on(begun)


def test_an_interrupt_that_comes_twice(begun: Board) -> None:
    begun.card.faults.extra_interrupts = 5
    begun.tiles.run_tile([TOKENS[3]], 3, 0)
    assert begun.card.faults.extra_interrupts < 5
    goes_on(begun)


def test_a_process_that_is_killed_between_tokens(found: Compiled) -> None:
    """A run is under way; lock and buffers go when XRT has seen its end."""
    board = Board(found)
    board.tiles.run_tile(TOKENS[:3], 0, 0)
    transport = driver(board.tiles).transport
    assert isinstance(transport, XrtTransport) and transport._lock is not None
    transport.ring(min(transport._idle))
    board.kernel.run(100)
    board.card.process_ends()
    for address in [each.address for each in transport._buffers]:
        transport.free(address)
    transport._lock.release()
    again = Board(found, card=board.card)
    again.check()
    again.close()


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


def test_a_missing_sync_shows(board: Board) -> None:
    """The kernel does not read what is only in the host's copy."""
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


@pytest.mark.slow
@pytest.mark.parametrize(("model", "format"), [("tales", None), ("tales-llama", "W4A8")])
def test_a_story(model: str, format: str | None) -> None:
    """Every logit of a prompt of two passes and of single tokens is golden's."""
    with LLM(model, "xrt", emulate="u55c", format=format, check=True) as llm:
        done = llm.generate(PROMPT, 3, SamplingParams(temperature=0))
        assert done.stats.bit_exact
        assert done.stats.decode_cycles
        assert llm.device.facts()["emulated"] == "u55c"


@pytest.mark.slow
def test_biases_and_norms_of_heads(tmp_path: Path) -> None:
    model = make(tmp_path)("qwen-both")
    assert model.biased and model.head_normed
    board = Board(compiled(model, config_of_engine("lut")))
    board.check()
    assert held(board) == board.golden.session.export().to_bytes()
    board.close()


@pytest.mark.slow
def test_a_long_tale() -> None:
    greedy, texts = SamplingParams(temperature=0.0), list[str]()
    for device, emulate in (("xrt", "u55c"), ("golden", None)):
        llm = LLM("tales", device=device, emulate=emulate)
        texts.append(llm.generate(PROMPT, 64, greedy).text)
        llm.close()
    assert texts[0] == texts[1] and texts[0]
