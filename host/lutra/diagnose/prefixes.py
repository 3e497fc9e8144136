"""The first instruction that an accelerator gets wrong, from what its program leaves in memory.

The program is cut behind an instruction, and what that has made is stored by a LOGITS behind it:
the residual stream as it is, accumulators times row scales of the head. The interpreter runs the
same code. Activations, queries and the output of attention cannot be stored, so an instruction that
makes them shows in the next one that can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.compile.assembler import RESIDUAL, Operation, assemble, overlap
from lutra.compile.fit import stream_elements
from lutra.compile.program import Program
from lutra.devices.accelerator.device import AcceleratorDevice, AcceleratorSession
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.runs import Tile
from lutra.devices.base import DeviceError
from lutra.diagnose.passes import GoldenPasses, same_kv
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.isa import FLAG_FIRST, FLAG_LOGITS, FLAG_STREAM, Opcode, Unit
from lutra_golden.core.ports import Purpose
from lutra_golden.matmul.engine import LANES
from lutra_golden.model.cache import SequenceKv

__all__ = ["Prefixes", "Shown", "first_instruction", "operations_of"]

_VISIBLE = (Opcode.EMBED, Opcode.LMMA, Opcode.ROPEQ, Opcode.RESADD, Opcode.LOGITS)
_NAMES = {
    Unit.LOAD: "load unit",
    Unit.MATMUL: "matmul engine",
    Unit.VECTOR: "vector unit",
    Unit.ATTENTION: "attention unit",
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Instruction ``index`` is the first behind which memory differs.

    ``unit`` executes it, or one before it whose result cannot be stored; instructions of a kind
    that came right before are named only if there is no other. ``token`` and ``elements`` are where
    the first difference is.
    """

    index: int
    unit: str
    text: str
    token: int | None = None
    elements: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Probe:
    """Operations that store something, and how many words of a token they store.

    The first of these is element ``first``, the first token ``from_token``.
    """

    tail: Sequence[Operation]
    n_words: int
    first: int = 0
    from_token: int = 0


def operations_of(program: Program) -> list[Operation]:
    """All operations of a program."""
    parts = program.parts
    return [*parts.embed, *parts.rope, *(o for layer in parts.layers for o in layer), *parts.head]


class Prefixes:
    """Runs a program up to an instruction on ``device`` and on the interpreter.

    Both begin with ``kv`` in a session of their own, and have ``tokens`` at the positions behind.
    """

    def __init__(
        self, device: AcceleratorDevice, kv: SequenceKv, tokens: Sequence[int], logits_from: int
    ) -> None:
        self._program = device.program
        self._operations = operations_of(self._program)
        self._tokens, self._logits_from, self._kv = tokens, logits_from, kv
        self._sound: set[tuple[Opcode, int]] = set()
        self._reference = AcceleratorDevice(InterpretedTransport())
        self._reference.load_program(device.model, device.program)
        self._pairs: list[tuple[AcceleratorDevice, AcceleratorSession]] = []
        for each in (device, self._reference):
            session = each.session()
            session.restore(kv)
            self._pairs.append((each, session))

    def close(self) -> None:
        """Give back what both hold."""
        for _, session in self._pairs:
            session.close()
        self._reference.close()

    def first(self, *, by_layers: bool = True) -> Shown | None:
        """The first instruction behind which something differs.

        The layer is found by halving if ``by_layers``, the instruction one by one.
        """
        low = 0
        ends = list(self._layer_ends()) if by_layers else []
        while ends:
            middle = len(ends) // 2
            if self.behind(ends[middle]) is None:
                low, ends = ends[middle] + 1, ends[middle + 1 :]
            else:
                ends = ends[:middle]
        right = low - 1
        self._sound = {_kind(each) for each in self._operations[:low]}
        for index in range(low, len(self._operations)):
            operation = self._operations[index]
            if operation.opcode not in _VISIBLE:
                continue
            found = self.behind(index, right)
            if found is not None:
                return found
            self._sound |= {_kind(each) for each in self._hidden(index, right)}
            if operation.opcode is not Opcode.ROPEQ:
                self._sound.add(_kind(operation))
            right = index
        return None

    def _layer_ends(self) -> Iterator[int]:
        parts = self._program.parts
        at = len(parts.embed) + len(parts.rope)
        for layer in parts.layers:
            at += len(layer)
            yield at - 1

    def behind(self, index: int, right: int = -1) -> Shown | None:
        """Difference behind instruction ``index``; ``right`` is the last one that was right."""
        operation = self._operations[index]
        align = self._program.config.alignment(Purpose.FETCH)
        for probe in self._probes(operation):
            code = assemble([*self._operations[: index + 1], *probe.tail], align)
            try:
                ours, wanted = (
                    self._run(device, session, code, probe) for device, session in self._pairs
                )
            except DeviceError as error:
                return self._shown(index, right, str(error))
            wrong = ours != wanted
            if wrong.any():
                row, element = (int(x) for x in np.argwhere(wrong)[0])
                token, first = probe.from_token + row, probe.first + element
                text = f"what it makes for token {token} differs in {int(wrong[row].sum())} of "
                text += f"{probe.n_words} elements"
                return self._shown(index, right, text, token, (first, first))
            if operation.opcode is Opcode.ROPEQ:
                layer = operation.args["kv_offset"] // self._program.config.kv_layer_bytes
                found = self._kv_differs(layer)
                if found is not None:
                    return self._shown(index, right, found)
        return None

    def _shown(
        self,
        index: int,
        right: int,
        text: str,
        token: int | None = None,
        elements: tuple[int, int] | None = None,
    ) -> Shown:
        makers = self._hidden(index, right)
        chain = [self._operations[index], *reversed(makers)]
        suspects = [each for each in chain if _kind(each) not in self._sound] or chain
        units = list(dict.fromkeys(map(_unit, suspects)))
        if makers:
            names = ", ".join(each.opcode.name for each in makers)
            text += f"; what {names} before it made is seen here first"
        return Shown(
            index=index, unit=" or ".join(units), text=text, token=token, elements=elements
        )

    def _hidden(self, index: int, right: int) -> list[Operation]:
        """Instructions between ``right`` and ``index`` whose results ``index`` depends on.

        Of a ROPEQ at ``right`` the queries are not known to be right.
        """
        wanted, found = list(self._operations[index].reads), list[Operation]()
        partly = right >= 0 and self._operations[right].opcode is Opcode.ROPEQ
        for each in reversed(self._operations[right + 1 - partly : index]):
            if any(overlap(a, b) for a in each.writes for b in wanted):
                found.insert(0, each)
                wanted += each.reads
        return found

    def _kv_differs(self, layer: int) -> str | None:
        (_, ours), (_, wanted) = self._pairs
        n = self._kv.length + len(self._tokens)
        try:
            for session in (ours, wanted):
                session.lengths = [n] * len(session.lengths)
            pair = [each.export(range(layer, layer + 1)) for each in (ours, wanted)]
            if not same_kv(pair[0].layers[layer], pair[1].layers[layer]):
                return f"keys or values of layer {layer} differ"
        finally:
            for session in (ours, wanted):
                session.lengths = [self._kv.length] * len(session.lengths)
        return None

    def _run(
        self, device: AcceleratorDevice, session: AcceleratorSession, code: bytes, probe: _Probe
    ) -> NDArray[np.int32]:
        n = len(self._tokens)
        entry = ChunkEntry(self._kv.length, n, session.address)
        tile = Tile(tokens=self._tokens, chunks=[entry], logits_from=self._logits_from)
        device.run_code(code, tile)
        if not probe.n_words:
            return np.zeros((n, 0), np.int32)
        return device.stored(range(probe.from_token, n), probe.n_words)

    def _probes(self, operation: Operation) -> Iterator[_Probe]:
        program, config = self._program, self._program.config
        if operation.opcode in (Opcode.EMBED, Opcode.RESADD):
            n = stream_elements(program.hidden_size, config)
            args = {"row_first": 0, "n_words": n // LANES, "param_word": 0, "acc_base": 0}
            store = Operation(
                opcode=Opcode.LOGITS, reads=[RESIDUAL], writes=[], flags=FLAG_STREAM, args=args
            )
            yield _Probe([store], program.hidden_size)
        elif operation.opcode is Opcode.LMMA and not operation.flags & FLAG_LOGITS:
            yield from self._accumulators(operation.args["acc_base"], operation.args["row_blocks"])
        elif operation.opcode is Opcode.LOGITS:
            # with those of the chunks before
            end = operation.args["row_first"] + LANES * operation.args["n_words"]
            yield _Probe([], end, from_token=self._logits_from)
        else:
            yield _Probe([], 0)

    def _accumulators(self, first: int, n_blocks: int) -> Iterator[_Probe]:
        """Stores of accumulators, as many in a run as the memory of a token has room for."""
        program, unit = self._program, self._program.config.logits_blocks
        load = next(_scales(program))
        room = program.logits_stride // (4 * LANES) // unit * unit
        most = min(load.args["n_words"] // unit * unit, room)
        # words of memory are stored whole
        end = first + n_blocks // unit * unit
        for start in range(first, end, room):
            stop = min(start + room, end)
            stores = [
                Operation(
                    opcode=Opcode.LOGITS,
                    reads=[("acc", at, min(at + most, stop)), *load.writes],
                    writes=[],
                    flags=FLAG_FIRST,
                    args={
                        "row_first": LANES * (at - start),
                        "n_words": min(most, stop - at),
                        "param_word": load.args["param_word"],
                        "acc_base": at,
                    },
                )
                for at in range(start, stop, most)
            ]
            yield _Probe([load, *stores], LANES * (stop - start), LANES * start)


def _scales(program: Program) -> Iterator[Operation]:
    """The instructions that load row scales of the head."""
    loads = [o for o in program.parts.head if o.opcode is Opcode.LDPARAM]
    # the first one loads gamma of the final norm
    yield from loads[1:]


def _kind(operation: Operation) -> tuple[Opcode, int]:
    """The opcode, and the source of a NORMQ: each goes another way through its unit."""
    return operation.opcode, operation.args.get("source", 0)


def _unit(operation: Operation) -> str:
    unit = operation.opcode.unit
    assert unit is not None
    return _NAMES[unit]


def first_instruction(device: AcceleratorDevice, passes: GoldenPasses, index: int) -> Shown | None:
    """The first instruction that ``device`` gets wrong in pass number ``index``."""
    each = passes.known[index]
    prefixes = Prefixes(device, passes.kv(each.position), each.tokens, each.logits_from)
    try:
        return prefixes.first()
    finally:
        prefixes.close()
