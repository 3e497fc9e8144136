"""A program in an accelerator's memory: what the accelerator reads is what was written."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from lutra.compile.program import Program, SegmentKind
from lutra.devices.base import DeviceError
from lutra_golden.control.checksum import checksum

__all__ = ["check_image"]

_PIECE = 1 << 24
"""Bytes of a checksum, of which each needs as many again while it is computed here."""


def check_image(
    program: Program,
    addresses: Mapping[str, int],
    checksum_of: Callable[[int, int], int],
    device: str,
    progress: Callable[[str, float], None] | None,
) -> None:
    """Compare the code and the weights of ``program`` with what the accelerator reads.

    ``checksum_of`` has it sum up an address and bytes. DeviceError names what differs.
    """
    kinds = {"PROGRAM_BASE": SegmentKind.CODE, "WEIGHT_BASE": SegmentKind.WEIGHTS}
    total, done = sum(map(program.n_bytes, kinds.values())), 0
    for name, kind in kinds.items():
        address = addresses[name]
        for piece in _pieces(segment.data for segment in program.of(kind)):
            if checksum_of(address, len(piece)) != checksum(np.frombuffer(piece, np.uint8)):
                raise DeviceError(
                    f"the accelerator of device {device} reads other bytes of the model's "
                    f"{kind.value} than were written, from {address:#x} to "
                    f"{address + len(piece) - 1:#x}: check the memory of the board"
                )
            address, done = address + len(piece), done + len(piece)
            if progress is not None:
                progress("checking the loaded model", done / total)


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of ``parts``, which follow one another, in pieces of :data:`_PIECE`."""
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= _PIECE:
            yield bytes(held[:_PIECE])
            del held[:_PIECE]
    if held:
        yield bytes(held)
