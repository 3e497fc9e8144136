"""A compiled program: instructions and memory segments of a model, for one configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from lutra.compile.assembler import Operation
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["Parts", "Program", "Segment", "SegmentKind"]


class SegmentKind(Enum):
    """Purpose of a segment; the driver gives each kind its own address."""

    CODE = "code"
    WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Bytes that are placed ``offset`` bytes behind the base of their kind, in memory ``bank``."""

    kind: SegmentKind
    offset: int
    data: bytes = field(repr=False)
    bank: int = 0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Operations of a model: one after the other they are its program."""

    embed: Sequence[Operation]
    rope: Sequence[Operation]
    layers: Sequence[Sequence[Operation]]
    head: Sequence[Operation]


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program serves every token and every chunk of a model.

    Of the memory of a session, ``kv_bytes`` long, the ranges ``zeros`` ``(offset, n_bytes)`` must
    read as zero before its first run: the scale records of the KV cache, of which a read may touch
    some that no token has written yet. Logits take ``logits_bytes``, ``logits_stride`` a token; the
    residual stream that a range of layers stores lies there, too. The one that it takes comes from
    ``halves``, offsets from WEIGHT_BASE of its high and its low halves, which no segment fills.
    """

    model: str
    format: str
    config: AcceleratorConfig
    segments: Sequence[Segment] = field(repr=False)
    kv_bytes: int
    zeros: Sequence[tuple[int, int]]
    halves: tuple[int, int]
    parts: Parts = field(repr=False)
    logits_stride: int
    vocab_size: int
    hidden_size: int
    context: int
    head_scale: float
    n_layers: int
    fingerprint: str

    @property
    def code(self) -> bytes:
        """The instructions."""
        return b"".join(segment.data for segment in self.of(SegmentKind.CODE))

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits of a pass."""
        return self.config.pass_tokens * self.logits_stride

    @property
    def weight_bytes(self) -> int:
        """Bytes from WEIGHT_BASE on, the weights and both halves of a residual stream."""
        high, low = self.halves
        return low + (low - high)

    def of(self, kind: SegmentKind) -> Iterator[Segment]:
        """The segments of a kind, in the order of their offsets."""
        return (segment for segment in self.segments if segment.kind is kind)

    def n_bytes(self, kind: SegmentKind) -> int:
        """Bytes from the base of a kind to the end of its last segment."""
        return max((each.offset + len(each.data) for each in self.of(kind)), default=0)
