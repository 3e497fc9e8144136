"""A compiled program: instructions and memory segments of a model, for one configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from lutra_golden.core.config import AcceleratorConfig

__all__ = ["Program", "Segment", "SegmentKind"]


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
class Program:
    """One program serves every token and every chunk of a model.

    Of the memory of a session, ``kv_bytes`` long, the ranges ``zeros`` ``(offset, n_bytes)`` must
    read as zero before its first run: the scale records of the KV cache, of which a read may touch
    some that no token has written yet. Logits take ``logits_bytes``, ``logits_stride`` a token.
    """

    model: str
    format: str
    config: AcceleratorConfig
    segments: Sequence[Segment] = field(repr=False)
    kv_bytes: int
    zeros: Sequence[tuple[int, int]]
    logits_stride: int
    vocab_size: int
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

    def of(self, kind: SegmentKind) -> Iterator[Segment]:
        """The segments of a kind, in the order of their offsets."""
        return (segment for segment in self.segments if segment.kind is kind)

    def n_bytes(self, kind: SegmentKind) -> int:
        """Bytes from the base of a kind to the end of its last segment."""
        return max((each.offset + len(each.data) for each in self.of(kind)), default=0)
