"""GPTQ: what rounding a column costs is made up for by the columns that are not rounded yet.

Source: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv
2210.17323), section 3: one order for all rows, lazy blocks, the inverse Hessian by Cholesky. Scales
and zero points are chosen before, so that an order by activations changes no layout.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Integers
from lutra.models.decoder import DecoderLayer
from lutra.quantize.calibration import STACKS, Inputs
from lutra.quantize.rtn import Grid, choose_grid
from lutra.quantize.target import Target

__all__ = ["DAMPING", "compensate", "gptq", "inverse_factor"]

DAMPING = 0.01
"""Added to the Hessian's diagonal, of its mean; section 3.3, step 3."""
_BLOCK = 128  # columns whose effect on the later ones is added at once


def gptq(layer: DecoderLayer, inputs: Mapping[str, Inputs], target: Target) -> DecoderLayer:
    """A layer with integer weights that make up for each other's rounding."""
    parts: dict[str, Integers] = {}
    for stack, names in STACKS.items():
        if stack not in inputs:
            continue
        found = inputs[stack]
        order = None
        if target.act_order:
            order = np.argsort(-found.power, kind="stable")
        factor = inverse_factor(found.gram, order)
        for name in names:
            w = layer.linear(name).dequantized()
            grid = choose_grid(w, target.bits[name], target.group, found.power)
            parts[name] = grid.integers(compensate(w, factor, grid, order))
    return replace(layer, **parts)


def inverse_factor(
    gram: NDArray[np.floating], order: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """The upper factor ``U`` of the damped Hessian's inverse, ``U^T U``, columns in ``order``."""
    h = gram.astype(np.float64)
    if order is not None:
        h = h[order][:, order]
    at = np.arange(len(h))
    h[at, at] += DAMPING * (float(h[at, at].mean()) or 1.0)
    # H = R R^T with R upper is the Cholesky factor of H backwards; its inverse is U
    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return np.triu(np.linalg.inv(upper)).astype(np.float64, copy=False)


def compensate(
    w: NDArray[np.floating],
    factor: NDArray[np.float64],
    grid: Grid,
    order: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Codes of ``[N, K]`` on a grid, rounded column by column in ``order``."""
    n, k = w.shape
    columns: list[int] = list(range(k)) if order is None else order.tolist()
    rest = np.ascontiguousarray(w.T[columns])  # [K, N], in the weights' own precision
    effect = factor.astype(rest.dtype, copy=False)
    step = (grid.scale.T * grid.unit).astype(rest.dtype)  # [groups, N]
    half = (grid.zero.T / 2).astype(rest.dtype)
    levels = (1 << grid.bits) - 1
    codes = np.empty((k, n), np.uint8)
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        errors = np.empty((last - first, n), rest.dtype)
        for i in range(first, last):
            g = columns[i] // grid.group
            code = np.clip(np.rint(rest[i] / step[g] + half[g]), 0, levels)
            codes[columns[i]] = code
            error = (rest[i] - step[g] * (code - half[g])) / effect[i, i]
            rest[i + 1 : last] -= effect[i, i + 1 : last, None] * error
            errors[i - first] = error
        rest[last:] -= effect[first:last, last:].T @ errors
    return np.ascontiguousarray(codes.T)
