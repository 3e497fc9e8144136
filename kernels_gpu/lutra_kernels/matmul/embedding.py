"""Rows of an embedding in codes, as they enter the residual stream.

Model: :func:`lutra_golden.vector.residual.embedded` of rows of
:class:`lutra_golden.model.stored.StoredWeights`.
"""

from dataclasses import dataclass

import numpy as np
import triton.language as tl

from lutra_golden.arith.scale import Scale
from lutra_kernels.arith.fixed import round_shift_right
from lutra_kernels.arrays import Array, check
from lutra_kernels.jit import jit
from lutra_kernels.layout import BLOCK, cdiv
from lutra_kernels.matmul.fields import n_planes, plane_bits, plane_low
from lutra_kernels.matmul.matrix import Matrix

__all__ = ["CodedRows", "embed_rows", "embed_rows_kernel"]

_AT_ONCE = 1024  # elements of a program


@jit
def _plane_codes(block_ptr, within, mask, BITS: tl.constexpr, PLANE: tl.constexpr):
    """Bits that one plane of B128 adds to the codes at places ``within`` of their blocks."""
    P: tl.constexpr = plane_bits(BITS, PLANE)
    LOW: tl.constexpr = plane_low(BITS, PLANE)
    if P == 4:
        byte = within // 64 * 32 + within % 32
        first = within // 32 % 2 * 4
    else:
        byte = within % (16 * P)
        first = 8 - P * (within // (16 * P) + 1)
    data = tl.load(block_ptr + 16 * LOW + byte, mask=mask, other=0).to(tl.int32)
    return ((data >> first) & ((1 << P) - 1)) << LOW


@jit
def embed_rows_kernel(
    token_ptr, w_ptr, scale_ptr, zero_ptr, minimum_ptr, x_ptr, mantissa, shift,
    N: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, OFFSETS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``x[m] = round(doubled weights of row token[m] * mantissa / 2**shift)``, ``BLOCK_K`` at once.

    ``token`` int32 ``[M]``, ``w`` bytes of B128 ``[V, 16 * BITS * blocks]``, ``scale`` and
    ``zero`` unsigned ``[V, N / GROUP]``, ``minimum`` int32 of this shape (``OFFSETS`` only), ``x``
    int32 ``[M, N]``. ``GROUP`` 0 is ternary.
    """
    m = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = offs < N
    row = tl.load(token_ptr + m).to(tl.int64)
    N_BLOCKS: tl.constexpr = (N + 127) // 128
    block_ptr = w_ptr + (row * N_BLOCKS + offs // 128) * (16 * BITS)
    code = tl.zeros([BLOCK_K], tl.int32)  # [BLOCK_K]
    for plane in tl.static_range(n_planes(BITS)):
        code += _plane_codes(block_ptr, offs % 128, mask, BITS, plane)
    if GROUP == 0:
        doubled = 2 * (code - 1)
    else:
        group = row * (N // GROUP) + offs // GROUP
        scale = tl.load(scale_ptr + group, mask=mask, other=0).to(tl.int32)
        zero = tl.load(zero_ptr + group, mask=mask, other=0).to(tl.int32)
        doubled = scale * (2 * code - zero)
        if OFFSETS:
            doubled = doubled.to(tl.int64) + tl.load(minimum_ptr + group, mask=mask, other=0)
    x = round_shift_right(doubled.to(tl.int64) * mantissa, shift)
    tl.store(x_ptr + m * N + offs, x.to(tl.int32), mask=mask)


@dataclass(frozen=True, kw_only=True)
class CodedRows:
    """An embedding in codes: the rows of ``matrix``, whose shift does not count.

    One of their doubled weights is worth ``mantissa * 2**-shift`` in the residual stream.
    """

    matrix: Matrix
    mantissa: int
    shift: int

    @classmethod
    def of(cls, matrix: Matrix, scale: Scale, frac: int) -> "CodedRows":
        """Rows of a matrix whose doubled weights are worth ``scale``, for ``frac`` fraction bits of
        the residual stream."""
        return cls(matrix=matrix, mantissa=int(scale.m), shift=-(int(scale.e) + frac))


def embed_rows(rows: CodedRows, tokens: Array, x: Array) -> None:
    """Write the rows of ``tokens`` int32 ``[M]`` to the residual stream ``x`` int32 ``[M, K]``."""
    w, m = rows.matrix, tokens.shape[0]
    check("tokens", tokens, [m], np.int32)
    check("x", x, [m, w.k], np.int32)
    block = min(_AT_ONCE, max(BLOCK, 1 << (w.k - 1).bit_length()))
    embed_rows_kernel[(m, cdiv(w.k, block))](
        tokens, w.codes, w.scale, w.zero, w.minimum, x, rows.mantissa, rows.shift,
        N=w.k, BITS=w.bits, GROUP=w.group, OFFSETS=w.minimum is not None, BLOCK_K=block,
    )  # fmt: skip
