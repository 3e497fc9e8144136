"""Small random models, and golden's decoder of one sequence beside the GPU's."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from tests.host.models.small_models import write_variant

from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv, SequenceKv, kv_pair
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedModel

__all__ = ["Golden", "small_model", "tokens_of"]


@cache
def small_model(
    variant: str,
    format: str | None,
    kv: Kv = 8,
    layers: int = 2,
    head_dim: int = 16,
    a_groups: ActivationGroups | None = None,
    head_bits: int | None = None,
) -> PackedModel:
    """A random model of few layers."""
    changes = {"hidden_size": 64, "num_hidden_layers": layers, "max_position_embeddings": 64}
    if head_dim != 16:
        changes["head_dim"] = head_dim
    with TemporaryDirectory() as folder:
        checkpoint = load_model(write_variant(Path(folder), variant, changes=changes))
        wanted = Format.parse(format) if format else None
        model = pack_model(checkpoint, wanted, 16, a_groups=a_groups, head_bits=head_bits)
    # random weights cannot be packed for keys of four bits
    key_bits, value_bits = kv_pair(kv)
    return replace(model, key_bits=key_bits, value_bits=value_bits)


def tokens_of(model: PackedModel, n: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, model.vocab_size, n).tolist()


class Golden:
    """One sequence in golden's decoder."""

    def __init__(self, model: PackedModel) -> None:
        self.model, self.decoder = model, Decoder(model)
        self.caches, self.length = self.decoder.caches(), 0

    def layers(self, x: NDArray[np.integer], layers: range) -> NDArray[np.int64]:
        """The residual stream after these layers of rows that come next; the length stays."""
        x = x.astype(np.int64)
        for i in layers:
            x = self.decoder.layer(i, x, [Rows(self.caches, slice(0, len(x)), self.length)])
        return x

    def run(self, tokens: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Logits and scales of the next tokens."""
        x = self.layers(self.decoder.embed(tokens), range(len(self.model.layers)))
        self.length += len(tokens)
        return self.head(x)

    def head(self, x: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Logits and scales of the end of the residual stream."""
        logits, scale = self.decoder.head(x)
        return logits, scale_to_float(scale) * self.model.head_scale

    def export(self) -> SequenceKv:
        """Its keys and values."""
        layers = {i: cache.first(self.length) for i, cache in enumerate(self.caches)}
        model = self.model
        return SequenceKv(key_bits=model.key_bits, value_bits=model.value_bits, layers=layers)

    def restore(self, kv: SequenceKv) -> None:
        """Go on from other keys and values."""
        for i, layer in kv.layers.items():
            self.caches[i].restore(layer)
        self.length = kv.length
