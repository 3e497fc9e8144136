"""Recorder of what each instruction of a run leaves behind: words that its unit writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import SCALE
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import FLAG_LOGITS, Instruction, Opcode, Unit
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.norm import SOURCE_WIDTH
from lutra_golden.vector.residual import RESIDUAL_WIDTH

__all__ = ["Address", "Executed", "Recorder", "Words", "packed"]

Address = tuple[int, ...]
"""Fields of the address of a word in a buffer, in the order of its port."""
_PARAM_WIDTH = 16
_QUERY_WIDTH = 8


def packed(values: Int, width: int) -> int:
    """Elements of ``width`` bits as one number, the first in the least significant bits."""
    mask, word = (1 << width) - 1, 0
    for i, value in enumerate(values.reshape(-1).tolist()):
        word |= (value & mask) << (i * width)
    return word


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words that go to a buffer: ``values`` ``[..., elements]`` of ``width`` bits each.

    ``first`` is the address of the first of them; the other axes of ``values`` are the fields of
    the address.
    """

    first: Address
    values: Int
    width: int

    def items(self) -> Mapping[Address, int]:
        """Every word by its address."""
        return {
            tuple(a + b for a, b in zip(self.first, place, strict=True)): packed(
                self.values[place], self.width
            )
            for place in np.ndindex(self.values.shape[:-1])
        }


@dataclass(frozen=True, kw_only=True)
class Executed:
    """An instruction that was executed: ``number`` counts those of its unit, ``index`` all.

    ``words`` are what it writes to buffers, by port; ``stores`` what it writes to memory. ``acc``
    are the accumulators behind it, ``[M, blocks, lanes]``, of one that reads them; ``makers`` the
    ``index`` of the instruction that each block came from.
    """

    index: int
    number: int
    instruction: Instruction
    tokens: range
    words: Mapping[str, Words] = field(repr=False)
    stores: list[tuple[int, NDArray[np.uint8]]] = field(repr=False)
    saturated: bool
    acc: Int | None = field(default=None, repr=False)
    makers: Int | None = field(default=None, repr=False)

    @property
    def unit(self) -> Unit:
        """The unit that executes it."""
        unit = self.instruction.opcode.unit
        assert unit is not None
        return unit


class Recorder:
    """Records the instructions that ``interpreter`` executes, from now until :meth:`close`."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.executed: list[Executed] = []
        self._interpreter = interpreter
        self._stores: list[tuple[int, NDArray[np.uint8]]] = []
        self._counts = dict.fromkeys(Unit, 0)
        config = interpreter.config
        self._makers = np.full((config.pass_tokens, config.matmul.acc_blocks), -1, np.int64)
        self._saturated = False
        interpreter.on_instruction = self._on_instruction
        interpreter.memory.on_store = self._on_store

    def close(self) -> None:
        """Record nothing more."""
        self._interpreter.on_instruction = None
        self._interpreter.memory.on_store = None

    def of(self, unit: Unit) -> list[Executed]:
        """The instructions of a unit."""
        return [each for each in self.executed if each.unit is unit]

    def _on_store(self, address: int, data: NDArray[np.uint8]) -> None:
        self._stores.append((address, data.copy()))

    def _on_instruction(self, i: Instruction) -> None:
        interpreter, unit = self._interpreter, i.opcode.unit
        assert unit is not None
        registers = interpreter.registers
        first = registers["LOGITS_FROM"] if i.flags & FLAG_LOGITS else 0
        tokens = range(first, max(first, registers["N_TOKENS"]))
        reads = i.opcode in (Opcode.NORMQ, Opcode.ROPEQ, Opcode.RESADD, Opcode.LOGITS)
        index = len(self.executed)
        if i.opcode is Opcode.LMMA:
            blocks, base = i.args["row_blocks"], i.args["acc_base"]
            self._makers[tokens.start : tokens.stop, base : base + blocks] = index
        saturated, self._saturated = self._saturated, interpreter.saturated
        self.executed.append(
            Executed(
                index=index,
                number=self._counts[unit],
                instruction=i,
                tokens=tokens,
                words=_words(interpreter, i, tokens),
                stores=self._stores,
                saturated=interpreter.saturated and not saturated,
                acc=interpreter.acc.copy() if reads else None,
                makers=self._makers.copy() if reads else None,
            )
        )
        self._stores = []
        self._counts[unit] += 1


def _words(interpreter: Interpreter, i: Instruction, tokens: range) -> dict[str, Words]:
    """Words that instruction ``i``, which was just executed, has written to buffers."""
    config, args = interpreter.config, i.args
    m = slice(tokens.start, tokens.stop)
    first, count = tokens.start, len(tokens)
    if i.opcode is Opcode.LDPARAM:
        at, n = args["param_word"], args["n_words"]
        values = interpreter.params[at : at + n].copy()
        return {"param_w": Words(first=(at,), values=values, width=_PARAM_WIDTH)}
    if i.opcode is Opcode.LDROPE:
        values = interpreter.rope[:count].reshape(count, -1, LANES).copy()
        return {"rope_w": Words(first=(0, 0), values=values, width=_PARAM_WIDTH)}
    if i.opcode in (Opcode.EMBED, Opcode.RESADD):
        n = args["n_words"]
        values = interpreter.residual[:count, : LANES * n].reshape(count, n, LANES).copy()
        name = "embed_w" if i.opcode is Opcode.EMBED else "residual_w"
        return {name: Words(first=(0, 0), values=values, width=RESIDUAL_WIDTH)}
    if i.opcode is Opcode.NORMQ:
        n = args["n_words"]
        values = interpreter.activations[m, : LANES * n].reshape(count, n, LANES).copy()
        scale = _scales(interpreter.scale.m[m], interpreter.scale.e[m])
        return {
            "act": Words(first=(first, 0), values=values, width=config.matmul.integer_width),
            "scale_w": Words(first=(first,), values=scale, width=_SCALE_WIDTH),
        }
    if i.opcode is Opcode.ROPEQ:
        values = interpreter.queries[:count].reshape(count, config.n_heads, -1, LANES).copy()
        s = interpreter.query_scale
        scale = _scales(s.m[:count], s.e[:count])
        return {
            "q_w": Words(first=(0, 0, 0), values=values, width=_QUERY_WIDTH),
            "qs_w": Words(first=(0, 0), values=scale, width=_SCALE_WIDTH),
        }
    if i.opcode is Opcode.ATTEND:
        values = interpreter.attention[:count].reshape(count, -1, LANES).copy()
        return {"o": Words(first=(0, 0), values=values, width=SOURCE_WIDTH)}
    return {}


_SCALE_WIDTH = SCALE.m_width + SCALE.e_width


def _scales(m: Int, e: Int) -> Int:
    """Scales as the words that hold them, ``[..., 1]``."""
    return (m | (e & ((1 << SCALE.e_width) - 1)) << SCALE.m_width)[..., None]
