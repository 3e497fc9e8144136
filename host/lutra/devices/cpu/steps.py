"""Single steps of the C library on arrays: what tests compare and benchmarks measure."""

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.binding import KeptArrays, matrix_of
from lutra.devices.cpu.cache import PAGE
from lutra.devices.cpu.interface import CMatrix, CNorm
from lutra.devices.cpu.library import library, pointer, scale_of, target_number
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale
from lutra_golden.model.packed import PackedLinear

__all__ = [
    "Matrix",
    "Pool",
    "attend",
    "gate",
    "head",
    "matmul",
    "matmul_seconds",
    "norm_quantize",
    "read_seconds",
    "residual",
    "scales",
]

Int = NDArray[np.int64]


class Pool:
    """Threads of the library."""

    def __init__(self, threads: int = 1) -> None:
        self.address: int | None = library().lutra_cpu_pool_new(threads)
        if not self.address:
            raise MemoryError(f"{threads} threads cannot be started")

    def close(self) -> None:
        """End the threads."""
        library().lutra_cpu_pool_free(self.address)
        self.address = None


def scales(scale: Scale) -> NDArray[np.int32]:
    """Scales as the library has them, ``[..., 2]``."""
    return np.ascontiguousarray(np.stack([scale.m, scale.e], axis=-1), np.int32)


def _back(scale: NDArray[np.int32]) -> Scale:
    return Scale(scale[..., 0].astype(np.int64), scale[..., 1].astype(np.int64))


class Matrix:
    """A matrix as the library takes it, and what it points into."""

    def __init__(self, c: CMatrix, keep: KeptArrays) -> None:
        self.c, self._keep = c, keep

    @classmethod
    def of(
        cls, linear: PackedLinear, groups: ActivationGroups | None = None, strip: int = 0
    ) -> "Matrix":
        """A matrix of a layer, for activations in ``groups`` if there are any; in strips of
        ``strip`` rows, unless that is 0."""
        keep, pool = KeptArrays(bool(strip), strip), Pool()
        peak = {} if groups is None else {"a_peak": groups.peak}
        made = cls(matrix_of(linear, keep, **peak), keep)
        keep.fill(pool.address)
        pool.close()
        return made

    @classmethod
    def signed(cls, w: NDArray[np.int8], shift: int) -> "Matrix":
        """Rows of signed bytes, as in a head; twice the product is shifted."""
        keep, (n, k) = KeptArrays(), w.shape
        return cls(CMatrix(codes=keep(w), row_bytes=k, n=n, k=k, shift=shift), keep)

    @property
    def n_bytes(self) -> int:
        """Bytes that a product reads of it."""
        return self.c.n_bytes


def matmul(
    target: str, pool: Pool, w: Matrix, a: NDArray[np.int16], a_bits: int = 8
) -> NDArray[np.int32]:
    """Accumulators ``[M, N]`` of activations ``[M, K]``.

    Those of 9 to 15 bits are int8 times a power of two for each 32.
    """
    acc = np.full((len(a), w.c.n), -(1 << 31), np.int32)
    matmul_seconds(target, pool, [w], a, a_bits, acc)
    return acc


def matmul_seconds(
    target: str,
    pool: Pool,
    matrices: Sequence[Matrix],
    a: NDArray[np.int16],
    a_bits: int = 8,
    acc: NDArray[np.int32] | None = None,
) -> NDArray[np.float64]:
    """Seconds of products with matrices of one shape, one after another; ``acc`` is the last's."""
    m, first = len(a), matrices[0].c
    a = np.ascontiguousarray(a, np.int16)
    if acc is None:
        acc = np.empty((m, first.n), np.int32)
    every = (CMatrix * len(matrices))(*(w.c for w in matrices))
    seconds = np.zeros(len(matrices))
    done = library().lutra_cpu_matmul(
        target_number(target), pool.address, ctypes.addressof(every), len(matrices), pointer(a), m,
        a_bits, pointer(acc), pointer(seconds),
    )  # fmt: skip
    if not done:
        raise MemoryError(f"no memory for products of {m} tokens")
    return seconds


def read_seconds(pool: Pool, data: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Seconds that reading each piece of ``size`` bytes of an array takes."""
    seconds = np.zeros(data.nbytes // size)
    done = library().lutra_cpu_read(
        pool.address, pointer(data), size, len(seconds), pointer(seconds)
    )
    if not done:
        raise MemoryError(f"no memory for the times of {len(seconds)} pieces")
    return seconds


def norm_quantize(
    target: str,
    v: Int,
    scale: Scale,
    gamma: NDArray[np.int16] | None,
    frac: int,
    inv_n: Scale,
    eps: Scale,
    a_bits: int = 8,
    groups: ActivationGroups | None = None,
    run: int = 0,
) -> tuple[NDArray[np.int16], Scale]:
    """A row of activations ``[N]`` and its scale; without ``gamma`` it is only quantised."""
    q, out = np.zeros(len(v), np.int16), np.zeros(2, np.int32)
    norm = CNorm(gamma=pointer(gamma), frac=frac, plain=gamma is None, inv_n=scale_of(inv_n))
    if groups is not None:
        norm.group, norm.run, norm.group_shift = groups.size, run or len(v), groups.shift_max
    library().lutra_cpu_norm_quantize(
        target_number(target), pointer(np.ascontiguousarray(v, np.int64)), scale_of(scale),
        ctypes.addressof(norm), scale_of(eps), len(v), a_bits, pointer(q), pointer(out),
    )  # fmt: skip
    return q, _back(out)


def gate(
    target: str, gate: NDArray[np.int32], up: NDArray[np.int32], swiglu: bool, s: Scale, w: Scale
) -> Int:
    """Gated values ``[N]``; ``s`` is the activation scale, ``w`` the scale of its weights."""
    out = np.zeros(len(gate), np.int64)
    library().lutra_cpu_gate(
        target_number(target), pointer(gate), pointer(up), len(gate), swiglu, scale_of(s),
        scale_of(w), pointer(out),
    )  # fmt: skip
    return out


def head(
    target: str,
    acc: NDArray[np.int32],
    s: Scale,
    w: Scale,
    rope: NDArray[np.int16] | None,
    bias: tuple[NDArray[np.int16], int] | None = None,
    norm: tuple[NDArray[np.int16], int, int] | None = None,
    *,
    centre: NDArray[np.int16] | None = None,
    fixed: bool = False,
    q_max: int = 127,
) -> tuple[NDArray[np.int8], Scale]:
    """A head ``[head_dim]``, rotated and quantised; ``norm`` is gamma, its bits and epsilon."""
    q, out = np.zeros(len(acc), np.int8), np.zeros(2, np.int32)
    values, bias_frac = bias or (None, 0)
    gamma, gamma_frac, eps = norm or (None, 0, 0)
    library().lutra_cpu_head(
        target_number(target), pointer(acc), len(acc), scale_of(s), scale_of(w), pointer(rope),
        pointer(values), bias_frac, pointer(gamma), gamma_frac, eps, pointer(centre), fixed, q_max,
        pointer(q), pointer(out),
    )  # fmt: skip
    return q, _back(out)


def residual(
    target: str, x: NDArray[np.int32], acc: NDArray[np.int32], s: Scale, w: Scale, frac: int
) -> tuple[NDArray[np.int32], bool]:
    """The residual stream ``[N]`` with accumulators added, and whether it was saturated."""
    out = x.copy()
    saturated = library().lutra_cpu_residual(
        target_number(target), pointer(out), pointer(acc), len(x), scale_of(s), scale_of(w), frac
    )
    return out, bool(saturated)


def attend(
    target: str,
    q: NDArray[np.int8],
    q_scale: Scale,
    k: NDArray[np.int8],
    k_scale: Scale,
    v: NDArray[np.int8],
    v_scale: Scale,
    frac: int,
    window: int = 0,
    kv: tuple[int, int] = (8, 8),
    page: int = PAGE,
) -> NDArray[np.int32]:
    """Attention ``[M, heads, D]`` with the shapes of the golden model's, over pages of ``page``
    positions."""
    m, heads, d = q.shape
    kv_heads, total, _ = k.shape
    arrays = [q, scales(q_scale), k, scales(k_scale), v, scales(v_scale)]
    arrays = [np.ascontiguousarray(x) for x in arrays]
    out = np.zeros((m, heads, d), np.int32)
    done = library().lutra_cpu_attend(
        target_number(target), *map(pointer, arrays), m, heads, kv_heads, d, *kv, total - m,
        frac, window, page, pointer(out),
    )  # fmt: skip
    assert done
    return out
