"""Integer attention over an int8 or int4 KV cache: two-pass softmax, no rescaling, one division."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.exp2 import EXP2, exp2_neg
from lutra_golden.arith.fixed import Int, Saturation, exact_matmul, round_shift, saturate
from lutra_golden.arith.scale import SCALE, Scale, scale_from_int, scale_mul, scale_recip
from lutra_golden.attention.cache import KV_WIDTHS
from lutra_golden.matmul.engine import LANES
from lutra_golden.params import check_positive, check_power_of_two

__all__ = ["AttentionParams", "attend", "attention_weights", "first_seen", "scores"]


@dataclass(frozen=True, kw_only=True)
class AttentionParams:
    """Shape and widths of the attention unit.

    A key has ``head_dim`` elements of ``key_width`` bits, a value as many of ``value_width``;
    ``q_per_kv`` query heads that share them are computed at once, the tokens of the tile one after
    another. A pair of a position and a token takes ``pair_cycles`` cycles, in each of which
    :attr:`part_dims` consecutive elements of those heads are multiplied.
    """

    head_dim: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    pass_tokens: int = 8
    max_context: int = 256
    score_width: int = EXP2.d_width - 1
    score_frac: int = EXP2.d_frac
    key_width: int = 8
    value_width: int = 8
    pair_cycles: int = 1

    def __post_init__(self) -> None:
        check_positive(self)
        for name, width in (("key_width", self.key_width), ("value_width", self.value_width)):
            if width not in KV_WIDTHS:
                raise ValueError(f"{name} must be {' or '.join(map(str, KV_WIDTHS))}, not {width}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads, not {self.n_heads} of {self.n_kv_heads}"
            )
        check_power_of_two(self, "pair_cycles")
        if self.pair_cycles > 1 and self.head_dim % (LANES * self.pair_cycles):
            raise ValueError(
                f"pair_cycles must cut a head of {self.head_dim} elements into whole words of "
                f"{LANES}, not into {self.pair_cycles} parts"
            )

    @property
    def q_per_kv(self) -> int:
        """Query heads that share one key and value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def part_dims(self) -> int:
        """Elements of a head that are multiplied in a cycle."""
        return self.head_dim // self.pair_cycles

    @property
    def dot_width(self) -> int:
        """Width of an exact dot product of an int8 vector and a key."""
        return 8 + self.key_width + (self.head_dim - 1).bit_length()

    @property
    def den_width(self) -> int:
        """Width of an exact sum of weights over the whole context."""
        return EXP2.y_width + (self.max_context - 1).bit_length()

    @property
    def acc_width(self) -> int:
        """Width of an exact weighted sum of values over the whole context."""
        return 16 + self.value_width + (self.max_context - 1).bit_length()


def first_seen(position: int, window: int) -> int:
    """First position that the query at ``position`` sees, of the ``window`` latest; 0 means all."""
    return max(position - window + 1, 0) if window else 0


def scores(
    q: Int,
    q_scale: Scale,
    k: Int,
    k_scale: Scale,
    frac: int,
    width: int,
    saturation: Saturation | None = None,
    hidden: NDArray[np.bool_] | None = None,
) -> Int:
    """Scores ``[M, P]`` of queries ``[M, D]`` against keys ``[P, D]``, in log2 units.

    ``saturate(round(dot * (q_scale * k_scale) * 2**frac))`` with ``q_scale`` ``[M, 1]`` and
    ``k_scale`` ``[P]``; the product of the scales is rounded once and the shift ``-(e + frac)``
    limited to 0..63. ``q_scale`` contains log2(e) / sqrt(D). ``saturation`` is set by a score that
    is not ``hidden`` ``[M, P]`` and leaves the width, or would have to be shifted to the left.
    """
    c = scale_mul(q_scale, k_scale)
    dot = exact_matmul(q, k.T)
    shift = -(c.e + frac)
    exact = round_shift(dot * c.m, np.clip(shift, 0, 63))
    score = saturate(exact, width)
    if saturation is not None:
        left = (score != exact) | ((shift < 0) & (exact != 0))
        saturation.note(left if hidden is None else left & ~hidden)
    return score


def attention_weights(
    score: Int, v_scale: Scale, hidden: NDArray[np.bool_]
) -> tuple[Int, Int, Int]:
    """Weights ``[M, P]`` u16 with the value scale folded in, denominators and exponents ``[M]``.

    Over the positions that ``hidden`` ``[M, P]`` does not exclude: ``p = 2**-(max(score) - score)``
    in Q15, ``den = sum(p)``, ``e`` the largest exponent among ``v_scale`` ``[P]`` (zero scales do
    not count; ``e_min`` if all are zero), ``w = round(p * v.m >> (15 + e - v.e))``, the difference
    of exponents limited to 31; ``w`` is zero where the scale is.
    """
    score_max = np.where(hidden, score.min(), score).max(axis=-1, keepdims=True)
    p = np.where(hidden, 0, exp2_neg(np.maximum(score_max - score, 0)))
    live = ~hidden & (v_scale.m != 0)
    e = np.where(live, v_scale.e, SCALE.e_min).max(axis=-1)
    shift = 15 + np.clip(e[:, None] - v_scale.e, 0, 31)
    w = np.where(live, round_shift(p * v_scale.m, shift), 0)
    return w, p.sum(axis=-1), e


def attend(
    params: AttentionParams,
    q: Int,
    q_scale: Scale,
    k: Int,
    k_scale: Scale,
    v: Int,
    v_scale: Scale,
    position: int,
    frac: int,
    window: int = 0,
    saturation: Saturation | None = None,
) -> Int:
    """Causal attention of a tile of queries, ``[M, n_heads, D]`` int32 in ``frac`` fraction bits.

    ``q`` ``[M, n_heads, D]``, ``q_scale`` ``[M, n_heads]``; ``k``, ``v`` ``[n_kv_heads, P, D]``,
    ``k_scale``, ``v_scale`` ``[P, n_kv_heads]``; query ``m`` sees the ``window`` latest of
    positions ``0..position + m``, its own included, or all of them if ``window`` is 0. The output
    is ``saturate32(round(sum(w * v) * (1 / den) * 2**(e + 15 + frac)))``, shift limited to 0..63.
    It depends on nothing but what the query sees, so tiles of any size agree. ``saturation`` is set
    by scores and outputs that leave their range, or would have to be shifted to the left.
    """
    n = position + len(q)
    keys, queries = np.arange(n), np.arange(position, n)[:, None]
    hidden = np.greater(keys, queries)  # [M, P]: causal mask
    if window:
        hidden |= keys <= queries - window
    out = np.zeros(q.shape, np.int64)
    for h in range(params.n_heads):
        g = h // params.q_per_kv
        head_scale = Scale(q_scale.m[:, h, None], q_scale.e[:, h, None])
        key_scale = Scale(k_scale.m[:n, g], k_scale.e[:n, g])
        value_scale = Scale(v_scale.m[:n, g], v_scale.e[:n, g])
        score = scores(
            q[:, h],
            head_scale,
            k[g, :n],
            key_scale,
            params.score_frac,
            params.score_width,
            saturation,
            hidden,
        )
        w, den, e = attention_weights(score, value_scale, hidden)
        r = scale_recip(scale_from_int(den))
        shift = -(r.e + e + 15 + frac)[:, None]
        acc = exact_matmul(w, v[g, :n])  # [M, D]
        exact = round_shift(acc * r.m[:, None], np.clip(shift, 0, 63))
        out[:, h] = saturate(exact, 32)
        if saturation is not None:
            saturation.note((out[:, h] != exact) | ((shift < 0) & (exact != 0)))
    return out
