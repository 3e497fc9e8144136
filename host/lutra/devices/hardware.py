"""Hardware that boards are, as Linux shows it in the folders below ``root``."""

from pathlib import Path

__all__ = [
    "BOARD_SCHEME",
    "LENT_SCHEME",
    "SYSTEM",
    "alveo_functions",
    "driver_of",
    "zynq_board",
    "zynq_family",
    "zynq_title",
]

BOARD_SCHEME = "board://"
"""The beginning of addresses of boards that are reached through their agents."""
LENT_SCHEME = "lutra://"
"""The beginning of addresses of devices that a Lutra elsewhere lends."""
SYSTEM = Path("/")
"""Root of this machine's folders."""
_TREE = "proc/device-tree"
_FAMILIES = ("zynqmp", "zynq-7000")
_VENDOR = "0x10ee"  # of AMD's FPGAs on the bus
_BOARDS = {"kv260": "kv260", "kr260": "kr260", "pynqz2": "pynq_z2"}


def zynq_family(root: Path = SYSTEM) -> str | None:
    """Family of the Zynq that this is, ``zynqmp`` or ``zynq-7000``; None if it is none."""
    names = _strings(root / _TREE / "compatible")
    return next((each for each in _FAMILIES if f"xlnx,{each}" in names), None)


def zynq_title(root: Path = SYSTEM) -> str:
    """Name of the board in the device tree."""
    return " ".join(_strings(root / _TREE / "model")) or "a board without a name"


def zynq_board(root: Path = SYSTEM) -> str | None:
    """Name of the board in :data:`~lutra_golden.core.boards.BOARDS`; None if it is not there."""
    tree = root / _TREE
    found = [each for name in ("compatible", "model", "chosen/pynq_board")
             for each in _strings(tree / name)]  # fmt: skip
    text = " ".join("".join(filter(str.isalnum, each.lower())) for each in found)
    return next((name for word, name in _BOARDS.items() if word in text), None)


def alveo_functions(root: Path = SYSTEM) -> list[Path]:
    """Functions on the PCI bus that belong to AMD's FPGAs."""
    vendors = sorted((root / "sys/bus/pci/devices").glob("*/vendor"))
    return [path.parent for path in vendors if _strings(path) == [_VENDOR]]


def driver_of(function: Path) -> str | None:
    """Name of the driver that serves a function of the bus; None if none does."""
    driver = function / "driver"
    return driver.resolve().name if driver.exists() else None


def _strings(path: Path) -> list[str]:
    """Lines and terminated strings of a file; none if it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    return [each.strip() for each in text.replace("\0", "\n").splitlines() if each.strip()]
