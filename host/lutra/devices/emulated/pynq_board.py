"""An emulated board as a device of PYNQ: its driver cannot tell it from a real one."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lutra.devices.accelerator.hwh import hwh
from lutra.devices.accelerator.pynq import PynqTransport
from lutra.devices.emulated.board import BoardFault, EmulatedBoard
from lutra.devices.emulated.zynq import Cached, Clocks, InterruptController, Uio
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.packaging import REGISTER_BYTES
from lutra_golden.timing.boards import BoardProfile

__all__ = ["EmulatedPynq", "emulated_pynq"]

Progress = Callable[[str, float], None]
_PRIORITY = 10_000  # of probing: behind every device of PYNQ's own
_IRQ = 121  # of pl_ps_irq0, as PYNQ counts
_numbers = itertools.count()


class EmulatedPynq:
    """An emulated board, its bitstreams, and the device of PYNQ that it is.

    ``tag`` is the name of the device, by which a second driver is kept away; by default no other
    board has the same.
    """

    def __init__(self, board: EmulatedBoard, tag: str | None = None) -> None:
        self.board = board
        self.tag = tag or f"emulated-{board.board.name}-{os.getpid()}-{next(_numbers)}"
        self.calls: dict[str, int] = {}
        """Flushes, invalidations and allocations so far."""
        self._folder = tempfile.TemporaryDirectory(prefix="lutra-emulated-")
        self._configs: dict[str, AcceleratorConfig] = {}
        self._device: Any = None

    def bitstream(self, config: AcceleratorConfig) -> Path:
        """Write the bitstream of ``config``, which is its fingerprint, and the file beside it."""
        name = f"{config.fingerprint:016x}"
        self._configs[name] = config
        path = Path(self._folder.name) / f"{name}.bit"
        path.write_text(name, encoding="ascii")
        path.with_suffix(".hwh").write_text(hwh(self.board.board, config), encoding="utf-8")
        return path

    def device(self) -> Any:
        """The device of PYNQ, for a driver that loads it.

        What PYNQ has once in a process, an interrupt and clocks, is of this board from now on.
        """
        if self._device is None:
            self._device = _device_class()(self)
        self._device.take()
        return self._device

    def program(self, path: Path) -> None:
        """Load a bitstream."""
        self.board.program(self._configs[path.read_text(encoding="ascii")])

    def power_up(self) -> None:
        """Give the clocks of the board the rates that they have at power-up."""
        self.device().power_up()

    def count(self, name: str) -> None:
        """Count a call."""
        self.calls[name] = self.calls.get(name, 0) + 1

    def close(self) -> None:
        """Take the board away."""
        self.board.close()
        self._folder.cleanup()


def emulated_pynq(
    board: BoardProfile, *, seed: int = 0, progress: Progress | None = None
) -> PynqTransport:
    """Transport to a board that is emulated: the one to a real board, over another device."""
    emulated = EmulatedPynq(EmulatedBoard(board, seed=seed, progress=progress))
    return PynqTransport(
        device=emulated.device, bitstream=emulated.bitstream, emulated=board.name
    )  # fmt: skip


_classes: dict[str, type[Any]] = {}


def _device_class() -> type[Any]:
    """The class of devices; PYNQ is imported here."""
    if not _classes:
        _classes["device"] = _make_device_class()
    return _classes["device"]


def _make_device_class() -> type[Any]:
    device_base: Any = import_module("pynq.pl_server.device").Device
    buffer_class: Any = import_module("pynq.buffer").PynqBuffer
    interrupt: Any = import_module("pynq.interrupt")
    clocks: Any = import_module("pynq.ps").Clocks
    metadata: Any = import_module("pynqmetadata.frontends").Metadata
    parser_class: Any = import_module("pynqmetadata.views.runtime").RuntimeMetadataParser

    class EmulatedDevice(device_base):
        """Registers one by one, so that each access is one of the simulated bus."""

        _probe_priority_ = _PRIORITY

        @classmethod
        def _probe_(cls) -> list[object]:
            """None: an emulated board is made by name."""
            return []

        def __init__(self, emulated: EmulatedPynq) -> None:
            device_base.__init__(self, emulated.tag)
            self.emulated = emulated
            board = emulated.board
            self.name, self.arch, self.timestamp = emulated.tag, "aarch64", ""
            self.bitfile_name: str | None = None
            self.capabilities = {"REGISTER_RW": True}
            self._controller = InterruptController(board)
            self.power_up()
            self.uio = Uio(board, self._controller)

        def power_up(self) -> None:
            """Start the clock generators."""
            self._clocks = Clocks(self.emulated.board)

        def take(self) -> None:
            """Be the board that PYNQ's global state is about."""
            interrupt._InterruptController._uio_devices[_IRQ] = self.uio
            clocks.device = self
            if "_real_instance" in vars(clocks):
                del clocks._real_instance

        # -- registers

        def read_registers(self, address: int, length: int) -> bytes:
            words = (self._read(address + i) for i in range(0, length, 4))
            return b"".join(word.to_bytes(4, "little") for word in words)

        def write_registers(self, address: int, data: bytes) -> None:
            data = bytes(data)
            for i in range(0, len(data), 4):
                self._write(address + i, int.from_bytes(data[i : i + 4], "little"))

        def _read(self, address: int) -> int:
            board = self.emulated.board
            base = board.board.registers_base
            if base <= address < base + REGISTER_BYTES:
                return board.read(address - base)
            base = board.board.intc_base
            if base <= address < base + REGISTER_BYTES:
                return self._controller.read(address - base)
            if address in self._clocks:
                return self._clocks.read(address)
            raise BoardFault(f"nothing answers at {address:#x}")

        def _write(self, address: int, value: int) -> None:
            board = self.emulated.board
            base = board.board.registers_base
            if base <= address < base + REGISTER_BYTES:
                board.write(address - base, value)
                return
            base = board.board.intc_base
            if base <= address < base + REGISTER_BYTES:
                self._controller.write(address - base, value)
            elif address in self._clocks:
                self._clocks.write(address, value)
            else:
                raise BoardFault(f"nothing answers at {address:#x}")

        # -- memory

        @property
        def default_memory(self) -> EmulatedDevice:
            return self

        def allocate(self, shape: Any, dtype: Any, **_options: Any) -> Any:
            self.emulated.count("allocate")
            board = self.emulated.board
            size = np.dtype(dtype).itemsize
            address, n_bytes = board.allocate(math.prod(shape) * size)
            cached = Cached(board, address, n_bytes)
            weakref.finalize(cached, board.free, address)
            return buffer_class(
                (n_bytes // size,), dtype, buffer=cached.host, device=self, bo=cached,
                device_address=address, coherent=False,
            )  # fmt: skip

        def flush(self, bo: Cached, offset: int, _pointer: int, n_bytes: int) -> None:
            self.emulated.count("flush")
            bo.flush(offset, n_bytes)

        def invalidate(self, bo: Cached, offset: int, _pointer: int, n_bytes: int) -> None:
            self.emulated.count("invalidate")
            bo.invalidate(offset, n_bytes)

        # -- bitstreams

        def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
            return parser_class(metadata(input=str(Path(bitfile_name).with_suffix(".hwh"))))

        def gen_cache(self, bitstream: object, parser: object = None) -> None:
            """Keep nothing: PYNQ's file for it is that of a real board."""

        def download(self, bitstream: Any, parser: object = None) -> None:
            self.emulated.program(Path(bitstream.bitfile_name))
            self._controller.reset()
            self.post_download(bitstream, parser, self.name)

    return EmulatedDevice
