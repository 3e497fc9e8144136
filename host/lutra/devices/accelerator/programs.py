"""Programs in an accelerator's memory: of all layers, and of ranges of them when these run."""

from dataclasses import dataclass

from lutra.compile.fit import round_up
from lutra.compile.program import Program
from lutra.compile.ranges import EXTRA_OPERATIONS, range_code
from lutra.devices.accelerator.transport import PAGE, Transport
from lutra_golden.control.isa import INSTRUCTION_BYTES

__all__ = ["RANGES_KEPT", "Placed", "Programs"]

RANGES_KEPT = 4
"""Programs of ranges of layers that stay in memory."""


@dataclass(frozen=True)
class Placed:
    """Address and length of a program in memory."""

    address: int
    n_bytes: int


class Programs:
    """The code of ``program``; of ranges of layers, the programs that were used last are kept.

    They share its weights. Their memory is allocated here, so that sessions do not take it.
    """

    def __init__(self, program: Program, transport: Transport) -> None:
        self._program, self._transport = program, transport
        code = program.code
        self._whole = Placed(transport.allocate(len(code)), len(code))
        transport.write(self._whole.address, code)
        room = _room(program)
        first = transport.allocate(RANGES_KEPT * room)
        self._places = [first + i * room for i in range(RANGES_KEPT)]
        self._kept: dict[range, Placed] = {}  # the one used last comes last

    @staticmethod
    def n_bytes(program: Program) -> int:
        """Bytes of memory that the programs need."""
        return round_up(len(program.code), PAGE) + RANGES_KEPT * _room(program)

    @property
    def whole(self) -> Placed:
        """The program of all layers."""
        return self._whole

    def of(self, layers: range) -> Placed:
        """The program of ``layers``, written to memory unless it is there.

        LutraError if the configuration cannot run it.
        """
        if layers == range(self._program.n_layers):
            return self._whole
        kept = dict(self._kept)
        placed = kept.pop(layers, None)
        if placed is None:
            code = range_code(self._program, layers)
            if len(kept) == RANGES_KEPT:
                del kept[next(iter(kept))]
            taken = {each.address for each in kept.values()}
            place = next(each for each in self._places if each not in taken)
            # whatever ends the write, the place is free again
            self._kept = kept
            placed = Placed(place, len(code))
            self._transport.write(place, code)
        self._kept = kept | {layers: placed}
        return placed


def _room(program: Program) -> int:
    return round_up(len(program.code) + EXTRA_OPERATIONS * INSTRUCTION_BYTES, PAGE)
