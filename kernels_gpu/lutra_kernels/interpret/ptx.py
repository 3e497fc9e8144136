"""A subset of PTX on NumPy: straight-line code on 32-bit registers, one array lane per thread.

Source: the PTX ISA, sections on integer, logic and shift, and data movement instructions. An
instruction that is not here is refused: nothing is guessed.
"""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

__all__ = ["OPS", "PtxError", "Register", "execute"]

Register = NDArray[np.uint32]


class PtxError(ValueError):
    """Assembly that this emulator does not take."""


def _signed(x: Register) -> NDArray[np.int64]:
    return x.view(np.int32).astype(np.int64)


def _wrap(x: NDArray[np.int64]) -> Register:
    return (x & 0xFFFFFFFF).astype(np.uint32)


def _bytes(x: Register, signed: bool) -> NDArray[np.int64]:
    """The four bytes of a register, least significant first: ``[n, 4]``."""
    kind = np.int8 if signed else np.uint8
    return np.ascontiguousarray(x).view(kind).reshape(-1, 4).astype(np.int64)


def _dp4a(a_signed: bool, b_signed: bool, a: Register, b: Register, c: Register) -> Register:
    dot = (_bytes(a, a_signed) * _bytes(b, b_signed)).sum(axis=1)
    return _wrap(_signed(c) + dot)


def _prmt(a: Register, b: Register, selectors: Register) -> Register:
    """Bytes of ``b:a`` by four selectors of 4 bits, whose top bit replicates the byte's sign."""
    source = np.concatenate([_bytes(a, False), _bytes(b, False)], axis=1)  # [n, 8]
    result = np.zeros(a.shape, np.uint32)
    for i in range(4):
        selector = (selectors >> np.uint32(4 * i)) & np.uint32(15)
        byte = np.take_along_axis(source, (selector & 7).astype(np.int64)[:, None], axis=1)[:, 0]
        sign = np.where(byte & 0x80, 0xFF, 0)
        result |= np.where(selector & 8, sign, byte).astype(np.uint32) << np.uint32(8 * i)
    return result


def _lop3(a: Register, b: Register, c: Register, table: Register) -> Register:
    """Any function of three bits, its table of 8 results indexed by ``4 a + 2 b + c``."""
    result = np.zeros(a.shape, np.uint32)
    for i in range(8):
        chosen = np.where((table >> np.uint32(i)) & 1, np.uint32(0xFFFFFFFF), np.uint32(0))
        result |= chosen & (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def _shift(x: Register, n: Register, left: bool) -> Register:
    """Amounts above 31 leave nothing, as PTX clamps them to 32."""
    wide, amount = x.astype(np.uint64), np.minimum(n, 32).astype(np.uint64)
    moved = wide << amount if left else wide >> amount
    return (moved & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _shift_signed(x: Register, n: Register) -> Register:
    return _wrap(_signed(x) >> np.minimum(n, 32).astype(np.int64))


OPS: dict[str, Callable[..., Register]] = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "not.b32": lambda a: ~a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "lop3.b32": _lop3,
    "shl.b32": partial(_shift, left=True),
    "shr.b32": partial(_shift, left=False),
    "shr.u32": partial(_shift, left=False),
    "shr.s32": _shift_signed,
    "add.s32": lambda a, b: a + b,
    "add.u32": lambda a, b: a + b,
    "sub.s32": lambda a, b: a - b,
    "sub.u32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.lo.u32": lambda a, b: a * b,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "min.s32": lambda a, b: _wrap(np.minimum(_signed(a), _signed(b))),
    "max.s32": lambda a, b: _wrap(np.maximum(_signed(a), _signed(b))),
    "prmt.b32": _prmt,
    "dp4a.s32.s32": partial(_dp4a, True, True),
    "dp4a.s32.u32": partial(_dp4a, True, False),
    "dp4a.u32.s32": partial(_dp4a, False, True),
    "dp4a.u32.u32": partial(_dp4a, False, False),
}
"""Instructions by their full name: sources to result."""


def execute(asm: str, registers: dict[str, Register], lanes: int) -> dict[str, Register]:
    """Run ``asm`` with operands ``$0``, ``$1``, ... in ``registers``; all registers afterwards."""
    state = dict(registers)

    def read(operand: str) -> Register:
        if operand in state:
            return state[operand]
        try:
            value = int(operand, 0)
        except ValueError:
            raise PtxError(f"register {operand} is read before it is written") from None
        return np.full(lanes, value & 0xFFFFFFFF, np.uint32)

    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", asm, flags=re.DOTALL).replace("{", "").replace("}", "")
    for statement in (part.strip() for part in text.split(";")):
        if not statement or statement.startswith(".reg"):
            continue
        name, _, operands = statement.partition(" ")
        if name not in OPS:
            raise PtxError(f"no such instruction here: {statement}")
        target, *sources = (operand.strip() for operand in operands.split(","))
        with np.errstate(over="ignore"):
            state[target] = OPS[name](*(read(source) for source in sources))
    return state
