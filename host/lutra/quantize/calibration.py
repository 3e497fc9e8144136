"""Inputs of a layer's matrices over a calibration text: the residual stream, and its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Integers
from lutra.models.decoder import Decoder, DecoderLayer, Tap
from lutra.models.layers import Float
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.model import lowered
from lutra_golden.model.shapes import LINEARS

__all__ = [
    "STACKS",
    "Inputs",
    "States",
    "calibration_windows",
    "in_float",
    "output_error",
]

STACKS: dict[str, tuple[str, ...]] = {names[0]: names for names in lowered.STACKS}
"""The matrices that share an input, by the name that ``Decoder.layer`` reports the input under."""
_SAMPLE = 256  # tokens whose inputs are kept whole

_Single = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs ``x`` ``[T, K]`` of a stack over a calibration text.

    ``gram`` is the mean of ``x x^T`` ``[K, K]``, half the Hessian of the squared output error;
    ``mean`` and ``peak`` are of magnitudes ``[K]``; ``sample`` are some tokens' inputs ``[S, K]``.
    """

    gram: _Single
    mean: _Single
    peak: _Single
    sample: _Single

    @property
    def power(self) -> _Single:
        """Mean square of each input."""
        return np.diag(self.gram)


class _Sums:
    def __init__(self, k: int) -> None:
        self.gram, self.mean = np.zeros((k, k), np.float32), np.zeros(k, np.float64)
        self.peak, self.sample, self.n = np.zeros(k, np.float32), list[_Single](), 0

    def add(self, x: Float, kept: int) -> None:
        single = x.astype(np.float32, copy=False)
        self.gram += single.T @ single
        size = np.abs(single)
        self.mean += size.sum(axis=0, dtype=np.float64)
        self.peak = np.maximum(self.peak, size.max(axis=0))
        self.n += len(x)
        self.sample.append(single[np.linspace(0, len(x) - 1, min(kept, len(x))).astype(int)])

    def inputs(self) -> Inputs:
        self.gram /= self.n
        mean = (self.mean / self.n).astype(np.float32)
        sample = np.concatenate(self.sample)
        return Inputs(gram=self.gram, mean=mean, peak=self.peak, sample=sample)


class States:
    """The residual stream of calibration windows, in float32, before some layer.

    ``windows`` is ``[n, length]``; they go through a layer one at a time.
    """

    def __init__(self, model: Decoder, windows: NDArray[np.int64]) -> None:
        self.model = replace(model, dtype=np.float32)
        self.windows = windows
        self.x: list[Float] = [self.model.embed(window) for window in windows]

    def inputs(self, i: int, layer: DecoderLayer, stacks: Sequence[str] = ()) -> dict[str, Inputs]:
        """The inputs of a layer's stacks (all of them if none is named); the stream stays."""
        wanted, sums = stacks or tuple(STACKS), dict[str, _Sums]()
        kept = -(-_SAMPLE // len(self.x))

        def tap(name: str, x: Float) -> None:
            if name in wanted:
                sums.setdefault(name, _Sums(x.shape[1])).add(x, kept)

        self.after(i, layer, tap=tap)
        return {name: found.inputs() for name, found in sums.items()}

    def after(
        self,
        i: int,
        layer: DecoderLayer,
        *,
        a_bits: int | None = None,
        a_groups: ActivationGroups | None = None,
        tap: Tap | None = None,
    ) -> list[Float]:
        """The stream after layer ``i``; inputs of matrices rounded to ``a_bits``, in ``a_groups``,
        if bits are given."""
        layer, window = in_float(layer), self.model.config.windows[i]
        model = (
            self.model
            if a_bits is None
            else self.model.replaced(self.model.layers, a_bits, a_groups)
        )
        return [model.layer(layer, x, window, tap) for x in self.x]


def in_float(layer: DecoderLayer) -> DecoderLayer:
    """A layer with its matrices in float32: it is dequantised once for many windows."""
    parts = {name: Dense(layer.linear(name).dequantized()) for name in LINEARS}
    return replace(layer, **parts)


def output_error(w: _Single, found: Integers | _Single, gram: _Single) -> float:
    """Mean over the tokens of the squared error of a matrix's outputs: ``tr(D gram D^T)``."""
    rest = (found.dequantized() if isinstance(found, Integers) else found) - w
    return float(np.einsum("nk,nk->", rest @ gram, rest, dtype=np.float64))


def calibration_windows(
    tokens: Sequence[int], n: int, length: int, seed: int, bos: int | None = None
) -> NDArray[np.int64]:
    """``n`` windows ``[n, length]`` from anywhere in a text, without overlap while there are so
    many; each begins with ``bos`` if there is one. A function of the tokens and the seed."""
    if n < 1 or length < 2:
        raise LutraError(
            f"calibration needs at least one window of at least two tokens, not {n} of {length}"
        )
    body = length - (bos is not None)
    if len(tokens) < body:
        raise LutraError(
            f"the calibration text has {len(tokens)} tokens, a window takes {body}: give a longer "
            "text or shorter windows"
        )
    rng = np.random.default_rng(seed)
    whole = len(tokens) // body
    if whole >= n:
        phase = int(rng.integers(len(tokens) - whole * body + 1))
        starts = phase + body * np.sort(rng.choice(whole, n, replace=False))
    else:
        starts = np.sort(rng.integers(0, len(tokens) - body + 1, n))
    text = np.asarray(tokens, np.int64)
    windows = text[starts[:, None] + np.arange(body)]
    return windows if bos is None else np.insert(windows, 0, bos, axis=1)
