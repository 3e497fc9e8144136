"""Parts common to all matmul engines: parameters, weights, the order of weight words.

An engine computes ``acc[token, row] = sum_k a[token, k] * w[row, k]`` exactly. A step takes
``step_depth`` activations of each of ``step_tokens`` tokens and one weight word, the digits of
``step_rows`` rows; ``depth_tile`` activations make a depth tile, which is also a group of the
weights' scales."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.params import check_positive

__all__ = [
    "LANES",
    "OFFSET_MAX",
    "OFFSET_WIDTHS",
    "SCALE_WIDTH",
    "SCALE_WIDTH_MAX",
    "ZERO_WIDTH",
    "EngineParams",
    "GroupedWeights",
    "adder_tree_latency",
]

LANES = 8
"""Elements of a word of the on-chip buffers: rows of a block of the accumulator buffer, which is
read by pairs of blocks."""
SCALE_WIDTH = 8
"""Bits of a group's scale, unsigned, unless an engine is built for wider ones."""
SCALE_WIDTH_MAX = 16
"""Bits of a group's scale at most."""
ZERO_WIDTH = 10
"""Bits of a group's zero point in half steps, signed."""
OFFSET_MAX = (1 << 31) - 1
"""Largest magnitude of a group's offset."""
OFFSET_WIDTHS = range(16, 34)
"""Bits that an engine can be built for of a group's offset less scale times zero point, signed."""
_WEIGHTS = 1 << 20  # that are looked at at a time: with fewer, threads wait for each other


def adder_tree_latency(n: int) -> int:
    """Cycles of a tree that adds ``n`` values, with registers after every second level."""
    return max(1, -(-(n - 1).bit_length() // 2))


@dataclass(frozen=True, kw_only=True)
class GroupedWeights:
    """Weights of a matrix as codes, with an integer scale and a zero point per row and group, and
    an integer offset where they have one.

    ``codes`` ``[N, K]`` are unsigned, of ``bits`` bits; ``scale`` and ``zero``, ``[N, K / group]``,
    have ``0 <= scale < 2**16`` and ``0 <= zero <= 2 * (2**bits - 1)``, half steps. Twice a weight
    is the integer ``scale * (2 * code - zero) + offset``: half steps admit the symmetric binary
    weights, and a group of scale 0 without an offset weighs nothing. ``offset``, of the same shape,
    is for groups whose minimum is no multiple of half a step (K-quants); None is 0.
    """

    codes: NDArray[np.integer]
    scale: Int
    zero: Int
    bits: int
    group: int
    offset: Int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be in 1..8, not {self.bits}")
        n, k = self.codes.shape
        if self.group < 1 or k % self.group:
            raise ValueError(f"depth must be a multiple of group ({self.group}), not {k}")
        for name, low, high, shape in (
            ("codes", 0, (1 << self.bits) - 1, (n, k)),
            ("scale", 0, (1 << SCALE_WIDTH_MAX) - 1, (n, k // self.group)),
            ("zero", 0, 2 * ((1 << self.bits) - 1), (n, k // self.group)),
            ("offset", -OFFSET_MAX, OFFSET_MAX, (n, k // self.group)),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, not {list(value.shape)}")
            if value.size and not (low <= value.min() and value.max() <= high):
                raise ValueError(
                    f"{name} must be in {low}..{high}, not {value.min()}..{value.max()}"
                )

    @property
    def scale_bits(self) -> int:
        """Bits of the largest scale."""
        return int(self.scale.max(initial=0)).bit_length()

    @classmethod
    def from_integers(cls, w: NDArray[np.integer]) -> "GroupedWeights":
        """Weights that are integers in -127..127 already: one group, scale 1."""
        peak = max(int(w.max(initial=1)), -int(w.min(initial=0)))
        bits = peak.bit_length() + 1
        n, k = w.shape
        return cls(
            codes=(w.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8),
            scale=np.ones((n, 1), np.int64),
            zero=np.full((n, 1), 1 << bits, np.int64),
            bits=bits,
            group=k,
        )

    def doubled(self) -> Int:
        """Twice the weights, ``[N, K]`` integers."""
        scale, zero = (x.repeat(self.group, axis=1) for x in (self.scale, self.zero))
        doubled = scale * (2 * self.codes.astype(np.int64) - zero)
        return doubled if self.offset is None else doubled + self.offset.repeat(self.group, axis=1)

    @property
    def peak(self) -> int:
        """Largest sum of a row's doubled weights, all taken positive."""
        (n, k), n_groups = self.codes.shape, self.scale.shape[1]
        top, n_rows = 0, max(_WEIGHTS // max(k, 1), 1)
        for first in range(0, n, n_rows):
            rows = slice(first, first + n_rows)
            away = self.codes[rows].astype(np.int16).reshape(-1, n_groups, self.group)
            away *= np.int16(2)
            away -= self.zero[rows, :, None].astype(np.int16)  # 510 at most
            if self.offset is None:
                size = np.abs(away, out=away)
                sums = np.einsum("ngk->ng", size, dtype=np.int32, casting="safe")
                sums = sums * self.scale[rows]
            else:
                # exact: a group's sum is below 2**53
                weights = away * self.scale[rows, :, None].astype(np.float64)
                weights += self.offset[rows, :, None]
                sums = np.einsum("ngk->ng", np.abs(weights, out=weights)).astype(np.int64)
            top = max(top, int(sums.sum(axis=1).max(initial=0)))
        return top

    @property
    def ternary(self) -> bool:
        """True if all weights are -1, 0 or 1: one group, of scale 1."""
        if self.offset is not None:
            return False
        one = bool(self.scale.size and (self.scale == 1).all() and (self.zero % 2 == 0).all())
        if not one or self.group != self.codes.shape[1]:
            return False
        away = np.abs(self.codes.astype(np.int16) - (self.zero // 2).astype(np.int16))
        return bool(away.max(initial=0) <= 1)

    @property
    def trits(self) -> bool:
        """True if all weights are -1, 0 or 1 times the scale of their group."""
        if self.ternary:
            return True
        if self.bits != 2 or self.offset is not None or not (self.zero == 2).all():
            return False
        return bool(self.codes.max(initial=0) <= 2)

    def scaled(self, bits: int) -> "GroupedWeights":
        """The weights times ``2**bits``."""
        offset = None if self.offset is None else self.offset << bits
        return replace(self, scale=self.scale << bits, offset=offset)

    def rows(self, select: slice | NDArray[np.int64]) -> "GroupedWeights":
        """Some of the rows."""
        return GroupedWeights(
            codes=self.codes[select],
            scale=self.scale[select],
            zero=self.zero[select],
            bits=self.bits,
            group=self.group,
            offset=None if self.offset is None else self.offset[select],
        )


@dataclass(frozen=True, kw_only=True)
class EngineParams(ABC):
    """Shape of an engine.

    Parameters
    ----------
    step_tokens, step_rows, step_depth : tokens, output rows and depth of one step; ``step_rows`` is
    8 or more, a
        power of two.
    depth_tile : depth of a depth tile, whose activations are prepared at once; a multiple of
        ``step_depth``.
    a_width : bits of an activation, signed: 8 or 16.
    a_groups : groups of activations that a token has an exponent for, each of whole depth tiles;
        None if it has one scale alone.
    w_width : bits of a weight's digit: what one step multiplies by.
    scale_width : bits of a group's scale, unsigned: 8 to 16.
    offset_width : bits of a group's offset, signed, which stands in the place of a zero point; 0
        for zero points.
    acc_width : bits of a result, signed.
    sum_width : bits of a sum before its final shift, signed.
    pass_tokens : tokens of the activation and accumulator buffers.
    acc_blocks : blocks of eight rows of the accumulator buffer.
    weight_buffer_words : words of the ring that replays weights for several tokens.
    act_tiles : depth tiles of the activation buffer.
    max_planes : digits of a weight.
    """

    kind: ClassVar[str]
    grouped: ClassVar[bool] = True
    """Takes a scale and a zero point per group, and gives twice the product."""
    symmetric: ClassVar[bool] = False
    """Looks up bits that mean -1 and +1, so that its row sums are twice the sums of the codes."""

    not_sizes: ClassVar[tuple[str, ...]] = ("a_groups", "offset_width")
    """Fields that are no sizes, which are positive."""

    step_tokens: int = 1
    step_rows: int = 8
    step_depth: int = 64
    depth_tile: int = 64
    a_width: int = 8
    w_width: int = 1
    scale_width: int = SCALE_WIDTH
    acc_width: int = 28
    sum_width: int = 36
    pass_tokens: int = 8
    acc_blocks: int = 192
    weight_buffer_words: int = 512
    act_tiles: int = 12
    max_planes: int = 8
    a_groups: ActivationGroups | None = None
    offset_width: int = 0

    def __post_init__(self) -> None:
        check_positive(self, *(f.name for f in fields(self) if f.name not in self.not_sizes))
        self._check_groups()
        if self.depth_tile % self.step_depth:
            raise ValueError(
                f"depth_tile (the group) must be a multiple of step_depth, "
                f"not {self.depth_tile} of {self.step_depth}"
            )
        if self.step_rows < LANES or self.step_rows & (self.step_rows - 1):
            raise ValueError(
                f"step_rows must be a power of two from {LANES} on, not {self.step_rows}"
            )
        if self.step_tokens & (self.step_tokens - 1):
            raise ValueError(f"step_tokens must be a power of two, not {self.step_tokens}")
        if self.step_tokens > self.pass_tokens or self.pass_tokens % self.step_tokens:
            raise ValueError(
                f"pass_tokens must be a multiple of step_tokens, not {self.pass_tokens} of "
                f"{self.step_tokens}"
            )
        if self.a_width not in (8, 16):
            raise ValueError(f"a_width must be 8 or 16, not {self.a_width}")
        if not SCALE_WIDTH <= self.scale_width <= SCALE_WIDTH_MAX:
            raise ValueError(
                f"scale_width must be in {SCALE_WIDTH}..{SCALE_WIDTH_MAX}, not {self.scale_width}"
            )
        if self.acc_width > self.sum_width:
            raise ValueError(
                f"acc_width must be at most sum_width ({self.sum_width}), not {self.acc_width}"
            )
        blocks = max(2, self.step_rows // LANES)
        if self.acc_blocks % blocks:
            raise ValueError(
                f"acc_blocks must be a multiple of {blocks} (pairs of blocks, step_rows / "
                f"{LANES}), "
                f"not {self.acc_blocks}"
            )
        if self.weight_buffer_words < 2 or self.weight_buffer_words & (
            self.weight_buffer_words - 1
        ):
            raise ValueError(
                f"weight_buffer_words must be a power of two from 2 on, "
                f"not {self.weight_buffer_words}"
            )

    def _check_groups(self) -> None:
        for name, kinds, what in (
            ("a_groups", (ActivationGroups, type(None)), "ActivationGroups or None"),
            ("offset_width", (int,), "an integer"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"{name} must be {what}, not {value!r}")
        groups, width = self.a_groups, self.offset_width
        if width and width not in OFFSET_WIDTHS:
            raise ValueError(
                f"offset_width must be 0 or in {OFFSET_WIDTHS[0]}..{OFFSET_WIDTHS[-1]}, not {width}"
            )
        if (groups or width) and not self.grouped:
            raise ValueError(
                f"a_groups and offset_width of the {self.kind} engine, which has no groups, must "
                "be None and 0"
            )
        if groups is None:
            return
        if self.a_width != 8:
            raise ValueError(f"a_width must be 8 with a_groups, not {self.a_width}")
        if groups.size % self.depth_tile:
            raise ValueError(
                f"size of a_groups must be a multiple of depth_tile ({self.depth_tile}), not "
                f"{groups.size}"
            )
        if self.acc_width + groups.shift_max > self.sum_width:
            raise ValueError(
                f"sum_width must be at least acc_width and {groups.shift_max} bits of a_groups, "
                f"not {self.sum_width}"
            )

    @property
    def steps(self) -> int:
        """Steps of a depth tile, for each digit."""
        return self.depth_tile // self.step_depth

    @property
    @abstractmethod
    def radix(self) -> int:
        """Weight of a digit relative to the next less significant one."""

    @property
    @abstractmethod
    def digit_bits(self) -> int:
        """Bits of a weight word's digits."""

    @property
    @abstractmethod
    def prepare_cycles(self) -> int:
        """Cycles in which the datapath prepares the activations of a depth tile."""

    @property
    @abstractmethod
    def datapath_latency(self) -> int:
        """Cycles from a word's digits to the sums of its rows."""

    @property
    def side_width(self) -> int:
        """Bits of a row's scale and of its zero point or offset."""
        return self.scale_width + (self.offset_width or ZERO_WIDTH)

    @property
    def side_bits(self) -> int:
        """Bits of a weight word after its digits: scale and zero point or offset of each row."""
        return self.step_rows * self.side_width if self.grouped else 0

    @property
    def shift_width(self) -> int:
        """Bits of the final shift: what eight bits of scale need, and what more of them do."""
        return 4 if self.scale_width == SCALE_WIDTH else 5

    @property
    def a_shift_max(self) -> int:
        """Bits that the activations of a group are shifted by at most."""
        return 0 if self.a_groups is None else self.a_groups.shift_max

    @property
    def integer_width(self) -> int:
        """Bits of an activation as an integer, shifted as its group is."""
        return self.a_width + self.a_shift_max

    @property
    def shift_min(self) -> int:
        """Least final shift: as many bits as groups of activations add to the sums."""
        return self.a_shift_max

    @property
    def shift_max(self) -> int:
        """Largest final shift; 0 for an engine that does not shift."""
        return self.shift_min + (1 << self.shift_width) - 1 if self.grouped else 0

    @property
    def word_bits(self) -> int:
        """Bits of a weight word, one of which is taken per step."""
        return self.digit_bits + self.side_bits

    @property
    def replays(self) -> bool:
        """True if weight words are kept for more than one group of tokens."""
        return self.pass_tokens > self.step_tokens

    @property
    def most_planes(self) -> int:
        """Planes of a command whose weights have as many digits as there can be."""
        return self.max_planes

    @property
    def depth_max(self) -> int:
        """Activations of a token that the buffer holds, those that fill up a depth tile too."""
        return self.act_tiles * self.depth_tile

    @property
    def macs_per_step(self) -> int:
        """Multiply-accumulates of one digit in a step."""
        return self.step_tokens * self.step_rows * self.step_depth

    @property
    def block_rows(self) -> int:
        """Blocks of eight rows that a step covers."""
        return self.step_rows // LANES

    def tile_depth(self, planes: int) -> int:
        """Depth of a depth tile of a command with these planes: ``depth_tile``, unless the engine
        takes more of some digits at once."""
        return self.depth_tile

    def n_words(self, depth_tiles: int, row_blocks: int, planes: int) -> int:
        """Weight words of a command; ``row_blocks`` counts blocks of eight rows."""
        if row_blocks % self.block_rows:
            raise ValueError(
                f"row_blocks must be a multiple of {self.block_rows}, not {row_blocks}"
            )
        return depth_tiles * (row_blocks // self.block_rows) * planes * self.steps

    def pass_words(self, row_blocks: int, planes: int) -> int:
        """Weight words of a pass: those that follow each other with the same activations."""
        return self.n_words(1, row_blocks, planes)

    @abstractmethod
    def planes(self, weights: GroupedWeights) -> int:
        """Digits that these weights take; ValueError says why an engine does not take them."""

    @abstractmethod
    def pack(self, weights: GroupedWeights, planes: int) -> NDArray[np.uint8]:
        """The weight stream, ``[n_words, ceil(word_bits / 8)]`` bytes.

        Order: depth tile, block of ``step_rows`` rows, digit from the most significant down, step.
        """

    @abstractmethod
    def decode(
        self, words: NDArray[np.uint8], depth_tiles: int, row_blocks: int, planes: int
    ) -> Int:
        """Inverse of :meth:`pack`: ``[8 * row_blocks, depth_tiles * depth_tile]`` integers that the
        engine multiplies by: the weights, or twice them if ``grouped``."""

    @abstractmethod
    def matmul(
        self,
        a: Int,
        words: NDArray[np.uint8],
        row_blocks: int,
        planes: int,
        shifts: Int | None = None,
    ) -> Int:
        """``a @ decode(...).T`` the way the engine does it, step by step; slow and literal.

        ``a`` is ``[M, K]`` of ``signed(a_width)``; the result is ``[M, 8 * row_blocks]``, before
        the final shift. With groups of activations ``a`` is shifted left by ``shifts``, ``[M, K /
        depth_tile]`` in ``0..a_shift_max``; None is 0.
        """
