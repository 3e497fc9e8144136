"""Bitstreams as files: where they lie, and what each was built from."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.machine import cache_root

__all__ = [
    "FOLDER_VARIABLE",
    "Bitstream",
    "bitstream_folder",
    "default_bitstream",
    "default_bitstreams",
    "read_bitstream",
]

FOLDER_VARIABLE = "LUTRA_BITSTREAMS"
"""Variable that names the place of bitstreams, as ``lutra deploy`` has it set on a board."""

_HEX = 16  # digits of a fingerprint


@dataclass(frozen=True, kw_only=True)
class Bitstream:
    """A file that makes an accelerator of an FPGA.

    ``config`` is the name of the configuration that it was built from, ``fingerprint`` that
    configuration's; None where no file beside it says so. ``handoff`` is the fingerprint of the
    ``.hwh`` beside it, which is of the same build unless files were mixed up.
    """

    path: Path
    config: str | None = None
    fingerprint: int | None = None
    handoff: int | None = None


def bitstream_folder() -> Path:
    """Place of bitstreams that are found without being named; in the cache if left out."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else cache_root() / "bitstreams"


def default_bitstreams(suffix: str) -> list[Bitstream]:
    """Every file there that ends in ``suffix``, with its dot."""
    return [read_bitstream(path) for path in sorted(bitstream_folder().glob(f"*{suffix}"))]


def default_bitstream(config: AcceleratorConfig, suffix: str) -> Path:
    """The one of ``config`` there; LutraError if there is none."""
    for each in default_bitstreams(suffix):
        if each.fingerprint == config.fingerprint:
            return each.path
    raise LutraError(
        f"there is no bitstream of configuration {config.name} (fingerprint "
        f"{config.fingerprint:016x}) in {bitstream_folder()}: make one with `lutra build`, and put "
        f"its {suffix} file there with those beside it"
    )


def read_bitstream(path: Path) -> Bitstream:
    """Origin of a bitstream: by the ``.json`` or the ``.hwh`` beside it, or its name.

    LutraError if there is no such file, or one beside it cannot be read.
    """
    if not path.is_file():
        raise LutraError(f"there is no bitstream {path}: give one that `lutra build` made")
    stem = path.stem
    name, fingerprint = None, int(stem, 16) if _is_fingerprint(stem) else None
    from_handoff = _of_handoff(path.with_suffix(".hwh"))
    from_json = _of_json(path.with_suffix(".json"))
    handoff = None if from_handoff is None else from_handoff[1]
    for found in (from_json, from_handoff):
        if found is not None:
            name, fingerprint = found
            break
    return Bitstream(path=path, config=name, fingerprint=fingerprint, handoff=handoff)


def _is_fingerprint(text: str) -> bool:
    return len(text) == _HEX and all(digit in "0123456789abcdef" for digit in text)


def _of_json(path: Path) -> tuple[str, int] | None:
    """Configuration and fingerprint in ``lutra.json``, the file that ``lutra build`` writes."""
    if not path.is_file():
        return None
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it is no object")
        fields = cast(dict[str, object], found)
        return str(fields["configuration"]), int(str(fields["fingerprint"]), 16)
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from None


def _of_handoff(path: Path) -> tuple[str, int] | None:
    """The same in the parameters of the accelerator's block; None if the file has no such block."""
    if not path.is_file():
        return None
    try:
        root = ElementTree.parse(path).getroot()
        values = {each.get("NAME"): each.get("VALUE", "") for each in root.iter("PARAMETER")}
        if "LUTRA_FINGERPRINT" not in values:
            return None
        return values.get("LUTRA_CONFIG", ""), int(values["LUTRA_FINGERPRINT"], 16)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> LutraError:
    why = " ".join(str(error).split()) or type(error).__name__
    return LutraError(f"{path} cannot be read ({why}): copy it from the build again")
