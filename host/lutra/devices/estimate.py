"""Speed at which a device decodes one sequence of a model, before it has run: estimates.

A profile that was measured has the same interface, and can take the place of :class:`Estimates`.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.machine import available_cores
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS
from lutra_golden.timing.decode import decode_cycles
from lutra_kernels import gpu_memory_rate, interpreted

__all__ = ["LAYER_S", "Estimates", "Profile", "Rate", "token_bytes"]

_POSITION = 128  # of the token that is estimated, or the last one of a shorter context
LAYER_S = 20e-6
"""Seconds of launches or barriers of a layer, which no memory speeds up."""
_READ_BYTES = 64 << 20  # more than a cache holds
_READS = 3


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Decoded tokens per second, and the kind of that figure: ``modelled`` or ``measured``."""

    tokens_per_s: float
    kind: str = "modelled"


class Profile(Protocol):
    """Speeds of devices."""

    def decode(
        self, device: str, model: PackedModel, config: AcceleratorConfig | None = None
    ) -> Rate:
        """Rate of ``device``, an accelerator of ``config`` unless that is left out."""
        ...


class Estimates:
    """Speeds from the bytes that memory delivers, or the cycles of a configuration.

    Of a processor they are an upper bound, up to what its caches hold: every weight is read once a
    token, at the rate of the memory, beside a fixed time per layer. The rate of the CPU's memory is
    measured here, that of a GPU's is its clock times its width. ``golden`` and kernels that are
    interpreted count as 0.
    """

    def decode(
        self, device: str, model: PackedModel, config: AcceleratorConfig | None = None
    ) -> Rate:
        """Rate of ``device``, an accelerator of ``config`` unless that is left out."""
        if config is not None:
            position = min(_POSITION, model.context - 1)
            return Rate(tokens_per_s=config.clock_hz / decode_cycles(model, config, position))
        if device == "cuda" and not interpreted():
            return _by_memory(model, gpu_memory_rate())
        if device == "cpu":
            return _by_memory(model, _cpu_memory_rate())
        return Rate(tokens_per_s=0.0)


def token_bytes(model: PackedModel) -> int:
    """Bytes of weights that a decoded token reads as they are stored; layers count as the first."""
    n_bytes = sum(model.layers[0].linear(name).stored.n_bytes for name in LINEARS)
    head = model.head.nbytes
    if model.vocabulary is not None:
        head = model.vocabulary.head.stored.n_bytes
    return len(model.layers) * n_bytes + head


def _by_memory(model: PackedModel, bytes_per_s: float) -> Rate:
    if not bytes_per_s:
        return Rate(tokens_per_s=0.0)
    seconds = token_bytes(model) / bytes_per_s + LAYER_S * len(model.layers)
    return Rate(tokens_per_s=1 / seconds)


@cache
def _cpu_memory_rate() -> float:
    """Bytes per second that all cores read together, measured once in some 20 ms."""
    threads = available_cores()
    parts = np.array_split(np.ones(_READ_BYTES // 8, np.int64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - start)
    return _READ_BYTES / best
