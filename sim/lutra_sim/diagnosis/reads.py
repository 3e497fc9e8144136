"""Words that are read from memory, and the commands that ask for them."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lutra_golden.control.chunks import chunks
from lutra_golden.control.isa import Opcode, Unit
from lutra_golden.control.recorder import Executed
from lutra_golden.core.ports import Purpose
from lutra_golden.matmul.engine import LANES
from lutra_sim.diagnosis.view import UNIT_NAMES, RunView

__all__ = ["ReadCheck", "ReadCommand", "Reads"]


@dataclass
class ReadCommand:
    """Words that were asked for, and how many of them came.

    ``size`` are their bytes in memory from ``address`` on, and ``places`` ``[count, word_bytes]``
    the offset of every byte of every word, where they do not lie one behind the other.
    """

    address: int
    count: int
    size: int
    places: NDArray[np.int64] | None = None
    done: int = 0


@dataclass
class Reads:
    """A stream of words from memory: commands that were given, and words that came."""

    purpose: Purpose
    data: str
    word_bytes: int
    bits: int
    commands: deque[ReadCommand] = field(default_factory=deque[ReadCommand])
    asked: int = 0
    came: int = 0
    n_commands: int = 0
    checked: int = -1
    """The word that was compared last, until it is taken."""

    @property
    def where(self) -> str:
        """Name of the way from memory."""
        return f"reads of {self.purpose} (reader, width converter, arbiter)"


class ReadCheck:
    """Compares commands with what the instructions ask for, and words with memory.

    ``reads`` are the streams by the name of their command.
    """

    def __init__(self, view: RunView) -> None:
        self._view = view
        config = view.reference.config
        self.reads = {
            "sequencer.rd_cmd": Reads(
                Purpose.FETCH, "sequencer.rd_data", config.word_bytes, config.word_width
            ),
            "load.rd_cmd": Reads(
                Purpose.LOAD, "load.rd_data", config.load_word_bytes, 8 * config.load_word_bytes
            ),
            "attention.rd_cmd": Reads(
                Purpose.ATTENTION, "attention.rd_data", config.word_bytes, config.word_width
            ),
            "sequencer.weight_cmd": Reads(
                Purpose.WEIGHTS,
                "matmul.weights",
                config.weight_word_bytes,
                config.matmul.word_bits,
            ),
        }
        self._products = [
            e for e in view.queues[Unit.MATMUL] if len(e.tokens) and e.instruction.args["n_words"]
        ]

    def asks(self, purpose: Purpose, address: int, n_bytes: int = 1) -> bool:
        """True if a command of this purpose reads any of ``n_bytes`` from ``address`` on, and the
        words did not come yet."""
        for reads in self.reads.values():
            for each in reads.commands if reads.purpose is purpose else ():
                first = each.address
                if each.places is None:
                    first += each.done * reads.word_bytes
                if first < address + n_bytes and address < each.address + each.size:
                    return True
        return False

    def step(self, *, fetches: bool) -> None:
        """Check a cycle.

        The sequencer's own words are compared only if it fetches instructions; of what else it
        fetches, the interpreter's memory has nothing.
        """
        for name, reads in self.reads.items():
            self._read(name, reads, compares=fetches or reads.purpose is not Purpose.FETCH)

    def _read(self, command: str, reads: Reads, *, compares: bool) -> None:
        if self._view.moves(command):
            found = self._view.fields(f"{command}__payload")
            self._command(command, reads, found["addr"], found["beats"])
            reads.commands.append(self._asked(reads, found["addr"], found["beats"]))
            reads.asked += found["beats"]
            reads.n_commands += 1
        if compares and reads.commands and self._view.bit(f"{reads.data}__valid"):
            # a unit may use parts of a word before it takes it
            self._word(reads)
        if not self._view.moves(reads.data):
            return
        if not reads.commands:
            text = f"a word came that was not asked for by {command}"
            self._view.fail(reads.where, f"{reads.data}__payload", text)
        head = reads.commands[0]
        head.done += 1
        if head.done == head.count:
            reads.commands.popleft()
        reads.came, reads.checked = reads.came + 1, -1

    def _asked(self, reads: Reads, address: int, count: int) -> ReadCommand:
        """What a command asks for; weights may be striped."""
        config = self._view.reference.config
        if reads.purpose is not Purpose.WEIGHTS or config.weight_stripe.n_lanes == 1:
            return ReadCommand(address, count, count * reads.word_bytes)
        size = config.weight_image_bytes(count)
        return ReadCommand(address, count, size, config.weight_words(np.arange(size), count))

    def _word(self, reads: Reads) -> None:
        """Compare the word that is offered with memory."""
        wire, head, memory = (
            f"{reads.data}__payload",
            reads.commands[0],
            self._view.reference.memory,
        )
        found = self._view.number(wire)
        if found == reads.checked:
            return
        if head.places is None:
            places = head.done * reads.word_bytes + np.arange(reads.word_bytes)
        else:
            places = head.places[head.done]
        if head.address + int(places.max()) >= len(memory):
            return
        reads.checked, address = found, head.address + int(places[0])
        data, known = memory.known(head.address, int(places.max()) + 1)
        data, known = data[places], known[places]
        expected = int.from_bytes(data.tobytes(), "little")
        mask = int.from_bytes((known * np.uint8(255)).astype(np.uint8).tobytes(), "little")
        mask &= (1 << reads.bits) - 1
        wrong = (found ^ expected) & mask
        if wrong:
            bad = [i for i in range(reads.word_bytes) if wrong >> 8 * i & 255]
            text = f"the word read at {address:#x} is wrong in byte {bad[0]}"
            text += f", and in {len(bad) - 1} more" if len(bad) > 1 else ""
            unit = {Purpose.LOAD: Unit.LOAD, Purpose.ATTENTION: Unit.ATTENTION}.get(reads.purpose)
            executed = None if unit is None else self._view.current(unit)
            self._view.fail(reads.where, wire, text, executed, read=(address, reads.word_bytes))

    def _command(self, command: str, reads: Reads, address: int, beats: int) -> None:
        """Compare a command with those that the instructions ask for."""
        wire, registers = f"{command}__payload", self._view.reference.registers
        if reads.purpose is Purpose.WEIGHTS:
            number = reads.n_commands
            executed = self._products[number] if number < len(self._products) else None
            expected = None
            if executed is not None:
                args = executed.instruction.args
                expected = registers["WEIGHT_BASE"] + args["address"], args["n_words"]
            unit = "sequencer"
        elif reads.purpose is Purpose.LOAD:
            executed = self._view.current(Unit.LOAD)
            over = self._view.queues[Unit.LOAD][: self._view.done[Unit.LOAD]]
            past = sum(len(self._loads(each)) for each in over)
            loads = [] if executed is None else self._loads(executed)
            number = reads.n_commands - past
            expected = loads[number] if 0 <= number < len(loads) else None
            unit = UNIT_NAMES[Unit.LOAD]
        elif reads.purpose is Purpose.ATTENTION:
            executed = self._view.current(Unit.ATTENTION)
            if executed is None:
                self._view.fail(UNIT_NAMES[Unit.ATTENTION], wire, "it reads without an instruction")
            offset, size = (
                executed.instruction.args["kv_offset"],
                self._view.reference.config.kv_layer_bytes,
            )
            end = address + beats * reads.word_bytes
            n = registers["N_TOKENS"]
            for chunk in chunks(self._view.reference.chunks, n):
                base = chunk.kv_base + offset
                if base <= address and end <= base + size:
                    return
            text = f"it reads {beats} words at {address:#x}, which are no keys or values of the "
            self._view.fail(UNIT_NAMES[Unit.ATTENTION], wire, text + "layer", executed)
        else:
            return
        if expected is None:
            self._view.fail(
                unit, wire, f"it reads {beats} words at {address:#x} too many", executed
            )
        elif expected != (address, beats):
            text = f"it reads {beats} words at {address:#x}, not {expected[1]} at {expected[0]:#x}"
            self._view.fail(unit, wire, text, executed)

    def _loads(self, executed: Executed) -> list[tuple[int, int]]:
        """Addresses and words of what an instruction of the load unit reads."""
        args, registers, config = (
            executed.instruction.args,
            self._view.reference.registers,
            self._view.reference.config,
        )
        base, n = registers["WEIGHT_BASE"] + args["address"], registers["N_TOKENS"]
        word = config.load_word_bytes

        def row(address: int, elements: int) -> tuple[int, int]:
            return address, -(-2 * elements // word)

        opcode = executed.instruction.opcode
        if opcode is Opcode.LDPARAM:
            return [row(base, LANES * args["n_words"])] if args["n_words"] else []
        if opcode is Opcode.LDROPE:
            d = config.head_dim
            return [
                row(base + 2 * chunk.position * d, chunk.n_tokens * d)
                for chunk in chunks(self._view.reference.chunks, n)
            ]
        width = LANES * args["n_words"]
        return (
            [row(base + 2 * int(t) * width, width) for t in self._view.reference.tokens[:n]]
            if width
            else []
        )
