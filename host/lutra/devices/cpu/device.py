"""The CPU as a device: packed models as they are stored, in C."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lutra.compile.fit import check_processor
from lutra.devices.base import Limits, TileResult, check_tile
from lutra.devices.cpu.binding import CpuModel
from lutra.devices.cpu.choice import choose_targets
from lutra.devices.cpu.library import library
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["CpuDevice", "available_cores"]

Progress = Callable[[str, float], None]
_TILE = 512


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CpuDevice:
    """Runs packed models on the cores of this machine, with the golden model's bits.

    ``threads`` are one per core if left out. The library is compiled when it is first needed,
    unless the package came with it; LutraError says what is missing.
    """

    name = "cpu"
    tile = _TILE
    """Tokens of a tile at most."""

    def __init__(self, threads: int | None = None, progress: Progress | None = None) -> None:
        if progress:
            progress("compiling the CPU's kernels", 0)
        library()
        self.threads = available_cores() if threads is None else threads
        self._model: CpuModel | None = None
        self._limits: Limits | None = None
        self._head_scale = 1.0

    def load_model(self, model: PackedModel) -> None:
        """Take a model; the KV cache starts empty."""
        self.close()
        check_processor(model)
        few, many = choose_targets(self.threads)
        self._model = CpuModel(model, threads=self.threads, few=few, many=many)
        self._limits = Limits(tile=_TILE, vocab_size=model.vocab_size, context=model.context)
        self._head_scale = model.head_scale

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        """Process ``tokens`` from ``position``; see :class:`~lutra.devices.base.Device`."""
        if self._model is None or self._limits is None:
            raise LutraError("no model is loaded: call load_model(model) first")
        check_tile(self._limits, tokens, position, logits_from)
        result = self._model.run(tokens, position, logits_from)
        return TileResult(
            logits=result.logits.astype(np.int64),
            scale=result.scale * self._head_scale,
            argmax=result.argmax.astype(np.int64),
            cycles=None,
            saturated=result.saturated,
        )

    def counters(self) -> Mapping[str, int]:
        """The CPU has no counters."""
        return {}

    def close(self) -> None:
        """Release threads and memory."""
        if self._model is not None:
            self._model.close()
        self._model = None
