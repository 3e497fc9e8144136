"""RMSNorm and quantisation with everything that is done to a token between two matrix products.

One launch adds the product before it to the residual stream, or finishes attention, or gates, then
normalises, quantises, sums activations up by groups and stores them as matrix products read them.
Model: :mod:`lutra_golden.vector.norm`.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import triton
import triton.language as tl

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale
from lutra_golden.arith.silu import SILU
from lutra_golden.vector.norm import SWIGLU_SHIFTS
from lutra_kernels.activations import Quantized
from lutra_kernels.arith.fixed import bit_length, note, round_shift, round_shift_right, saturate
from lutra_kernels.arith.quantize import quantize, quantize_factor, quantize_step
from lutra_kernels.arith.scale import (
    scale_add,
    scale_from_int,
    scale_mul,
    scale_pack,
    scale_recip,
    scale_rsqrt,
    scale_unpack,
    word,
)
from lutra_kernels.arith.silu import silu
from lutra_kernels.arrays import INTERPRETED, Array
from lutra_kernels.jit import jit, jit_general
from lutra_kernels.layout import cdiv, padded_depth
from lutra_kernels.vector.residual import residual_add
from lutra_kernels.vector.sums import group_sums

__all__ = ["ZERO", "NormStep", "Source", "norm_quantize", "norm_quantize_kernel"]

BLOCK_MAX = 8192
"""Most elements that a program holds at once."""
TOGETHER_MAX = 16
"""Most tokens that a program takes."""
_GROUPED_BITS = 16  # of integers that are int8 times powers of two
_MANY = 512  # tokens that keep every multiprocessor busy
ZERO = Scale(np.asarray(0), np.asarray(0))
"""The scale of weights that there are none of."""


class Source(IntEnum):
    """Input of a norm."""

    RESIDUAL = 0
    """The residual stream as it is."""
    EMBED = 1
    """The residual stream, which a row of the embedding begins."""
    ADD = 2
    """The residual stream, after a matrix product has been added to it."""
    SUMS = 3
    """Attention that was split: weighted sums, denominators and exponents."""
    ATTENTION = 4
    """Attention's output."""
    RELU2 = 5
    """``relu(gate)**2 * up``."""
    SWIGLU = 6
    """``silu(gate) * up``."""


_RESIDUAL = tl.constexpr(int(Source.RESIDUAL))
_EMBED = tl.constexpr(int(Source.EMBED))
_ADD = tl.constexpr(int(Source.ADD))
_SUMS = tl.constexpr(int(Source.SUMS))
_RELU2 = tl.constexpr(int(Source.RELU2))
_SWIGLU = tl.constexpr(int(Source.SWIGLU))
_SILU_FRAC = tl.constexpr(SILU.x_frac)
_SILU_WIDTH = tl.constexpr(SILU.x_width)
_SHIFT_LEAST = tl.constexpr(SWIGLU_SHIFTS[0])
_SHIFT_MOST = tl.constexpr(SWIGLU_SHIFTS[1])


@jit
def _finished(
    sums_ptr, den_ptr, exponent_ptr, m, offs, mask, frac, N: tl.constexpr, D: tl.constexpr
):
    """Attention's output of tokens ``m`` from what the parts of a split one have added up.

    Also where it has left its range, or would have to be shifted to the left.
    """
    head = m * (N // D) + offs // D
    total = tl.load(sums_ptr + m * N + offs, mask=mask, other=0)
    den = tl.load(den_ptr + head, mask=mask, other=0)
    exponent = tl.load(exponent_ptr + head, mask=mask, other=0)
    r_m, r_e = scale_from_int(den, tl.zeros_like(exponent))
    r_m, r_e = scale_recip(r_m, r_e)
    e = r_e + exponent + 15 + frac
    exact = round_shift_right(total * r_m, tl.minimum(tl.maximum(-e, 0), 63))
    out = saturate(exact, 32)
    return out.to(tl.int32), (exact != out) | ((e > 0) & (exact != 0))


@jit
def _source(
    x_ptr, acc_ptr, den_ptr, exponent_ptr, token_ptr, flag_ptr, tables_ptr, m, offs, mask,
    s_m, s_e, a_m, a_e, frac, M,
    N: tl.constexpr, D: tl.constexpr, SOURCE: tl.constexpr,
):  # fmt: skip
    """Elements ``offs`` of tokens ``m``: int64 of gates, else int32, stored if they are new.

    ``m`` is ``[TOKENS, 1]``, ``offs`` ``[1, BLOCK]``, ``mask`` both; scales ``s`` ``[TOKENS]``.
    """
    if SOURCE == _EMBED:
        row = tl.load(token_ptr + m, mask=m < M, other=0).to(tl.int64)
        v = tl.load(acc_ptr + row * N + offs, mask=mask, other=0).to(tl.int32) << frac
        tl.store(x_ptr + m * N + offs, v, mask=mask)
    elif SOURCE == _ADD:
        x = tl.load(x_ptr + m * N + offs, mask=mask, other=0)
        acc = tl.load(acc_ptr + m * N + offs, mask=mask, other=0)
        v, lost = residual_add(x, acc, s_m[:, None], s_e[:, None], a_m, a_e, frac)
        tl.store(x_ptr + m * N + offs, v, mask=mask)
        note(flag_ptr, lost)
    elif SOURCE == _SUMS:
        v, lost = _finished(acc_ptr, den_ptr, exponent_ptr, m, offs, mask, frac, N, D)
        note(flag_ptr, lost)
    elif SOURCE == _RELU2 or SOURCE == _SWIGLU:
        gate = tl.load(acc_ptr + 2 * m * N + offs, mask=mask, other=0).to(tl.int64)
        up = tl.load(acc_ptr + (2 * m + 1) * N + offs, mask=mask, other=0).to(tl.int64)
        if SOURCE == _RELU2:
            gate = tl.maximum(gate, 0)
            v = gate * gate * up
        else:
            c_m, c_e = scale_mul(s_m, s_e, a_m, a_e)
            shift = tl.minimum(tl.maximum(-(c_e + _SILU_FRAC), _SHIFT_LEAST), _SHIFT_MOST)[:, None]
            exact = round_shift(gate * c_m[:, None], shift)
            argument = saturate(exact, _SILU_WIDTH)
            note(flag_ptr, exact > argument)
            v = silu(argument.to(tl.int32), tables_ptr).to(tl.int64) * up
    else:
        v = tl.load(x_ptr + m * N + offs, mask=mask, other=0)
    return v


@jit
def _lowered(v, sh, gamma_ptr, offs, mask):
    """Elements after the block shift, 16 bits each, and their products with gamma: int32."""
    vs = saturate(round_shift_right(v, sh[:, None]), 16).to(tl.int32)
    return vs, vs * tl.load(gamma_ptr + offs, mask=mask, other=0).to(tl.int32)


@triton.constexpr_function
def _largest(a_bits, shared):
    """Largest magnitude that activations are quantised to; ``shared`` of them may be shifted."""
    return 127 if a_bits == 8 or shared else 32767


@jit
def _exponents(
    y, y_max, SHARED: tl.constexpr, SHIFT_MAX: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Exponents of groups of ``SHARED`` elements of rows whose largest are ``y_max``: one for each
    element, the largest with which none passes that."""
    GROUPS: tl.constexpr = BLOCK // SHARED
    peaks = tl.max(tl.reshape(tl.abs(y), (TOKENS, GROUPS, SHARED)), 2).to(tl.int64)
    e = tl.zeros((TOKENS, GROUPS), tl.int32)
    for shift in tl.static_range(1, SHIFT_MAX + 1):
        e += ((peaks << shift) <= y_max[:, None]).to(tl.int32)
    each = tl.broadcast_to(tl.expand_dims(e, 2), (TOKENS, GROUPS, SHARED))
    return tl.reshape(each, (TOKENS, BLOCK))


@jit
def _store(
    y, y_max, f_m, f_e, q_ptr, sums_ptr, m, first, M,
    N: tl.constexpr, K: tl.constexpr, A_BITS: tl.constexpr, GROUP: tl.constexpr,
    SHARED: tl.constexpr, SHIFT_MAX: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Quantise and store elements from ``first`` on, and sums of groups; returns rows' sums."""
    Q_MAX: tl.constexpr = _largest(A_BITS, SHARED)
    offs = first + tl.arange(0, BLOCK)[None, :]
    if SHARED > 0:
        e = _exponents(y, y_max, SHARED, SHIFT_MAX, TOKENS, BLOCK)
        q = quantize(y.to(tl.int64), f_m[:, None], f_e[:, None] + e, Q_MAX).to(tl.int32)
        q = q << (SHIFT_MAX - e)
    else:
        q = quantize(y.to(tl.int64), f_m[:, None], f_e[:, None], Q_MAX).to(tl.int32)
    mask = (offs < K) & (m < M)
    if A_BITS == 8:
        tl.store(q_ptr + m * K + offs, q.to(tl.int8), mask=mask)
    else:
        # signed bytes, zero in the padding
        low = tl.where(offs < N, (q & 255) - 128, 0)
        tl.store(q_ptr + m * K + offs, low.to(tl.int8), mask=mask)
        tl.store(q_ptr + (M + m) * K + offs, (q >> 8).to(tl.int8), mask=mask)
    if GROUP > 0:
        groups = first // GROUP + tl.arange(0, BLOCK // GROUP)[None, :]
        sums = tl.sum(tl.reshape(q, (TOKENS, BLOCK // GROUP, GROUP)), 2)
        mask = (groups < N // GROUP) & (m < M)
        tl.store(sums_ptr + m * (N // GROUP) + groups, sums, mask=mask)
    return tl.sum(q, 1)


@jit_general("scale_a", "scale_b", "inv_n", "eps", "unit", "frac", "gamma_frac", "M")
def norm_quantize_kernel(
    x_ptr, acc_ptr, den_ptr, exponent_ptr, token_ptr, s_ptr, gamma_ptr, tables_ptr,
    q_ptr, scale_ptr, sums_ptr, flag_ptr,
    scale_a, scale_b, inv_n, eps, unit, frac, gamma_frac, M,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SOURCE: tl.constexpr,
    NORMALISE: tl.constexpr, A_BITS: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr,
    SHIFT_MAX: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Normalise and quantise ``TOKENS`` tokens of ``N`` elements per program.

    Scales are packed words. ``x`` int32 ``[M, N]`` is the residual stream or attention's output;
    ``acc`` is int32 ``[M, N]``, or ``[M, 2, N]`` of gates, int16 ``[V, N]`` of an embedding,
    int64 ``[M, N]`` of weighted sums, with ``den`` int64 and ``exponent`` int32 ``[M, N / D]``.
    ``s`` ``[M]`` are the scales of the activations that ``acc`` was computed of, ``scale_a`` and
    ``scale_b`` those of its weights; ``unit`` is what one of ``x`` is worth, ``frac`` the residual
    stream's binary point, or the shift of an embedding.
    ``q`` int8 ``[M, K]``, or ``[2 M, K]`` of low and high bytes, is as in
    :mod:`lutra_kernels.layout`; ``sums`` is int32 ``[M, N / GROUP]``, or ``[M]`` if ``GROUP``
    is 0 (a power of two, at most ``BLOCK``); ``flag`` becomes 1 if a value has left its range.
    With ``SHARED``, a power of two, activations of 16 bits are int8 times a power of two up to
    ``2**SHIFT_MAX`` for each so many.
    """
    Q_MAX: tl.constexpr = _largest(A_BITS, SHARED)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    m, here = token[:, None], token < M
    a_m, a_e = scale_unpack(scale_a)
    u_m, u_e = scale_unpack(unit)
    s_m, s_e = tl.zeros([TOKENS], tl.int32), tl.zeros([TOKENS], tl.int32)
    u_m, u_e = u_m + s_m, u_e + s_e
    if SOURCE == _ADD or SOURCE == _RELU2 or SOURCE == _SWIGLU:
        s_m, s_e = scale_unpack(tl.load(s_ptr + token, mask=here, other=0))
    if SOURCE == _RELU2:
        b_m, b_e = scale_unpack(scale_b)
        b_m, b_e = scale_mul(s_m, s_e, b_m, b_e)
        g_m, g_e = scale_mul(s_m, s_e, a_m, a_e)
        g_m, g_e = scale_mul(g_m, g_e, g_m, g_e)
        u_m, u_e = scale_mul(g_m, g_e, b_m, b_e)
    elif SOURCE == _SWIGLU:
        b_m, b_e = scale_unpack(scale_b)
        u_m, u_e = scale_mul(s_m, s_e, b_m, b_e)
        u_e -= tl.where(u_m == 0, 0, _SILU_FRAC)

    lanes = tl.arange(0, BLOCK)[None, :]
    if N_BLOCKS == 1:
        v = _source(
            x_ptr, acc_ptr, den_ptr, exponent_ptr, token_ptr, flag_ptr, tables_ptr, m, lanes,
            (lanes < N) & (m < M), s_m, s_e, a_m, a_e, frac, M, N, D, SOURCE,
        )  # fmt: skip
        v_max = tl.max(tl.abs(v.to(tl.int64)), 1)
        sh = tl.maximum(bit_length(v_max) - 15, 0)
        vs, y = _lowered(v, sh, gamma_ptr, lanes, lanes < N)
        squares = tl.sum((vs * vs).to(tl.int64), 1)
        y_max = tl.max(tl.abs(y), 1).to(tl.int64)
        f_m, f_e = quantize_factor(y_max, Q_MAX)
        total = _store(
            y, y_max, f_m, f_e, q_ptr, sums_ptr, m, 0, M, N, K, A_BITS, GROUP, SHARED, SHIFT_MAX,
            TOKENS, BLOCK,
        )  # fmt: skip
    else:
        v_max = tl.zeros([TOKENS], tl.int64)
        for i in range(N_BLOCKS):
            offs = i * BLOCK + lanes
            v = _source(
                x_ptr, acc_ptr, den_ptr, exponent_ptr, token_ptr, flag_ptr, tables_ptr, m, offs,
                (offs < N) & (m < M), s_m, s_e, a_m, a_e, frac, M, N, D, SOURCE,
            )  # fmt: skip
            v_max = tl.maximum(v_max, tl.max(tl.abs(v.to(tl.int64)), 1))
        sh = tl.maximum(bit_length(v_max) - 15, 0)
        # what the first pass stored is read again, by whichever thread
        tl.debug_barrier()
        AGAIN: tl.constexpr = _RESIDUAL if SOURCE == _EMBED or SOURCE == _ADD else SOURCE
        squares, y_max = tl.zeros([TOKENS], tl.int64), tl.zeros([TOKENS], tl.int64)
        for i in range(N_BLOCKS):
            offs = i * BLOCK + lanes
            v = _source(
                x_ptr, acc_ptr, den_ptr, exponent_ptr, token_ptr, flag_ptr, tables_ptr, m, offs,
                (offs < N) & (m < M), s_m, s_e, a_m, a_e, frac, M, N, D, AGAIN,
            )  # fmt: skip
            vs, y = _lowered(v, sh, gamma_ptr, offs, offs < N)
            squares += tl.sum((vs * vs).to(tl.int64), 1)
            y_max = tl.maximum(y_max, tl.max(tl.abs(y), 1).to(tl.int64))
        f_m, f_e = quantize_factor(y_max, Q_MAX)
        total = tl.zeros([TOKENS], tl.int32)
        for i in range(N_BLOCKS):
            offs = i * BLOCK + lanes
            v = _source(
                x_ptr, acc_ptr, den_ptr, exponent_ptr, token_ptr, flag_ptr, tables_ptr, m, offs,
                (offs < N) & (m < M), s_m, s_e, a_m, a_e, frac, M, N, D, AGAIN,
            )  # fmt: skip
            vs, y = _lowered(v, sh, gamma_ptr, offs, offs < N)
            total += _store(
                y, y_max, f_m, f_e, q_ptr, sums_ptr, m, i * BLOCK, M, N, K, A_BITS, GROUP, SHARED,
                SHIFT_MAX, TOKENS, BLOCK,
            )  # fmt: skip
    if GROUP == 0:
        tl.store(sums_ptr + token, total, mask=here)

    s1_e = u_e + tl.where(u_m == 0, 0, sh)
    r_m, r_e = u_m, s1_e
    if NORMALISE:
        n_m, n_e = scale_unpack(inv_n)
        eps_m, eps_e = scale_unpack(eps)
        r_m, r_e = scale_from_int(squares, tl.zeros([TOKENS], tl.int32))
        r_m, r_e = scale_mul(r_m, r_e, n_m, n_e)
        t_m, t_e = scale_mul(u_m, s1_e, u_m, s1_e)
        r_m, r_e = scale_mul(r_m, r_e, t_m, t_e)
        r_m, r_e = scale_add(r_m, r_e, eps_m, eps_e)
        r_m, r_e = scale_rsqrt(r_m, r_e, tables_ptr)
        r_m, r_e = scale_mul(u_m, s1_e, r_m, r_e)
    t_m, t_e = quantize_step(y_max, Q_MAX)
    t_e -= tl.where(t_m == 0, 0, gamma_frac)
    r_m, r_e = scale_mul(r_m, r_e, t_m, t_e)
    if SHARED > 0:
        r_e -= tl.where(r_m == 0, 0, SHIFT_MAX)
    tl.store(scale_ptr + token, scale_pack(r_m, r_e), mask=here)


@dataclass(frozen=True, kw_only=True)
class NormStep:
    """One norm of a model: its input and its constants.

    ``scale_a`` is the scale of the weights that gave the product that is added, or gated;
    ``scale_b`` that of the up projection. ``frac`` is the residual stream's binary point, or the
    shift of an embedding's rows. Without ``normalise``, rows are multiplied by gamma only. With
    ``groups`` results share exponents within each ``run`` of elements.
    """

    source: Source
    n: int
    gamma: Array
    gamma_frac: int
    unit: Scale
    frac: int
    inv_n: Scale
    eps: Scale
    scale_a: Scale = ZERO
    scale_b: Scale = ZERO
    head_dim: int = 1
    normalise: bool = True
    groups: ActivationGroups | None = None
    run: int = 0

    @property
    def shared(self) -> int:
        """Elements that share an exponent: of heads, all if they are smaller than a group."""
        if self.groups is None:
            return 0
        return self.groups.size if self.run == self.n else min(self.groups.size, self.run)


def norm_quantize(
    step: NormStep,
    out: Quantized,
    tables: Array,
    *,
    x: Array | None = None,
    acc: Array | None = None,
    den: Array | None = None,
    exponent: Array | None = None,
    tokens: Array | None = None,
    scales: Array | None = None,
    flag: Array | None = None,
) -> None:
    """Normalise and quantise tokens into ``out``.

    What a source needs: ``x`` unless it is gated or split; ``acc`` what is added, gated or summed,
    or the embedding, of which ``tokens`` says the rows; ``scales`` of the activations of ``acc``;
    ``flag`` where a value can leave its range.
    """
    a, n = out.a, step.n
    if a.k != n:
        raise ValueError(f"out must have {n} elements per token, not {a.k}")
    if step.groups is not None and a.a_bits != _GROUPED_BITS:
        raise ValueError(f"activations in groups have {_GROUPED_BITS} bits, not {a.a_bits}")
    # a group that is the whole row is what ternary weights want
    group = a.group if a.group < n else 0
    k = padded_depth(n)
    block = min(1 << (k - 1).bit_length(), BLOCK_MAX)
    # several tokens per program only where every multiprocessor has work without
    max_together = min(TOGETHER_MAX, BLOCK_MAX // block, a.m if INTERPRETED else a.m // _MANY)
    together = 1 << (max(max_together, 1).bit_length() - 1)
    fused = group & (group - 1) == 0 and group <= block
    norm_quantize_kernel[(cdiv(a.m, together),)](
        x, acc, den, exponent, tokens, scales, step.gamma, tables,
        a.rows, out.scale, a.sums, flag,
        word(step.scale_a), word(step.scale_b), word(step.inv_n), word(step.eps), word(step.unit),
        step.frac, step.gamma_frac, a.m,
        N=n, K=k, D=step.head_dim, SOURCE=int(step.source), NORMALISE=step.normalise,
        A_BITS=a.a_bits, GROUP=group if fused else -1, SHARED=step.shared,
        SHIFT_MAX=0 if step.groups is None else step.groups.shift_max, TOKENS=together, BLOCK=block,
        N_BLOCKS=cdiv(k, block),
        num_warps=max(1, min(16, together * block // 256)),
    )  # fmt: skip
    if not fused:
        group_sums(a, group, a.sums)
