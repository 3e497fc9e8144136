"""Emulated boards with a small model, and the faults that are injected on each at random."""

import gc
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from random import Random

from tests.host.boards import BASE, SIZE, Cable, Served, board
from tests.host.random_model import Shape, write_model
from tests.host.tiles import Compiled, compiled
from tests.hw.core.test_accelerator import SMALL

from lutra.devices.accelerator import pynq as pynq_module
from lutra.devices.accelerator import xrt as xrt_module
from lutra.devices.accelerator.device import AcceleratorDevice, AcceleratorSession
from lutra.devices.accelerator.lock import BoardLock
from lutra.devices.accelerator.pynq import PynqTransport
from lutra.devices.accelerator.transport import Transport
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import Step, StepResult
from lutra.devices.emulated.agent import RtlAccelerator
from lutra.devices.emulated.board import EmulatedBoard, Faults
from lutra.devices.emulated.card import CardFaults, EmulatedCard
from lutra.devices.emulated.pynq_board import EmulatedPynq
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Response
from lutra_golden.timing.boards import find_profile
from lutra_sim.rtl.device import RtlModel
from lutra_sim.rtl.xrt import XrtKernel

__all__ = ["BOARDS", "Fault", "SoakBoard", "When", "tell"]

_WATCHDOG = 3000
_GONE_S = 30.0  # until an agent is free again
_SLICE_S = 60.0  # without an interrupt
_MESSAGE_BYTES = 3000  # of a token, to an agent: where its link may drop
_OTHER = SMALL.with_(max_context=2 * SMALL.max_context)
_HOLD = (
    "import fcntl, os, sys; file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
    "fcntl.flock(file, fcntl.LOCK_EX); os.write(file, str(os.getpid()).encode());"
    "print(flush=True); sys.stdin.read()"
)
_TELL = "import sys; from tests.system.soak_boards import tell; tell(int(sys.argv[1]), sys.argv[2])"


def _small_model(folder: Path) -> Compiled:
    """The random model in ``folder``, made there if need be, and its program."""
    if not folder.exists():
        write_model(folder, Shape(intermediate_size=48, num_hidden_layers=2))
    return compiled(pack_model(load_model(folder)), SMALL)


class When(Enum):
    """Moment of a fault, and what it must do."""

    RUN = "in a run, which ends in an error line or comes right"
    LOAD = "at a load, which ends in an error line"
    SMALL = "at a load, which does with less"
    KILL = "between tokens: the process is gone, and keys and values with it"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while ``injected`` is entered."""

    when: When
    injected: Callable[[], AbstractContextManager[None]]


class SoakBoard(ABC):
    """A board that stays, a driver of it, and one session; nothing is wrong at first.

    Its model is random, and lies in ``folder``.
    """

    def __init__(self, folder: Path, rng: Random) -> None:
        self.found, self.folder, self.rng = _small_model(folder), folder, rng
        self._config: AcceleratorConfig | None = None
        self._sizes: dict[tuple[int, bool], int] = {}
        self._device: AcceleratorDevice | None = None
        self._session: AcceleratorSession | None = None

    # -- of each board

    @abstractmethod
    def transport(self) -> Transport:
        """A driver's way to it, as a new process makes one."""

    @property
    @abstractmethod
    def model(self) -> RtlModel:
        """The simulated accelerator."""

    @property
    @abstractmethod
    def faults(self) -> Mapping[str, Fault]:
        """Faults, by name."""

    @abstractmethod
    def remove(self) -> None:
        """Take the board away."""

    # -- driving

    @property
    def device(self) -> AcceleratorDevice:
        assert self._device is not None
        return self._device

    @property
    def session(self) -> AcceleratorSession:
        assert self._session is not None
        return self._session

    def load(self) -> None:
        """Load the model by a new driver, and open a session."""
        device = AcceleratorDevice(self.transport(), watchdog_cycles=_WATCHDOG)
        program = self.found.program
        if self._config is not None:
            program = replace(program, config=self._config)
        device.load_program(self.found.model, program)
        self._device, self._session = device, device.session()

    def run(self, tokens: list[int]) -> StepResult:
        """Go on with ``tokens``, with logits of all."""
        return self.device.run([Step(session=self.session, tokens=tokens)])[0]

    def close(self) -> None:
        """End the driver in good order."""
        device, self._device, self._session = self._device, None, None
        if device is not None:
            device.close()
        # what was refused is held by the traceback that says so
        gc.collect()

    def count_transfers(self) -> None:
        """Count the transfers of a token on each port, which faults are chosen from."""
        places = self._places()
        for port, writes in places:
            self.model.disturb(port, None, writes=writes)
        self.run([1])
        for port, writes in places:
            self._sizes[port, writes] = self.model.transfers(port, writes=writes)

    # -- faults that all have

    def _places(self) -> list[tuple[int, bool]]:
        ports = list(enumerate(SMALL.ports))
        return [(n, False) for n, _ in ports] + [(n, True) for n, port in ports if port.writes]

    def _common(self) -> dict[str, Fault]:
        return {
            "a bus error": Fault(When.RUN, lambda: self._disturbed(list(Response)[1:])),
            "a port that does not answer": Fault(When.RUN, lambda: self._disturbed([None])),
            "another fingerprint": Fault(When.LOAD, self._other),
        }

    @contextmanager
    def _disturbed(self, responses: list[Response] | list[None]) -> Generator[None]:
        port, writes = self.rng.choice(self._places())
        at = self.rng.randrange(max(self._sizes[port, writes], 1))
        model = self.model
        model.disturb(port, at, self.rng.choice(responses), writes=writes)
        try:
            yield
        finally:
            model.disturb(port, None, writes=writes)

    @contextmanager
    def _other(self) -> Generator[None]:
        self._config = _OTHER
        try:
            yield
        finally:
            self._config = None


@contextmanager
def _held(name: str) -> Generator[None]:
    """Another process has the lock of a board, until it is killed."""
    command = [sys.executable, "-c", _HOLD, str(BoardLock(name)._path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        try:
            yield
        finally:
            os.kill(other.pid, signal.SIGKILL)


@contextmanager
def _changed(owner: object, **values: object) -> Generator[None]:
    """Attributes have other values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class _Emulated(SoakBoard):
    """A board or card of this process."""

    @property
    @abstractmethod
    def _settings(self) -> Faults | CardFaults:
        """Faults that are set before they happen."""

    @property
    @abstractmethod
    def _lock_name(self) -> str:
        """Name of the lock that a driver takes."""

    @abstractmethod
    def _leave(self, transport: PynqTransport | XrtTransport) -> None:
        """Leave a run under way, as a process that is killed does."""

    def _set(self, when: When, **values: object) -> Fault:
        return Fault(when, lambda: _changed(self._settings, **values))

    def _common(self) -> dict[str, Fault]:
        rng = self.rng
        return super()._common() | {
            "an interrupt that never comes": Fault(When.RUN, self._lost),
            "an interrupt that comes twice": self._set(
                When.RUN, extra_interrupts=rng.randint(1, 5)
            ),
            "a reset in mid-token": self._set(When.RUN, reset_after=rng.randint(1, 6000)),
            "a second process": Fault(When.LOAD, lambda: _held(self._lock_name)),
            "a buffer too small": self._set(When.LOAD, short_buffers=True),
            "no memory in a row": self._set(When.LOAD, hole_bytes=4096),
            "memory in pieces": self._set(When.SMALL, hole_bytes=1 << 24),
            "a process that is killed": Fault(When.KILL, self._killed),
        }

    @contextmanager
    def _lost(self) -> Generator[None]:
        """Whoever waits for the interrupt does so for less long than usual."""
        with self._impatient(), _changed(self._settings, lost_interrupts=True):
            yield

    @abstractmethod
    def _impatient(self) -> AbstractContextManager[None]:
        """Wait less long for an interrupt."""

    @contextmanager
    def _killed(self) -> Generator[None]:
        """The system takes lock and buffers away."""
        transport = self.device.transport
        assert isinstance(transport, PynqTransport | XrtTransport) and transport._lock is not None
        self._leave(transport)
        for address in [each.address for each in transport._buffers]:
            transport.free(address)
        transport._lock.release()
        self._device = self._session = None
        yield


class _Kv260(_Emulated):
    """The emulated KV260, by the package PYNQ."""

    def __init__(self, folder: Path, rng: Random) -> None:
        super().__init__(folder, rng)
        emulated = EmulatedPynq(EmulatedBoard(find_profile("kv260"), seed=rng.randrange(1 << 16)))
        self._emulated, self._board = emulated, emulated.board
        # a simulation that is slow has not lost an interrupt
        self._slice_s, pynq_module._SLICE_S = pynq_module._SLICE_S, _SLICE_S

    def transport(self) -> Transport:
        emulated = self._emulated
        emulated.device().uio.forget()
        return PynqTransport(
            device=emulated.device, bitstream=lambda _: emulated.bitstream(SMALL), emulated="kv260"
        )

    @property
    def model(self) -> RtlModel:
        return self._board.simulator

    @property
    def faults(self) -> Mapping[str, Fault]:
        return self._common() | {"a clock at the wrong rate": Fault(When.LOAD, self._slow)}

    @property
    def _settings(self) -> Faults:
        return self._board.faults

    @property
    def _lock_name(self) -> str:
        return self._emulated.tag

    def _impatient(self) -> AbstractContextManager[None]:
        return _changed(pynq_module, _SLICE_S=0.05)

    @contextmanager
    def _slow(self) -> Generator[None]:
        with _changed(self._settings, slow_clock=True):
            self._emulated.power_up()
            yield

    def _leave(self, transport: PynqTransport | XrtTransport) -> None:
        self._board.advance(self.rng.randint(1, 1000))

    def remove(self) -> None:
        pynq_module._SLICE_S = self._slice_s
        self._emulated.close()


class _U55c(_Emulated):
    """The emulated U55C, by a module like ``pyxrt``."""

    def __init__(self, folder: Path, rng: Random) -> None:
        super().__init__(folder, rng)
        self._card = EmulatedCard(find_profile("u55c"), seed=rng.randrange(1 << 16))

    def transport(self) -> Transport:
        card = self._card
        return XrtTransport(xclbin=lambda _: card.image(SMALL), module=card.module, emulated="u55c")

    @property
    def model(self) -> RtlModel:
        kernel = self._card.kernel
        assert isinstance(kernel, XrtKernel)
        return kernel

    @property
    def faults(self) -> Mapping[str, Fault]:
        return self._common() | {
            "a run that XRT gives up": self._set(When.RUN, failed="ERT_CMD_STATE_ERROR"),
            "a kernel that another has": self._set(When.LOAD, busy=True),
            "a clock at the wrong rate": self._set(When.LOAD, clock_mhz=150),
        }

    @property
    def _settings(self) -> CardFaults:
        return self._card.faults

    @property
    def _lock_name(self) -> str:
        return f"xrt-{self._card.place}"

    @contextmanager
    def _impatient(self) -> Generator[None]:
        with _changed(self.device, _timeout_s=0.2), _changed(xrt_module, _DRAIN_S=0.2):
            yield

    def _leave(self, transport: PynqTransport | XrtTransport) -> None:
        """XRT sees the end of the run."""
        assert isinstance(transport, XrtTransport)
        transport.ring(min(transport._idle))
        self.model.run(self.rng.randint(1, 1000))
        self._card.process_ends()

    def remove(self) -> None:
        self._card.close()


class _Fabric(RtlAccelerator):
    """The Verilated accelerator behind an agent, which resets it or wakes for no reason."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(config, SIZE)
        self.reset_after: int | None = None
        self.extra_interrupts = 0

    def pause(self, wake: int, seconds: float) -> None:
        if self.extra_interrupts:
            self.extra_interrupts -= 1
            return
        if self.reset_after is not None:
            self.transport.simulator.run(self.reset_after)
            self.transport.simulator.reset()
            self.reset_after = None
        super().pause(wake, seconds)


class _Agent(SoakBoard):
    """A board behind its agent, by a link that can drop."""

    def __init__(self, folder: Path, rng: Random) -> None:
        super().__init__(folder, rng)
        self._fabric = _Fabric(SMALL)
        self._served = Served(self._fabric)
        self._left: int | None = None
        self._cable = Cable(self._served.port, self._through)

    def _through(self, data: bytes) -> bytes:
        if self._left is not None:
            data, self._left = data[: self._left], self._left - len(data)
            if self._left <= 0:
                self._left = None
                self._cable.cut()
        return data

    def transport(self) -> Transport:
        return board(self._cable.port)

    @property
    def model(self) -> RtlModel:
        return self._fabric.transport.simulator

    @property
    def faults(self) -> Mapping[str, Fault]:
        rng, fabric = self.rng, self._fabric
        pieces = (BASE, SIZE // 2), (BASE + SIZE // 2, SIZE // 2)
        return self._common() | {
            "a link that drops": Fault(When.RUN, self._cut),
            "an interrupt that comes twice": Fault(
                When.RUN, lambda: _changed(fabric, extra_interrupts=rng.randint(1, 5))
            ),
            "a reset in mid-token": Fault(
                When.RUN, lambda: _changed(fabric, reset_after=rng.randint(1, 6000))
            ),
            "a second process": Fault(When.LOAD, self._lent),
            "no memory in a row": Fault(
                When.LOAD, lambda: _changed(fabric, regions=((BASE, 4096),))
            ),
            "memory in pieces": Fault(When.SMALL, lambda: _changed(fabric, regions=pieces)),
            "a process that is killed": Fault(When.KILL, self._killed),
        }

    @contextmanager
    def _cut(self) -> Generator[None]:
        self._left = self.rng.randint(1, _MESSAGE_BYTES)
        try:
            yield
        finally:
            self._left = None
            self._cable.mend()

    @contextmanager
    def _lent(self) -> Generator[None]:
        other = board(self._served.port)
        other.open(SMALL, 1)
        try:
            yield
        finally:
            other.close()

    @contextmanager
    def _killed(self) -> Generator[None]:
        """With kill -9, of a process that was telling a story."""
        self.close()
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", _TELL, str(self._served.port), str(self.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as other:
            assert other.stdout is not None
            for _ in range(self.rng.randint(1, 3)):
                assert other.stdout.readline()
            known = len(self._served.log)
            os.kill(other.pid, signal.SIGKILL)
        # the agent sees it by the end of the link
        deadline = time.monotonic() + _GONE_S
        while not any(line.endswith("gone") for line in self._served.log[known:]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield

    def remove(self) -> None:
        self._cable.close()
        self._served.close()
        self._fabric.close()


def tell(port: int, folder: str) -> None:
    """Run tokens on the board of an agent, until this process is killed."""
    found = _small_model(Path(folder))
    device = AcceleratorDevice(board(port), watchdog_cycles=_WATCHDOG)
    device.load_program(found.model, found.program)
    session = device.session()
    while True:
        device.run([Step(session=session, tokens=[1])])
        session.truncate(0)
        print(flush=True)


BOARDS: Mapping[str, type[SoakBoard]] = {"u55c": _U55c, "kv260": _Kv260, "agent": _Agent}
"""Boards by name."""
