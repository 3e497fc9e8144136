"""Loss of each rounding of a packed model alone, in floating point.

The packed weights without any other rounding are the base. Against it stand the same weights with
one thing rounded: the activations, queries and keys, values, or the head with its input. The
weights themselves, and all roundings together, are compared with the checkpoint if it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lutra.evaluate.divergence import Divergence, DivergenceSum
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.models.layers import Float, log_probabilities
from lutra.quantize.calibration import in_float
from lutra.quantize.reference import reference
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["ALL", "Streams", "losses"]

ALL = "all together"
"""Name of the row of all roundings."""
_WEIGHTS, _HEAD = "weights", "head"
_QUERY_BITS = 8
_ROWS = 128  # of logits at a time

Progress = Callable[[str, float], None]


class Streams:
    """Residual streams of windows of tokens, taken through the layers by several models at once:
    each layer is dequantised once for all."""

    def __init__(self, models: Mapping[str, Decoder], windows: Sequence[Sequence[int]]) -> None:
        self._models = models
        ids = [np.array(window, np.int64) for window in windows]
        self.x: dict[str, list[Float]] = {
            name: [model.embed(each) for each in ids] for name, model in models.items()
        }

    def take(self, layer: DecoderLayer, window: int) -> None:
        """Go through one layer, whose attention has this window."""
        dense = in_float(layer)
        for name, model in self._models.items():
            self.x[name] = [model.layer(dense, each, window) for each in self.x[name]]


def losses(
    model: PackedModel,
    windows: Sequence[Sequence[int]],
    source: Decoder | None = None,
    progress: Progress | None = None,
) -> dict[str, Divergence]:
    """Divergences by the name of what is rounded, over ``windows`` of tokens.

    ``source`` is the checkpoint; without it weights count as exact, and so does the head's matrix.
    A model that was trained with rounded activations has no loss by them.
    """
    if not any(len(window) > 1 for window in windows):
        raise LutraError("the text is too short to predict anything: give a longer one")
    whole = replace(reference(model), dtype=np.float32, query_bits=_QUERY_BITS)
    whole = replace(whole, key_bits=model.key_bits, value_bits=model.value_bits)
    trained = model.ternary and model.a_groups is None
    if source is not None:
        source = replace(source, dtype=np.float32)
        trained = source.activation_bits is not None
    kept = whole.activation_bits if trained else None
    base = replace(
        whole, activation_bits=kept, head_bits=None, query_bits=None, key_bits=None, value_bits=None
    )
    if source is not None:
        base = replace(base, lm_head=source.lm_head or source.embed_tokens)
    rounded = {
        "activations": replace(base, activation_bits=whole.activation_bits),
        "queries and keys": replace(base, query_bits=whole.query_bits, key_bits=whole.key_bits),
        "values": replace(base, value_bits=whole.value_bits),
        ALL: whole,
    }
    if trained:
        del rounded["activations"]
    packed = Streams({_WEIGHTS: base, **rounded}, windows)
    original = Streams({} if source is None else {_WEIGHTS: source}, windows)
    n_layers = len(model.layers)
    for i, window in enumerate(whole.config.windows):
        if progress:
            progress("rounding one by one", i / n_layers)
        packed.take(whole.layers[i], window)
        if source is not None:
            original.take(source.layers[i], source.config.windows[i])

    names = [*([] if source is None else [_WEIGHTS]), *rounded]
    names.insert(len(names) - 1, _HEAD)
    sums = {name: DivergenceSum() for name in names}
    for n, tokens in enumerate(windows):
        for first in range(0, len(tokens) - 1, _ROWS):
            rows = slice(first, min(first + _ROWS, len(tokens) - 1))
            targets = np.array(tokens[rows.start + 1 : rows.stop + 1], np.int64)
            exact = log_probabilities(base.logits(packed.x[_WEIGHTS][n][rows]))
            best = exact
            if source is not None:
                best = log_probabilities(source.logits(original.x[_WEIGHTS][n][rows]))
                sums[_WEIGHTS].add(best, exact, targets)
            head = log_probabilities(whole.logits(packed.x[_WEIGHTS][n][rows]))
            sums[_HEAD].add(exact, head, targets)
            for name, decoder in rounded.items():
                found = log_probabilities(decoder.logits(packed.x[name][n][rows]))
                sums[name].add(best if name == ALL else exact, found, targets)
    return {name: each.result() for name, each in sums.items()}
