"""A packed model: layers, norms and tables in integers, which is what every device runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.quantize import ActivationGroups, q_max_of
from lutra_golden.arith.scale import Scale
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import TERNARY_NAME
from lutra_golden.model.cache import kv_name
from lutra_golden.model.shapes import Gate
from lutra_golden.model.stored import StoredWeights
from lutra_golden.model.two_levels import TwoLevels

__all__ = [
    "CodedVocabulary",
    "HeadNorms",
    "PackedBias",
    "PackedLayer",
    "PackedLinear",
    "PackedModel",
    "PackedNorm",
    "format_name",
]


@dataclass(frozen=True)
class PackedLinear:
    """A matrix: its product is ``round_shift(doubled @ a, shift)``, times ``scale``.

    ``doubled`` are twice the weights, integers, so that integer weights have a shift of 1. What it
    is made of, codes or stored codes, is turned into the other when that is asked for.
    """

    source: GroupedWeights | StoredWeights
    scale: Scale
    shift: int
    known_peak: int | None = None
    """The peak, computed beforehand by the caller."""
    levels: TwoLevels | None = None
    """The two levels that the scales and offsets of a source of codes are stored in."""

    @cached_property
    def weights(self) -> GroupedWeights:
        """The weights as codes; kept once they were asked for."""
        return self.unpacked()

    def unpacked(self) -> GroupedWeights:
        """The weights as codes; made anew where they are stored."""
        source = self.source
        return source.unpack() if isinstance(source, StoredWeights) else source

    @cached_property
    def stored(self) -> StoredWeights:
        """The weights as they are stored."""
        source = self.source
        if isinstance(source, StoredWeights):
            return source
        return StoredWeights.of(source, levels=self.levels)

    @cached_property
    def peak(self) -> int:
        """Largest sum of a row's doubled weights, all taken positive."""
        return self.weights.peak if self.known_peak is None else self.known_peak

    @property
    def peak_bound(self) -> int:
        """Upper bound on the peak that takes no look at stored codes."""
        stored = self.source if isinstance(self.source, StoredWeights) else None
        return self.peak if stored is None or self.known_peak is not None else stored.peak_bound

    @property
    def n_rows(self) -> int:
        """Rows of the matrix."""
        source = self.source
        return source.n_rows if isinstance(source, StoredWeights) else len(source.codes)

    @property
    def depth(self) -> int:
        """Depth of the matrix, the weights of a row."""
        source = self.source
        return source.depth if isinstance(source, StoredWeights) else source.codes.shape[1]


@dataclass(frozen=True)
class PackedNorm:
    """RMSNorm weights as int16 with ``frac`` fraction bits."""

    gamma: NDArray[np.int16]
    frac: int


@dataclass(frozen=True)
class PackedBias:
    """Biases of queries, keys and values, one after another, int16 with ``frac`` fraction bits.

    Those of queries contain log2(e) / sqrt(head_dim). ``centre``, as many as those of keys and with
    the same fraction bits, is taken from keys once they are rotated, which changes no softmax; a
    layer with norms of heads has none.
    """

    values: NDArray[np.int16]
    frac: int
    centre: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of each head of queries and keys: int16 weights with common fraction bits.

    ``query`` contains log2(e) / sqrt(head_dim).
    """

    query: NDArray[np.int16]
    key: NDArray[np.int16]
    frac: int


@dataclass(frozen=True)
class CodedVocabulary:
    """Embedding and head as matrices of codes like those of layers, ``[V, D]``; one if they are
    tied.

    A token's row of ``embedding``, times its scale, is what enters the residual stream; its shift
    is 0. Products with ``head``, after its shift, are logits, which are worth its scale.
    """

    embedding: PackedLinear
    head: PackedLinear

    @property
    def tied(self) -> bool:
        """True if both are the same codes."""
        return self.embedding.source is self.head.source

    def first(self, n: int) -> "CodedVocabulary":
        """Rows of the first ``n`` tokens."""
        rows = self.embedding.stored.rows(slice(n))
        embedding = PackedLinear(rows, self.embedding.scale, self.embedding.shift)
        if not self.tied:
            rows = self.head.stored.rows(slice(n))
        return CodedVocabulary(embedding, PackedLinear(rows, self.head.scale, self.head.shift))

    @property
    def n_bytes(self) -> int:
        """Bytes of both as they are stored."""
        kept = [self.embedding.stored] if self.tied else [self.embedding.stored, self.head.stored]
        return sum(each.n_bytes for each in kept)


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """One decoder layer; ``q_proj``'s scale contains log2(e) / sqrt(head_dim), without head norms.

    Queries, keys and values share a shift, as do gate and up. A norm of None is none: values are
    only quantised. ``window`` is how many latest positions are attended to, 0 for all.
    """

    input_norm: PackedNorm
    q_proj: PackedLinear
    k_proj: PackedLinear
    v_proj: PackedLinear
    bias: PackedBias | None
    head_norms: HeadNorms | None
    window: int
    attention_norm: PackedNorm | None
    o_proj: PackedLinear
    ffn_input_norm: PackedNorm
    gate_proj: PackedLinear
    up_proj: PackedLinear
    ffn_norm: PackedNorm | None
    down_proj: PackedLinear

    def linear(self, name: str) -> PackedLinear:
        """A matrix by its name in :data:`~lutra_golden.model.shapes.LINEARS`."""
        found: PackedLinear = getattr(self, name)
        return found


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model in integers. A logit is worth ``head_scale`` times its token's activation scale.

    ``format`` names the bits of weights and activations; ``ternary`` says that all weights of
    the layers are -1, 0 and 1, without groups. What an accelerator needs for the layers: ``w_bits``
    and ``scale_bits``, the widest codes and group scales, and ``group``, which divides all groups
    (None if there are none), ``biased``, ``head_normed``, and ``key_bits`` and ``value_bits``, the
    bits that keys and values are cached in (8/8, 8/4 or 4/4). ``head_eps`` is the epsilon of head
    norms in units of 2**-32. Activations have one scale per token, and under it ``a_groups`` an
    exponent per group if there are any. ``offsets`` says that groups of weights have offsets.
    Embedding and head are int16 and five trits, or ``vocabulary``: the arrays of the former then
    have no rows.
    """

    name: str
    architecture: str
    format: str
    a_bits: int
    ternary: bool
    w_bits: int
    scale_bits: int
    group: int | None
    biased: bool
    head_normed: bool
    key_bits: int
    value_bits: int
    gate: Gate
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    bos: int | None
    eos: tuple[int, ...]
    eps: Scale
    head_eps: int
    residual_frac: int
    embedding: NDArray[np.int16]  # [V, D]
    embedding_frac: int
    rope: NDArray[np.int16]  # [context, head_dim]
    layers: Sequence[PackedLayer]
    norm: PackedNorm
    head: NDArray[np.int8]  # [V, D]
    head_rows: NDArray[np.int16]  # [V]
    head_shift: int
    head_scale: float
    a_groups: ActivationGroups | None = None
    offsets: bool = False
    vocabulary: CodedVocabulary | None = None

    @property
    def a_peak(self) -> int:
        """Largest magnitude of the integers that matrices are multiplied by."""
        return q_max_of(self.a_bits) if self.a_groups is None else self.a_groups.peak

    @property
    def kv(self) -> str:
        """Bits that keys and values are cached in: ``8``, ``8/4`` or ``4``."""
        return kv_name((self.key_bits, self.value_bits))


def format_name(
    bits: float,
    a_bits: int,
    *,
    ternary: bool = False,
    group: int | None = None,
    a_groups: ActivationGroups | None = None,
) -> str:
    """``W4A8``, ``W1.58A8`` for ternary weights, ``W1.58g128A8`` for ternary ones in groups of 128,
    ``W3.52A8`` for a mean over layers, ``W8A8g32`` for activations in groups of 32."""
    text = TERNARY_NAME if ternary else f"{bits:.2f}".rstrip("0").rstrip(".")
    text += "" if group is None else f"g{group}"
    return f"W{text}A{a_bits}" + ("" if a_groups is None else f"g{a_groups.size}")
