"""Words that units write, to buffers and to memory, and the ends of instructions."""

from collections import deque

import numpy as np

from lutra_golden.control.isa import FLAG_LOW, FLAG_STREAM, Instruction, NormSource, Opcode, Unit
from lutra_golden.control.recorder import Address, Executed, packed
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_sim.diagnosis.view import UNIT_NAMES, RunView, first_lane, place, said, signed

__all__ = ["BUFFERS", "WordCheck"]

# buffers: the component at whose port the words are seen, the port, and the unit that writes
BUFFERS = (
    ("load", "param_w", Unit.LOAD),
    ("load", "rope_w", Unit.LOAD),
    ("load", "embed_w", Unit.LOAD),
    ("matmul", "act", Unit.VECTOR),
    ("vector.norm", "scale_w", Unit.VECTOR),
    ("vector.residual_add", "residual_w", Unit.VECTOR),
    ("attention", "q_w", Unit.VECTOR),
    ("attention", "qs_w", Unit.VECTOR),
    ("attention.finish", "o", Unit.ATTENTION),
)


class WordCheck:
    """Compares every word that a unit hands over with that of its instruction."""

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._expanded: dict[Unit, tuple[int, dict[str, dict[Address, int]]]] = {}
        self._stored: tuple[int, dict[int, int]] = (-1, {})
        self._seen: dict[Unit, set[tuple[str, Address]]] = {unit: set() for unit in Unit}
        self._written: set[int] = set()
        self._write_commands: deque[list[int]] = deque()
        self._write_beats: deque[tuple[int, int]] = deque()
        self._acc: tuple[int, int] | None = None
        self.has_result = False
        """A word of the run's result was handed over."""

    def step(self) -> None:
        """Check a cycle."""
        self._accumulators()
        for component, port, unit in BUFFERS:
            self._buffer(component, port, unit)
        self._result()
        self._write()
        self._saturation()
        for unit in Unit:
            self._end(unit)

    def handed_over(self, executed: Executed) -> bool:
        """True if an instruction that writes to memory has handed over all that it writes."""
        stores = self._stores(executed)
        return bool(stores) and not stores.keys() - self._written

    def writes(self, addresses: range) -> bool:
        """True if the instruction of the vector unit writes to any of these ``addresses``."""
        executed = self._view.current(Unit.VECTOR)
        if executed is None or not self._view.begun(executed):
            return False
        return any(at in addresses for at in self._stores(executed))

    def _accumulators(self) -> None:
        """Accumulators that the vector unit reads: they come a cycle after their address."""
        address = self._view.fields("matmul.acc__addr")
        before, self._acc = self._acc, (address["token"], address["pair"])
        executed = self._view.current(Unit.VECTOR)
        if executed is None or before is None or not self._view.begun(executed):
            return
        token, pair = before
        used = _used_blocks(executed.instruction, self._view.reference.config)
        if token not in executed.tokens or executed.acc is None or executed.makers is None:
            return
        width, word = (
            self._view.reference.config.matmul.acc_width,
            self._view.number("matmul.acc__data"),
        )
        for half, block in enumerate((2 * pair, 2 * pair + 1)):
            if block not in used:
                continue
            size = LANES * width
            found = word >> half * size & ((1 << size) - 1)
            expected = packed(executed.acc[token, block], width)
            if found == expected:
                continue
            index = int(executed.makers[token, block])
            maker = next((e for e in self._view.reference.executed if e.index == index), None)
            lane = first_lane(found ^ expected, width)
            text = f"accumulator {LANES * block + lane} of token {token}, which "
            text += f"{'nothing' if maker is None else said(maker)} made, is "
            text += f"{signed(found, lane, width)}, not {signed(expected, lane, width)}"
            rows = LANES * block, LANES * block + LANES - 1
            self._view.fail(UNIT_NAMES[Unit.MATMUL], "matmul.acc__data", text, maker, token, rows)

    def _buffer(self, component: str, port: str, unit: Unit) -> None:
        name = f"{component}.{port}"
        if not self._view.bit(f"{name}__en"):
            return
        executed = self._view.current(unit)
        who, wire = self._view.name(unit, executed), f"{name}__data"
        if executed is None or not self._view.begun(executed):
            self._view.fail(who, f"{name}__en", f"it writes to {port} without an instruction")
        words = self._words(unit, executed)
        if port not in words:
            text = f"{said(executed)} writes to {port}, which it must not"
            self._view.fail(who, f"{name}__en", text, executed)
        address = tuple(self._view.fields(f"{name}__addr").values())
        if address not in words[port]:
            text = f"{said(executed)} writes word {place(address)} of {port}, not its own"
            self._view.fail(who, f"{name}__addr", text, executed)
        found, expected = self._view.number(wire), words[port][address]
        if port == "act":
            found = self._integers(found)
        width = executed.words[port].width
        n = executed.words[port].values.shape[-1]
        mask = (1 << n * width) - 1
        if executed.instruction.flags & FLAG_LOW and executed.instruction.opcode is Opcode.EMBED:
            half = (1 << width // 2) - 1
            mask = sum(half << lane * width for lane in range(n))
        if (found ^ expected) & mask:
            lane = first_lane((found ^ expected) & mask, width)
            text = f"element {lane} of word {place(address)} of {port}, written by "
            text += f"{said(executed)}, is {signed(found, lane, width)}, not "
            text += f"{signed(expected, lane, width)}"
            first = LANES * address[-1] if address else 0
            self._view.fail(
                who,
                wire,
                text,
                executed,
                # of the buffers, that of parameters alone is not a token's
                token=None if port == "param_w" else address[0],
                elements=(first, first + LANES - 1) if n == LANES else None,
            )
        self._seen[unit].add((port, address))

    def _integers(self, word: int) -> int:
        """A word of activations with each shifted as their group is."""
        params = self._view.reference.config.matmul
        shift = word >> LANES * params.a_width
        values = [signed(word, lane, params.a_width) << shift for lane in range(LANES)]
        return packed(np.array(values), params.integer_width)

    def _words(self, unit: Unit, executed: Executed) -> dict[str, dict[Address, int]]:
        number, words = self._expanded.get(unit, (-1, {}))
        if number != executed.number:
            words = {port: dict(each.items()) for port, each in executed.words.items()}
            self._expanded[unit] = executed.number, words
        return words

    def _result(self) -> None:
        """The vector unit hands on the result of the run as it gets it."""
        view = self._view
        for kind in ("cmd", "data"):
            own, passed = f"vector.result_{kind}", f"vector.wr_{kind}"
            if not view.bit(f"{own}__valid"):
                continue
            for part in ("valid", "ready", "payload"):
                if view.number(f"{own}__{part}") != view.number(f"{passed}__{part}"):
                    text = f"{part} of the result of the run is not as on the other side of the "
                    wire = f"{own if part == 'ready' else passed}__{part}"
                    view.fail(UNIT_NAMES[Unit.VECTOR], wire, text + "vector unit")
            self.has_result |= view.moves(own)

    def _write(self) -> None:
        if self._view.moves("vector.wr_cmd") and not self._view.bit("vector.result_cmd__valid"):
            found = self._view.fields("vector.wr_cmd__payload")
            self._write_commands.append([found["addr"], found["beats"]])
        if self._view.moves("vector.wr_data") and not self._view.bit("vector.result_data__valid"):
            found = self._view.fields("vector.wr_data__payload")
            self._write_beats.append((found["data"], found["strb"]))
        while self._write_commands and self._write_beats:
            head = self._write_commands[0]
            data, strobes = self._write_beats.popleft()
            self._beat(head[0], data, strobes)
            head[0], head[1] = head[0] + self._view.reference.config.word_bytes, head[1] - 1
            if head[1] <= 0:
                self._write_commands.popleft()

    def _beat(self, address: int, data: int, strobes: int) -> None:
        executed = self._view.current(Unit.VECTOR)
        who, wire = self._view.name(Unit.VECTOR, executed), "vector.wr_data__payload"
        if executed is None or not self._view.begun(executed):
            self._view.fail(
                who, wire, f"it writes to memory at {address:#x} without an instruction"
            )
            return
        stores = self._stores(executed)
        for i in range(self._view.reference.config.word_bytes):
            if not strobes >> i & 1:
                continue
            found, at = data >> 8 * i & 255, address + i
            if at not in stores:
                text = f"{said(executed)} writes to memory at {at:#x}, which is not its own"
                self._view.fail(who, "vector.wr_cmd__payload", text, executed)
            if found != stores[at]:
                text = f"{said(executed)} writes {found:#04x} to memory at {at:#x}, "
                text += f"not {stores[at]:#04x}"
                self._view.fail(who, wire, text, executed)
            self._written.add(at)

    def _stores(self, executed: Executed) -> dict[int, int]:
        number, stores = self._stored
        if number != executed.number:
            stores = {
                address + i: value
                for address, data in executed.stores
                for i, value in enumerate(data.tolist())
            }
            self._stored = executed.number, stores
        return stores

    def _saturation(self) -> None:
        if any(each.saturated for each in self._view.reference.executed):
            return
        for unit, name in ((Unit.VECTOR, "vector"), (Unit.ATTENTION, "attention")):
            if self._view.bit(f"{name}.saturated"):
                executed = self._view.current(unit)
                text = "it says that a value left its range, and none did"
                self._view.fail(
                    self._view.name(unit, executed), f"{name}.saturated", text, executed
                )

    def _end(self, unit: Unit) -> None:
        name = unit.name.lower()
        if not self._view.bit(f"{name}.done"):
            return
        executed = self._view.current(unit)
        wire = f"{name}.done"
        if executed is None or not self._view.begun(executed):
            self._view.fail(
                UNIT_NAMES[unit], wire, "it completes an instruction that it does not have"
            )
            return
        who = self._view.name(unit, executed)
        for port, words in self._words(unit, executed).items():
            for address in words:
                if (port, address) not in self._seen[unit]:
                    text = f"{said(executed)} is done, and word {place(address)} of {port} was "
                    self._view.fail(who, wire, text + "not written", executed)
        if unit is Unit.VECTOR:
            stores = self._stores(executed)
            missing = stores.keys() - self._written
            if missing:
                text = f"{said(executed)} is done, and {len(missing)} bytes from "
                text += f"{min(missing):#x} on were not written"
                self._view.fail(who, wire, text, executed)
            if stores and not self._view.bit("vector.wr_idle"):
                text = f"{said(executed)} is done before all that it writes is in memory"
                self._view.fail(who, wire, text, executed)
            self._written.clear()
        self._seen[unit].clear()
        self._view.done[unit] += 1


def _used_blocks(i: Instruction, config: AcceleratorConfig) -> range:
    """Blocks of accumulators that an instruction of the vector unit reads."""
    if i.opcode is Opcode.RESADD:
        return range(i.args["n_words"])
    if i.opcode is Opcode.ROPEQ:
        return range((config.n_heads + 2 * config.n_kv_heads) * config.head_dim // LANES)
    if i.opcode is Opcode.LOGITS and not i.flags & FLAG_STREAM:
        return range(i.args["acc_base"], i.args["acc_base"] + i.args["n_words"])
    if i.opcode is Opcode.NORMQ and i.args["source"] in (NormSource.GATE, NormSource.SWIGLU):
        return range(2 * i.args["n_words"])
    return range(0)
