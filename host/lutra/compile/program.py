"""A compiled program: instructions, memory image and memory map, for one configuration."""

from dataclasses import dataclass, field

from lutra_golden.core.config import AcceleratorConfig

__all__ = ["MemoryMap", "Program"]


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """Byte addresses of what lies in the accelerator's memory."""

    program: int
    weights: int
    kv: int
    logits: int
    logits_stride: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program serves every token and every chunk of a model.

    ``zeros`` are ranges ``(address, n_bytes)`` that must read as zero before the first run: the
    scale records of the KV cache, of which a read may touch some that no token has written yet.
    """

    model: str
    format: str
    config: AcceleratorConfig
    memory: MemoryMap
    code: bytes
    weights: bytes = field(repr=False)
    zeros: list[tuple[int, int]]
    vocab_size: int
    context: int
    head_scale: float
    n_layers: int
    fingerprint: str
