"""The Verilated accelerator in this process: memory, registers, runs, counters, traces."""

import ctypes
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lutra_golden.control.ap_ctrl import WINDOW, XRT_ADDR_WIDTH
from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.control.failure import Failure, describe_units
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    CONTROL_START,
    COUNTERS,
    IDENT,
    REGISTERS,
    STATUS_ERROR,
    VERSION,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Response, Top
from lutra_golden.matmul.engine import LANES
from lutra_golden.timing.memory import NANO_MEMORY, MemoryTiming
from lutra_sim.rtl.build import Progress, build
from lutra_sim.rtl.settings import Settings

__all__ = ["RtlError", "RtlModel", "Simulator", "coverage_folder", "quiet_cycles"]

_QUIET_CYCLES = 20_000
_SILENCE = 4  # Disturbance::kSilence
_SLICE_CYCLES = 5000  # a fraction of a second, so that Ctrl-C is heard
_REBUILD = "run `make clean run`, which builds it anew"
_M = TypeVar("_M", bound="RtlModel")


class RtlError(RuntimeError):
    """The simulated accelerator broke a rule or got stuck; the message is one line."""


class RtlModel:
    """A top module of ``config``, simulated cycle by cycle, and the memory behind it.

    Reading an unwritten byte raises an error in the reader, be it the accelerator or this process;
    what need not be written by the accelerator is set with :meth:`zero`. After an
    :class:`RtlError` memory can still be read, but nothing runs until :meth:`reset`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
    memory_bytes : int
        Size of the memory; its addresses begin at 0.
    timing : :class:`MemoryTiming`
    top : :class:`Top`
        Top-level module.
    trace_path :
        File for a trace, in a folder that exists: ``.vcd``, or ``.fst``.
    trace_cycles :
        First cycle of the trace, and the one behind its last.
    traceable :
        Build a simulator that can begin a trace later: see :meth:`trace`.
    coverage :
        Leave line coverage in :func:`coverage_folder` when closed; ``LUTRA_COVERAGE=1`` in the
        environment decides when None.
    watchdog_cycles :
        Cycles without any progress that end a run; 0 is never. By default more than a unit works
        on what is there already, see :func:`quiet_cycles`.
    progress :
        Called with the progress of a build; see :func:`build`.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        memory_bytes: int,
        timing: MemoryTiming = NANO_MEMORY,
        *,
        top: Top = Top.ACCELERATOR,
        trace_path: Path | None = None,
        trace_cycles: tuple[int, int] | None = None,
        traceable: bool = False,
        coverage: bool | None = None,
        watchdog_cycles: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if memory_bytes < 1:
            raise ValueError(f"memory_bytes must be positive, not {memory_bytes}")
        if watchdog_cycles is None:
            watchdog_cycles = quiet_cycles(config)
        if watchdog_cycles < 0:
            raise ValueError(f"watchdog_cycles must not be negative, not {watchdog_cycles}")
        if coverage is None:
            coverage = os.environ.get("LUTRA_COVERAGE") == "1"
        self.config, self.memory_bytes, self.timing, self.top = config, memory_bytes, timing, top
        self._coverage = coverage
        self._handle: int | None = None
        trace = _trace_format(trace_path) or ("vcd" if traceable else None)
        path = build(config, top=top, trace=trace, coverage=coverage, progress=progress)
        self._library = _load(path)
        settings = Settings.of(timing, config, watchdog_cycles=watchdog_cycles)
        self.clock_ps: int = settings.clock_ps
        """Picoseconds of a clock cycle in a trace."""
        self._handle = self._library.lutra_create(memory_bytes, settings)
        if not self._library.lutra_created(self._handle):
            message = self._error()
            self._destroy()
            raise RtlError(message)
        try:
            if trace_path is not None:
                self.trace(trace_path, trace_cycles)
            self._begin()
        except BaseException:
            self._destroy()
            raise

    def _begin(self) -> None:
        """Prepare the accelerator that was made."""

    @property
    def cycles(self) -> int:
        """Clock cycles since the device was made."""
        return self._library.lutra_cycles(self._open())

    def write(self, address: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Write ``data`` to memory."""
        if not (data.nbytes if isinstance(data, np.ndarray | memoryview) else len(data)):
            return
        array = np.frombuffer(data, np.uint8)
        self._check_range(address, array.size)
        self._call("write", address, array.ctypes.data, array.size)

    def read(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes of memory, all of which must have been written."""
        self._check_range(address, size)
        written = self._library.lutra_written(self._open(), address, size)
        if written < size:
            raise RtlError(
                f"the host reads {size} bytes at {address:#x}, of which {address + written:#x} "
                "was never written"
            )
        return self.peek(address, size)

    def peek(self, address: int, size: int) -> bytes:
        """``size`` bytes of memory, of which those that were never written are zero."""
        self._check_range(address, size)
        data = np.empty(size, np.uint8)
        self._call("read", address, data.ctypes.data, size)
        return data.tobytes()

    def zero(self, address: int, size: int) -> None:
        """Write ``size`` zero bytes to memory."""
        self._check_range(address, size)
        self._call("zero", address, size)

    def read_word(self, address: int) -> int:
        """Read 32 bits at an address of the top module's control port, by AXI4-Lite."""
        value = ctypes.c_uint32()
        self._call("read_register", self._control(address), ctypes.byref(value))
        return value.value

    def write_word(self, address: int, value: int) -> None:
        """Write 32 bits to an address of the top module's control port, by AXI4-Lite."""
        if not 0 <= value < 1 << 32:
            raise ValueError(f"a word at {address:#x} must fit 32 bits, not {value}")
        self._call("write_register", self._control(address), value)

    def read_register(self, name: str, index: int = 0) -> int:
        """Read a register of :data:`REGISTERS`."""
        return self.read_word(self._window + _address(name, index, "wo"))

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register of :data:`REGISTERS`."""
        address = _address(name, index, "ro")
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{name} must fit 32 bits, not {value}")
        self.write_word(self._window + address, value)

    def reset(self) -> None:
        """Reset the accelerator and forget its last error; memory stays as it is."""
        self._call("reset")

    def run(self, n_cycles: int) -> bool:
        """Simulate up to ``n_cycles``; True as soon as the interrupt is up."""
        return bool(self._call("run", n_cycles))

    def disturb(
        self,
        port: int,
        at: int | None,
        response: int | None = Response.SLVERR,
        *,
        writes: bool = False,
    ) -> None:
        """Answer transfer ``at`` of a port, counted from now on from 0, with ``response``.

        A transfer is a beat that is read, or a burst that is written. The data of a beat are random
        then, and those of a burst are lost. With a ``response`` of None the port does not answer
        this transfer, nor any later one. ``at`` is None where all is well.
        """
        never = (1 << 64) - 1
        code = _SILENCE if response is None else response
        self._call("disturb", port, writes, never if at is None else at, code)

    def transfers(self, port: int, *, writes: bool = False) -> int:
        """Transfers of a port since the last :meth:`disturb` of it."""
        return self._library.lutra_transfers(self._open(), port, writes)

    def trace(
        self,
        path: Path,
        cycles: tuple[int, int] | None = None,
        scopes: Sequence[str] = (),
    ) -> None:
        """Write a trace from now on, in the place of one that is being written.

        ``cycles`` are its first cycle and the one behind its last. ``scopes``, paths of instances
        such as ``accelerator.core.load``, limit it to their own signals. Only of a simulator that
        was built for traces.
        """
        first, end = cycles or (0, 1 << 63)
        # below the scope that Verilator has on top
        lines = "".join(f"TOP.{scope}\n" for scope in scopes)
        self._call("trace_open", os.fsencode(path), first, end, lines.encode())

    def end_trace(self) -> None:
        """Write out the trace; it is complete afterwards."""
        self._call("trace_close")

    def close(self) -> None:
        """End the trace, leave the coverage, free the memory; a second call does nothing."""
        if self._handle is None:
            return
        try:
            self._call("trace_close")
            if self._coverage:
                folder = coverage_folder()
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"accelerator-{uuid.uuid4().hex}.dat"
                self._call("write_coverage", os.fsencode(path))
        finally:
            self._destroy()

    def __enter__(self: _M) -> _M:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._destroy()

    def _failure(self) -> Failure:
        address = self.read_register("ERROR_ADDRESS") | self.read_register("ERROR_ADDRESS", 1) << 32
        return Failure.of(self.read_register("ERROR"), address)

    @property
    def _window(self) -> int:
        """Address of the accelerator's registers."""
        return WINDOW if self.top == Top.XRT else 0

    def _control(self, address: int) -> int:
        width = XRT_ADDR_WIDTH if self.top == Top.XRT else WINDOW.bit_length() - 1
        if not 0 <= address < 1 << width or address % 4:
            raise ValueError(
                f"address of a word must be in 0..{(1 << width) - 4:#x}, not {address:#x}"
            )
        return address

    def _check_range(self, address: int, size: int) -> None:
        if address < 0 or size < 0 or address + size > self.memory_bytes:
            raise ValueError(
                f"{size} bytes at {address:#x} lie outside the memory of {self.memory_bytes} bytes"
            )

    def _open(self) -> int:
        if self._handle is None:
            raise RtlError("the device is closed")
        return self._handle

    def _call(self, function: str, *arguments: object) -> int:
        result = getattr(self._library, f"lutra_{function}")(self._open(), *arguments)
        if result < 0:
            message = self._error()
            self._end_trace()
            raise RtlError(message)
        return result

    def _error(self) -> str:
        return self._library.lutra_error(self._handle).decode(errors="replace")

    def _end_trace(self) -> None:
        """Write out the trace: it is wanted most where the run fails."""
        self._library.lutra_trace_close(self._handle)

    def _destroy(self) -> None:
        handle, self._handle = self._handle, None
        self._library.lutra_destroy(handle)


class Simulator(RtlModel):
    """:class:`Accelerator` as a :class:`RtlModel`, with its runs.

    An accelerator of another configuration, or of another version of the register map, is refused.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        memory_bytes: int,
        timing: MemoryTiming = NANO_MEMORY,
        *,
        trace_path: Path | None = None,
        trace_cycles: tuple[int, int] | None = None,
        traceable: bool = False,
        coverage: bool | None = None,
        watchdog_cycles: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._started = 0
        # cycles in which the doorbells rang that were not waited for; some of them are over
        self._rung, self._n_over, self._ended = deque[int](), 0, 0
        super().__init__(
            config,
            memory_bytes,
            timing,
            trace_path=trace_path,
            trace_cycles=trace_cycles,
            traceable=traceable,
            coverage=coverage,
            watchdog_cycles=watchdog_cycles,
            progress=progress,
        )

    def _begin(self) -> None:
        self._check_identity()
        self.write_register("IRQ_ENABLE", 1)

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register of :data:`REGISTERS`; an abort drops the runs that were rung."""
        super().write_register(name, value, index)
        if name == "CONTROL" and value & CONTROL_ABORT:
            self._forget()

    def start(self) -> None:
        """Start a run."""
        self._started = self.cycles
        self.write_register("IRQ_STATUS", 1)
        self.write_register("CONTROL", CONTROL_START)

    def ring(self, address: int) -> None:
        """Queue the descriptor at ``address``: one write of a register."""
        if address % DOORBELL_BYTES:
            raise ValueError(f"address must be a multiple of {DOORBELL_BYTES}, not {address:#x}")
        if len(self._rung) - self._n_over > QUEUE_DEPTH:
            self._look()
        if len(self._rung) - self._n_over > QUEUE_DEPTH:
            raise RtlError(f"{QUEUE_DEPTH} descriptors wait already: wait for one of them first")
        self.write_register("DOORBELL", address // DOORBELL_BYTES)
        self._rung.append(self.cycles)

    def wait(self, max_cycles: int | None = None, timeout_s: float | None = None) -> int:
        """Wait for the interrupt of the run that was started; the cycles that it took.

        If doorbells were rung, wait for the end of the first descriptor, and return the cycles
        since then; how it ended is in its result block. RtlError after ``max_cycles`` of the run,
        or after ``timeout_s`` of simulating it.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        if self._rung:
            while self._n_over < 1:
                self._interrupted(self._rung[0], max_cycles, end)
                self._ended = self.cycles
                self.write_register("IRQ_STATUS", 1)
                self._look()
            self._n_over -= 1
            return self._ended - self._rung.popleft()
        self._interrupted(self._started, max_cycles, end)
        cycles = self.cycles - self._started
        if self.read_register("STATUS") & STATUS_ERROR:
            self._end_trace()
            raise RtlError(f"after {cycles} cycles: {self._failure().describe(self.config)}")
        return cycles

    def start_and_wait(self, max_cycles: int | None = None) -> int:
        """Start a run, wait for its interrupt, and return the cycles that it took."""
        self.start()
        return self.wait(max_cycles)

    def counters(self) -> dict[str, int]:
        """The performance counters of the last run, named as in :data:`COUNTERS`."""
        words = [self.read_register("COUNTER", index) for index in range(2 * len(COUNTERS))]
        pairs = zip(words[::2], words[1::2], strict=True)
        return {name: low | high << 32 for name, (low, high) in zip(COUNTERS, pairs, strict=True)}

    def reset(self) -> None:
        """Reset the accelerator and forget its last error; memory stays as it is."""
        super().reset()
        self._forget()
        self.write_register("IRQ_ENABLE", 1)

    def reset_core(self, n_cycles: int) -> None:
        """Reset the accelerator alone for ``n_cycles``, while its memory goes on answering."""
        if n_cycles < 1:
            raise ValueError(f"n_cycles must be positive, not {n_cycles}")
        self._call("reset_core", n_cycles)
        self._forget()
        self.write_register("IRQ_ENABLE", 1)

    def _interrupted(self, first: int, max_cycles: int | None, end: float | None) -> None:
        """Simulate until the interrupt is up, at most ``max_cycles`` from cycle ``first`` on, and
        to ``end`` of the clock of this machine."""
        while True:
            passed = self.cycles - first
            left = None if max_cycles is None else max_cycles - passed
            late = end is not None and time.monotonic() >= end
            if late or (left is not None and left <= 0):
                units = describe_units(self.read_register("UNIT_STATE"))
                self._end_trace()
                raise RtlError(f"not done after {passed if late else max_cycles} cycles: {units}")
            if self._call("run", _SLICE_CYCLES if left is None else min(left, _SLICE_CYCLES)):
                return

    def _look(self) -> None:
        """See how many descriptors are over."""
        self._n_over = len(self._rung) - self.read_register("PENDING")

    def _forget(self) -> None:
        """Descriptors that were not waited for are dropped."""
        self._rung.clear()
        self._n_over = self._ended = 0

    def _check_identity(self) -> None:
        name, config = self.config.name, self.config
        ident, version = self.read_register("IDENT"), self.read_register("VERSION")
        if ident != IDENT:
            raise RtlError(
                f"IDENT of the simulator is {ident:#010x}, not {IDENT:#010x}: {_REBUILD}"
            )
        if version != VERSION:
            raise RtlError(
                f"the simulator has version {version} of the register map and this program needs "
                f"{VERSION}: {_REBUILD}"
            )
        low, high = self.read_register("FINGERPRINT", 0), self.read_register("FINGERPRINT", 1)
        fingerprint = low | high << 32
        if fingerprint != config.fingerprint:
            raise RtlError(
                f"the simulator's fingerprint is {fingerprint:#018x} and that of the "
                f"configuration '{name}' is {config.fingerprint:#018x}: {_REBUILD}"
            )


def quiet_cycles(config: AcceleratorConfig) -> int:
    """Cycles in which nothing has to move while a unit of ``config`` works: a norm goes through the
    words of all tokens of a pass three times."""
    return _QUIET_CYCLES + 4 * config.pass_tokens * config.matmul.depth_max // LANES


def coverage_folder() -> Path:
    """Folder of coverage data: ``$LUTRA_COVERAGE_DIR``, or ``build/coverage``."""
    return Path(os.environ.get("LUTRA_COVERAGE_DIR") or Path("build") / "coverage").absolute()


def _trace_format(path: Path | None) -> str | None:
    if path is None:
        return None
    if path.suffix not in (".vcd", ".fst"):
        raise ValueError(f"trace_path must end in .vcd or .fst, not '{path.name}'")
    return path.suffix[1:]


def _address(name: str, index: int, forbidden: str) -> int:
    register = REGISTERS.get(name)
    if register is None:
        raise ValueError(f"register must be one of {', '.join(REGISTERS)}, not '{name}'")
    if not 0 <= index < register.count:
        raise ValueError(f"index of {name} must be in 0..{register.count - 1}, not {index}")
    if register.access == forbidden:
        raise ValueError(f"{name} can{'not be written' if forbidden == 'ro' else 'not be read'}")
    return register.address + 4 * index


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    device, size, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p
    data, word, settings = ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(Settings)
    functions: dict[str, tuple[Any, list[Any]]] = {
        "create": (device, [size, settings]),
        "created": (ctypes.c_int, [device]),
        "destroy": (None, [device]),
        "error": (text, [device]),
        "cycles": (size, [device]),
        "reset": (ctypes.c_int, [device]),
        "reset_core": (ctypes.c_int, [device, size]),
        "disturb": (ctypes.c_int, [device, word, ctypes.c_int, size, word]),
        "transfers": (size, [device, word, ctypes.c_int]),
        "write": (ctypes.c_int, [device, size, data, size]),
        "zero": (ctypes.c_int, [device, size, size]),
        "read": (ctypes.c_int, [device, size, data, size]),
        "written": (size, [device, size, size]),
        "write_register": (ctypes.c_int, [device, word, word]),
        "read_register": (ctypes.c_int, [device, word, ctypes.POINTER(word)]),
        "run": (ctypes.c_int, [device, size]),
        "trace_open": (ctypes.c_int, [device, text, size, size, text]),
        "trace_close": (ctypes.c_int, [device]),
        "write_coverage": (ctypes.c_int, [device, text]),
    }
    for name, (result, arguments) in functions.items():
        function: Callable[..., Any] = getattr(library, f"lutra_{name}")
        function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]
    return library
