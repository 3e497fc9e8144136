"""The driver over XRT on a card that is emulated with an interpreted kernel: what runs, what fails.

``tests/system/test_xrt.py`` has the same with the Verilated kernel.
"""

import gc
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.host.mixtures import check_mixtures
from tests.host.tiles import Compiled, Tiles, golden

from lutra.compile.program import Program, SegmentKind
from lutra.devices.accelerator import image
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.transport import (
    PAGE,
    DoorbellTransport,
    RegisterTransport,
)
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import DeviceError
from lutra.devices.choose import choose_device
from lutra.devices.emulated.card import EmulatedCard, Interface
from lutra_golden.control.ap_ctrl import KERNEL
from lutra_golden.control.descriptor import QUEUE_DEPTH, Descriptor, Kind, line_bytes
from lutra_golden.control.interpreter import Interpreter, RunError
from lutra_golden.control.memory import Memory, MemoryFault
from lutra_golden.control.registers import STATUS_DONE
from lutra_golden.control.result import RESULT_BYTES, Result
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import find_profile

Packed = Callable[[str], PackedModel]
Find = Callable[[str], Compiled]

_BYTES = 2 << 30  # of the interpreted card


class InterpretedKernel:
    """Carries out descriptors as they are specified; ``stalled`` ends none."""

    def __init__(self, config: AcceleratorConfig, other: AcceleratorConfig | None = None) -> None:
        self.config = config
        self.interpreter = Interpreter(other or config, Memory(_BYTES))
        self.stalled, self._queue = False, deque[int]()

    def write(self, address: int, data: Any) -> None:
        self.interpreter.memory.write(address, bytes(data))

    def peek(self, address: int, size: int) -> bytes:
        try:
            return self.interpreter.memory.read(address, size).tobytes()
        except MemoryFault:
            return bytes(size)

    def start(self, argument: int) -> None:
        self._queue.append(argument)

    def wait(self, max_cycles: int | None = None) -> bool:
        if self.stalled or not self._queue:
            return False
        try:
            self.interpreter.run_descriptor(self._queue.popleft())
        except RunError:
            pass  # it has no result block
        except MemoryFault as error:
            raise RuntimeError(str(error)) from None
        return True

    def look(self) -> None:
        pass

    def run(self, n_cycles: int) -> bool:
        return bool(self._queue)

    def reset(self) -> None:
        self._queue.clear()

    def close(self) -> None:
        pass


class Board:
    """A card, its driver, and a small model on it."""

    def __init__(self, found: Compiled, *, timeout_s: float = 30.0, **options: Any) -> None:
        self.found, self.kernels = found, list[InterpretedKernel]()
        self.built_for: AcceleratorConfig | None = None
        self.card = EmulatedCard(find_profile("u55c"), kernels=self._kernel, **options)
        self.transport = XrtTransport(
            xclbin=self.card.image, module=self.card.module, emulated="u55c"
        )
        self.device = AcceleratorDevice(self.transport, timeout_s=timeout_s)

    def _kernel(self, config: AcceleratorConfig) -> InterpretedKernel:
        self.kernels.append(InterpretedKernel(config, self.built_for))
        return self.kernels[-1]

    def load(self) -> Tiles:
        self.device.load_program(self.found.model, self.found.program)
        return Tiles(self.device)

    def check(self, tiles: Tiles) -> None:
        """A pass, to the last bit."""
        (result, expected) = (
            each.run_tile([1, 2, 3, 4], 0, 1) for each in (tiles, golden(self.found.model))
        )
        np.testing.assert_array_equal(result.logits, expected.logits)
        np.testing.assert_array_equal(result.scale, expected.scale)
        np.testing.assert_array_equal(result.argmax, expected.argmax)


@pytest.fixture(scope="session")
def found(packed: Packed, program: Callable[[str], Program]) -> Find:
    """A random model with its program."""
    return cache(lambda name: Compiled(packed(name), program(name)))


@pytest.fixture
def board(found: Find) -> Iterator[Board]:
    made = Board(found("least"))
    yield made
    made.device.close()
    made.card.close()


@pytest.mark.parametrize("interface", Interface)
def test_it_computes_what_golden_does(interface: Interface, found: Find) -> None:
    """By the interface of today's XRT and by those before."""
    board = Board(found("least"), interface=interface, seed=3)
    tiles = board.load()
    board.check(tiles)
    texts = [[1, 2, 3, 4, 5], [9, 8], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7], [6]]
    check_mixtures(board.device, golden(board.found.model).device, texts)
    assert ("hw_context" in board.card.calls) == (interface is not Interface.LOADED)
    assert ("load_xclbin" in board.card.calls) == (interface is Interface.LOADED)
    board.device.close()
    assert board.card.free_bytes == board.card.board.buffer_bytes


def test_it_is_chosen_by_name() -> None:
    device, notes = choose_device("xrt", emulate="u55c")
    assert isinstance(device, AcceleratorDevice) and isinstance(device.transport, XrtTransport)
    assert (device.transport.emulated, notes) == ("u55c", [])
    with pytest.raises(LutraError, match=r"^device pynq drives no u55c: choose device xrt, or em"):
        choose_device("pynq", emulate="u55c")


def test_it_is_found_before_it_is_loaded(board: Board) -> None:
    """Nothing of it is taken."""
    board.device.find()
    assert not board.card.calls
    missing = XrtTransport(card=1, module=board.card.module)
    with pytest.raises(
        DeviceError, match=r"^device xrt: no card could be opened \(.*: run `xbutil "
    ):
        missing.find()


def test_its_clock_is_the_boards(board: Board) -> None:
    """The configuration is built for more than what the clock generator of a KV260 gives."""
    board.load()
    config = board.found.program.config
    assert board.device.facts()["target_clock_hz"] == config.clock_hz == 200_000_000
    board.transport.emulated = "kv260"
    assert board.device.facts()["target_clock_hz"] == 187_498_125


def test_it_has_no_registers() -> None:
    transport = XrtTransport()
    assert isinstance(transport, DoorbellTransport)
    assert not isinstance(transport, RegisterTransport)


def test_calls_of_a_token(board: Board) -> None:
    """No buffer is allocated after the model was loaded, and no run is made."""
    tiles = board.load()
    tiles.run_tile([1], 0, 0)
    board.card.calls.clear()
    tiles.run_tile([2], 1, 0)
    # the descriptor; its result block, and the logits
    assert board.card.calls == {"sync": 3, "start": 1, "wait": 1}


def test_runs_are_queued(board: Board) -> None:
    """They are carried out in order, each with its own descriptor, and can be started again."""
    board.load()
    transport, config, n = board.transport, board.found.program.config, QUEUE_DEPTH + 1
    line, at = line_bytes(config), transport.allocate(n * PAGE)
    for tag in range(2):
        for i in range(n):
            base = at + i * PAGE
            sums = Descriptor(
                fingerprint=config.fingerprint,
                result_base=base,
                kind=Kind.CHECKSUM,
                tag=n * tag + i,
                program_base=base + PAGE // 2,
                program_bytes=line,
            )
            transport.write(base, (bytes(PAGE // 2) + sums.encode(line)).ljust(PAGE, b"\0"))
            transport.ring(base + PAGE // 2)
        with pytest.raises(DeviceError, match=r"^4 descriptors wait already: wait for one of them"):
            transport.ring(at)
        for i in range(n):
            transport.wait(10)
            result = Result.decode(transport.read(at + i * PAGE, RESULT_BYTES))
            assert (result.tag, result.status) == (n * tag + i, STATUS_DONE)
    with pytest.raises(DeviceError, match=r"^device xrt waits for a run, and none was started$"):
        transport.wait(10)
    with pytest.raises(ValueError, match=r"^address must be a multiple of 256, not 0x"):
        transport.ring(at + 128)


# -- traps of XRT, which the emulated module has


def test_an_argument_that_does_not_fit_is_not_set(board: Board) -> None:
    """And nobody says so; that is why the address is given as a buffer."""
    board.load()
    module = board.card.module()
    kernel = module.kernel(module.hw_context(module.device(0), _image(board)), KERNEL)
    run = kernel(1 << 40)
    assert (run._argument, run.wait(1000)) == (0, module.ert_cmd_state.ERT_CMD_STATE_COMPLETED)
    with pytest.raises(TypeError):
        module.run(kernel).set_arg(0, 1 << 31)
    assert not hasattr(module, "ip") and not hasattr(kernel, "read_register")


def _image(board: Board) -> str:
    return str(board.card.image(board.found.program.config))


def test_a_missing_sync_shows(board: Board) -> None:
    board.load()
    transport = board.transport
    at = transport.allocate(PAGE)
    transport.write(at, b"\x11" * PAGE)
    (buffer,) = (each for each in transport._buffers if each.address == at)
    buffer._view[:4] = b"\x22" * 4
    assert board.kernels[0].peek(at, 4) == b"\x11" * 4
    board.kernels[0].write(at, b"\x33" * 4)
    assert bytes(buffer._view[:4]) == b"\x22" * 4
    assert transport.read(at, 4) == b"\x33" * 4


# -- faults: each is one line


def _refused(board: Board, message: str, kind: type[LutraError] = DeviceError) -> None:
    with pytest.raises(kind, match=message) as error:
        board.load()
    assert "\n" not in str(error.value)
    # what was made where it was raised is kept by its traceback
    del error
    gc.collect()
    assert board.card.free_bytes == board.card.board.buffer_bytes


def test_another_configuration(board: Board) -> None:
    """The image says one thing, the hardware in it is another."""
    config = board.found.program.config
    board.built_for = config.with_(name="other", max_context=config.max_context * 2)
    _refused(
        board,
        rf"^device xrt is built from configuration {board.built_for.fingerprint:016x}, the "
        rf"program for {config.name} \({config.fingerprint:016x}\): build the accelerator again",
    )


def test_no_accelerator_of_ours(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interpreter, "run_descriptor", lambda self, address: None)
    _refused(
        board,
        r"^device xrt does not carry out descriptors of version \d: it is no Lutra accelerator, "
        "load its bitstream again$",
    )


def test_memory_that_loses_bits(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    write = InterpretedKernel.write

    def weak(self: InterpretedKernel, address: int, data: Any) -> None:
        # a byte that means nothing
        changed = bytearray(data)
        if len(changed) > 200:
            changed[200] ^= 4
        write(self, address, changed)

    monkeypatch.setattr(InterpretedKernel, "write", weak)
    _refused(
        board,
        "^the accelerator of device xrt reads other bytes than were written: check the memory of "
        "the card$",
    )


@pytest.mark.parametrize(("segment", "name"), [(-1, "weights"), (0, "code")])
def test_an_image_that_loses_a_bit(
    segment: int, name: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accelerator's checksum of the model is not that of what was written."""
    write, data = InterpretedKernel.write, board.found.program.segments[segment].data

    def weak(self: InterpretedKernel, address: int, written: Any) -> None:
        changed = bytearray(written)
        if len(changed) == len(data):
            changed[-1] ^= 0x80
        write(self, address, changed)

    with monkeypatch.context() as patch:
        patch.setattr(InterpretedKernel, "write", weak)
        _refused(
            board,
            rf"^the accelerator of device xrt reads other bytes of the model's {name} than were "
            "written, from 0x[0-9a-f]+ to 0x[0-9a-f]+: check the memory of the board$",
        )
    board.check(board.load())


def test_a_large_image_is_summed_in_pieces(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    monkeypatch.setattr(image, "_PIECE", 1 << 12)
    board.device = AcceleratorDevice(
        board.transport, progress=lambda stage, share: said.append(f"{stage} {share:.2f}")
    )
    board.check(board.load())
    program = board.found.program
    n = sum(-(-program.n_bytes(kind) // (1 << 12)) for kind in SegmentKind)
    assert n > 2 and len(said) == n
    assert said[-1] == "checking the loaded model 1.00"


def test_memory_in_pieces(board: Board) -> None:
    """Sessions take the largest piece there is."""
    board.card.faults.hole_bytes = 1 << 24
    tiles = board.load()
    assert board.device.memory.free_bytes < 1 << 24
    board.check(tiles)


@pytest.mark.parametrize("mhz", [0, 500])
def test_a_clock_that_is_not_the_kernels(mhz: float, board: Board) -> None:
    """XRT does not know it, or there is a faster one beside it."""
    board.card.faults.clock_mhz = mhz
    board.check(board.load())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            {"clock_mhz": 150},
            r"^the kernel of device xrt runs at 150\.0 MHz at most, its image is built for 200\.0 ",
        ),
        (
            {"hole_bytes": 1 << 12},
            r"^device xrt: the card has no [\d,]+ bytes of memory in a row \(.*\): close other",
        ),
        (
            {"short_buffers": True},
            r"^the card gave [\d,]+ bytes of memory instead of [\d,]+: close other programs",
        ),
        (
            {"busy": True},
            r"^device xrt: .*xclbin could not be loaded \(failed to open ip context: .* busy\): s",
        ),
        (
            {"failed": "ERT_CMD_STATE_ABORT"},
            r"^a run of device xrt failed with .*: run `xbutil reset -d emulated-u55c-",
        ),
    ],
)
def test_a_card_that_does_not_do_it(board: Board, fault: dict[str, Any], message: str) -> None:
    for name, value in fault.items():
        setattr(board.card.faults, name, value)
    _refused(board, message)
    for name, value in vars(type(board.card.faults)()).items():
        setattr(board.card.faults, name, value)
    board.check(board.load())


def test_an_image_that_is_none(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "other.xclbin"
    board.transport = XrtTransport(xclbin=path, module=board.card.module)
    board.device = AcceleratorDevice(board.transport)
    _refused(board, r"^device xrt: .*other\.xclbin could not be loaded \(failed to open file")
    path.write_text("nothing")
    _refused(board, r"^device xrt: .* \(failed to load xclbin .*: Invalid argument\): see that the")


def test_no_image_and_no_module(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    board.device = AcceleratorDevice(XrtTransport(module=board.card.module))
    _refused(board, r"^there is no bitstream of configuration .*: make one with `lut", LutraError)
    board.device = AcceleratorDevice(XrtTransport(xclbin=board.card.image))
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    _refused(board, r"^device xrt needs XRT's Python module \(.*\): install XRT 2\.14", LutraError)


def test_a_second_process(board: Board) -> None:
    code = (
        "import sys; from lutra.devices.accelerator.lock import BoardLock;"
        f"BoardLock('xrt-{board.card.place}').acquire('xrt'); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        _refused(board, rf"^device xrt is in use by process {other.pid}: wait until it is done")
        other.communicate()
    board.check(board.load())


def test_a_run_that_does_not_end(found: Find) -> None:
    """It cannot be aborted; when it ends after all, the next run is right."""
    board = Board(found("least"), timeout_s=0.3)
    tiles = board.load()
    kernel = board.kernels[0]
    kernel.stalled = True
    patience = pytest.MonkeyPatch()
    patience.setattr("lutra.devices.accelerator.xrt._DRAIN_S", 0.3)
    try:
        for _ in range(2):
            with pytest.raises(
                DeviceError, match=r"^a run of device xrt does not end: run `xbutil reset -d .*`, t"
            ):
                tiles.run_tile([1], 0, 0)
    finally:
        patience.undo()
    kernel.stalled = False
    board.check(tiles)
    board.device.close()


def test_a_run_that_is_late(found: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result is not waited for any longer, and it ends before the next one begins."""
    board = Board(found("least"), timeout_s=0.3)
    tiles = board.load()
    kernel = board.kernels[0]
    kernel.stalled = True
    reset = board.transport.reset

    def goes_on() -> None:
        kernel.stalled = False
        reset()

    monkeypatch.setattr(board.transport, "reset", goes_on)
    with pytest.raises(DeviceError, match=r"^a run of device xrt is not over after 0\.3 s$"):
        tiles.run_tile([1], 0, 0)
    with pytest.raises(DeviceError, match=r"^device xrt waits for a run, and none was started$"):
        board.transport.wait(1)
    board.check(tiles)
    board.device.close()


def test_a_program_that_is_broken(board: Board) -> None:
    """The accelerator's error comes in the result block."""
    tiles = board.load()
    address = board.device.addresses["PROGRAM_BASE"]
    size = len(board.found.program.code)
    code = board.transport.read(address, size)
    board.transport.write(address, b"\x80" + code[1:])
    with pytest.raises(DeviceError, match=r"^device xrt.*: .*opcode"):
        tiles.run_tile([1], 0, 0)
    board.transport.write(address, code)
    board.check(tiles)


def test_closed(board: Board) -> None:
    board.load()
    board.device.close()
    with pytest.raises(DeviceError, match=r"^device xrt is closed: load the model again$"):
        board.transport.allocate(1)
    with pytest.raises(DeviceError, match=r"^1 bytes at 0x0 lie in no buffer of device xrt: load"):
        board.transport.read(0, 1)
