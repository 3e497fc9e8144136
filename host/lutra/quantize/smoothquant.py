"""SmoothQuant: outliers of the activations are moved into the weights, where they cost less.

Source: "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(arXiv 2211.10438), section 4: ``max|x|**alpha / max|w|**(1 - alpha)`` per channel. The migration
strength alpha is searched by the error of the outputs, inputs and weights rounded.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lutra.models.decoder import DecoderLayer
from lutra.models.layers import round_activations
from lutra.quantize.awq import round_scaled
from lutra.quantize.calibration import STACKS, Inputs
from lutra.quantize.fold import fold, shared
from lutra.quantize.rtn import round_to_nearest
from lutra.quantize.target import Target

__all__ = ["ALPHAS", "smooth", "smoothing", "smoothquant"]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Migration strengths to try, in addition to none at all."""
_ROWS = 512  # of a matrix, that the search looks at
_LEAST = 1e-5

_Single = NDArray[np.float32]


def smoothquant(layer: DecoderLayer, inputs: Mapping[str, Inputs], target: Target) -> DecoderLayer:
    """A layer with smoothed inputs, rounded to nearest."""
    layer, scale = smooth(layer, inputs, target)
    return round_scaled(layer, scale, inputs, target)


def smooth(
    layer: DecoderLayer, inputs: Mapping[str, Inputs], target: Target
) -> tuple[DecoderLayer, dict[str, _Single]]:
    """A layer with scales folded in, and the scales that its inputs are divided by."""
    scale: dict[str, _Single] = {}
    for stack in ("down_proj", "q_proj", "gate_proj"):
        if stack in inputs:
            scale[stack] = _search(layer, stack, inputs[stack], target)
            layer = fold(layer, stack, scale[stack], target.head_dim)
    if "o_proj" in inputs:  # the paper leaves it as it is
        scale["o_proj"] = np.ones_like(inputs["o_proj"].mean)
    return layer, scale


def smoothing(x_peak: _Single, w_peak: _Single, alpha: float) -> _Single:
    """Divisor of each input; 1 where there is none or no weight for it."""
    x, w = x_peak.astype(np.float64), w_peak.astype(np.float64)
    used = (x > _LEAST * x.max(initial=0)) & (w > _LEAST * w.max(initial=0))
    ones = np.ones_like(x)
    found = np.where(used, x, ones) ** alpha / np.where(used, w, ones) ** (1 - alpha)
    if not used.any():
        return ones.astype(np.float32)
    middle = np.sqrt(found[used].max() * found[used].min())
    return np.where(used, found / middle, ones).astype(np.float32)


def _search(layer: DecoderLayer, stack: str, inputs: Inputs, target: Target) -> _Single:
    matrices: list[tuple[_Single, int]] = []
    w_peak = np.zeros_like(inputs.peak)
    for name in STACKS[stack]:
        w = layer.linear(name).dequantized()
        w_peak = np.maximum(w_peak, np.abs(w).max(axis=0))
        matrices.append((w[:: max(len(w) // _ROWS, 1)], target.bits[name]))
    x_peak = shared(layer, stack, inputs.peak, target.head_dim)
    candidates = [np.ones_like(x_peak), *(smoothing(x_peak, w_peak, alpha) for alpha in ALPHAS)]
    best, least = candidates[0], np.inf
    for s in candidates:
        x, unit = round_activations(
            (inputs.sample / s).astype(np.float64),
            target.a_bits,
            target.a_groups,
            target.head_dim if stack == "o_proj" else 0,
        )
        rounded = (x * unit).astype(np.float32)
        error = 0.0
        for w, bits in matrices:
            found = round_to_nearest(w * s, bits, target.group, inputs.power / s**2)
            rest = rounded @ found.dequantized().T - inputs.sample @ w.T
            error += float(np.einsum("tn,tn->", rest, rest, dtype=np.float64))
        if error < least:
            best, least = s, error
    return best
