"""Embedding and head as codes in groups, like the matrices of layers: ``--head 4`` or ``8``.

Rows that a file has in codes of so few bits keep them, as do rows that lie on a grid of so few
levels, those of models of one bit and of ternary ones; others are rounded to nearest,
symmetrically about zero. Their matrices are the largest of a model, so they are only ever in
floating point a few rows at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.exact_grids import on_grid
from lutra.checkpoints.weights import Dense, Encoded, Grouped, Ternary
from lutra.parallel import each_of
from lutra.quantize.imported import from_encoded, from_grouped, from_ternary, kept_bits
from lutra_golden.arith.scale import Scale, scale_from_float, scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.model.b128 import row_bytes, to_b128
from lutra_golden.model.limits import ACC_MAX, SCALE_EXPONENT_MAX, least_shift
from lutra_golden.model.packed import CodedVocabulary, PackedLinear
from lutra_golden.model.stored import StoredWeights

__all__ = ["HEAD_BITS", "PLAIN_HEAD", "code_rows", "default_head", "pack_vocabulary"]

PLAIN_HEAD = 0
"""In the place of bits: int16 and five trits, which every device runs."""
HEAD_BITS = (4, 8)
"""Bits of the codes that are offered, at most."""
_LEAST_GROUP = 16
_ROWS = 2048  # at a time
_CLIPS = (1.0, 0.93, 0.86, 0.8, 0.74)  # of a group's largest magnitude, tried with few levels
_FEW_BITS = 4
_SPREAD = 32  # of the median step, up to which scales of eight bits resolve all others
_Single = NDArray[np.float32]


@dataclass(frozen=True)
class _Rows:
    """A matrix of codes, and what one of its weights is worth."""

    stored: StoredWeights
    unit: float


def default_head(
    embedding: Dense | Encoded,
    head: Dense | Encoded | None,
    chosen: int | None,
    *,
    runs: bool,
    offsets: bool,
) -> int | None:
    """Bits of the codes of embedding and head, None for int16 and five trits: the ``chosen`` ones,
    or, where a device ``runs`` codes, eight if a file has both in codes that are kept exactly."""
    if chosen is not None:
        return chosen or None
    kept = [
        isinstance(each, Encoded) and (offsets or not each.affine)
        for each in (embedding, embedding if head is None else head)
    ]
    return max(HEAD_BITS) if runs and all(kept) else None


def pack_vocabulary(
    embedding: Dense | Encoded,
    head: Dense | Encoded | None,
    bits: int,
    group: int,
    a_peak: int,
    *,
    offsets: bool = False,
) -> tuple[CodedVocabulary, float]:
    """Both matrices in up to ``bits``, and what a logit is worth; a head of None is the embedding.

    ``a_peak`` is the largest magnitude of the activations that the head is multiplied by.
    ``offsets`` of a file's groups stay what they are.
    """
    rows = _coded(embedding, bits, group, offsets, "the embedding")
    first = PackedLinear(rows.stored, _scale(rows.unit / 2, "the embedding"), 0)
    if head is not None:
        rows = _coded(head, bits, group, offsets, "the head")
    # of a bound, so that nobody has to look at all codes again
    shift = least_shift(rows.stored.peak_bound, a_peak, ACC_MAX, least=1)
    scale = _scale(rows.unit * 2.0 ** (shift - 1), "the head")
    last = PackedLinear(rows.stored, scale, shift)
    return CodedVocabulary(first, last), float(scale_to_float(scale))


def _scale(value: float, what: str) -> Scale:
    scale = scale_from_float(value)
    if abs(int(scale.e)) > SCALE_EXPONENT_MAX:
        raise LutraError(
            f"the scale of {what} is {value:.3g}, out of range: rescale the checkpoint"
        )
    return scale


def _coded(matrix: Dense | Encoded, bits: int, group: int, offsets: bool, what: str) -> _Rows:
    if isinstance(matrix, Encoded) and kept_bits(matrix, offsets=offsets) <= bits:
        rows = _Rows(*from_encoded(matrix, offsets=offsets))
        if rows.stored.weight_bound == 0:
            raise _all_zeros(what)
        return rows
    found = matrix if isinstance(matrix, Encoded) else on_grid(matrix)
    if isinstance(found, Ternary):
        kept = from_ternary(found)
        return _Rows(StoredWeights.of(kept.weights), kept.scale)
    if isinstance(found, Grouped) and found.group % _LEAST_GROUP == 0:
        kept = from_grouped(found)
        return _Rows(StoredWeights.of(kept.weights), kept.scale)
    depth = matrix.shape[1]
    while depth % group:
        group //= 2
        if group < _LEAST_GROUP:
            raise LutraError(
                f"groups of {_LEAST_GROUP} do not divide rows of {depth} of {what}: leave "
                "--head out"
            )
    return code_rows(matrix, bits, group, what)


def _all_zeros(what: str) -> LutraError:
    return LutraError(f"{what} is all zeros: the checkpoint is empty, copy it again")


def code_rows(matrix: Dense | Encoded, bits: int, group: int, what: str) -> _Rows:
    """Rows ``[N, K]`` rounded to nearest in groups, about a zero between the two middle codes.

    Scales have eight bits, or sixteen where the largest is far above the median.
    """
    n, k = matrix.shape
    levels, blocks = (1 << bits) - 1, [slice(i, i + _ROWS) for i in range(0, n, _ROWS)]

    def groups_of(rows: slice) -> _Single:
        return matrix.dequantized(rows).reshape(-1, k // group, group)

    step = np.concatenate(each_of(lambda rows: _steps(groups_of(rows), bits), blocks))
    if not np.isfinite(step).all():
        raise LutraError(f"{what} holds infinities or NaNs: copy the checkpoint again")
    top = float(step.max())
    if top == 0:
        raise _all_zeros(what)
    width = 8 if top <= _SPREAD * float(np.median(step[step > 0])) else 16
    unit = top / ((1 << width) - 1)
    scale = np.rint(step / unit)
    scale[step > 0] = np.maximum(scale[step > 0], 1)
    codes = np.empty((n, row_bytes(k, bits)), np.uint8)

    def code(rows: slice) -> None:
        used = np.maximum(scale[rows], 1) * unit
        nearest = groups_of(rows) / used[..., None].astype(np.float32)
        nearest += np.float32(levels / 2)
        np.clip(np.rint(nearest, out=nearest), 0, levels, out=nearest)
        codes[rows] = to_b128(nearest.astype(np.uint8).reshape(-1, k), bits)

    each_of(code, blocks)
    stored = StoredWeights(
        codes=codes,
        depth=k,
        bits=bits,
        group=group,
        scale=scale.astype(np.uint8 if width == 8 else np.uint16),
        zero=np.broadcast_to(np.uint16(levels), scale.shape),
    )
    return _Rows(stored, unit)


def _steps(w: _Single, bits: int) -> _Single:
    """The step ``[n, groups]`` of each group ``[n, groups, g]`` that leaves the smallest error."""
    levels = (1 << bits) - 1
    whole = np.abs(w).max(axis=2) * np.float32(2 / levels)
    if bits > _FEW_BITS:
        return whole
    best = whole.copy()
    least = np.full_like(whole, np.inf)
    for clip in _CLIPS:
        step = np.maximum(whole * np.float32(clip), np.float32(np.finfo(np.float32).tiny))
        rest = w / step[..., None]
        rest += np.float32(levels / 2)
        np.clip(np.rint(rest, out=rest), 0, levels, out=rest)
        rest -= np.float32(levels / 2)
        rest *= step[..., None]
        rest -= w
        error = np.einsum("ngk,ngk->ng", rest, rest)
        np.copyto(best, step, where=error < least)
        np.minimum(error, least, out=least)
    best[whole == 0] = 0
    return best
