"""A Zynq board as a transport: the accelerator on its fabric, by the package PYNQ."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from lutra.devices.accelerator.bitstreams import default_bitstream
from lutra.devices.accelerator.buffers import BufferTable
from lutra.devices.accelerator.lock import BoardLock
from lutra.devices.accelerator.pynq_interrupt import PynqInterrupt, event_loop
from lutra.devices.base import DeviceError
from lutra.devices.power import hwmon_power
from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.control.failure import describe_units
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    CONTROL_START,
    COUNTERS,
    REGISTERS,
    STATUS_BUSY,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.packaging import INTERRUPT, IP_NAME, VLNV
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["PynqTransport", "describe_board"]

Bitstreams = Callable[[AcceleratorConfig], Path]

_LINE = 64  # bytes of a cache line
_SLICE_S = 1.0  # without an interrupt, after which registers are read
_MISSED = 3  # interrupts in a row that a slice brought none of: there are none
_POLL_S = (50e-6, 1e-3)  # pauses without an interrupt: the first and the longest
_CLOCK_ERROR = 0.01  # of the fabric's clock
_ADDRESSES = {name: register.address for name, register in REGISTERS.items()}
_log = logging.getLogger(__name__)
_drivers: list[Any] = []


class _Buffer:
    """Memory that the processor and the accelerator share, and the processor's cached copy of it.

    A write goes to the accelerator at once; what it shares cache lines with is read before. A read
    takes what the accelerator wrote.
    """

    def __init__(self, array: Any, n_bytes: int) -> None:
        self.address, self.n_bytes = int(array.device_address), n_bytes
        self._array, self._view = array, memoryview(array)

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if offset % _LINE:
            self._take_line(offset)
        if end % _LINE and end < self.n_bytes:
            self._take_line(end)
        self._view[offset:end] = data
        self._array[offset:end].flush()

    def _take_line(self, offset: int) -> None:
        first = offset // _LINE * _LINE
        self._array[first : first + _LINE].invalidate()

    def read(self, offset: int, n_bytes: int) -> bytes:
        self._array[offset : offset + n_bytes].invalidate()
        return self._view[offset : offset + n_bytes].tobytes()


class PynqTransport:
    """The accelerator on the fabric of a board with PYNQ, in this process.

    ``bitstream`` finds that of a configuration, or is the file; left out, one is looked for where
    bitstreams lie. ``device`` makes the device of PYNQ, the active one if left out; ``emulated`` is
    the name of a board that is simulated. The end of a run is an interrupt; where none arrives,
    registers are read again and again.
    """

    name = "pynq"
    verify_load = True

    def __init__(
        self,
        *,
        bitstream: Path | Bitstreams | None = None,
        device: Callable[[], Any] | None = None,
        emulated: str | None = None,
    ) -> None:
        self.emulated = emulated
        self._bitstream, self._make_device = bitstream, device
        self._lock: BoardLock | None = None
        self._overlay: Any = None
        self._device: Any = None
        self._ip: Any = None
        self._interrupt: PynqInterrupt | None = None
        self._interrupt_path = ""
        self._buffers = BufferTable[_Buffer](self.name)
        self._n_rung = self._n_over = self._n_missed = 0

    # -- connecting

    def find(self) -> None:
        """See that there is a board, and PYNQ on it."""
        if self._make_device is not None:
            _import_pynq(is_emulated=self.emulated is not None)
            return
        with _faults("the board could not be found"):
            _active_device()

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Load the bitstream of ``config``; memory is found when it is allocated."""
        self.close()
        pynq = _import_pynq()
        try:
            with _faults("the bitstream could not be loaded"):
                self._device = device = (self._make_device or _active_device)()
                lock = BoardLock(str(device.tag))
                lock.acquire(self.name)
                self._lock = lock
                self._activate()
                self._load(pynq, config)
                self._check_clock(pynq, config)
                self.write_register("IRQ_ENABLE", 1)
        except BaseException:
            self.close()
            raise

    def _activate(self) -> None:
        """Have what PYNQ has once in a process be about this board."""
        _import_pynq().Device.active_device = (self._make_device or _active_device)()

    def _load(self, pynq: Any, config: AcceleratorConfig) -> None:
        """Load the overlay, and find the accelerator and its interrupt in it."""
        found = self._bitstream or partial(default_bitstream, suffix=".bit")
        path = found if isinstance(found, Path) else found(config)
        if not path.with_suffix(".hwh").is_file():
            raise LutraError(
                f"the bitstream {path} has no .hwh file beside it: copy both from the build"
            )
        driver = _bind(pynq)
        with warnings.catch_warnings():
            # of another version of the accelerator, which is refused below
            warnings.simplefilter("ignore", UserWarning)
            self._overlay = overlay = pynq.Overlay(str(path), download=False, device=self._device)
        kinds = {name: str(entry["type"]) for name, entry in overlay.ip_dict.items()}
        ours = [name for name, kind in kinds.items() if kind.startswith(f"{IP_NAME}:")]
        if not ours:
            raise DeviceError(
                f"the bitstream {path} has no Lutra accelerator: load one that Lutra built"
            )
        if kinds[ours[0]] != VLNV:
            raise DeviceError(
                f"the bitstream {path} has {kinds[ours[0]]}, this Lutra drives {VLNV}: build the "
                "bitstream again"
            )
        overlay.download()
        asyncio.set_event_loop(event_loop())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self._ip = reduce(getattr, ours[0].split("/"), overlay)
        assert isinstance(self._ip, driver)
        pin = getattr(self._ip, INTERRUPT, None)
        if pin is not None:
            self._interrupt = PynqInterrupt(pin)
            entry = overlay.ip_dict[ours[0]]["interrupts"][INTERRUPT]
            self._interrupt_path = str(entry["fullpath"])
        else:
            texts = [str(each.message) for each in said if each.category is UserWarning]
            why = "; ".join(texts) or "the bitstream has none"
            _log.warning("device pynq has no interrupt and reads registers instead: %s", why)

    def _check_clock(self, pynq: Any, config: AcceleratorConfig) -> None:
        """Refuse a fabric that does not have the clock that its bitstream was built for."""
        built = self._overlay.clock_dict[0]["frequency"] or config.clock_hz / 1e6
        runs = float(pynq.Clocks.fclk0_mhz)
        if abs(runs - built) > _CLOCK_ERROR * built:
            raise DeviceError(
                f"the fabric of device pynq runs at {runs:.1f} MHz, its bitstream is built for "
                f"{built:.1f} MHz: end the program that sets the clock, or restart the board"
            )

    def close(self) -> None:
        """Leave the board to others; its memory goes back."""
        self._give_up()
        if self._ip is not None:
            try:
                self._ip.write(_ADDRESSES["IRQ_ENABLE"], 0)
            except (RuntimeError, OSError) as error:
                _log.debug("device pynq: %s", error)
        self._interrupt = self._ip = self._overlay = self._device = None
        self._buffers.clear()
        self._n_rung = self._n_over = 0
        # buffers are given back when the last reference to them is gone
        gc.collect()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def power(self) -> Mapping[str, float]:
        """Watts by sensor of the board, now; a simulated one draws none."""
        return hwmon_power() if self.emulated is None else {}

    # -- memory

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of a buffer of its own; there is one bank."""
        with _faults(f"the board has no {n_bytes:,} bytes of memory in a row", _MEMORY_ADVICE):
            array = _import_pynq().allocate((n_bytes,), "u1", self._opened(), cacheable=1)
        if array.nbytes < n_bytes:
            raise DeviceError(
                f"the board gave {array.nbytes:,} bytes of memory instead of {n_bytes:,}: "
                f"{_MEMORY_ADVICE}"
            )
        buffer = _Buffer(array, n_bytes)
        self._buffers.add(buffer)
        return buffer.address

    def free(self, address: int) -> None:
        """Give a buffer back."""
        self._buffers.remove(address)

    def write(self, address: int, data: bytes) -> None:
        """Write to a buffer."""
        buffer, offset = self._buffers.find(address, len(data))
        try:
            buffer.write(offset, data)
        except _ERRORS as error:
            raise _fault("memory could not be written", error) from error

    def zero(self, address: int, n_bytes: int) -> None:
        """Write zeros to a buffer."""
        self.write(address, bytes(n_bytes))

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read a buffer."""
        buffer, offset = self._buffers.find(address, n_bytes)
        try:
            return buffer.read(offset, n_bytes)
        except _ERRORS as error:
            raise _fault("memory could not be read", error) from error

    # -- registers and runs

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register."""
        self._opened()
        try:
            self._ip.write(_ADDRESSES[name] + 4 * index, value)
        except _ERRORS as error:
            raise _fault(f"register {name} could not be written", error) from error
        if name == "CONTROL" and value & CONTROL_ABORT:
            self._n_rung = self._n_over = 0
            self._give_up()
            if self._interrupt is not None and not self._interrupt.is_valid:
                self.reset()

    def read_register(self, name: str, index: int = 0) -> int:
        """Read a register."""
        self._opened()
        try:
            return int(self._ip.read(_ADDRESSES[name] + 4 * index))
        except _ERRORS as error:
            raise _fault(f"register {name} could not be read", error) from error

    def start(self) -> None:
        """Start the run that the registers describe."""
        self.write_register("IRQ_STATUS", 1)
        self.write_register("CONTROL", CONTROL_START)

    def ring(self, address: int) -> None:
        """Queue a descriptor: one write of a register."""
        if self._n_rung - self._n_over > QUEUE_DEPTH and not self._look():
            raise DeviceError(f"{QUEUE_DEPTH} descriptors wait already: wait for one of them first")
        self.write_register("DOORBELL", address // DOORBELL_BYTES)
        self._n_rung += 1

    def wait(self, timeout_s: float | None) -> int | None:
        """Wait for the end of the descriptor that came first, or of the run that was started.

        Result blocks have the clock cycles.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause = _POLL_S[0]
        over = self._n_over > 0
        while not over:
            expected = self._expected()
            came = expected is not None and self._await_interrupt(expected, deadline)
            over = self._look()
            if came or (over and expected is None):
                self._n_missed = 0
            elif over:
                self._miss_interrupt()
            elif deadline is not None and time.monotonic() >= deadline:
                units = describe_units(self.read_register("UNIT_STATE"))
                raise DeviceError(
                    f"a run of device pynq is not over after {timeout_s:g} s: {units}; load the "
                    "model again"
                )
            elif expected is None:
                time.sleep(pause)
                pause = min(2 * pause, _POLL_S[1])
        if self._n_rung:
            self._n_rung -= 1
            self._n_over -= 1
        return None

    def _look(self) -> bool:
        """True if a run is over; its interrupt is no longer up."""
        self.write_register("IRQ_STATUS", 1)
        if not self._n_rung:
            return not self.read_register("STATUS") & STATUS_BUSY
        self._n_over = max(self._n_rung - self.read_register("PENDING"), 0)
        return self._n_over > 0

    def _expected(self) -> PynqInterrupt | None:
        """The interrupt; None if there is none, or if a loop of events runs here already."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._interrupt
        return None

    @staticmethod
    def _await_interrupt(interrupt: PynqInterrupt, deadline: float | None) -> bool:
        """Wait for the interrupt, for a while; true if it came."""
        left = _SLICE_S if deadline is None else min(_SLICE_S, deadline - time.monotonic())
        with _faults("the interrupt could not be awaited"):
            return interrupt.wait(left)

    def _give_up(self) -> None:
        """Leave no wait for the interrupt behind."""
        if self._interrupt is not None:
            self._interrupt.give_up()

    def _miss_interrupt(self) -> None:
        """Do without interrupts if several in a row did not come, though they were enabled."""
        if not self.read_register("IRQ_ENABLE"):
            self.write_register("IRQ_ENABLE", 1)
            return
        self._n_missed += 1
        if self._n_missed < _MISSED:
            return
        _log.warning(
            "the interrupt of device pynq does not arrive, registers are read instead: check the "
            "interrupts of the device tree"
        )
        self._give_up()
        self._interrupt = None

    def reset(self) -> None:
        """Load the bitstream again, which resets the accelerator; memory stays."""
        self._opened()
        self._n_rung = self._n_over = 0
        self._give_up()
        with _faults("the bitstream could not be loaded again"):
            self._activate()
            self._overlay.download()
            if self._interrupt is not None:
                self._interrupt = self._interrupt.renewed(self._interrupt_path)
            self.write_register("IRQ_ENABLE", 1)

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        words = [self.read_register("COUNTER", index) for index in range(2 * len(COUNTERS))]
        pairs = zip(words[::2], words[1::2], strict=True)
        return {name: low | high << 32 for name, (low, high) in zip(COUNTERS, pairs, strict=True)}

    def _opened(self) -> Any:
        """The device, while it is open."""
        if self._device is None:
            raise DeviceError("device pynq is closed: load the model again")
        return self._device


_ERRORS = (RuntimeError, OSError, ValueError, KeyError, AttributeError, MemoryError)
"""Errors of PYNQ and of what it calls."""
_MEMORY_ADVICE = "close other programs that use the fabric, or raise cma= of the kernel"
_LOAD_ADVICE = "load the model again, or restart the board"


@contextmanager
def _faults(what: str, advice: str = _LOAD_ADVICE) -> Generator[None]:
    """Turn errors of PYNQ into faults of the device: one line."""
    try:
        yield
    except LutraError:
        raise
    except _ERRORS as error:
        raise _fault(what, error, advice) from error


def _fault(what: str, error: BaseException, advice: str = _LOAD_ADVICE) -> DeviceError:
    why = " ".join(str(error).split()) or type(error).__name__
    return DeviceError(f"device pynq: {what} ({why}): {advice}")


def _import_pynq(*, is_emulated: bool = False) -> Any:
    """The package ``pynq``; LutraError with the command that installs it, and what else to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pynq = import_module("pynq")
    except ImportError as error:
        raise LutraError(
            f"device pynq needs {error.name or 'pynq'}, which is not installed: run "
            f"`{install_command('pynq')}`"
            f"{'' if is_emulated else '; without a board add --emulate kv260'}, or take another "
            "device"
        ) from None
    return pynq


def _active_device() -> Any:
    """The board that this process runs on; LutraError if it is none."""
    pynq = _import_pynq()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        devices = pynq.Device.devices
    if not devices:
        raise LutraError(
            "device pynq finds no board: run it as root on a board with PYNQ, or simulate one with "
            "--emulate kv260"
        )
    return pynq.Device.active_device


def describe_board() -> str:
    """The board that this process runs on; LutraError says why there is none."""
    return f"the accelerator on the fabric of {_active_device().name}"


def _bind(pynq: Any) -> type[Any]:
    """The driver to which PYNQ binds the accelerator, by its VLNV."""
    if not _drivers:
        base: Any = pynq.DefaultIP
        _drivers.append(type(base)("LutraAccelerator", (base,), {"bindto": [VLNV]}))
    return _drivers[0]
