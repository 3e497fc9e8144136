"""A GPU as a device: packed models in Triton kernels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from lutra.compile.fit import check_processor
from lutra.devices.base import Limits, TileResult, check_tile
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_kernels import interpreted, missing

if TYPE_CHECKING:
    from lutra_kernels.model import PackedArrays
    from lutra_kernels.runner import Runner

__all__ = ["CudaDevice", "describe_gpu"]

Progress = Callable[[str, float], None]
_TILE = 512


class CudaDevice:
    """Runs packed models on the first CUDA device, with the golden model's bits.

    With ``TRITON_INTERPRET=1`` kernels run in Triton's interpreter, slowly and without a GPU.
    """

    name = "cuda"
    tile = _TILE
    """Tokens of a tile at most."""

    def __init__(self, progress: Progress | None = None) -> None:
        reason = None if interpreted() else missing()
        if reason is not None:
            raise LutraError(f"device cuda can not be used, {reason}")
        self._progress = progress
        self._runner: Runner | None = None
        self._limits: Limits | None = None
        self._head_scale = 1.0

    def load_model(self, model: PackedModel) -> None:
        """Take a model; the KV cache starts empty."""
        from lutra.devices.cuda.arrays import lowered_around, model_shape
        from lutra_kernels.errors import GpuUnavailable
        from lutra_kernels.model import upload_model
        from lutra_kernels.runner import Runner

        self.close()
        check_processor(model)
        try:
            uploaded = upload_model(model_shape(model), lowered_around(model), self._layers(model))
            self._runner = Runner(uploaded, m_max=_TILE)
        except GpuUnavailable as error:
            raise LutraError(f"device cuda: {error}") from None
        self._limits = Limits(tile=_TILE, vocab_size=model.vocab_size, context=model.context)
        self._head_scale = model.head_scale

    def _layers(self, model: PackedModel) -> "Iterator[PackedArrays]":
        from lutra.devices.cuda.arrays import lowered_layers

        for i, layer in enumerate(lowered_layers(model)):
            if self._progress:
                self._progress("loading the GPU", i / len(model.layers))
            yield layer

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        """Process ``tokens`` from ``position``; see :class:`~lutra.devices.base.Device`."""
        if self._runner is None or self._limits is None:
            raise LutraError("no model is loaded: call load_model(model) first")
        from lutra_kernels.errors import GpuUnavailable

        check_tile(self._limits, tokens, position, logits_from)
        try:
            result = self._runner.run(tokens, position, logits_from)
        except GpuUnavailable as error:
            raise LutraError(f"device cuda: {error}") from None
        return TileResult(
            logits=result.logits.astype(np.int64),
            scale=scale_to_float(result.scale) * self._head_scale,
            argmax=result.argmax,
            cycles=None,
            saturated=result.saturated,
        )

    def counters(self) -> Mapping[str, int]:
        """The GPU has no counters."""
        return {}

    def close(self) -> None:
        """Release the GPU's memory."""
        self._runner = None


def describe_gpu() -> str:
    """Name and memory of the GPU that is used."""
    if interpreted():
        return "Triton's interpreter, without a GPU"
    properties = import_module("torch").cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
