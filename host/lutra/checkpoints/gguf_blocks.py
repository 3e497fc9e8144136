"""The blocks of GGUF's quantised types, as weights.

Exact are F32, F16, BF16, Q4_0, Q8_0, Q6_K, TQ1_0, TQ2_0 and I2_S. Q4_K is exact as a dense matrix;
as :class:`Grouped` its codes and their steps are exact, and the offset ``dmin * m`` of each 32
weights is rounded, see :func:`_grouped_q4_k`.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Float32, Grouped, Ternary, Weight
from lutra.formats.gguf import TensorType
from lutra_golden.errors import LutraError

__all__ = ["read_dense", "read_weight", "ternary_or_dense"]

_VALUES = 1 << 22  # that are decoded at a time
_Bytes = NDArray[np.uint8]
_Parts = tuple[_Bytes, Float32, Float32]
"""Codes ``[N, K]``, and scale and zero point of each group, ``[N, K / group]``."""


def _half(raw: _Bytes) -> Float32:
    """float16 in the last two bytes, ``[...]``."""
    values = np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)
    if not np.isfinite(values).all():
        raise _NotFiniteError
    return values


class _NotFiniteError(Exception):
    pass


def _flat(codes: NDArray[np.integer]) -> _Bytes:
    return codes.reshape(len(codes), -1).astype(np.uint8, copy=False)


def _constant(scale: Float32, zero: float) -> Float32:
    return np.full_like(scale, zero)


def _q4_0(blocks: _Bytes) -> _Parts:
    packed = blocks[..., 2:]
    codes = np.stack([packed & 15, packed >> 4], axis=-2)
    scale = _half(blocks[..., :2])
    return _flat(codes), scale, _constant(scale, 8)


def _q8_0(blocks: _Bytes) -> _Parts:
    scale = _half(blocks[..., :2])
    return _flat(blocks[..., 2:] ^ 0x80), scale, _constant(scale, 128)


def _q6_k(blocks: _Bytes) -> _Parts:
    n, n_blocks = blocks.shape[:2]
    low = blocks[..., :128].reshape(n, n_blocks, 2, 2, 32)
    high = blocks[..., 128:192].reshape(n, n_blocks, 2, 1, 32)
    shift = np.array([0, 2, 4, 6], np.uint8)[:, None]
    quarters = np.concatenate([low & 15, low >> 4], axis=3)  # [N, B, 2, 4, 32]
    codes = quarters | ((high >> shift) & 3) << 4
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    scale = _half(blocks[..., 208:])[..., None] * scales
    scale = scale.reshape(n, -1)
    return _flat(codes), scale, _constant(scale, 32)


def _q4_k(blocks: _Bytes) -> tuple[_Bytes, Float32, Float32]:
    """Codes ``[N, K]``, steps and offsets ``[N, K / 32]``: ``step * code - offset``."""
    n = len(blocks)
    d, d_min = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    a, b, c = (blocks[..., 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=-1)
    least = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=-1)
    packed = blocks[..., 16:].reshape(n, -1, 4, 1, 32)
    codes = np.concatenate([packed & 15, packed >> 4], axis=3)
    step, offset = d[..., None] * scale, d_min[..., None] * least
    return _flat(codes), step.reshape(n, -1), offset.reshape(n, -1)


_FINE_BITS = 8
_MULTIPLES = range(17, 0, -1)  # of codes up to 15 in eight bits


def _grouped_q4_k(blocks: _Bytes) -> _Parts:
    """Q4_K on a finer grid: codes of eight bits, of which a step of the file's is ``m`` = 1..17.

    ``step * q - offset`` becomes ``step / m * (m * q + shift - zero)``: codes and steps are exact,
    the offset is the nearest multiple of half a fine step, with the ``m`` that suits each group
    best. It is off by ``step / 68`` at most where a group's weights are of both signs or about
    zero, as quantisers leave them. On trained weights that adds 0.016 % to the squared error that
    Q4_K has already (codes of six bits would add 1.2 %, of four, 29 %). A group far from zero is
    rounded to 255 steps of its largest magnitude.
    """
    q, step, offset = _q4_k(blocks)
    levels = (1 << _FINE_BITS) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = offset.astype(np.float64) / step
        error = np.full(step.shape, np.inf)
        multiple, zero = np.ones(step.shape), np.zeros(step.shape)
        for m in _MULTIPLES:
            offered = np.rint(2 * m * ratio) / 2
            off = np.abs(offered / m - ratio)
            better = (off < error) & (offered >= 15 * m - levels) & (offered <= levels)
            for kept, new in ((error, off), (multiple, m), (zero, offered)):
                np.copyto(kept, new, where=better)
    shift = np.ceil(np.maximum(-zero, 0))
    zero += shift
    scale = step / multiple
    q = q.reshape(*step.shape, 32)
    codes = q * multiple.astype(np.uint8)[..., None] + shift.astype(np.uint8)[..., None]
    far = np.isinf(error)
    if far.any():
        w = q[far] * step[far][:, None] - offset[far][:, None]
        peak = np.abs(w).max(axis=1)
        zero[far] = np.where(w.min(axis=1) < 0, levels, 0)
        scale[far] = peak / levels
        steps = w / np.where(peak > 0, peak / levels, 1)[:, None]
        codes[far] = np.clip(np.rint(steps) + zero[far][:, None], 0, levels).astype(np.uint8)
    return _flat(codes), scale.astype(np.float32), zero.astype(np.float32)


def _digits(raw: _Bytes, n_digits: int) -> _Bytes:
    """Base-3 digits of bytes that hold them as a fraction of 256, most significant first."""
    powers = np.array([3**i for i in range(n_digits)], np.uint8)[:, None]
    fraction = raw[..., None, :] * powers  # modulo 256
    return ((fraction.astype(np.uint16) * 3) >> 8).astype(np.uint8)


def _tq1_0(blocks: _Bytes) -> _Parts:
    parts = ((blocks[..., :32], 5), (blocks[..., 32:48], 5), (blocks[..., 48:52], 4))
    digits = [_digits(raw, n).reshape(*blocks.shape[:2], -1) for raw, n in parts]
    scale = _half(blocks[..., 52:])
    return _flat(np.concatenate(digits, axis=-1)), scale, _constant(scale, 1)


def _tq2_0(blocks: _Bytes) -> _Parts:
    shift = np.array([0, 2, 4, 6], np.uint8)[:, None]
    packed = blocks[..., :64].reshape(*blocks.shape[:2], 2, 1, 32)
    scale = _half(blocks[..., 64:])
    return _flat((packed >> shift) & 3), scale, _constant(scale, 1)


_DECODERS: Mapping[str, tuple[Callable[[_Bytes], _Parts], int, int]] = {
    "Q4_0": (_q4_0, 4, 32),
    "Q8_0": (_q8_0, 8, 32),
    "Q4_K": (_grouped_q4_k, _FINE_BITS, 32),
    "Q6_K": (_q6_k, 6, 16),
    "TQ1_0": (_tq1_0, 2, 256),
    "TQ2_0": (_tq2_0, 2, 256),
}
"""Decoders of blocks ``[N, B, bytes]``; bits of the codes, weights of a group."""


def _chunks(n: int, k: int) -> list[slice]:
    rows = max(_VALUES // k, 1)
    return [slice(first, first + rows) for first in range(0, n, rows)]


def _grouped(kind: TensorType, raw: _Bytes, n: int, k: int) -> Grouped:
    decode, bits, group = _DECODERS[kind.name]
    blocks = raw.reshape(n, k // kind.block, kind.block_bytes)
    codes = np.empty((n, k), np.uint8)
    scale, zero = np.empty((2, n, k // group), np.float32)
    for rows in _chunks(n, k):
        codes[rows], scale[rows], zero[rows] = decode(blocks[rows])
    return Grouped(codes=codes, scale=scale, zero=zero, bits=bits, group=group)


def _ternary_or_grouped(weight: Grouped) -> Ternary | Grouped:
    """Ternary, exactly, if all groups have one scale; the scale of all-zero groups is ignored."""
    n = len(weight.codes)
    ones = weight.codes == 1
    used = ~ones.reshape(n, -1, weight.group).all(axis=2) & (weight.scale != 0)
    scales = np.unique(weight.scale[used])
    if len(scales) > 1 or weight.codes.max(initial=0) > 2:
        return weight
    codes = weight.codes.astype(np.int8) - np.int8(1)
    if not used.all():
        codes.reshape(n, -1, weight.group)[~used] = 0
    scale = float(scales[0]) if len(scales) else 1.0
    return Ternary(codes if scale > 0 else -codes, abs(scale))


def _i2_s(raw: _Bytes, n: int, k: int) -> Ternary:
    """Blocks of 128 over the flattened matrix, most significant bits first, and one scale."""
    n_bytes = n * k // 4
    packed = raw[:n_bytes].reshape(-1, 1, 32)
    codes = np.empty((len(packed), 4, 32), np.int8)
    shift = np.array([6, 4, 2, 0], np.uint8)[:, None]
    for rows in _chunks(len(packed), 128):
        found = (packed[rows] >> shift) & 3
        if found.max(initial=0) > 2:
            raise ValueError("codes other than 0, 1 and 2")
        codes[rows] = found.astype(np.int8) - 1
    scale = float(raw[n_bytes : n_bytes + 4].view("<f4")[0])
    if not math.isfinite(scale):
        raise _NotFiniteError
    if scale <= 0:
        raise ValueError(f"a scale that is not positive, {scale}")
    return Ternary(codes.reshape(n, k), scale)


def _finite(values: NDArray[np.generic]) -> Dense:
    for rows in _chunks(*values.shape):
        if not np.isfinite(values[rows].astype(np.float32)).all():
            raise _NotFiniteError
    return Dense(values)


def read_weight(kind: TensorType, raw: _Bytes, n: int, k: int, where: str) -> Weight:
    """A matrix ``[n, k]`` as the file holds it; LutraError begins with ``where``."""
    try:
        if kind.dtype is not None:
            return _finite(raw.view(kind.dtype).reshape(n, k))
        if kind.name == "I2_S":
            return _i2_s(raw, n, k)
        weight = _grouped(kind, raw, n, k)
        return _ternary_or_grouped(weight) if kind.name.startswith("TQ") else weight
    except _NotFiniteError:
        raise LutraError(f"{where} holds infinities or NaNs: convert the model again") from None
    except ValueError as error:
        raise LutraError(f"{where} holds {error}: copy or convert the model again") from None


def read_dense(kind: TensorType, raw: _Bytes, n: int, k: int, where: str) -> Dense:
    """A matrix ``[n, k]`` in floating point, exactly as the file's type defines it."""
    if kind.name != "Q4_K":
        weight = read_weight(kind, raw, n, k, where)
        if isinstance(weight, Dense):
            return weight
        values = np.empty((n, k), np.float32)
        for rows in _chunks(n, k):
            values[rows] = weight.dequantized(rows)
        return Dense(values)
    blocks, values = raw.reshape(n, -1, kind.block_bytes), np.empty((n, k), np.float32)
    try:
        for rows in _chunks(n, k):
            q, step, offset = _q4_k(blocks[rows])
            values[rows] = q * step.repeat(32, axis=1) - offset.repeat(32, axis=1)
    except _NotFiniteError:
        raise LutraError(f"{where} holds infinities or NaNs: convert the model again") from None
    return Dense(values)


def ternary_or_dense(weight: Dense) -> Ternary | Dense:
    """Ternary, exactly, if all weights are 0 or of one magnitude."""
    values = weight.values
    peaks = [float(np.abs(values[rows]).max(initial=0)) for rows in _chunks(*values.shape)]
    scale = max(peaks, default=0.0)
    codes = np.empty(values.shape, np.int8)
    for rows in _chunks(*values.shape):
        w = values[rows].astype(np.float32)
        if not ((w == 0) | (np.abs(w) == np.float32(scale))).all():
            return weight
        codes[rows] = np.sign(w).astype(np.int8)
    return Ternary(codes, scale or 1.0)
