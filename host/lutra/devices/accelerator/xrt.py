"""An Alveo card as a transport: the accelerator as a kernel, by XRT's Python module ``pyxrt``."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from lutra.devices.accelerator.bitstreams import default_bitstream
from lutra.devices.accelerator.buffers import BufferTable
from lutra.devices.accelerator.lock import BoardLock
from lutra.devices.accelerator.transport import PAGE
from lutra.devices.base import DeviceError
from lutra_golden.control.ap_ctrl import KERNEL
from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError

__all__ = ["XrtTransport", "count_cards", "describe_card"]

Images = Callable[[AcceleratorConfig], Path]

_ARGUMENT = 0  # the descriptor, a pointer
_SLICE_MS = 200  # XRT's wait does not hear Ctrl-C
_DRAIN_S = 10.0  # far beyond what the accelerator's watchdog needs to end a run
_CLOCK_ERROR = 0.01  # of the kernel's clock


class _Buffer:
    """Memory of the card, and the copy of it in the host's memory."""

    def __init__(self, pyxrt: Any, bo: Any, n_bytes: int) -> None:
        self.bo, self.address, self.n_bytes = bo, int(bo.address()), n_bytes
        self._view = bo.map()
        directions = pyxrt.xclBOSyncDirection
        self._to_card = directions.XCL_BO_SYNC_BO_TO_DEVICE
        self._from_card = directions.XCL_BO_SYNC_BO_FROM_DEVICE
        self._parts: dict[int, Any] = {}

    def write(self, offset: int, data: bytes) -> None:
        self._view[offset : offset + len(data)] = data
        self.bo.sync(self._to_card, len(data), offset)

    def read(self, offset: int, n_bytes: int) -> bytes:
        self.bo.sync(self._from_card, n_bytes, offset)
        return bytes(self._view[offset : offset + n_bytes])

    def argument(self, pyxrt: Any, offset: int) -> Any:
        """Buffer that begins at ``offset`` of this one, for an argument of the kernel."""
        if not offset:
            return self.bo
        if offset not in self._parts:
            self._parts[offset] = pyxrt.bo(self.bo, self.n_bytes - offset, offset)
        return self._parts[offset]


class XrtTransport:
    """The accelerator as a kernel of an Alveo card, in this process.

    ``card`` is XRT's number of the card, or its address on the bus. ``xclbin`` finds the image of a
    configuration, or is the file; left out, one is looked for where bitstreams lie. ``module``
    gives ``pyxrt``; ``emulated`` is the name of the board if it is none of hardware. XRT of 2.14
    and later is driven, by whichever interface it has.

    From Python XRT starts kernels and nothing else: the address of a descriptor is the one
    argument, a pointer, which is given as a buffer since numbers are of 32 bits.
    """

    name = "xrt"
    verify_load = True

    def __init__(
        self,
        card: int | str = 0,
        *,
        xclbin: Path | Images | None = None,
        module: Callable[[], Any] | None = None,
        emulated: str | None = None,
    ) -> None:
        self.emulated = emulated
        self._card, self._xclbin, self._module = card, xclbin, module or _import_pyxrt
        self._lock: BoardLock | None = None
        self._pyxrt: Any = None
        self._device: Any = None
        self._context: Any = None
        self._kernel: Any = None
        self._group = 0
        self._place = ""
        self._buffers = BufferTable[_Buffer](self.name)
        self._idle: dict[int, list[Any]] = {}
        self._under_way = deque[tuple[int, Any]]()

    # -- connecting

    def find(self) -> None:
        """See that there is a card, and XRT's module."""
        pyxrt = self._module()
        with _faults("no card could be opened", _CARD_ADVICE):
            pyxrt.device(self._card)

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Load the image of ``config``; memory is found when it is allocated."""
        self.close()
        self._pyxrt = pyxrt = self._module()
        found = self._xclbin or partial(default_bitstream, suffix=".xclbin")
        path = found if isinstance(found, Path) else found(config)
        try:
            with _faults("no card could be opened", _CARD_ADVICE):
                self._device = device = pyxrt.device(self._card)
                self._place = str(device.get_info(pyxrt.xrt_info_device.bdf))
            lock = BoardLock(f"xrt-{self._place}")
            lock.acquire(self.name)
            self._lock = lock
            with _faults(f"{path} could not be loaded", _LOAD_ADVICE):
                self._load(pyxrt, device, str(path))
                self._group = self._kernel.group_id(_ARGUMENT)
            self._check_clock(config)
        except BaseException:
            self.close()
            raise

    def _load(self, pyxrt: Any, device: Any, path: str) -> None:
        """Load the image and find the kernel, by the newest interface that there is."""
        if not hasattr(pyxrt, "hw_context"):
            image = device.load_xclbin(path)
            exclusive = pyxrt.kernel.cu_access_mode.exclusive
            self._kernel = pyxrt.kernel(device, image, KERNEL, exclusive)
            return
        image = device.register_xclbin(pyxrt.xclbin(path))
        self._context = pyxrt.hw_context(device, image)
        self._kernel = pyxrt.kernel(self._context, KERNEL)

    def _check_clock(self, config: AcceleratorConfig) -> None:
        """Refuse a card whose clocks are all slower than the one that the image is built for.

        XRT tells Python the fastest of them alone, 0 where it does not know.
        """
        with _faults("the card's clock could not be read"):
            key = self._pyxrt.xrt_info_device.max_clock_frequency_mhz
            fastest = float(self._device.get_info(key))
        built = config.clock_hz / 1e6
        if 0 < fastest < (1 - _CLOCK_ERROR) * built:
            raise DeviceError(
                f"the kernel of device xrt runs at {fastest:.1f} MHz at most, its image is built "
                f"for {built:.1f} MHz: build the image again, or see `xbutil examine -r thermal`"
            )

    def close(self) -> None:
        """Leave the card to others; its memory goes back."""
        self._under_way.clear()
        self._idle = {}
        self._buffers.clear()
        # in this order: each holds the one behind it
        self._kernel = None
        self._context = None
        self._device = None
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def power(self) -> Mapping[str, float]:
        """Watts that the card draws, now, as ``xbutil examine -r electrical`` has them.

        Empty where XRT does not say it.
        """
        try:
            said = json.loads(self._device.get_info(self._pyxrt.xrt_info_device.electrical))
            return {"card": float(said["power_consumption_watts"])}
        except _ERRORS:
            return {}

    # -- memory

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of a buffer of its own, in a memory that the kernel reaches."""
        pyxrt, flags = self._pyxrt, self._pyxrt.bo.flags.normal
        with _faults(f"the card has no {n_bytes:,} bytes of memory in a row", _MEMORY_ADVICE):
            bo = self._bo(n_bytes, flags)
            size = int(bo.size())
            if size < n_bytes:
                raise DeviceError(
                    f"the card gave {size:,} bytes of memory instead of {n_bytes:,}: "
                    f"{_MEMORY_ADVICE}"
                )
            buffer = _Buffer(pyxrt, bo, n_bytes)
        if buffer.address % PAGE:
            raise DeviceError(
                f"device xrt: a buffer begins at {buffer.address:#x}, not at a page of {PAGE} "
                "bytes: use XRT 2.14 or later"
            )
        self._buffers.add(buffer)
        return buffer.address

    def _bo(self, n_bytes: int, flags: Any) -> Any:
        """Buffer of the context, or of the device where XRT knows no other."""
        make, device = self._pyxrt.bo, self._opened()
        if self._context is not None:
            try:
                return make(self._context, n_bytes, flags, self._group)
            except TypeError:
                pass
        return make(device, n_bytes, flags, self._group)

    def free(self, address: int) -> None:
        """Give a buffer back."""
        buffer = self._buffers.remove(address)
        if buffer is not None:
            last = address + buffer.n_bytes
            self._idle = {k: v for k, v in self._idle.items() if not address <= k < last}

    def write(self, address: int, data: bytes) -> None:
        """Write to a buffer."""
        buffer, offset = self._buffers.find(address, len(data))
        with _faults("memory could not be written"):
            buffer.write(offset, data)

    def zero(self, address: int, n_bytes: int) -> None:
        """Write zeros to a buffer."""
        self.write(address, bytes(n_bytes))

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read a buffer."""
        buffer, offset = self._buffers.find(address, n_bytes)
        with _faults("memory could not be read"):
            return buffer.read(offset, n_bytes)

    # -- runs

    def ring(self, address: int) -> None:
        """Start the kernel with the descriptor at ``address``."""
        if len(self._under_way) > QUEUE_DEPTH:
            raise DeviceError(f"{QUEUE_DEPTH} descriptors wait already: wait for one of them first")
        if address % DOORBELL_BYTES:
            raise ValueError(f"address must be a multiple of {DOORBELL_BYTES}, not {address:#x}")
        buffer, offset = self._buffers.find(address, 1)
        with _faults("a run could not be started"):
            idle = self._idle.setdefault(address, [])
            if idle:
                run = idle.pop()
            else:
                run = self._pyxrt.run(self._kernel)
                run.set_arg(_ARGUMENT, buffer.argument(self._pyxrt, offset))
            run.start()
        self._under_way.append((address, run))

    def wait(self, timeout_s: float | None) -> None:
        """Wait for the end of the run that was started first; result blocks have its cycles."""
        if not self._under_way:
            raise DeviceError("device xrt waits for a run, and none was started")
        if not self._is_over(timeout_s):
            raise DeviceError(f"a run of device xrt is not over after {timeout_s:g} s")

    def _is_over(self, timeout_s: float | None) -> bool:
        """Wait for the first run; DeviceError if XRT says that it failed."""
        states = self._pyxrt.ert_cmd_state
        goes_on = (
            states.ERT_CMD_STATE_NEW,
            states.ERT_CMD_STATE_QUEUED,
            states.ERT_CMD_STATE_SUBMITTED,
            states.ERT_CMD_STATE_TIMEOUT,
        )
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        address, run = self._under_way[0]
        while True:
            left = _SLICE_MS if deadline is None else int(1000 * (deadline - time.monotonic()))
            with _faults("a run could not be awaited"):
                # 0 would be without a limit
                state = run.wait(max(1, min(left, _SLICE_MS)))
            if state == states.ERT_CMD_STATE_COMPLETED:
                self._under_way.popleft()
                self._idle.setdefault(address, []).append(run)
                return True
            if state not in goes_on:
                self._under_way.popleft()
                how = getattr(state, "name", state)
                raise DeviceError(f"a run of device xrt failed with {how}: {self._reset_advice()}")
            if left <= 0:
                return False

    def reset(self) -> None:
        """Wait until nothing runs any more: XRT cannot end a kernel, but its watchdog does.

        DeviceError where that does not happen either.
        """
        self._opened()
        while self._under_way:
            try:
                if self._is_over(_DRAIN_S):
                    continue
            except DeviceError:
                # it is over, however
                continue
            raise DeviceError(f"a run of device xrt does not end: {self._reset_advice()}")

    def _reset_advice(self) -> str:
        return f"run `xbutil reset -d {self._place}`, then load the model again"

    def _opened(self) -> Any:
        """The device, while it is open."""
        if self._device is None:
            raise DeviceError("device xrt is closed: load the model again")
        return self._device


_ERRORS = (RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError)
"""Errors of XRT, and of a module that is of another version."""
_ADVICE = "load the model again, or run `xbutil examine`"
_MEMORY_ADVICE = "close other programs that use the card, or use a smaller model"
_CARD_ADVICE = "run `xbutil examine`, or simulate one with --emulate u55c"
_LOAD_ADVICE = "see that the image is for this card, and that no other program uses it"


@contextmanager
def _faults(what: str, advice: str = _ADVICE) -> Generator[None]:
    """Turn errors of XRT into faults of the device: one line."""
    try:
        yield
    except LutraError:
        raise
    except _ERRORS as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise DeviceError(f"device xrt: {what} ({why}): {advice}") from error


def describe_card() -> str:
    """The card that XRT calls 0; LutraError says why there is none."""
    pyxrt = _import_pyxrt()
    with _faults("no card could be opened", _CARD_ADVICE):
        name = pyxrt.device(0).get_info(pyxrt.xrt_info_device.name)
    return f"the accelerator on the card {name}"


def count_cards() -> int:
    """Cards that XRT finds; 0 where its module cannot be imported."""
    try:
        pyxrt = _import_pyxrt()
        # not every XRT counts them
        count = getattr(pyxrt, "enumerate_devices", None)
        return 1 if count is None else int(count())
    except (LutraError, *_ERRORS):
        return 0


def _import_pyxrt() -> Any:
    """The module ``pyxrt``; LutraError says where it comes from."""
    try:
        return import_module("pyxrt")
    except ImportError as error:
        raise LutraError(
            f"device xrt needs XRT's Python module ({error}): install XRT 2.14 or later, and run "
            "`source /opt/xilinx/xrt/setup.sh`; without a card simulate one with --emulate u55c, "
            "or take another device"
        ) from None
