"""Boards without hardware: accelerators for the agent, and links to it that can be cut."""

import json
import mmap
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.devices.accelerator import agent
from lutra.devices.accelerator.board import BoardTransport
from lutra.devices.accelerator.board_link import BoardAddress
from lutra.devices.base import DeviceError
from lutra.devices.emulated.agent import BASE, InterpretedAccelerator
from lutra.devices.emulated.board import EmulatedBoard
from lutra_golden.control.descriptor import DOORBELL_BYTES
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import CONTROL_START, IDENT, REGISTERS, TILE_ARRAYS, VERSION
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import CONFIGS
from lutra_golden.timing.boards import find_profile

__all__ = ["BASE", "SIZE", "Cable", "Emulated", "FileBoard", "Interpreted", "Served", "board"]

SIZE = 1 << 22
"""Bytes of a board's memory."""


class Interpreted(InterpretedAccelerator):
    """The interpreter; while ``frozen`` is set, runs do not end."""

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(config, SIZE)
        self.frozen = threading.Event()
        self.n_aborts = 0

    def write_register(self, offset: int, value: int) -> None:
        super().write_register(offset, value)
        self.n_aborts += offset == REGISTERS["CONTROL"].address and not value & CONTROL_START

    def pause(self, wake: int, seconds: float) -> None:
        if self.frozen.is_set():
            time.sleep(min(seconds, 1e-3))
        else:
            super().pause(wake, seconds)


class Emulated(agent.Accelerator):
    """A board of the table of boards, whose clock runs while the agent waits or has a register."""

    def __init__(self, name: str, seed: int = 0) -> None:
        profile = find_profile(name)
        self.board = EmulatedBoard(profile, seed=seed)
        self.board.program(CONFIGS[profile.config])
        self.regions = ((profile.buffer_base, profile.buffer_bytes),)

    def read_register(self, offset: int) -> int:
        return self.board.read(offset)

    def write_register(self, offset: int, value: int) -> None:
        self.board.write(offset, value)

    def read(self, address: int, n_bytes: int) -> bytes:
        with _faults():
            return self.board.simulator.read(address, n_bytes)

    def write(self, address: int, data: bytes) -> None:
        self.board.simulator.write(address, data)

    def pause(self, wake: int, seconds: float) -> None:
        with _faults():
            self.board.advance(5000)

    def close(self) -> None:
        self.board.close()


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except DeviceError as error:
        raise agent.AgentError(str(error)) from None


class Served:
    """An agent at a loopback port, in threads of this process."""

    def __init__(
        self, accelerator: agent.Accelerator, key: bytes | None = None, port: int = 0
    ) -> None:
        self.log: list[str] = []
        self.accelerator = accelerator
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.agent = agent.Agent(accelerator, key, self.log.append)
        self._thread = threading.Thread(
            target=agent.serve_tcp, args=(self.agent, self._listener, self.log.append), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; links stay until their hosts go."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def board(port: int, key: Path | None = None) -> BoardTransport:
    """A transport to an agent of this machine."""
    return BoardTransport(BoardAddress("127.0.0.1", port), key)


class Cable:
    """A way to a port of this machine that can be cut and mended.

    ``through`` sees what a host sends, and gives what arrives.
    """

    def __init__(self, port: int, through: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.target, self._through = port, through
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._whole = True
        self._changes = threading.Lock()  # a cut is over before the cable can be mended
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all links, and let none begin."""
        with self._changes:
            self._whole = False
            for end in self._ends:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # one of its sides is closed already
            self._ends.clear()

    def mend(self) -> None:
        with self._changes:
            self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._changes:
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self._ends += [near, far]
            for source, sink, through in (
                (near, far, self._through),
                (far, near, lambda data: data),
            ):
                threading.Thread(target=_pump, args=(source, sink, through), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, through: Callable[[bytes], bytes]) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(through(data))
    except OSError:
        pass  # it was cut
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class _SharedMemory(Memory):
    """The bytes of a file, from address ``base`` on."""

    def __init__(self, base: int, data: NDArray[np.uint8]) -> None:
        super().__init__(0)
        self._base, self._data, self.n_runs = base, data, 0

    def version(self, address: int, n_bytes: int) -> int:
        return self.n_runs  # whoever has the file may have written

    def store(self, address: int, data: NDArray[np.uint8]) -> None:
        first = address - self._base
        assert 0 <= first and first + len(data) <= len(self._data)
        self._data[first : first + len(data)] = data

    def read(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        first = address - self._base
        assert 0 <= first and first + n_bytes <= len(self._data)
        return self._data[first : first + n_bytes]


class FileBoard:
    """A tree of ordinary files that stands for a board's, and the accelerator behind it.

    ``emulated_agent.py``, the process of the agent, gives the registers their side effects and
    leaves doorbells in a mailbox behind them.
    """

    ADDRESS = 0x3_8000_0000
    """Of its memory, beyond 32 bits."""
    RUNG, DONE, MAILBOX = 0x200, 0x201, 0x210
    """Words of the mailbox: doorbells, those that are over, and their values."""

    def __init__(self, root: Path, config: AcceleratorConfig) -> None:
        self.root = root
        uio, buffer = root / "sys/class/uio/uio0", root / "sys/class/u-dma-buf/udmabuf0"
        for folder in (uio / "maps/map0", buffer, root / "dev", root / "proc"):
            folder.mkdir(parents=True)
        (uio / "name").write_text("lutra\n")
        (uio / "maps/map0/size").write_text("0x00001000\n")
        (uio / "maps/map0/offset").write_text("0x0\n")
        (buffer / "phys_addr").write_text(f"{self.ADDRESS:#018x}\n")
        (buffer / "size").write_text(f"{SIZE}\n")
        (root / "proc/iomem").write_text("00000000-7fffffff : System RAM\n")
        (root / "masks.json").write_text(json.dumps(_masks()))
        (root / "dev/uio0").write_bytes(bytes(4096))
        (root / "dev/udmabuf0").write_bytes(bytes(SIZE))
        self.words = np.frombuffer(_mapped(root / "dev/uio0", 4096), np.uint32)
        memory = np.frombuffer(_mapped(root / "dev/udmabuf0", SIZE), np.uint8)
        self._memory = _SharedMemory(self.ADDRESS, memory)
        self._interpreter = Interpreter(config, self._memory)
        fingerprint = struct.unpack("<II", struct.pack("<Q", config.fingerprint))
        self.words[:4] = IDENT, VERSION, *fingerprint
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._running = False
        self._thread.join()

    def _run(self) -> None:
        words = self.words
        while self._running:
            done = int(words[self.DONE])
            if int(words[self.RUNG]) == done:
                time.sleep(1e-3)
                continue
            self._memory.n_runs += 1
            self._interpreter.ring(int(words[self.MAILBOX + done % 8]) * DOORBELL_BYTES)
            self._interpreter.run_next()
            words[self.DONE] = done + 1


def _masks() -> dict[int, int]:
    """Bits that each word of the registers keeps."""
    masks: dict[int, int] = {}
    for name, register in REGISTERS.items():
        for index in range(register.count):
            width = register.width - (0 if name in TILE_ARRAYS else 32 * index)
            masks[register.address + 4 * index] = (1 << min(max(width, 0), 32)) - 1
    return masks


def _mapped(path: Path, size: int) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)
