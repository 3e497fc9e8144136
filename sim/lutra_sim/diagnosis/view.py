"""A run of the RTL as a trace shows it: wires by their ports, and how far the units have come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.isa import Opcode, Unit
from lutra_golden.control.memory import Memory
from lutra_golden.control.recorder import Address, Executed
from lutra_golden.core.config import AcceleratorConfig
from lutra_sim.rtl.build import WirePort

__all__ = [
    "CONTROL",
    "LOGITS",
    "UNIT_NAMES",
    "WRITES",
    "Finding",
    "Found",
    "Reference",
    "RunView",
    "first_lane",
    "place",
    "said",
    "signed",
]

CONTROL = "control (registers, descriptors)"
WRITES = "writes (writer, width converter)"
UNIT_NAMES = {
    Unit.LOAD: "load unit",
    Unit.MATMUL: "matmul engine",
    Unit.VECTOR: "vector unit",
    Unit.ATTENTION: "attention unit",
}
_BLOCKS = {
    Opcode.NORMQ: "norm",
    Opcode.ROPEQ: "rope",
    Opcode.RESADD: "residual add",
    Opcode.LOGITS: "logits",
}
LOGITS = f"{UNIT_NAMES[Unit.VECTOR]} ({_BLOCKS[Opcode.LOGITS]})"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The first thing that is wrong: ``signal`` of ``unit``, in a clock cycle of the trace.

    ``index`` is the instruction that the unit executed, None if it has none. ``token`` and
    ``elements`` are where in the tile the word belongs, if it belongs anywhere. ``read`` are
    address and bytes of a word that was read from memory.
    """

    cycle: int
    unit: str
    signal: str
    text: str
    index: int | None = None
    token: int | None = None
    elements: tuple[int, int] | None = None
    read: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The same run as the interpreter has carried it out; ``argmax`` has the row of the largest
    logit of each token that has logits."""

    config: AcceleratorConfig
    executed: Sequence[Executed]
    memory: Memory
    registers: Mapping[str, int]
    tokens: Sequence[int]
    chunks: Sequence[ChunkEntry]
    argmax: Sequence[int]


class Found(Exception):
    """Carries a finding out of the checks of a cycle."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


class RunView:
    """The wires of the ports ``names`` in the present cycle, and what the units have done so far.

    ``accepted`` and ``done`` count instructions of each unit. A port that the configuration does
    not have reads as 0.
    """

    def __init__(
        self, reference: Reference, ports: Mapping[str, WirePort], names: Sequence[str]
    ) -> None:
        self.reference, self.ports = reference, ports
        self.slots: dict[str, int] = {}
        self.wires: list[str] = []
        for name in names:
            port = ports.get(f"core.{name}")
            if port is not None:
                self.slots[name] = len(self.wires)
                self.wires.append(port.wire)
        self.queues = {u: [e for e in reference.executed if e.unit is u] for u in Unit}
        self.accepted, self.done = dict.fromkeys(Unit, 0), dict.fromkeys(Unit, 0)
        self.cycle = 0
        self.values: list[str] = []

    def bit(self, name: str) -> bool:
        """True if a wire of one bit is set."""
        slot = self.slots.get(name)
        return slot is not None and self.values[slot] == "1"

    def number(self, name: str) -> int:
        """A wire as a number."""
        slot = self.slots.get(name)
        return 0 if slot is None else int(self.values[slot], 2)

    def fields(self, name: str) -> dict[str, int]:
        """A wire as the fields of its structure."""
        word = self.number(name)
        fields = self.ports[f"core.{name}"].fields
        return {key: word >> at & ((1 << width) - 1) for key, (at, width) in fields.items()}

    def moves(self, stream: str) -> bool:
        """True if a word of a stream moves."""
        return self.bit(f"{stream}__valid") and self.bit(f"{stream}__ready")

    def path(self, name: str) -> str:
        """Path of a wire in the trace."""
        slot = self.slots.get(name)
        return f"accelerator.core.{name}" if slot is None else self.wires[slot]

    def current(self, unit: Unit) -> Executed | None:
        """The instruction that a unit executes, or executes next."""
        queue, number = self.queues[unit], self.done[unit]
        return queue[number] if number < len(queue) else None

    def name(self, unit: Unit, executed: Executed | None) -> str:
        """Name of a unit, with the block that executes an instruction."""
        name = UNIT_NAMES[unit]
        block = None if executed is None else _BLOCKS.get(executed.instruction.opcode)
        return name if block is None else f"{name} ({block})"

    def fail(
        self,
        unit: str,
        name: str,
        text: str,
        executed: Executed | None = None,
        token: int | None = None,
        elements: tuple[int, int] | None = None,
        read: tuple[int, int] | None = None,
    ) -> NoReturn:
        """Raise a finding of this cycle."""
        raise Found(
            Finding(
                cycle=self.cycle,
                unit=unit,
                signal=self.path(name),
                text=text,
                index=None if executed is None else executed.index,
                token=token,
                elements=elements,
                read=read,
            )
        )

    def begun(self, executed: Executed) -> bool:
        """True if a unit has taken an instruction."""
        return self.accepted[executed.unit] > executed.number


def said(executed: Executed) -> str:
    """An instruction in words."""
    return f"instruction {executed.index} ({executed.instruction.opcode.name})"


def place(address: Address) -> str:
    """The address of a word."""
    return ", ".join(map(str, address))


def first_lane(difference: int, width: int) -> int:
    """First element of ``width`` bits that has a bit set."""
    return ((difference & -difference).bit_length() - 1) // width


def signed(word: int, lane: int, width: int) -> int:
    """An element of a word."""
    value = word >> lane * width & ((1 << width) - 1)
    return value - (value >> width - 1 << width)
