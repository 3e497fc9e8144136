"""AWQ: channels with large inputs are scaled up before rounding, and their inputs down.

Source: "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv
2306.00978), section 3.2: scales are powers of the inputs' mean magnitude, the exponent is searched
by the error of the outputs; then ranges are clipped, here by each input's power.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Integers
from lutra.models.decoder import DecoderLayer
from lutra.quantize.calibration import STACKS, Inputs, output_error
from lutra.quantize.fold import fold, shared
from lutra.quantize.rtn import round_to_nearest
from lutra.quantize.target import Target

__all__ = ["EXPONENTS", "awq", "round_scaled", "scales"]

EXPONENTS = tuple(i / 10 for i in range(10))
"""Exponents that are tried; 0 scales nothing."""
_ROWS = 512  # of a matrix, that the search looks at
_LEAST = 1e-4  # of a scale's statistic

_Single = NDArray[np.float32]


def awq(layer: DecoderLayer, inputs: Mapping[str, Inputs], target: Target) -> DecoderLayer:
    """A layer with scales folded in and integer weights."""
    chosen: dict[str, _Single] = {}
    # those whose scales divide rows of another matrix first: its search then sees them
    for stack in ("o_proj", "down_proj", "q_proj", "gate_proj"):
        if stack in inputs:
            chosen[stack] = _search(layer, stack, inputs[stack], target)
            layer = fold(layer, stack, chosen[stack], target.head_dim)
    return round_scaled(layer, chosen, inputs, target)


def scales(statistic: _Single, exponent: float) -> _Single:
    """Powers of a statistic of the inputs, about 1."""
    found = np.maximum(statistic, _LEAST * float(statistic.max(initial=0)) or 1.0)
    found = found.astype(np.float64) ** exponent
    return (found / np.sqrt(found.max() * found.min())).astype(np.float32)


def round_scaled(
    layer: DecoderLayer,
    scale: Mapping[str, _Single],
    inputs: Mapping[str, Inputs],
    target: Target,
) -> DecoderLayer:
    """Round a layer whose inputs were divided by ``scale``, clipping by each input's power."""
    parts: dict[str, Integers] = {}
    for stack, names in STACKS.items():
        if stack not in inputs:
            continue
        power = inputs[stack].power / scale[stack] ** 2
        for name in names:
            w = layer.linear(name).dequantized()
            parts[name] = round_to_nearest(w, target.bits[name], target.group, power)
    return replace(layer, **parts)


def _search(layer: DecoderLayer, stack: str, inputs: Inputs, target: Target) -> _Single:
    statistic = shared(layer, stack, inputs.mean, target.head_dim)
    matrices: list[tuple[_Single, int]] = []
    for name in STACKS[stack]:
        weight = layer.linear(name)
        assert isinstance(weight, Dense)
        every = max(weight.shape[0] // _ROWS, 1)
        matrices.append((weight.dequantized(slice(None, None, every)), target.bits[name]))
    best, least = np.ones_like(statistic), np.inf
    for exponent in EXPONENTS:
        s = scales(statistic, exponent)
        power = inputs.power / s**2
        error = 0.0
        for w, bits in matrices:
            found = round_to_nearest(w * s, bits, target.group, power).dequantized() / s
            error += output_error(w, found, inputs.gram)
        if error < least:
            best, least = s, error
    return best
