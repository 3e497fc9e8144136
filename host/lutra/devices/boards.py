"""Boards that processes of this machine drive: which are here, and what runs a model on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lutra.arguments import either
from lutra.compile.configure import configure
from lutra.compile.fit import check_fit, engines_for
from lutra.devices.accelerator.bitstreams import (
    Bitstream,
    bitstream_folder,
    default_bitstreams,
    read_bitstream,
)
from lutra.devices.accelerator.pynq import PynqTransport, describe_board
from lutra.devices.accelerator.transport import Transport
from lutra.devices.accelerator.xrt import XrtTransport, count_cards, describe_card
from lutra.devices.hardware import SYSTEM, zynq_family
from lutra_golden.core.boards import BOARDS, Board, Flow
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.configs import CONFIGS, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["BOARD_DRIVERS", "BoardDriver", "check_known", "matching", "no_bitstream", "usable"]


@dataclass(frozen=True, kw_only=True)
class BoardDriver:
    """A device that is a board in this machine.

    Parameters
    ----------
    device : name of the device.
    suffix : end of the names of its bitstreams.
    flows : tools that make them.
    is_here : True if there is such a board; takes no time where there is none.
    describe : name of the board; LutraError says why it cannot be used.
    transport : way to the board with a bitstream.
    """

    device: str
    suffix: str
    flows: tuple[Flow, ...]
    is_here: Callable[[], bool]
    describe: Callable[[], str]
    transport: Callable[[Path], Transport]

    @property
    def boards(self) -> Sequence[Board]:
        """Boards that ``lutra build`` makes such bitstreams for."""
        return [board for board in BOARDS.values() if board.flow in self.flows]


def _is_zynq(root: Path = SYSTEM) -> bool:
    return zynq_family(root) is not None


def _has_card(root: Path = SYSTEM) -> bool:
    """True if the driver of cards is there, or XRT's module finds one."""
    if (root / "sys/bus/pci/drivers/xocl").is_dir():
        return True
    return find_spec("pyxrt") is not None and count_cards() > 0


BOARD_DRIVERS: Mapping[str, BoardDriver] = {
    driver.device: driver
    for driver in (
        BoardDriver(
            device="pynq",
            suffix=".bit",
            flows=(Flow.ZYNQ_MPSOC, Flow.ZYNQ_7000),
            is_here=_is_zynq,
            describe=describe_board,
            transport=lambda path: PynqTransport(bitstream=path),
        ),
        BoardDriver(
            device="xrt",
            suffix=".xclbin",
            flows=(Flow.VITIS,),
            is_here=_has_card,
            describe=describe_card,
            transport=lambda path: XrtTransport(xclbin=path),
        ),
    )
}
"""Devices that are boards, by name."""


def usable(
    driver: BoardDriver, model: PackedModel, bitstream: Path | None = None
) -> tuple[Bitstream, AcceleratorConfig]:
    """The bitstream that runs ``model``, and its configuration; LutraError says why none does.

    It is ``bitstream``, or else one of those in their usual place.
    """
    refused: list[str] = []
    try:
        found = [read_bitstream(bitstream)] if bitstream else default_bitstreams(driver.suffix)
    except LutraError as error:
        raise LutraError(f"device {driver.device}: {error}") from None
    for each in found:
        try:
            return each, matching(each, model)
        except LutraError as error:
            refused.append(str(error))
    if refused:
        others = f"; {len(refused) - 1} more do not fit either" if len(refused) > 1 else ""
        raise LutraError(f"device {driver.device}: {refused[0]}{others}")
    raise LutraError(no_bitstream(driver))


def no_bitstream(driver: BoardDriver) -> str:
    """Line that says that there is none in the usual place, and how to get one."""
    names = either([board.name for board in driver.boards])
    return (
        f"device {driver.device} has no bitstream in {bitstream_folder()}: make one with `lutra "
        f"build --board NAME` ({names}), and put its {driver.suffix} file there with those beside "
        "it"
    )


def matching(bitstream: Bitstream, model: PackedModel) -> AcceleratorConfig:
    """The configuration of a bitstream, if it runs ``model``; LutraError says why it does not."""
    check_known(bitstream)
    base = _base(bitstream)
    needed: AcceleratorConfig | None = None
    for name in CONFIGS if base is None else [base]:
        for engine in engines_for(model):
            try:
                config = configure(model, name, engine)
            except LutraError:
                continue  # no configuration of this engine holds the model
            if config.fingerprint == bitstream.fingerprint:
                return config
            needed = needed or config
    built = _named().get(bitstream.config or "")
    if built is not None:
        # the line that a compiler would give
        check_fit(model, built)
    needs = "" if needed is None else f", which needs one such as {needed.name}"
    raise LutraError(
        f"{bitstream.path.name}, of configuration {bitstream.config or 'unknown'}, does not run "
        f"{model.name}{needs}: use another model, or build a bitstream for it"
    )


def check_known(bitstream: Bitstream) -> None:
    """Refuse a bitstream of unknown origin, of mixed files, or of another version of Lutra."""
    name = bitstream.path.name
    if bitstream.fingerprint is None:
        raise LutraError(
            f"{name} does not say what it was built from: copy the lutra.json of its build to "
            f"{bitstream.path.with_suffix('.json')}"
        )
    if bitstream.handoff not in (None, bitstream.fingerprint):
        raise LutraError(
            f"{name} has files of different builds beside it, {bitstream.fingerprint:016x} by its "
            f".json and {bitstream.handoff:016x} by its .hwh: copy all from one build"
        )
    config = _named().get(bitstream.config or "")
    if config is not None and config.fingerprint != bitstream.fingerprint:
        raise LutraError(
            f"{name} was built from another configuration {config.name} "
            f"({bitstream.fingerprint:016x}) than this Lutra's ({config.fingerprint:016x}): build "
            f"it again{_build_command(bitstream)}"
        )


def _build_command(bitstream: Bitstream) -> str:
    base = _base(bitstream)
    names = [board.name for board in BOARDS.values() if board.config.name == base]
    return f" with `lutra build --board {names[0]}`" if names else ""


def _base(bitstream: Bitstream) -> str | None:
    """Named configuration that a bitstream's was made from."""
    name = bitstream.config or ""
    return next((each for each in CONFIGS if name == each or name.startswith(f"{each}-")), None)


@cache
def _named() -> Mapping[str, AcceleratorConfig]:
    """Configurations with every engine, by name."""
    built = [with_engine(config, engine) for config in CONFIGS.values() for engine in ENGINES]
    return {config.name: config for config in built}
