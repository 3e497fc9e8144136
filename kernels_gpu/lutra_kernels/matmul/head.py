"""The head: int8 rows by dp4a, row scales, and the largest logits found where they are computed.

A key is a logit and its row in one integer, ordered as the arg-max is: the larger logit first, of
equal ones the first row. Every program leaves its largest keys, a second kernel joins them; no
logit has to be stored.

Model: :func:`lutra_golden.vector.residual.logits` of ``round_shift(2 * h @ a, shift)``.
"""

from dataclasses import dataclass

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from lutra_golden.vector.residual import LOGIT_SHIFT, LOGIT_WIDTH
from lutra_kernels.arith.fixed import round_shift_right, saturate
from lutra_kernels.arrays import Array, empty, upload
from lutra_kernels.jit import jit
from lutra_kernels.layout import LOW_OFFSET, Activations, cdiv
from lutra_kernels.matmul.fields import load_words
from lutra_kernels.matmul.operands import as_dtype

__all__ = [
    "Head",
    "head_kernel",
    "head_logits",
    "head_top",
    "split_keys",
    "top_kernel",
    "upload_head",
]

LOWEST = tl.constexpr(-(1 << 63))
_CHUNK = 16  # bytes of a row that a thread loads at once
_BLOCK_N, _BLOCK_C, _NUM_WARPS = 16, 32, 4
_M_AT_ONCE = 4
_KEYS_AT_ONCE = 1024


@triton.constexpr_function
def _dot_assembly():
    lines = ["{ .reg .b32 s;"]
    for word in range(4):
        total = "$9" if word == 0 else "s"
        lines.append(f"dp4a.s32.s32 s, ${1 + word}, ${5 + word}, {total};")
    return " ".join([*lines, "mov.b32 $0, s; }"])


@jit
def largest_keys(keys, o_ptr, TOP: tl.constexpr):
    """Store the ``TOP`` largest of ``keys``, which differ, in falling order."""
    for i in tl.static_range(TOP):
        best = tl.max(keys, 0)
        tl.store(o_ptr + i, best)
        keys = tl.where(keys == best, LOWEST, keys)


@jit
def head_kernel(
    x_ptr, h_ptr, scale_ptr, offset_ptr, logits_ptr, keys_ptr, V, n_chunks, shift, M, first_m,
    stride_x, TOKENS: tl.constexpr, A_BYTES: tl.constexpr, TOP: tl.constexpr, STORE: tl.constexpr,
    EVEN: tl.constexpr, LOGIT_SHIFT: tl.constexpr, LOGIT_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Logits of tokens ``first_m`` to ``first_m + TOKENS - 1`` of ``M``.

    ``x`` int32 words of byte rows ``[A_BYTES * M, stride_x]``, ``h`` int32 words of int8 ``[V, 16 *
    n_chunks]``, ``scale`` int16 ``[V]``, ``offset`` int64 ``[V]`` (16-bit activations only); to
    ``logits`` int32 ``[M, V]`` (``STORE``) and ``keys`` int64 ``[M, programs, TOP]``. ``EVEN``:
    ``BLOCK_C`` divides ``n_chunks``.
    """
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(offs_n, V - 1)
    e = tl.arange(0, 4 * BLOCK_C)
    row_ptr = h_ptr + rows.to(tl.int64)[:, None] * (4 * n_chunks)
    acc = (tl.zeros((BLOCK_N, BLOCK_C), tl.int32),) * (TOKENS * A_BYTES)
    for chunk in range(0, n_chunks, BLOCK_C):
        if EVEN:
            mask = None
        else:
            mask = (chunk + e // 4 < n_chunks)[None, :]
        w = load_words(row_ptr + (chunk * 4 + e)[None, :], mask, BLOCK_N, BLOCK_C, True)
        following = ()
        for r in tl.static_range(TOKENS * A_BYTES):
            row = (r // TOKENS) * M + first_m + r % TOKENS
            at = x_ptr + row.to(tl.int64) * stride_x + chunk * 4
            x = load_words((at + e)[None, :], mask, 1, BLOCK_C, False)
            dot = tl.inline_asm_elementwise(
                _dot_assembly(),
                "=r,r,r,r,r,r,r,r,r,r",
                [w[0], w[1], w[2], w[3], x[0], x[1], x[2], x[3], acc[r]],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
            following = following + (dot,)
        acc = following
    scale = tl.load(scale_ptr + rows).to(tl.int64)
    for m in tl.static_range(TOKENS):
        total = 2 * tl.sum(acc[m], 1).to(tl.int64)
        if A_BYTES == 2:
            total += 512 * tl.sum(acc[TOKENS + m], 1).to(tl.int64) + tl.load(offset_ptr + rows)
        total = round_shift_right(total, shift)
        logit = saturate(round_shift_right(total * scale, LOGIT_SHIFT), LOGIT_WIDTH)
        token = (first_m + m).to(tl.int64)
        if STORE:
            tl.store(logits_ptr + token * V + offs_n, logit, mask=offs_n < V)
        if TOP > 0:
            keys = logit * 4294967296 + (4294967295 - offs_n.to(tl.int64))
            keys = tl.where(offs_n < V, keys, LOWEST)
            program = token * tl.num_programs(0) + tl.program_id(0)
            largest_keys(keys, keys_ptr + program * TOP, TOP)


@jit
def top_kernel(keys_ptr, o_ptr, n_keys, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """The ``TOP`` largest of each ``BLOCK`` keys: ``[M, n_keys]`` to ``[M, programs, TOP]``."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1).to(tl.int64)
    keys = tl.load(keys_ptr + m * n_keys + i, mask=i < n_keys, other=LOWEST)
    largest_keys(keys, o_ptr + (m * tl.num_programs(0) + tl.program_id(0)) * TOP, TOP)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Rows ``[v, k]`` int8, scales int16 ``[v]``, the accumulators' shift; ``offset`` int64
    ``[v]``: what the low bytes of 16-bit activations lack."""

    rows: Array
    scale: Array
    offset: Array
    v: int
    k: int
    shift: int


def upload_head(rows: NDArray[np.int8], scale: NDArray[np.int16], shift: int) -> Head:
    """A head on the device; the depth must be a multiple of 16."""
    v, k = rows.shape
    if rows.dtype != np.int8:
        raise TypeError(f"rows must be int8, not {rows.dtype}")
    if scale.shape != (v,):
        raise ValueError(f"scale must be {[v]}, not {list(scale.shape)}")
    if k % _CHUNK:
        raise ValueError(f"depth must be a multiple of {_CHUNK}, not {k}")
    if not 1 <= shift <= 24:
        raise ValueError(f"shift must be in 1..24, not {shift}")
    offset = 2 * LOW_OFFSET * rows.sum(axis=1, dtype=np.int64)
    return Head(
        rows=upload(rows),
        scale=upload(scale.astype(np.int16)),
        offset=upload(offset),
        v=v,
        k=k,
        shift=shift,
    )


def _launch(a: Activations, h: Head, logits: Array | None, keys: Array | None, top: int) -> None:
    if a.k != h.k:
        raise ValueError(f"activations must have the head's depth {h.k}, not {a.k}")
    n_chunks = h.k // _CHUNK
    at_once = _M_AT_ONCE // a.a_bytes
    for first in range(0, a.m, at_once):
        head_kernel[(cdiv(h.v, _BLOCK_N),)](
            as_dtype(a.rows, np.int32), as_dtype(h.rows, np.int32), h.scale, h.offset, logits, keys,
            h.v, n_chunks, h.shift, a.m, first, a.rows.shape[1] // 4,
            TOKENS=min(at_once, a.m - first), A_BYTES=a.a_bytes, TOP=top, STORE=logits is not None,
            EVEN=n_chunks % _BLOCK_C == 0, LOGIT_SHIFT=LOGIT_SHIFT, LOGIT_WIDTH=LOGIT_WIDTH,
            BLOCK_N=_BLOCK_N, BLOCK_C=_BLOCK_C, num_warps=_NUM_WARPS,
        )  # fmt: skip


def head_logits(a: Activations, h: Head, out: Array | None = None) -> Array:
    """Logits int32 ``[M, V]``."""
    logits = empty([a.m, h.v], np.int32) if out is None else out
    _launch(a, h, logits, None, 0)
    return logits


def head_top(a: Activations, h: Head, top: int = 1) -> Array:
    """Keys int64 ``[M, top]`` of the largest logits of each token, in falling order; 1 is the
    arg-max."""
    if not 1 <= top <= min(h.v, _KEYS_AT_ONCE // 2):
        raise ValueError(f"top must be in 1..{min(h.v, _KEYS_AT_ONCE // 2)}, not {top}")
    count = min(top, _BLOCK_N)
    n_keys = cdiv(h.v, _BLOCK_N) * count
    keys = empty([a.m, n_keys], np.int64)
    _launch(a, h, None, keys, count)
    while True:
        programs = cdiv(n_keys, _KEYS_AT_ONCE)
        joined = empty([a.m, programs * top], np.int64)
        top_kernel[(programs, a.m)](keys, joined, n_keys, TOP=top, BLOCK=_KEYS_AT_ONCE)
        if programs == 1:
            return joined
        keys, n_keys = joined, programs * top


def split_keys(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and logits of keys."""
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF), keys >> 32
