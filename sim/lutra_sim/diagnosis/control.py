"""Instructions and commands that the units get, and the tables that they look up."""

from collections.abc import Mapping

from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.control.isa import Opcode, Unit, encode
from lutra_golden.control.registers import CONTEXT
from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_sim.diagnosis.view import CONTROL, LOGITS, UNIT_NAMES, RunView, said

__all__ = ["ControlCheck"]

_TABLES = "control (tables of tokens and chunks)"


class ControlCheck:
    """Compares what the control plane gives to the units."""

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._tables: dict[str, tuple[bool, int]] = {}

    def step(self, *, finished: bool) -> None:
        """Check a cycle; ``finished`` once the program is."""
        self._look_up_tables()
        self._look_up_argmax(finished)
        for unit in Unit:
            self._dispatch(unit)
        self._commands()

    def context(self) -> None:
        """Check the registers that a program begins with."""
        for name in CONTEXT:
            wire = f"registers.context__{name.lower()}"
            if wire not in self._view.slots or name in ("PROGRAM_BASE", "PROGRAM_BYTES"):
                continue
            found, expected = self._view.number(wire), self._view.reference.registers[name]
            if found != expected:
                text = f"{name} of the run is {found:#x}, not {expected:#x}"
                self._view.fail(CONTROL, wire, text)

    def _look_up_tables(self) -> None:
        """Tables of the registers: a word comes a cycle after its address."""
        n = self._view.reference.registers["N_TOKENS"]
        load = self._view.current(Unit.LOAD)
        embeds = load is not None and load.instruction.opcode is Opcode.EMBED
        self._table(
            "load.tokens",
            embeds and self._view.bit("load.busy"),
            dict(enumerate(self._view.reference.tokens[:n])),
            _TABLES,
        )
        n_chunks = len(list(chunks(self._view.reference.chunks, n)))
        for unit in ("load", "vector", "attention"):
            layout = self._view.ports.get(f"core.{unit}.chunks__data")
            if layout is None:
                continue
            words = {
                i: _chunk_word(layout.fields, entry)
                for i, entry in enumerate(self._view.reference.chunks[:n_chunks])
            }
            self._table(f"{unit}.chunks", self._view.bit(f"{unit}.busy"), words, _TABLES)

    def _look_up_argmax(self, finished: bool) -> None:
        """The vector unit's table of the rows of the largest logits, of which the result is made.

        It is right for all tokens that have logits, whichever of them is looked up.
        """
        argmax = self._view.reference.argmax
        rows = {
            token: argmax[token]
            for executed in self._view.queues[Unit.VECTOR]
            if finished and executed.instruction.opcode is Opcode.LOGITS
            for token in executed.tokens
        }
        self._table("vector.argmax", finished, rows, LOGITS)

    def _table(self, port: str, busy: bool, words: Mapping[int, int], who: str) -> None:
        """Compare the word of the address of the cycle before, if both cycles are ``busy``."""
        before = self._tables.get(port)
        self._tables[port] = busy, self._view.number(f"{port}__addr")
        if not (busy and before and before[0]) or before[1] not in words:
            return
        found, expected = self._view.number(f"{port}__data"), words[before[1]]
        if found != expected:
            text = f"entry {before[1]} of the table of {port.partition('.')[2]} reads {found:#x}, "
            text += f"not {expected:#x}"
            self._view.fail(who, f"{port}__data", text)

    def _dispatch(self, unit: Unit) -> None:
        stream = f"sequencer.{unit.name.lower()}_cmd"
        if not self._view.moves(stream):
            return
        queue, number = self._view.queues[unit], self._view.accepted[unit]
        wire = f"{stream}__payload"
        if number >= len(queue):
            text = f"the {UNIT_NAMES[unit]} gets an instruction more than the program has for it"
            self._view.fail("sequencer", wire, text)
        executed = queue[number]
        found, expected = (
            self._view.number(wire),
            int.from_bytes(encode(executed.instruction), "little"),
        )
        if found != expected:
            text = f"the {UNIT_NAMES[unit]} gets another instruction than {said(executed)}"
            self._view.fail("sequencer", wire, text, executed)
        for other, wait in zip(Unit, executed.instruction.waits, strict=True):
            if self._view.done[other] < wait:
                text = f"{said(executed)} starts when {self._view.done[other]} of the {wait} "
                text += f"instructions of the {UNIT_NAMES[other]} are done that it waits for"
                self._view.fail("sequencer", f"{stream}__valid", text, executed)
        self._view.accepted[unit] += 1

    def _commands(self) -> None:
        """Commands of the units that do not take instructions as they are."""
        n = self._view.reference.registers["N_TOKENS"]
        for unit, stream in ((Unit.MATMUL, "matmul.cmd"), (Unit.ATTENTION, "attention.cmd")):
            if not self._view.moves(stream) or not self._view.accepted[unit]:
                continue
            executed = self._view.queues[unit][self._view.accepted[unit] - 1]
            args, found = executed.instruction.args, self._view.fields(f"{stream}__payload")
            expected = {key: args[key] for key in found if key in args}
            tokens = executed.tokens
            expected["token_count"] = n if unit is Unit.ATTENTION else len(tokens)
            if "token_first" in found and len(tokens):
                expected["token_first"] = tokens.start
            for key, value in expected.items():
                width = self._view.ports[f"core.{stream}__payload"].fields[key][1]
                if found[key] != value & ((1 << width) - 1):
                    text = f"{key} of {said(executed)} is {found[key]}, not {value}"
                    self._view.fail(
                        "core (command of a unit)", f"{stream}__payload", text, executed
                    )


def _chunk_word(fields: Mapping[str, tuple[int, int]], entry: ChunkEntry) -> int:
    values = {
        "position": entry.position,
        "n_tokens": entry.n_tokens,
        "page": entry.kv_base // BOUNDARY_BYTES,
    }
    return sum(value << fields[name][0] for name, value in values.items())
