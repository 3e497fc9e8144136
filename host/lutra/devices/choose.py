"""Devices by name, and the options of each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lutra.arguments import check_whole, either
from lutra.devices.base import Device
from lutra.devices.hardware import BOARD_SCHEME, LENT_SCHEME
from lutra.devices.processors import PROCESSORS
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores, unwritable
from lutra_golden.model.capabilities import COMMON_PARTS, EVERY_PART, Capabilities
from lutra_golden.timing.boards import AGENT, BOARD_PROFILES, BoardProfile, find_profile

if TYPE_CHECKING:
    from lutra.devices.accelerator.transport import Transport

__all__ = [
    "DEVICES",
    "MADE_FOR_THE_MODEL",
    "DeviceOptions",
    "choose_device",
    "is_device",
    "make_device",
    "most_threads",
]

Progress = Callable[[str, float], None]

DEVICES = ("auto", "cuda", "cpu", "golden", "interpreted", "rtl", "pynq", "xrt")
"""Names of devices; ``auto`` is the fastest that is here. An address of a board is one, too."""
MADE_FOR_THE_MODEL = ("interpreted", "rtl")
"""Accelerators whose hardware is made when a model is loaded."""
_BOARDS = {each.runtime for each in BOARD_PROFILES.values()} - {AGENT}
_THREADS = 256  # more than one per core only slow each other down


def most_threads() -> int:
    """Most threads that the device ``cpu`` is given on this machine."""
    return max(_THREADS, available_cores())


def is_device(name: str) -> bool:
    """True if ``name`` is one of :data:`DEVICES`, or begins like the address of a board or of a
    device that is lent."""
    return name in DEVICES or name.startswith((BOARD_SCHEME, LENT_SCHEME))


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Choices beside the name of a device; see :func:`choose_device`."""

    config: str | AcceleratorConfig | None = None
    engine: str | None = None
    threads: int | None = None
    wave: Path | None = None
    wave_cycles: tuple[int, int] | None = None
    emulate: str | None = None
    bitstream: Path | None = None

    def check(self, name: str) -> None:
        """Refuse a name that is no device, and what the device of this name has not."""
        if not is_device(name):
            places = [f"{scheme}host" for scheme in (BOARD_SCHEME, LENT_SCHEME)]
            raise LutraError(f"device must be {either([*DEVICES, *places])}, not {name!r}")
        is_accelerator = name not in ("auto", *PROCESSORS) and not name.startswith(LENT_SCHEME)
        if self.threads is not None:
            check_whole("threads", self.threads)
            if not 1 <= self.threads <= most_threads():
                raise LutraError(f"threads must be 1 to {most_threads()}, not {self.threads}")
        if self.wave is not None:
            _check_wave(self.wave, name)
        if self.threads is not None and name not in ("auto", "cpu"):
            raise LutraError(f"only device cpu has threads, {name} has none: leave threads out")
        if self.engine is not None and not is_accelerator:
            raise LutraError(f"device {name} has no matmul engine to choose: leave engine out")
        if self.config is not None and not is_accelerator:
            raise LutraError(f"device {name} has no configuration to choose: leave config out")
        board = None if self.emulate is None else _emulated(self.emulate, name)
        if self.bitstream is not None and (name not in (*_BOARDS, "auto") or board):
            raise LutraError("only a board loads a bitstream: leave bitstream out")
        if self.bitstream is not None:
            _check_bitstream(self.bitstream, name)


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

    ``auto`` is no board, as which one is to be taken depends on the model: ask
    :class:`~lutra.devices.auto.AutoDevices`. ``board://host`` is a board's accelerator, with what
    else :class:`~lutra.devices.accelerator.board_link.BoardAddress` knows, and ``lutra://host`` a
    device that another Lutra lends (docs/serving.md). ``config`` (``nano`` if left out) and
    ``engine`` are those of accelerators, ``wave`` and ``wave_cycles`` of the simulated one,
    ``threads`` are those of the device ``cpu``; elsewhere they are refused. ``emulate`` is a board
    that takes the place of a real one, ``bitstream`` what a real one loads.
    """
    options = DeviceOptions(
        config=config,
        engine=engine,
        threads=threads,
        wave=wave,
        wave_cycles=wave_cycles,
        emulate=emulate,
        bitstream=bitstream,
    )
    if name != "auto":
        return make_device(name, options, progress), []
    options.check(name)
    from lutra.devices.auto import AutoDevices

    found = AutoDevices(threads=threads, progress=progress)
    return found.take(), found.reasons


def make_device(name: str, options: DeviceOptions, progress: Progress | None = None) -> Device:
    """The device of this name, any but ``auto``, with ``options``; see :func:`choose_device`."""
    options.check(name)
    if name in PROCESSORS:
        return PROCESSORS[name].make(options.threads, progress)
    if name.startswith(LENT_SCHEME):
        from lutra.devices.remote.device import RemoteDevice

        return RemoteDevice(name)
    return _accelerator(name, options, progress)


def _accelerator(name: str, options: DeviceOptions, progress: Progress | None) -> Device:
    """The accelerator of this name. What drives it is imported here: processors need none of it."""
    from lutra.devices.accelerator.device import TIMEOUT_S, AcceleratorDevice

    board = None if options.emulate is None else find_profile(options.emulate)
    built = options.config or (board.config if board else "nano")
    # a simulation takes the time that it takes, and its watchdog counts cycles
    timeout_s = None if name == "rtl" else TIMEOUT_S
    is_built = name not in MADE_FOR_THE_MODEL
    capabilities = _capabilities(built, options.engine, is_built=is_built)
    return AcceleratorDevice(
        _transport(name, board, options, progress),
        built,
        options.engine,
        timeout_s=timeout_s,
        capabilities=capabilities,
        progress=progress,
    )


def _capabilities(
    config: str | AcceleratorConfig, engine: str | None, *, is_built: bool
) -> Capabilities:
    """Parts of packed models that an accelerator runs: those of a configuration, and of a name all
    that can be built with ``engine``, unless it ``is_built`` already."""
    if isinstance(config, AcceleratorConfig):
        m = config.matmul
        return Capabilities(
            activation_groups=m.a_groups == ActivationGroups(),
            offsets=m.offset_width > 0,
            vocabulary=m.grouped,
        )
    ungrouped = engine in ENGINES and not ENGINES[engine].grouped
    return COMMON_PARTS if is_built or ungrouped else EVERY_PART


def _transport(
    name: str, board: BoardProfile | None, options: DeviceOptions, progress: Progress | None
) -> "Transport":
    """Transport of device ``name``: to the simulated hardware, a real board, or ``board``
    emulated."""
    if name == "rtl":
        from lutra.devices.accelerator.rtl import RtlTransport

        return RtlTransport(wave=options.wave, wave_cycles=options.wave_cycles, progress=progress)
    if name == "interpreted":
        from lutra.devices.accelerator.interpreted import InterpretedTransport

        return InterpretedTransport()
    if name == "xrt" and board is not None:
        from lutra.devices.emulated.card import emulated_xrt

        return emulated_xrt(board, progress=progress)
    if name == "xrt":
        from lutra.devices.accelerator.xrt import XrtTransport

        return XrtTransport(xclbin=options.bitstream)
    if name == "pynq" and board is not None:
        from lutra.devices.emulated.pynq_board import emulated_pynq

        return emulated_pynq(board, progress=progress)
    if name == "pynq":
        from lutra.devices.accelerator.pynq import PynqTransport

        return PynqTransport(bitstream=options.bitstream)
    from lutra.devices.accelerator.board import BoardTransport
    from lutra.devices.accelerator.board_link import BoardAddress

    return BoardTransport(BoardAddress.parse(name))


def _emulated(emulate: str, device: str) -> BoardProfile:
    """The board to emulate, if ``device`` drives it."""
    board = find_profile(emulate)
    if board.runtime == AGENT:
        here = either([each.name for each in BOARD_PROFILES.values() if each.runtime != AGENT])
        raise LutraError(f"board {board.name} is driven through its agent: emulate {here}")
    if device != board.runtime:
        runs = [each.name for each in BOARD_PROFILES.values() if each.runtime == device]
        raise LutraError(
            f"device {device} drives no {board.name}: choose device {board.runtime}"
            + (f", or emulate {either(runs)}" if runs else "")
        )
    return board


def _check_bitstream(bitstream: object, device: str) -> None:
    """Refuse a bitstream that cannot be read, before a model is packed for it.

    ``auto`` says so and takes another device.
    """
    if not isinstance(bitstream, Path):
        raise LutraError(f"bitstream must be a pathlib.Path, not {bitstream!r}")
    if device in _BOARDS:
        from lutra.devices.accelerator.bitstreams import read_bitstream

        read_bitstream(bitstream)


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
