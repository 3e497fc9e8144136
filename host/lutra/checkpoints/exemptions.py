"""Names of matrices that a checkpoint leaves in floating point, as ``config.json`` lists them."""

from typing import cast

from lutra.formats.config_file import ConfigFile
from lutra_golden.errors import LutraError

__all__ = ["check_exemptions", "is_exempt"]

_FIELD = "modules_to_not_convert"
_ANY = ".*"
_SPECIAL = set("*+?[](){}|^$\\")


def is_exempt(config: ConfigFile, name: str) -> bool:
    """True if ``modules_to_not_convert`` names this matrix.

    An entry is the end of a name, or its beginning up to the end of a module's name, as in
    transformers; ``.*`` in it stands for anything.
    """
    return any(
        name.endswith(entry) or _begins(name, entry.split(_ANY))
        for entry in check_exemptions(config)
    )


def check_exemptions(config: ConfigFile) -> list[str]:
    """The entries of ``modules_to_not_convert``; regular expressions but for ``.*`` are refused."""
    listed = config.get(_FIELD, "quantization_config")
    entries = cast("list[object]", listed) if isinstance(listed, list) else [listed]
    found: list[str] = []
    for entry in entries if listed is not None else []:
        if not isinstance(entry, str) or not entry or _SPECIAL & set(entry.replace(_ANY, "")):
            raise LutraError(
                f"{config.path}: {_FIELD} must hold names of layers, with {_ANY} for anything, "
                f"not {entry!r}: use a checkpoint that names them"
            )
        found.append(entry)
    return found


def _begins(name: str, parts: list[str]) -> bool:
    """True if ``name`` begins with the first part and has the others, in this order, behind it, up
    to the end of a module's name."""
    at = 0
    for i, part in enumerate(parts):
        found = name.find(part, at)
        last = i + 1 == len(parts)
        while last and part and found >= 0 and not _is_end(name, found + len(part)):
            found = name.find(part, found + 1)
        if found < 0 or (i == 0 and found > 0):
            return False
        at = found + len(part)
    return True


def _is_end(name: str, at: int) -> bool:
    return at == len(name) or "." in name[at - 1 : at + 1]
