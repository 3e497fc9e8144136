"""Inline assembly in Triton's interpreter: its builder's missing operation, on :mod:`.ptx`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import triton.runtime.interpreter as interpreter
from numpy.typing import NDArray

from lutra_kernels.interpret.ptx import PtxError, Register, execute

__all__ = ["create_inline_asm", "install"]


class _Results(NamedTuple):
    handles: list[interpreter.TensorHandle]

    def get_result(self, i: int) -> interpreter.TensorHandle:
        return self.handles[i]


def _n_registers(itemsize: int, pack: int) -> int:
    """32-bit registers of ``pack`` elements; elements below 32 bits share them."""
    if itemsize > 4:
        raise PtxError(f"elements must have up to 32 bits, not {8 * itemsize}")
    n_bytes = itemsize * pack
    if n_bytes % 4:
        raise PtxError(f"pack must fill registers of 32 bits, not {n_bytes} bytes")
    return n_bytes // 4


def _to_registers(data: NDArray[np.generic], pack: int) -> list[Register]:
    """Registers of each instance's elements, the first in the low bits."""
    count = _n_registers(data.dtype.itemsize, pack)
    words = np.ascontiguousarray(data).reshape(-1).view(np.uint32).reshape(-1, count)
    return [np.ascontiguousarray(words[:, i]) for i in range(count)]


def create_inline_asm(
    builder: object,
    asm: str,
    constraints: str,
    values: Sequence[interpreter.TensorHandle],
    types: Sequence[object],
    is_pure: bool,
    pack: int,
) -> _Results:
    """``InterpreterBuilder.create_inline_asm``: run ``asm`` for every ``pack`` elements."""
    listed = [item.strip() for item in constraints.split(",")]
    outputs = [item for item in listed if item.startswith("=")]
    shape = np.broadcast_shapes(*(value.data.shape for value in values))
    size = int(np.prod(shape))
    if size % pack:
        raise PtxError(f"pack must divide the {size} elements, not {pack}")
    registers: dict[str, Register] = {}
    inputs = 0
    for value in values:
        for register in _to_registers(np.broadcast_to(value.data, shape), pack):
            registers[f"${len(outputs) + inputs}"] = register
            inputs += 1
    if inputs != len(listed) - len(outputs):
        raise PtxError(f"{constraints!r} must name {inputs} inputs")
    state = execute(asm, registers, size // pack)
    handles: list[interpreter.TensorHandle] = []
    first = 0
    for kind in types:
        scalar = getattr(kind, "scalar", kind)
        dtype = np.dtype(interpreter._get_np_dtype(scalar))
        count = _n_registers(dtype.itemsize, pack)
        parts = [state[f"${first + i}"] for i in range(count)]
        data = np.ascontiguousarray(np.stack(parts, axis=1)).view(dtype).reshape(shape)
        handles.append(interpreter.TensorHandle(data, scalar))
        first += count
    if first != len(outputs):
        raise PtxError(f"{constraints!r} must name {first} outputs")
    return _Results(handles)


def install() -> None:
    """Give Triton's interpreter inline assembly, in this process."""
    interpreter.InterpreterBuilder.create_inline_asm = create_inline_asm
