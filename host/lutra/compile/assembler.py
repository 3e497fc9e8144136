"""Operations, which know what they use, and instructions, which know what they wait for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lutra_golden.control.isa import INSTRUCTION_BYTES, Instruction, Opcode, Unit, encode

__all__ = ["RESIDUAL", "Operation", "Region", "assemble", "overlap"]

Region = tuple[str, int, int]
"""A resource and the range of it that is used: its name, the first and the last plus 1."""

RESIDUAL: Region = ("residual", 0, 1)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An instruction without its waits, and the regions that it reads and writes."""

    opcode: Opcode
    reads: Sequence[Region]
    writes: Sequence[Region]
    flags: int = 0
    args: Mapping[str, int] = field(default_factory=dict[str, int])


class _Log:
    """Last instruction of every unit that used a region."""

    def __init__(self) -> None:
        self._last: dict[str, dict[tuple[Region, Unit], int]] = {}

    def note(self, regions: Iterable[Region], unit: Unit, index: int) -> None:
        for region in regions:
            self._last.setdefault(region[0], {})[region, unit] = index

    def wait_for(self, regions: Iterable[Region], waits: dict[Unit, int]) -> None:
        """Raise ``waits`` to the last that used any of ``regions``."""
        for region in regions:
            for (other, unit), index in self._last.get(region[0], {}).items():
                if overlap(region, other):
                    waits[unit] = max(waits[unit], index)


def assemble(operations: Iterable[Operation], beat_bytes: int) -> bytes:
    """The program: END behind the operations, padded to whole beats of the data port.

    An instruction waits for the last writers of what it reads and for the last readers and writers
    of what it writes, unless its own unit, which keeps program order, did that.
    """
    code: list[Instruction] = []
    counts, reads, writes = dict.fromkeys(Unit, 0), _Log(), _Log()
    for operation in operations:
        unit = operation.opcode.unit
        assert unit is not None
        waits = dict.fromkeys(Unit, 0)
        writes.wait_for([*operation.reads, *operation.writes], waits)
        reads.wait_for(operation.writes, waits)
        waits[unit] = 0
        counts[unit] += 1
        reads.note(operation.reads, unit, counts[unit])
        writes.note(operation.writes, unit, counts[unit])
        ordered = (waits[Unit.LOAD], waits[Unit.MATMUL], waits[Unit.VECTOR], waits[Unit.ATTENTION])
        code.append(Instruction(operation.opcode, operation.flags, ordered, operation.args))
    code.append(Instruction(Opcode.END))
    while len(code) * INSTRUCTION_BYTES % beat_bytes:
        code.append(Instruction(Opcode.END))
    return b"".join(encode(instruction) for instruction in code)


def overlap(a: Region, b: Region) -> bool:
    """True if two regions have something in common."""
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
