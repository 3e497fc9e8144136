"""Programs of ranges of layers, which exchange the residual stream with memory."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from lutra.compile.assembler import RESIDUAL, Operation, assemble
from lutra.compile.fit import check_stream, stream_elements
from lutra.compile.program import Program
from lutra_golden.control.isa import FLAG_LOW, FLAG_STREAM, Opcode
from lutra_golden.core.ports import Purpose
from lutra_golden.matmul.engine import LANES

__all__ = ["EXTRA_OPERATIONS", "HALF_BITS", "range_code", "residual_halves", "stream_halves"]

EXTRA_OPERATIONS = 3
"""Most operations of a range of layers that the program of all layers does not have."""
HALF_BITS = 16
_LOW = (1 << HALF_BITS) - 1


def range_code(program: Program, layers: range) -> bytes:
    """Instructions of ``layers``, for the weights of ``program``.

    A range that does not begin with the first layer takes the residual stream from
    ``program.halves``, as :func:`stream_halves` makes them, with TOKEN counting from 0. One that
    does not end with the last layer stores it in the place of the logits, int32 as it is.
    LutraError if the configuration cannot store it.
    """
    parts = program.parts
    is_first, is_last = layers.start == 0, layers.stop == program.n_layers
    operations = chain(
        parts.embed if is_first else _load(program),
        parts.rope,
        *(parts.layers[i] for i in layers),
        parts.head if is_last else _store(program),
    )
    return assemble(operations, program.config.alignment(Purpose.FETCH))


def stream_halves(program: Program, stream: NDArray[np.int32]) -> tuple[bytes, bytes]:
    """The high and the low halves of a stream ``[n, hidden_size]``, for ``program.halves``."""
    align = program.config.align_bytes
    high, low = (part.astype("<u2").tobytes() for part in residual_halves(stream))
    # beats are read whole
    filling = bytes(-len(high) % align)
    return high + filling, low + filling


def residual_halves(
    stream: NDArray[np.signedinteger],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The high and the low halves of elements of the residual stream, which fit int32."""
    return (stream >> HALF_BITS).astype(np.uint16), (stream & _LOW).astype(np.uint16)


def _load(program: Program) -> Sequence[Operation]:
    high, low = program.halves
    n_words = program.hidden_size // LANES
    return [
        Operation(
            opcode=Opcode.EMBED,
            reads=[],
            writes=[RESIDUAL],
            flags=flags,
            args={"address": address, "n_words": n_words, "shift": shift},
        )
        for address, flags, shift in ((high, 0, HALF_BITS), (low, FLAG_LOW, 0))
    ]


def _store(program: Program) -> Sequence[Operation]:
    check_stream(program.hidden_size, program.config)
    n_words = stream_elements(program.hidden_size, program.config) // LANES
    args = {"row_first": 0, "n_words": n_words, "param_word": 0, "acc_base": 0}
    store = Operation(
        opcode=Opcode.LOGITS, reads=[RESIDUAL], writes=[], flags=FLAG_STREAM, args=args
    )
    return [store]
