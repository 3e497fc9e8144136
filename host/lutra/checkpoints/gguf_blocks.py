"""The blocks of GGUF's quantised types, as weights.

All are read exactly: types whose values lie on a grid of integers as :class:`Grouped`, codes and
the scale and zero point or offset of each group; ternary ones with one scale as :class:`Ternary`.
What becomes of them when a model is packed is in :mod:`lutra.quantize.imported`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.gguf_codebooks import CODEBOOKS, Codebook
from lutra.checkpoints.weights import (
    Dense,
    Encoded,
    Float32,
    Grouped,
    Products,
    Rows,
    Ternary,
    Weight,
)
from lutra.formats.gguf_types import TensorType
from lutra.parallel import each_of
from lutra_golden.errors import LutraError

__all__ = ["GRIDS", "read_dense", "read_matrix", "read_weight", "ternary_or_dense"]

_VALUES = 1 << 20  # that are decoded at a time: with fewer, threads wait for each other
_TRIT_BITS = 2
_Bytes = NDArray[np.uint8]


class _Parts(NamedTuple):
    """Codes ``[N, K]``, and scale, zero point and offset of each group, ``[N, K / group]``."""

    codes: _Bytes
    scale: Float32
    zero: float
    offset: Float32 | None = None
    scales: Products | None = None
    offsets: Products | None = None

    @classmethod
    def of(
        cls, codes: _Bytes, scales: Products, zero: float, offsets: Products | None = None
    ) -> "_Parts":
        """Parts whose scales, and offsets if there are any, are products."""
        offset = None if offsets is None else offsets.values()
        return cls(codes, scales.values(), zero, offset, scales, offsets)


class _NotFiniteError(Exception):
    pass


def _half(raw: _Bytes) -> Float32:
    """float16 in the last two bytes, ``[...]``."""
    values = raw.view("<f2")[..., 0].astype(np.float32)
    if not np.isfinite(values).all():
        raise _NotFiniteError
    return values


def _flat(codes: NDArray[np.integer]) -> _Bytes:
    return codes.reshape(len(codes), -1).astype(np.uint8, copy=False)


def _groups(values: Float32) -> Float32:
    return values.reshape(len(values), -1)


def _products(factor: Float32, multiple: NDArray[np.integer]) -> Products:
    """Factors ``[N, B]`` and multiples ``[N, B, groups]``."""
    return Products(factor, multiple.reshape(len(multiple), -1).astype(np.int8, copy=False))


def _fields(packed: _Bytes, bits: int) -> _Bytes:
    """Fields of bytes ``[..., n]``, the lowest first, as ``[..., fields, n]``."""
    whole, n = np.ascontiguousarray(packed), packed.shape[-1]
    found = np.empty((*packed.shape[:-1], 8 // bits, n), np.uint8)
    # n bytes as one element: NumPy copies few large elements faster than many rows of a few bytes
    cells, cell = found.view(f"V{n}")[..., 0], np.empty_like(whole)
    for i in range(8 // bits):
        np.right_shift(whole, np.uint8(bits * i), out=cell)
        np.bitwise_and(cell, np.uint8((1 << bits) - 1), out=cell)
        cells[..., i] = cell.view(f"V{n}")[..., 0]
    return found


_NEIGHBOURS = {
    bits: np.stack([np.arange(256) >> i & (1 << bits) - 1 for i in range(0, 8, bits)], axis=1)
    .astype(np.uint8).view(f"<u{8 // bits}")[:, 0]
    for bits in (1, 2, 4)
}  # fmt: skip
"""The fields of each byte, one after another as one element."""


def _neighbours(packed: _Bytes, bits: int) -> _Bytes:
    """Fields of bytes ``[..., n]`` that follow each other, ``[..., n * fields]``."""
    return _NEIGHBOURS[bits].take(packed).view(np.uint8)


def _fives(packed: _Bytes, high: _Bytes) -> _Bytes:
    """Codes of five bits: fields of four, and their highest bits as a string."""
    low = _fields(packed, 4).reshape(*packed.shape[:-1], -1)
    # NumPy multiplies bytes ten times as fast as it shifts them to the left
    return low | _neighbours(high, 1) * np.uint8(16)


def _q4_0(blocks: _Bytes) -> _Parts:
    return _Parts(_flat(_fields(blocks[..., 2:], 4)), _half(blocks[..., :2]), 8)


def _q4_1(blocks: _Bytes) -> _Parts:
    scale, offset = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    return _Parts(_flat(_fields(blocks[..., 4:], 4)), scale, 0, offset)


def _q5_0(blocks: _Bytes) -> _Parts:
    codes = _fives(blocks[..., 6:], blocks[..., 2:6])
    return _Parts(_flat(codes), _half(blocks[..., :2]), 16)


def _q5_1(blocks: _Bytes) -> _Parts:
    codes = _fives(blocks[..., 8:], blocks[..., 4:8])
    return _Parts(_flat(codes), _half(blocks[..., :2]), 0, _half(blocks[..., 2:4]))


def _q8_0(blocks: _Bytes) -> _Parts:
    return _Parts(_flat(blocks[..., 2:] ^ 0x80), _half(blocks[..., :2]), 128)


def _twos(packed: _Bytes) -> _Bytes:
    """Codes of two bits in halves of 32 bytes, ``[N, B, 2, 4, 32]``."""
    return _fields(packed.reshape(*packed.shape[:2], 2, 32), 2)


def _q2_k(blocks: _Bytes) -> _Parts:
    scales, d, d_min = blocks[..., :16], _half(blocks[..., 80:82]), _half(blocks[..., 82:])
    step, offset = _products(d, scales & 15), _products(-d_min, scales >> 4)
    return _Parts.of(_flat(_twos(blocks[..., 16:80])), step, 0, offset)


def _q3_k(blocks: _Bytes) -> _Parts:
    high = _fields(blocks[..., :32], 1).reshape(*blocks.shape[:2], 2, 4, 32)
    codes = _twos(blocks[..., 32:96]) | high << 2
    low = _fields(blocks[..., 96:104], 4).reshape(*blocks.shape[:2], 16)
    top = _fields(blocks[..., 104:108], 2).reshape(*blocks.shape[:2], 16)
    scales = (low | top << 4).astype(np.int8) - np.int8(32)
    return _Parts.of(_flat(codes), _products(_half(blocks[..., 108:]), scales), 4)


def _steps(blocks: _Bytes) -> tuple[Products, Products]:
    """Steps and offsets of Q4_K and Q5_K, of six bits."""
    d, d_min = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    a, b, c = (blocks[..., 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=-1)
    least = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=-1)
    return _products(d, scale), _products(-d_min, least)


def _q4_k(blocks: _Bytes) -> _Parts:
    step, offset = _steps(blocks)
    codes = _fields(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32), 4)
    return _Parts.of(_flat(codes), step, 0, offset)


def _q5_k(blocks: _Bytes) -> _Parts:
    step, offset = _steps(blocks)
    low = _fields(blocks[..., 48:].reshape(*blocks.shape[:2], 4, 32), 4)
    high = _fields(blocks[..., 16:48], 1).reshape(low.shape)
    return _Parts.of(_flat(low | high << 4), step, 0, offset)


def _q6_k(blocks: _Bytes) -> _Parts:
    n, n_blocks = blocks.shape[:2]
    low = _fields(blocks[..., :128].reshape(n, n_blocks, 2, 2, 32), 4)  # [N, B, 2, 2, 2, 32]
    low = low.swapaxes(-2, -3).reshape(n, n_blocks, 2, 4, 32)
    high = _fields(blocks[..., 128:192].reshape(n, n_blocks, 2, 32), 2)
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return _Parts.of(_flat(low | high << 4), _products(_half(blocks[..., 208:]), scales), 32)


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""Values of the codes of IQ4_NL and IQ4_XS."""
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the values of the codes of MXFP4 and NVFP4."""
_OF_IQ4, _OF_E2M1 = (_IQ4 + np.int16(128)).astype(np.uint8), (_E2M1 + 12).astype(np.uint8)


def _iq4_nl(blocks: _Bytes) -> _Parts:
    return _Parts(_flat(_OF_IQ4[_fields(blocks[..., 2:], 4)]), _half(blocks[..., :2]), 128)


def _iq4_xs(blocks: _Bytes) -> _Parts:
    low = _neighbours(blocks[..., 4:8], 4)
    scales = (low | _neighbours(blocks[..., 2:4], 2) << 4).astype(np.int8) - np.int8(32)
    codes = _OF_IQ4[_fields(blocks[..., 8:].reshape(*blocks.shape[:2], 8, 16), 4)]
    return _Parts(_flat(codes), _groups(_half(blocks[..., :2])[..., None] * scales), 128)


def _mxfp4(blocks: _Bytes) -> _Parts:
    power = blocks[..., 0].astype(np.int32)
    scale = np.ldexp(np.float32(1), power - 128).astype(np.float32)
    scale[power == 0xFF] = np.nan
    return _Parts(_flat(_OF_E2M1[_fields(blocks[..., 1:], 4)]), scale, 12)


def _nvfp4(blocks: _Bytes) -> _Parts:
    raw = blocks[..., :4]
    power, fraction = (raw >> 3).astype(np.int32) & 15, (raw & 7).astype(np.float32)
    scale = np.where(
        power == 0, np.ldexp(fraction, -10), np.ldexp(1 + fraction / 8, np.maximum(power, 1) - 8)
    )
    scale = np.where(raw == 0x7F, 0, scale).astype(np.float32)
    codes = _OF_E2M1[_fields(blocks[..., 4:].reshape(*blocks.shape[:2], 4, 8), 4)]
    return _Parts(_flat(codes), _groups(scale), 12)


def _digits(raw: _Bytes, n_digits: int) -> _Bytes:
    """Base-3 digits of bytes that hold them as a fraction of 256, most significant first."""
    powers = np.array([3**i for i in range(n_digits)], np.uint8)[:, None]
    fraction = raw[..., None, :] * powers  # modulo 256
    return ((fraction.astype(np.uint16) * 3) >> 8).astype(np.uint8)


def _trits(blocks: _Bytes, *parts: tuple[int, int]) -> _Parts:
    """Ternary codes: for each part its bytes, and how many digits those have; then the scale."""
    digits: list[_Bytes] = []
    first = 0
    for n_bytes, n_digits in parts:
        found = _digits(blocks[..., first : first + n_bytes], n_digits)
        digits.append(found.reshape(*blocks.shape[:2], -1))
        first += n_bytes
    return _Parts(_flat(np.concatenate(digits, axis=-1)), _half(blocks[..., first:]), 1)


def _tq1_0(blocks: _Bytes) -> _Parts:
    return _trits(blocks, (32, 5), (16, 5), (4, 4))


def _ptq1_0(blocks: _Bytes) -> _Parts:
    return _trits(blocks, (16, 5), (8, 5), (2, 4))


def _tq2_0(blocks: _Bytes) -> _Parts:
    return _Parts(_flat(_twos(blocks[..., :64])), _half(blocks[..., 64:]), 1)


def _q1_0(blocks: _Bytes) -> _Parts:
    return _Parts(_flat(_neighbours(blocks[..., 2:], 1)), 2 * _half(blocks[..., :2]), 0.5)


def _q2_0(blocks: _Bytes) -> _Parts:
    return _Parts(_flat(_neighbours(blocks[..., 2:], 2)), _half(blocks[..., :2]), 1)


def _by_codebook(book: Codebook, blocks: _Bytes) -> _Parts:
    scale = _half(book.halves(blocks))[..., None] * book.steps(blocks)
    return _Parts(_flat(book.codes(blocks)), _groups(scale), book.zero)


class Grid(NamedTuple):
    """A type whose values lie on grids: the decoder of its blocks ``[N, B, bytes]``, the bits of
    the codes, the weights of a group, and if groups have offsets and if their numbers are products
    with a factor of each block."""

    decode: Callable[[_Bytes], _Parts]
    bits: int
    group: int
    affine: bool = False
    products: bool = False


GRIDS: Mapping[str, Grid] = {
    "Q4_0": Grid(_q4_0, 4, 32),
    "Q4_1": Grid(_q4_1, 4, 32, True),
    "Q5_0": Grid(_q5_0, 5, 32),
    "Q5_1": Grid(_q5_1, 5, 32, True),
    "Q8_0": Grid(_q8_0, 8, 32),
    "Q2_K": Grid(_q2_k, 2, 16, True, True),
    "Q3_K": Grid(_q3_k, 3, 16, products=True),
    "Q4_K": Grid(_q4_k, 4, 32, True, True),
    "Q5_K": Grid(_q5_k, 5, 32, True, True),
    "Q6_K": Grid(_q6_k, 6, 16, products=True),
    "IQ4_NL": Grid(_iq4_nl, 8, 32),
    "IQ4_XS": Grid(_iq4_xs, 8, 32),
    "TQ1_0": Grid(_tq1_0, 2, 256),
    "TQ2_0": Grid(_tq2_0, 2, 256),
    "MXFP4": Grid(_mxfp4, 5, 32),
    "NVFP4": Grid(_nvfp4, 5, 16),
    "Q1_0": Grid(_q1_0, 1, 128),
    "Q2_0": Grid(_q2_0, 2, 64),
    "Q2_0_G128": Grid(_q2_0, 2, 128),
    "PQ2_0": Grid(_q2_0, 2, 128),
    "PTQ1_0": Grid(_ptq1_0, 2, 128),
    **{
        name: Grid(partial(_by_codebook, book), book.bits, book.group)
        for name, book in CODEBOOKS.items()
    },
}
"""Types on grids, by their names."""


def _chunks(n: int, k: int) -> list[slice]:
    rows = max(_VALUES // k, 1)
    return [slice(first, first + rows) for first in range(0, n, rows)]


def _grouped(kind: TensorType, raw: _Bytes, n: int, k: int) -> Grouped:
    grid = GRIDS[kind.name]
    blocks = raw.reshape(n, k // kind.block, kind.block_bytes)
    codes = np.empty((n, k), np.uint8)
    scale, zero = np.empty((2, n, k // grid.group), np.float32)
    offset = np.empty_like(scale) if grid.affine else None
    scales, offsets = (
        Products.empty(n, k // kind.block, k // grid.group) if there else None
        for there in (grid.products, grid.products and grid.affine)
    )

    def decode(rows: slice) -> None:
        found = grid.decode(blocks[rows])
        # MXFP4's scales reach beyond float32
        with np.errstate(over="ignore"):
            if not np.isfinite(found.scale * np.float32((1 << grid.bits) - 1)).all():
                raise _NotFiniteError
        codes[rows], scale[rows], zero[rows] = found.codes, found.scale, found.zero
        if offset is not None and found.offset is not None:
            offset[rows] = found.offset
        for kept, part in ((scales, found.scales), (offsets, found.offsets)):
            if kept is not None and part is not None:
                kept.put(rows, part)

    each_of(decode, _chunks(n, k))
    return Grouped(
        codes=codes,
        scale=scale,
        zero=zero,
        bits=grid.bits,
        group=grid.group,
        offset=offset,
        scales=scales,
        offsets=offsets,
    )


def _ternary_or_grouped(weight: Grouped) -> Ternary | Grouped:
    """Ternary, exactly, if codes mean -1, 0 and 1 and all groups have one scale; the scale of
    all-zero groups is ignored."""
    n = len(weight.codes)
    if weight.bits != _TRIT_BITS or weight.offset is not None or (weight.zero != 1).any():
        return weight
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
    def check(rows: slice) -> None:
        if not np.isfinite(values[rows].astype(np.float32)).all():
            raise _NotFiniteError

    each_of(check, _chunks(*values.shape))
    return Dense(values)


def _not_finite(where: str) -> LutraError:
    return LutraError(f"{where} holds infinities or NaNs: convert the model again")


def read_weight(kind: TensorType, raw: _Bytes, n: int, k: int, where: str) -> Weight:
    """A matrix ``[n, k]`` as the file holds it; LutraError begins with ``where``."""
    try:
        if kind.dtype is not None:
            return _finite(raw.view(kind.dtype).reshape(n, k))
        if kind.name == "I2_S":
            return _i2_s(raw, n, k)
        return _ternary_or_grouped(_grouped(kind, raw, n, k))
    except _NotFiniteError:
        raise _not_finite(where) from None
    except ValueError as error:
        raise LutraError(f"{where} holds {error}: copy or convert the model again") from None


def read_dense(kind: TensorType, raw: _Bytes, n: int, k: int, where: str) -> Dense:
    """A matrix ``[n, k]`` in floating point, exactly as the file's type defines it."""
    found = read_matrix(kind, raw, n, k, where)
    return Dense(found.values) if isinstance(found, Encoded) else found


def read_matrix(kind: TensorType, raw: _Bytes, n: int, k: int, where: str) -> Dense | Encoded:
    """A matrix ``[n, k]`` in floating point, exactly as the file's type defines it: in blocks on
    grids they are decoded, and checked, as rows are asked for."""
    if kind.name in GRIDS:
        blocks = raw.reshape(n, -1)

        def codes(rows: Rows) -> Grouped:
            some = blocks[rows]
            try:
                return _grouped(kind, some.reshape(-1), len(some), k)
            except _NotFiniteError:
                raise _not_finite(where) from None

        def decode(rows: Rows) -> Float32:
            some = blocks[rows]
            values = np.empty((len(some), k), np.float32)

            def one(at: slice) -> None:
                part = values[at]
                raw = some[at].reshape(-1)
                part[...] = read_weight(kind, raw, len(part), k, where).dequantized()

            each_of(one, _chunks(len(some), k))
            return values

        grid = GRIDS[kind.name]
        return Encoded((n, k), decode, codes, grid.bits, grid.affine)
    weight = read_weight(kind, raw, n, k, where)
    if isinstance(weight, Dense):
        return weight
    values = np.empty((n, k), np.float32)
    for rows in _chunks(n, k):
        values[rows] = weight.dequantized(rows)
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
