"""An Alveo card that is not here: the Verilated kernel, its memory, and a module like ``pyxrt``."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from lutra.devices.accelerator.transport import Heap
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import DeviceError
from lutra_golden.control.ap_ctrl import KERNEL
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.timing.boards import BoardProfile, board_timing

__all__ = ["CardFaults", "EmulatedCard", "Interface", "Kernel", "emulated_xrt"]

Progress = Callable[[str, float], None]
_CALL_CYCLES = (0, 2000)  # of the kernel, while the host is in a call of XRT
_SLICE_CYCLES = 5000  # between looks at the clock on the wall
_INT = range(-(1 << 31), 1 << 31)  # C
_GROUP = 0x2_0001  # of the kernel's memory, as XRT numbers groups of banks
_numbers = itertools.count()


class Kernel(Protocol):
    """The kernel of an image and the memory behind it, as :class:`~lutra_sim.rtl.xrt.XrtKernel`."""

    config: AcceleratorConfig

    def write(self, address: int, data: Any) -> None:
        """Write to memory."""
        ...

    def peek(self, address: int, size: int) -> bytes:
        """Read memory, be it written or not."""
        ...

    def start(self, argument: int) -> None:
        """Start a run."""
        ...

    def wait(self, max_cycles: int | None = None) -> bool:
        """Wait for the end of the first run; False after ``max_cycles``."""
        ...

    def look(self) -> None:
        """See if a run is over, as XRT does at an interrupt."""
        ...

    def run(self, n_cycles: int) -> bool:
        """Let the clock run and see nothing; True if the interrupt is up."""
        ...

    def reset(self) -> None:
        """End all runs, whatever they do; memory stays."""
        ...

    def close(self) -> None:
        """Take it away."""
        ...


class Interface(Enum):
    """The names of a module ``pyxrt``, from XRT 2.14 on."""

    LOADED = 0
    """Images are loaded into the device, which has kernels and buffers."""
    CONTEXTS = 1
    """Kernels belong to a ``hw_context``, buffers to the device."""
    BUFFERS = 2
    """Both may belong to a ``hw_context``."""


@dataclass
class CardFaults:
    """Faults that are injected, beside those of the memory ports.

    With ``busy`` another process has the kernel. ``short_buffers`` gives half of the bytes that
    were asked for, ``hole_bytes`` is the largest piece of memory in a row, ``failed`` is a
    state in which the next run ends for XRT, whatever the kernel does. With ``lost_interrupts`` XRT
    does not see that a run is over; ``extra_interrupts`` are how many are still to come for no
    reason. ``reset_after`` resets the kernel so many clock cycles from now, and what runs is
    aborted. ``clock_mhz`` is what the kernel runs at in the place of what it is built for.
    """

    busy: bool = False
    short_buffers: bool = False
    hole_bytes: int | None = None
    failed: str | None = None
    lost_interrupts: bool = False
    extra_interrupts: int = 0
    reset_after: int | None = None
    clock_mhz: float | None = None


class EmulatedCard:
    """A card in this process, which holds the image that was loaded last.

    Latencies are drawn from ``seed``. A clock cycle passes only while the host is in a call.
    ``interface`` is that of the module. ``place`` is the address on the bus, by which a second
    driver is kept away; by default no other card has the same. ``kernels`` makes the kernel of a
    configuration, the Verilated one by default.
    """

    def __init__(
        self,
        board: BoardProfile,
        *,
        seed: int = 0,
        interface: Interface = Interface.BUFFERS,
        place: str | None = None,
        kernels: Callable[[AcceleratorConfig], Kernel] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.board, self.faults, self.interface = board, CardFaults(), interface
        self.random = random.Random(seed)
        self.place = place or f"emulated-{board.name}-{os.getpid()}-{next(_numbers)}"
        self.calls: dict[str, int] = {}
        """Calls of XRT so far, by name."""
        self._seed, self._progress, self._kernels = seed, progress, kernels or self._build
        self._folder = tempfile.TemporaryDirectory(prefix="lutra-emulated-")
        self._configs: dict[str, AcceleratorConfig] = {}
        self._kernel: Kernel | None = None
        self._heap = Heap(board.buffer_bytes)
        self._under_way = deque[Any]()

    # -- images

    def image(self, config: AcceleratorConfig) -> Path:
        """Write the image of ``config``, which is its fingerprint."""
        name = f"{config.fingerprint:016x}"
        self._configs[name] = config
        path = Path(self._folder.name) / f"{name}.xclbin"
        path.write_text(name, encoding="ascii")
        return path

    def load(self, path: str) -> None:
        """Load an image, unless it is the one that is there."""
        try:
            config = self._configs[Path(path).read_text(encoding="ascii")]
        except (OSError, KeyError):
            raise RuntimeError(f"failed to load xclbin {path}: Invalid argument") from None
        if self._kernel is not None:
            if self._kernel.config.fingerprint == config.fingerprint:
                return
            self._kernel.close()
        self._under_way.clear()
        self._kernel = self._kernels(config)

    def _build(self, config: AcceleratorConfig) -> Kernel:
        from lutra_sim.rtl.build import BuildError
        from lutra_sim.rtl.device import RtlError
        from lutra_sim.rtl.toolchain import ToolchainError
        from lutra_sim.rtl.xrt import XrtKernel

        board = self.board
        try:
            return XrtKernel(
                config,
                board.buffer_base + board.buffer_bytes,
                board_timing(board, config, self._seed),
                watchdog_cycles=0,
                progress=self._progress,
            )
        except ModuleNotFoundError as error:
            raise LutraError(
                f"the emulated card needs {error.name}, which is not installed: run "
                f"`{install_command('sim')}`"
            ) from None
        except (BuildError, RtlError, ToolchainError) as error:
            raise DeviceError(str(error)) from None

    @property
    def kernel(self) -> Kernel:
        """The kernel of the image that was loaded."""
        if self._kernel is None:
            raise RuntimeError("No xclbin is loaded")
        return self._kernel

    # -- calls

    def call(self, name: str) -> None:
        """Count a call; some clock cycles pass."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if self._kernel is not None and self._under_way:
            self._step(self.random.randint(*_CALL_CYCLES))

    def start(self, run: Any, argument: int) -> None:
        """Start the kernel for ``run``."""
        self.kernel.start(argument)
        self._under_way.append(run)

    def await_run(self, run: Any, timeout_ms: int) -> bool:
        """Simulate until ``run`` is over; False after as much time on the wall, 0 is for ever.

        A kernel that breaks a rule is a RuntimeError; a real one would give garbage, or hang.
        """
        end = time.monotonic() + timeout_ms / 1000
        while not run.is_over:
            self._step(_SLICE_CYCLES)
            if timeout_ms and not run.is_over and time.monotonic() >= end:
                return False
        return True

    def _step(self, n_cycles: int) -> None:
        faults = self.faults
        if faults.extra_interrupts:
            faults.extra_interrupts -= 1
            self.kernel.look()
        if faults.reset_after is not None:
            n_cycles = min(n_cycles, faults.reset_after)
            faults.reset_after -= n_cycles
        if faults.lost_interrupts:
            self.kernel.run(n_cycles)
        else:
            while self._under_way and self.kernel.wait(n_cycles):
                self._under_way.popleft().is_over = True
        if faults.reset_after == 0:
            faults.reset_after = None
            self.reset()

    def reset(self) -> None:
        """Reset the kernel in whatever it does; XRT aborts what runs."""
        self.kernel.reset()
        while self._under_way:
            run = self._under_way.popleft()
            run.is_over = run.is_aborted = True

    def process_ends(self) -> None:
        """Let all runs end, as XRT does before others get the card of a process that was killed."""
        while self._under_way:
            self._step(_SLICE_CYCLES)

    @property
    def clock_mhz(self) -> float:
        """Clock of the kernel."""
        rate = self.faults.clock_mhz
        return self.kernel.config.clock_hz / 1e6 if rate is None else rate

    # -- memory

    def allocate(self, n_bytes: int) -> tuple[int, int]:
        """Address of a buffer, and its bytes."""
        hole = self.faults.hole_bytes
        try:
            if hole is not None and n_bytes > hole:
                raise DeviceError("none")
            address = self.board.buffer_base + self._heap.allocate(n_bytes)
        except DeviceError:
            raise MemoryError("failed to allocate userptr bo") from None
        return address, n_bytes // 2 if self.faults.short_buffers else n_bytes

    def free(self, address: int) -> None:
        """Give a buffer back."""
        self._heap.free(address - self.board.buffer_base)

    @property
    def free_bytes(self) -> int:
        """Bytes of no buffer."""
        return self._heap.free_bytes

    def close(self) -> None:
        """Take the card away."""
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            kernel.close()
        self._folder.cleanup()

    def module(self) -> Any:
        """A module like ``pyxrt`` for a machine with this card."""
        return _module(self)


class _Direction(IntEnum):
    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1


class _State(IntEnum):
    ERT_CMD_STATE_NEW = 1
    ERT_CMD_STATE_QUEUED = 2
    ERT_CMD_STATE_COMPLETED = 4
    ERT_CMD_STATE_ERROR = 5
    ERT_CMD_STATE_ABORT = 6
    ERT_CMD_STATE_SUBMITTED = 7
    ERT_CMD_STATE_TIMEOUT = 8


class _Flags(IntEnum):
    normal = 0
    device_only = 1 << 28
    host_only = 1 << 29


class _Access(IntEnum):
    exclusive = 0
    shared = 1


class _Image:
    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise RuntimeError(f"failed to open file {path}")
        self.path = path


class _Device:
    def __init__(self, card: EmulatedCard, which: int | str = 0) -> None:
        if which not in (0, card.place):
            raise RuntimeError(f"Could not open device with index '{which}'")
        self.card = card

    def get_info(self, key: str) -> str:
        if key == "max_clock_frequency_mhz":
            return str(int(self.card.clock_mhz))
        return self.card.place if key == "bdf" else self.card.board.part

    def load_xclbin(self, path: str) -> str:
        self.card.call("load_xclbin")
        self.card.load(path)
        return path

    def register_xclbin(self, image: _Image) -> str:
        return image.path


class _Context:
    def __init__(self, device: _Device, image: str) -> None:
        self.card = device.card
        self.card.call("hw_context")
        self.card.load(image)


class _Kernel:
    """The kernel; what cannot be given as an argument is not given, and nobody says so."""

    cu_access_mode = _Access

    def __init__(self, owner: _Device | _Context, *names: Any) -> None:
        card = self.card = owner.card
        name = names[0] if isinstance(owner, _Context) else names[1]
        if name != KERNEL:
            raise RuntimeError(f"No compute units found matching '{name}'")
        if card.faults.busy:
            raise RuntimeError("failed to open ip context: Device or resource busy")

    def group_id(self, index: int) -> int:
        if index:
            raise RuntimeError(f"no such argument index '{index}'")
        return _GROUP

    def __call__(self, *arguments: Any) -> _Run:
        run = _Run(self)
        for index, argument in enumerate(arguments):
            try:
                run.set_arg(index, argument)
            except (TypeError, RuntimeError):
                pass
        run.start()
        return run


class _Run:
    def __init__(self, kernel: _Kernel) -> None:
        self.card = kernel.card
        self.card.call("run")
        self.is_over, self.is_aborted = True, False
        self._argument, self._state = 0, _State.ERT_CMD_STATE_NEW

    def set_arg(self, index: int, value: Any) -> None:
        if index:
            raise RuntimeError(f"no such argument index '{index}'")
        if isinstance(value, _Bo):
            if value.group != _GROUP:
                raise RuntimeError("kernel argument is not connected to the buffer's memory")
            self._argument = value.address()
        elif isinstance(value, int) and value in _INT:
            # four bytes of a pointer
            self._argument = self._argument >> 32 << 32 | value & 0xFFFF_FFFF
        else:
            raise TypeError("set_arg(): incompatible function arguments")

    def start(self) -> None:
        if not self.is_over:
            raise RuntimeError("bad command state, can't launch")
        self.card.call("start")
        self.is_over = self.is_aborted = False
        self._state = _State.ERT_CMD_STATE_SUBMITTED
        self.card.start(self, self._argument)

    def wait(self, timeout_ms: int = 0) -> _State:
        if not 0 <= timeout_ms < 1 << 32:
            raise TypeError("wait(): incompatible function arguments")
        self.card.call("wait")
        if not self.card.await_run(self, timeout_ms):
            # which of the two depends on the driver
            return self.card.random.choice([self._state, _State.ERT_CMD_STATE_TIMEOUT])
        failed, self.card.faults.failed = self.card.faults.failed, None
        if self.is_aborted:
            failed = "ERT_CMD_STATE_ABORT"
        self._state = _State[failed] if failed else _State.ERT_CMD_STATE_COMPLETED
        return self._state


class _Bo:
    """A buffer of two copies, which only :meth:`sync` makes equal."""

    flags = _Flags

    def __init__(self, owner: Any, *arguments: int) -> None:
        self.parent = owner if isinstance(owner, _Bo) else None
        self.card: EmulatedCard = owner.card
        self.card.call("bo")
        if self.parent is not None:
            size, offset = arguments
            if offset + size > self.parent.size():
                raise RuntimeError("sub buffer size and offset")
            self.group, self._size = self.parent.group, size
            self._address = self.parent.address() + offset
            self._host = self.parent.map()[offset : offset + size]
            return
        if isinstance(owner, _Context) and self.card.interface is not Interface.BUFFERS:
            raise TypeError("bo(): incompatible constructor arguments")
        size, flags, self.group = arguments
        if flags != _Flags.normal or self.group != _GROUP:
            raise RuntimeError("unsupported buffer type: memory bank does not exist")
        self._address, self._size = self.card.allocate(size)
        # pages that nobody touches cost nothing
        self._host = np.zeros(self._size, np.uint8).data

    def __del__(self) -> None:
        if getattr(self, "_size", None) is not None and self.parent is None:
            self.card.free(self._address)

    def address(self) -> int:
        return self._address

    def size(self) -> int:
        return self._size

    def map(self) -> memoryview:
        return self._host

    def sync(self, direction: _Direction, size: int | None = None, offset: int = 0) -> None:
        self.card.call("sync")
        size = self._size if size is None else size
        if size < 0 or offset < 0 or offset + size > self._size:
            raise RuntimeError("Invalid size and/or offset for sync")
        part, at = self._host[offset : offset + size], self._address + offset
        if direction is _Direction.XCL_BO_SYNC_BO_TO_DEVICE:
            self.card.kernel.write(at, part)
        else:
            part[:] = self.card.kernel.peek(at, size)


def _module(card: EmulatedCard) -> Any:
    """Names of ``pyxrt``. There is no access to registers, as there is none in that."""
    module = SimpleNamespace(
        xclBOSyncDirection=_Direction,
        ert_cmd_state=_State,
        xrt_info_device=SimpleNamespace(
            bdf="bdf", name="name", max_clock_frequency_mhz="max_clock_frequency_mhz"
        ),
        enumerate_devices=lambda: 1,
        device=lambda which=0: _Device(card, which),
        kernel=_Kernel,
        run=_Run,
        bo=_Bo,
        xclbin=_Image,
    )
    if card.interface is not Interface.LOADED:
        module.hw_context = _Context
    return module


def emulated_xrt(
    board: BoardProfile, *, seed: int = 0, progress: Progress | None = None
) -> XrtTransport:
    """Transport to a card that is emulated: the one to a real card, over another module."""
    card = EmulatedCard(board, seed=seed, progress=progress)
    return XrtTransport(xclbin=card.image, module=card.module, emulated=board.name)
