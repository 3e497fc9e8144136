"""The accelerator as a block of a vendor's tools: its name and version, its registers by words."""

from collections.abc import Iterator
from dataclasses import dataclass

from lutra_golden.control.registers import REGISTERS, VERSION

__all__ = [
    "INTERRUPT",
    "IP_NAME",
    "IP_VERSION",
    "REGISTER_BYTES",
    "REGISTER_PORT",
    "VLNV",
    "RegisterWord",
    "register_words",
]

IP_NAME = "lutra:ip:accelerator"
"""Vendor, library and name."""
IP_VERSION = f"{VERSION}.0"
"""The register map's, so that a driver is bound to what it can drive."""
VLNV = f"{IP_NAME}:{IP_VERSION}"
REGISTER_BYTES = 4096
"""Range of addresses of the registers."""
REGISTER_PORT = "s_axi_control"
INTERRUPT = "interrupt"

_ACCESS = {"ro": "read-only", "wo": "write-only"}


@dataclass(frozen=True)
class RegisterWord:
    """A word of 32 bits as IP-XACT has it; ``address`` is an offset in bytes."""

    name: str
    address: int
    access: str
    doc: str


def register_words() -> Iterator[RegisterWord]:
    """Every register; of an array, and of a number of two words, each word with its index."""
    for name, register in REGISTERS.items():
        for index in range(register.count):
            yield RegisterWord(
                name if register.count == 1 else f"{name}_{index}",
                register.address + 4 * index,
                _ACCESS.get(register.access, "read-write"),
                register.doc,
            )
