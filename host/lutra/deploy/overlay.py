"""A bitstream as ``lutra build`` leaves it, and the board and configuration that it is for."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lutra.compile.configure import configure
from lutra.deploy.link import DeployError
from lutra_golden.core.boards import BOARDS, Board, Flow
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import CONFIGS
from lutra_golden.model.packed import PackedModel

__all__ = ["Overlay", "check_board", "check_model", "find_overlay", "runtime_of"]

_IDENTITY = "lutra.json"
_BUILDS, _DEPLOY = "build-*", "deploy"
_FAMILIES = {Flow.ZYNQ_MPSOC: "xlnx,zynqmp", Flow.ZYNQ_7000: "xlnx,zynq-7000"}
"""Families by the name that a device tree has for them."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Files of a build, by the names that they get on the board."""

    board: Board
    config: AcceleratorConfig
    files: Mapping[str, Path]

    @property
    def bitstream(self) -> str:
        """Name of the file that is loaded."""
        return "lutra.xclbin" if self.board.flow == Flow.VITIS else "lutra.bit"


def runtime_of(board: Board) -> str:
    """Device that drives the board."""
    return "xrt" if board.flow == Flow.VITIS else "pynq"


def find_overlay(build: Path | None, bitstream: Path | None) -> Overlay:
    """The overlay in the folder of a build, or of a bitstream with its files beside it.

    Without either, the only ``build-BOARD`` of the current folder.
    """
    if bitstream is None:
        folder = _built() if build is None else build
        if (folder / _DEPLOY).is_dir():
            folder = folder / _DEPLOY
        known = (folder / f"lutra{end}" for end in (".bit", ".xclbin"))
        path = next((each for each in known if each.is_file()), None)
        if path is None:
            raise DeployError(
                f"{folder} has no bitstream, which Vivado makes: run `lutra build --board BOARD` "
                "where Vivado is, or give --bitstream FILE"
            )
    else:
        path = bitstream
        if not path.is_file():
            raise DeployError(f"the bitstream {path} does not exist: give a .bit or .xclbin file")
    board, config = _identity(path.parent / _IDENTITY)
    overlay = Overlay(board=board, config=config, files=_files(path, board))
    if path.suffix != Path(overlay.bitstream).suffix:
        raise DeployError(
            f"{path} is no bitstream of {board.title}, whose are {overlay.bitstream}: give the "
            "file of its build"
        )
    return overlay


def _built() -> Path:
    """The only build of the current folder, or the only one there without Vivado's files."""
    folders = sorted(Path().glob(_BUILDS))
    finished = [each for each in folders if (each / _DEPLOY / _IDENTITY).is_file()]
    builds = finished or [each for each in folders if (each / _IDENTITY).is_file()]
    if not builds:
        raise DeployError(
            "there is no build in this folder: run `lutra build --board BOARD` where Vivado is, or "
            "give --build FOLDER or --bitstream FILE"
        )
    if len(builds) > 1:
        names = ", ".join(map(str, builds))
        raise DeployError(f"builds in this folder: {names}: choose one with --build FOLDER")
    return builds[0]


def _identity(path: Path) -> tuple[Board, AcceleratorConfig]:
    """Board and configuration that a build says it is for, if this Lutra has them."""
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
        name, config, fingerprint = (
            str(identity[key]) for key in ("board", "configuration", "fingerprint")
        )
    except OSError:
        raise DeployError(
            f"there is no {path}, which says what the bitstream was built from: copy it from the "
            "build, too"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DeployError(f"{path} is not of `lutra build`: build again") from None
    if name not in BOARDS:
        raise DeployError(f"{path}: this Lutra knows no board {name!r}: use the one that built it")
    known = next((c for c in (BOARDS[name].config, *CONFIGS.values()) if c.name == config), None)
    if known is None or f"{known.fingerprint:016x}" != fingerprint:
        raise DeployError(
            f"the bitstream beside {path} is of configuration {config} ({fingerprint}), which this "
            f"Lutra does not have: build again with `lutra build --board {name}`"
        )
    return BOARDS[name], known


def _files(bitstream: Path, board: Board) -> Mapping[str, Path]:
    ends = {".xclbin": True} if board.flow == Flow.VITIS else {".bit": True, ".hwh": True}
    files = {_IDENTITY: bitstream.parent / _IDENTITY}
    for end, needed in {**ends, ".bit.bin": False, ".dtbo": False}.items():
        path = bitstream.with_name(bitstream.stem + end)
        if path.is_file():
            files[f"lutra{end}"] = path
        elif needed:
            raise DeployError(f"{bitstream} has no {path.name} beside it: copy it from the build")
    return files


def check_model(overlay: Overlay, model: PackedModel) -> None:
    """Refuse a model that needs another configuration than the bitstream has."""
    needed = configure(model, overlay.config.name)
    if needed.fingerprint != overlay.config.fingerprint:
        raise DeployError(
            f"the model {model.name} needs configuration {needed.name} "
            f"({needed.fingerprint:016x}), the bitstream has {overlay.config.name} "
            f"({overlay.config.fingerprint:016x}): give a model that fits it with -m"
        )


def check_board(board: Board, names: Sequence[str], compatible: Sequence[str]) -> str | None:
    """Refuse a machine that is another board; None if it is this one, else what is not known.

    ``names`` are what the machine calls itself, ``compatible`` the names in its device tree.
    """
    family = _FAMILIES.get(board.flow)
    if family and compatible and family not in compatible:
        raise DeployError(
            f"the machine is {' '.join(compatible)}, the bitstream is for {board.title}: deploy "
            "to that, or build for this board"
        )
    texts = [_plain(text) for text in (*names, *compatible)]
    if any(_plain(board.name) in text for text in texts):
        return None
    other = next(
        (b for b in BOARDS.values() if any(_plain(b.name) in text for text in texts)), None
    )
    if other is not None:
        raise DeployError(
            f"the machine is {other.title}, the bitstream is for {board.title}: give that of "
            f"`lutra build --board {other.name}`"
        )
    return f"it does not say that it is {board.title}"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
