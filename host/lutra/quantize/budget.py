"""Mixed precision: which matrices get how many bits, so that their mean keeps to a budget.

What a stack of matrices (those that share an input) loses is measured: the Kullback-Leibler
divergence of the next token's probabilities from the float model's, with this stack alone rounded.
It is measured at one width and carried to the others by the error of the stack's outputs, to which
it is proportional while the error is small. The bits with the least sum are then found exactly, as
a knapsack. The idea of unequal bits by sensitivity is that of SliM-LLM (arXiv 2405.14917).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense
from lutra.models.decoder import Decoder
from lutra.models.layers import Float, log_probabilities
from lutra.quantize.calibration import STACKS, States, in_float, output_error
from lutra.quantize.rtn import round_to_nearest
from lutra_golden.errors import LutraError

__all__ = ["CHOICES", "PROBE", "BitPlan", "Sensitivity", "allot", "measure"]

CHOICES = (2, 3, 4, 6, 8)
"""Bits that a stack can have."""
PROBE = 3
"""Bits that the divergence is measured at."""
_UNITS = 1 << 18  # of size that the knapsack tells apart

Progress = Callable[[str, float], None]
_Single = NDArray[np.float32]


@dataclass(frozen=True)
class BitPlan:
    """Bits of each stack, ``bits[layer][stack]`` in the order of
    :data:`~lutra.quantize.calibration.STACKS`."""

    bits: tuple[tuple[int, ...], ...]

    def of(self, layer: int) -> dict[str, int]:
        """Bits of a layer's matrices by their names."""
        return {
            name: bits
            for names, bits in zip(STACKS.values(), self.bits[layer], strict=True)
            for name in names
        }


@dataclass(frozen=True)
class Sensitivity:
    """Cost of every stack: ``loss`` ``[layers, stacks, choices]`` in nats per token, and how
    many ``weights`` ``[layers, stacks]`` it has."""

    loss: NDArray[np.float64]
    weights: NDArray[np.int64]

    def total(self, plan: BitPlan) -> float:
        """The sum of the losses of a plan: what :func:`allot` makes least."""
        at = np.array([[CHOICES.index(b) for b in layer] for layer in plan.bits])
        return float(np.take_along_axis(self.loss, at[..., None], axis=2).sum())

    def mean_bits(self, plan: BitPlan) -> float:
        """Bits per weight of a plan, without scales and zero points."""
        return float((np.array(plan.bits) * self.weights).sum() / self.weights.sum())

    def rows(self, plan: BitPlan) -> list[tuple[str, ...]]:
        """A table: for each layer the bits of its stacks, with what they cost; a heading first."""
        heading = tuple(
            ", ".join(name.removesuffix("_proj") for name in s) for s in STACKS.values()
        )
        lines = [("layer", *heading)]
        for i, bits in enumerate(plan.bits):
            cells = [
                f"{b} ({1000 * self.loss[i, s, CHOICES.index(b)]:.2f})" for s, b in enumerate(bits)
            ]
            lines.append((str(i), *cells))
        return lines


def measure(
    model: Decoder, windows: NDArray[np.int64], group: int, progress: Progress | None = None
) -> Sensitivity:
    """Measure every stack of a model in floating point.

    One layer is in memory at a time; a layer's variants go through all later layers together.
    """
    n_layers = len(model.layers)
    loss = np.zeros((n_layers, len(STACKS), len(CHOICES)))
    weights = np.zeros((n_layers, len(STACKS)), np.int64)
    states = States(model, windows)
    expected = _expected(states)
    for i in range(n_layers):
        layer = in_float(model.layers[i])
        inputs = states.inputs(i, layer)
        variants: list[list[Float]] = []
        for s, (stack, names) in enumerate(STACKS.items()):
            gram, power = inputs[stack].gram, inputs[stack].power
            probe: dict[str, Dense] = {}
            for name in names:
                w = layer.linear(name).dequantized()
                weights[i, s] += w.size
                for c, bits in enumerate(CHOICES):
                    found = round_to_nearest(w, bits, group, power)
                    loss[i, s, c] += output_error(w, found, gram)
                    if bits == PROBE:
                        probe[name] = Dense(found.dequantized())
            variants.append(states.after(i, replace(layer, **probe)))
        diverged = _diverged(states, i + 1, variants, expected)
        reached = loss[i, :, CHOICES.index(PROBE), None]
        loss[i] *= np.divide(diverged[:, None], reached, out=0 * reached, where=reached > 0)
        states.x = states.after(i, layer)
        if progress:
            # layer i goes through those behind it: the first take longest
            left = (n_layers - 1 - i) * (n_layers - i) / (n_layers * (n_layers + 1))
            progress("measuring sensitivity", 1 - left)
    return Sensitivity(loss, weights)


def _log_p(model: Decoder, x: Float) -> _Single:
    return log_probabilities(model.logits(x)).astype(np.float32)


def _through(states: States, first: int, batches: Sequence[list[Float]]) -> list[list[Float]]:
    """The stream of several batches after the layers from ``first`` on."""
    model = states.model
    found = [list(batch) for batch in batches]
    for i in range(first, len(model.layers)):
        layer = in_float(model.layers[i])
        for batch in found:
            batch[:] = [model.layer(layer, x, model.config.windows[i]) for x in batch]
    return found


def _expected(states: States) -> list[_Single]:
    return [_log_p(states.model, x) for x in _through(states, 0, [states.x])[0]]


def _diverged(
    states: States, first: int, variants: Sequence[list[Float]], expected: Sequence[_Single]
) -> NDArray[np.float64]:
    """Mean divergence of each variant, ``[variants]``."""
    out = np.zeros(len(variants))
    for v, batch in enumerate(_through(states, first, variants)):
        n_tokens = 0
        for x, p in zip(batch, expected, strict=True):
            rest = np.exp(p) * (p - _log_p(states.model, x))
            out[v] += float(rest.sum(dtype=np.float64))
            n_tokens += len(p)
        out[v] /= n_tokens
    return np.maximum(out, 0)


def allot(sensitivity: Sensitivity, budget: float) -> BitPlan:
    """The plan with the least loss whose mean bits keep to ``budget``, which is never exceeded."""
    if not CHOICES[0] <= budget <= CHOICES[-1]:
        raise LutraError(
            f"bits-budget must be in {CHOICES[0]}..{CHOICES[-1]}, the bits there are to choose "
            f"from, not {budget:g}"
        )
    weights = sensitivity.weights.reshape(-1)
    loss = sensitivity.loss.reshape(-1, len(CHOICES))
    limit = int(budget * int(weights.sum()) + 1e-6)
    unit = max(math.gcd(*(int(w) for w in weights)), -(-limit // _UNITS))
    sizes = -(-weights[:, None] * np.array(CHOICES) // unit)  # never taken for smaller
    room = limit // unit
    plans = [BitPlan(_uniform(sensitivity, b)) for b in CHOICES if b <= budget]
    if int(sizes[:, 0].sum()) <= room:
        chosen = _knapsack(sizes, loss, room)
        bits = np.array(CHOICES)[chosen].reshape(sensitivity.weights.shape)
        plans.append(BitPlan(tuple(tuple(int(b) for b in layer) for layer in bits)))
    # a uniform plan can fit where sizes in units just do not
    return min(reversed(plans), key=sensitivity.total)


def _uniform(sensitivity: Sensitivity, bits: int) -> tuple[tuple[int, ...], ...]:
    n_layers, n_stacks = sensitivity.weights.shape
    return ((bits,) * n_stacks,) * n_layers


def _knapsack(sizes: NDArray[np.int64], loss: NDArray[np.float64], room: int) -> NDArray[np.int64]:
    """One choice for each item, of the least loss within ``room``: exact, by dynamic programming.

    ``sizes`` and ``loss`` are ``[items, choices]``.
    """
    least = np.zeros(room + 1)  # by the room that may be used
    taken = np.zeros((len(sizes), room + 1), np.int8)
    for item, (size, cost) in enumerate(zip(sizes, loss, strict=True)):
        best = np.full(room + 1, np.inf)
        for choice in range(len(size)):
            n = int(size[choice])
            if n > room:
                continue
            offered = least[: room + 1 - n] + cost[choice]
            better = offered < best[n:]
            best[n:][better] = offered[better]
            taken[item, n:][better] = choice
        least = best
    chosen = np.zeros(len(sizes), np.int64)
    for item in range(len(sizes) - 1, -1, -1):
        chosen[item] = taken[item, room]
        room -= int(sizes[item, chosen[item]])
    return chosen
