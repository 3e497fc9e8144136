"""Devices by name, and the fastest that is here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lutra.arguments import check_whole, either
from lutra.devices.accelerator.board import BoardTransport
from lutra.devices.accelerator.board_link import BOARD_SCHEME, BoardAddress
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.pynq import PynqTransport, default_bitstream
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.accelerator.transport import Transport
from lutra.devices.accelerator.xrt import XrtTransport, default_xclbin
from lutra.devices.base import Device
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cuda.device import CudaDevice
from lutra.devices.emulated.card import emulated_xrt
from lutra.devices.emulated.pynq_board import emulated_pynq
from lutra.devices.golden import GoldenDevice
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores, unwritable
from lutra_golden.timing.boards import BOARD_PROFILES, BoardProfile, find_profile
from lutra_kernels import gpu_count, interpreted

__all__ = [
    "DEVICES",
    "choose_device",
    "is_device",
    "most_threads",
    "next_best",
    "notes_on",
]

Progress = Callable[[str, float], None]

DEVICES = ("auto", "cuda", "cpu", "golden", "interpreted", "rtl", "pynq", "xrt")
"""Names of devices; ``auto`` is the fastest that is here. An address of a board is one, too."""
_BOARDS = ("pynq", "xrt")
_THREADS = 256  # more than one per core only slow each other down


def most_threads() -> int:
    """Most threads that the device ``cpu`` is given on this machine."""
    return max(_THREADS, available_cores())


def _golden(_threads: int | None, _progress: Progress | None) -> Device:
    return GoldenDevice()


def _cpu(threads: int | None, progress: Progress | None) -> Device:
    return CpuDevice(threads, progress)


def _cuda(_threads: int | None, progress: Progress | None) -> Device:
    return CudaDevice(progress)


_PROCESSORS: Mapping[str, Callable[[int | None, Progress | None], Device]] = {
    "cuda": _cuda,
    "cpu": _cpu,
    "golden": _golden,
}
"""Devices that run packed models themselves, the fastest first."""


def is_device(name: str) -> bool:
    """True if ``name`` is one of :data:`DEVICES`, or begins like the address of a board."""
    return name in DEVICES or name.startswith(BOARD_SCHEME)


def choose_device(
    name: str,
    *,
    config: str | AcceleratorConfig | None = None,
    engine: str | None = None,
    threads: int | None = None,
    wave: Path | None = None,
    wave_cycles: tuple[int, int] | None = None,
    emulate: str | None = None,
    bitstream: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Device, list[str]]:
    """The device of this name, and for ``auto`` the reason why each faster one cannot be used.

    ``board://host`` is a board's accelerator, with what else
    :class:`~lutra.devices.accelerator.board_link.BoardAddress` knows. ``config`` (``nano`` if left
    out) and ``engine`` are those of accelerators, ``wave`` and ``wave_cycles`` of the simulated
    one, ``threads`` are those of the device ``cpu``; elsewhere they are refused. ``emulate`` is a
    board that takes the place of a real one, ``bitstream`` what a real one loads.
    """
    if not is_device(name):
        raise LutraError(
            f"device must be {either([*DEVICES, f'{BOARD_SCHEME}host'])}, not {name!r}"
        )
    is_accelerator = name not in ("auto", *_PROCESSORS)
    if threads is not None:
        check_whole("threads", threads)
        if not 1 <= threads <= most_threads():
            raise LutraError(f"threads must be 1 to {most_threads()}, not {threads}")
    if wave is not None:
        _check_wave(wave, name)
    if threads is not None and name not in ("auto", "cpu"):
        raise LutraError(f"only device cpu has threads, {name} has none: leave threads out")
    if engine is not None and not is_accelerator:
        raise LutraError(f"device {name} has no matmul engine to choose: leave engine out")
    if config is not None and not is_accelerator:
        raise LutraError(f"device {name} has no configuration to choose: leave config out")
    board = None if emulate is None else _emulated(emulate, name)
    if bitstream is not None and (name not in _BOARDS or board is not None):
        raise LutraError("only a board loads a bitstream: leave bitstream out")
    built = config or (board.config if board else "nano")
    if name in _BOARDS:
        transport = _board_transport(name, board, bitstream, progress)
        return AcceleratorDevice(transport, built, engine, progress=progress), []
    if name == "rtl":
        transport = RtlTransport(wave=wave, wave_cycles=wave_cycles, progress=progress)
        return AcceleratorDevice(transport, built, engine, progress=progress), []
    if name == "interpreted":
        return AcceleratorDevice(InterpretedTransport(), built, engine, progress=progress), []
    if name.startswith(BOARD_SCHEME):
        transport = BoardTransport(BoardAddress.parse(name))
        return AcceleratorDevice(transport, built, engine, progress=progress), []
    if name == "auto":
        return next_best(None, threads=threads, progress=progress)
    return _PROCESSORS[name](threads, progress), []


def _emulated(emulate: str, device: str) -> BoardProfile:
    """The board to emulate, if ``device`` drives it."""
    board = find_profile(emulate)
    if device != board.runtime:
        runs = [each.name for each in BOARD_PROFILES.values() if each.runtime == device]
        raise LutraError(
            f"device {device} drives no {board.name}: choose device {board.runtime}"
            + (f", or emulate {either(runs)}" if runs else "")
        )
    return board


def _board_transport(
    name: str, board: BoardProfile | None, bitstream: Path | None, progress: Progress | None
) -> Transport:
    """Transport of device ``name`` to the real board, or to ``board`` emulated."""
    if name == "xrt":
        if board is None:
            return XrtTransport(xclbin=bitstream or default_xclbin)
        return emulated_xrt(board, progress=progress)
    if board is None:
        return PynqTransport(bitstream=bitstream or default_bitstream)
    return emulated_pynq(board, progress=progress)


def next_best(
    after: str | None,
    reasons: Sequence[str] = (),
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Device, list[str]]:
    """The fastest device that is here, of those slower than ``after``.

    ``reasons`` why others are not used come back with those of this call. That a machine has no GPU
    needs none.
    """
    names = list(_PROCESSORS)
    for name in names[0 if after is None else names.index(after) + 1 :]:
        if name == "cuda" and not gpu_count() and not interpreted():
            continue
        try:
            found = _PROCESSORS[name](threads, progress)
        except LutraError as error:
            reasons = [*reasons, str(error)]
            continue
        return found, list(reasons)
    raise AssertionError("the golden device is always here")


def notes_on(device: Device, reasons: Sequence[str]) -> list[str]:
    """A line for the user on each reason why ``device`` had to be taken."""
    runs = f"device {device.name} runs instead" + (", in NumPy" * (device.name == "golden"))
    return [f"{reason}; {runs}" for reason in reasons]


def _check_wave(wave: object, device: str) -> None:
    """Refuse a waveform file that cannot be written, before anything is built for it."""
    if not isinstance(wave, Path):
        raise LutraError(f"wave must be a pathlib.Path, not {wave!r}")
    if wave.suffix not in (".vcd", ".fst"):
        raise LutraError(f"a waveform file must end in .vcd or .fst, not {wave.name!r}")
    if device != "rtl":
        raise LutraError("only device rtl writes a waveform: choose it, or leave wave out")
    if wave.is_dir():
        raise LutraError(f"the waveform {wave} is a folder: give a file")
    if not wave.parent.is_dir():
        raise LutraError(
            f"the folder of the waveform {wave} does not exist: make it, or give another"
        )
    if reason := unwritable(wave.parent):
        raise LutraError(f"the waveform {wave} cannot be written ({reason}): give another file")
