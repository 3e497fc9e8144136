"""Cycles of a pass, from the cycles of the units and the widths of the weights' ports."""

import numpy as np

from lutra_golden.control.isa import NormSource
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES, EngineParams, GroupedWeights
from lutra_golden.model.limits import HEAD_MAX
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim
from lutra_golden.model.shapes import Gate
from lutra_golden.timing.attention import AttentionTiming
from lutra_golden.timing.matmul import engine_timing
from lutra_golden.timing.norm import norm_cycles
from lutra_golden.timing.residual import residual_cycles
from lutra_golden.timing.rope import rope_cycles

__all__ = ["decode_cycles", "pass_cycles"]


def decode_cycles(model: PackedModel, config: AcceleratorConfig, position: int) -> int:
    """Cycles of a token of ``model`` at ``position`` on ``config``, which holds it: an estimate,
    see :func:`pass_cycles`."""
    return pass_cycles(model, config, position, 1, 1, layers=range(len(model.layers)))


def pass_cycles(
    model: PackedModel,
    config: AcceleratorConfig,
    position: int,
    n_tokens: int,
    n_logits: int,
    *,
    layers: range,
    beat_cycles: int = 1,
) -> int:
    """Cycles of a pass of ``n_tokens`` from ``position`` on through ``layers``: an estimate.

    Behind the last layer the head gives logits of ``n_logits`` tokens. Units take turns, as each
    needs what the one before it made. A product takes as long as its engine, or as its weights on
    their ports if that is longer: a word takes whole beats of all of them together, and such a beat
    ``beat_cycles``. Logits are stored while the head is computed. Latencies of memory, its refresh
    and the host's time are left out, every product counts as one command, and every layer as one
    like the first.
    """
    product = _Product(config, beat_cycles)
    heads = config.head_dim * config.n_heads
    kv = built_head_dim(model.head_dim) * model.n_kv_heads
    hidden, inner = model.hidden_size, model.intermediate_size
    layer = model.layers[0]
    bits = _planes(config.matmul, model)
    gate = NormSource.GATE if model.gate is Gate.RELU2 else NormSource.SWIGLU
    centre = layer.bias is not None and layer.bias.centre is not None
    rope = rope_cycles(
        config, n_tokens, bias=model.biased, qk_norm=model.head_normed, centre=centre
    )
    per_layer = sum(
        (
            norm_cycles(hidden // LANES, n_tokens, NormSource.RESIDUAL),
            product.cycles(heads + 2 * kv, hidden, bits, n_tokens),
            rope,
            AttentionTiming(config).cycles(position, n_tokens, window=layer.window),
            norm_cycles(heads // LANES, n_tokens, NormSource.ATTENTION),
            product.cycles(hidden, heads, bits, n_tokens),
            residual_cycles(hidden // LANES, n_tokens),
            norm_cycles(hidden // LANES, n_tokens, NormSource.RESIDUAL),
            product.cycles(2 * inner, hidden, bits, n_tokens),
            norm_cycles(inner // LANES, n_tokens, gate),
            product.cycles(hidden, inner, bits, n_tokens),
            residual_cycles(hidden // LANES, n_tokens),
        )
    )
    head = 0
    if layers.stop == len(model.layers) and n_logits:
        planes = _head_planes(config.matmul, model)
        head = norm_cycles(hidden // LANES, n_logits, NormSource.RESIDUAL)
        head += product.cycles(model.vocab_size, hidden, planes, n_logits)
    return len(layers) * per_layer + head


class _Product:
    """A matrix with some tokens."""

    def __init__(self, config: AcceleratorConfig, beat_cycles: int) -> None:
        self._beat_cycles = beat_cycles
        self._timing, self._word_bytes = engine_timing(config.matmul), config.weight_word_bytes
        self._beat_bytes = config.weight_stripe.whole_bytes

    def cycles(self, rows: int, depth: int, planes: int, n_tokens: int) -> int:
        params = self._timing.params
        unit = max(2, params.block_rows)
        blocks = -(-rows // (LANES * unit)) * unit
        tiles = -(-depth // params.tile_depth(planes))
        n_bytes = params.n_words(tiles, blocks, planes) * self._word_bytes
        return max(
            self._timing.cycles(tiles, blocks, planes, n_tokens),
            -(-n_bytes // self._beat_bytes) * self._beat_cycles,
        )


def _head_planes(params: EngineParams, model: PackedModel) -> int:
    """Digits of the head's weights."""
    if model.vocabulary is not None:
        return params.planes(model.vocabulary.head.stored.rows(slice(1)).unpack())
    return params.planes(GroupedWeights.from_integers(np.array([[HEAD_MAX]], np.int8)))


def _planes(params: EngineParams, model: PackedModel) -> int:
    """Digits of the layers' weights."""
    if model.ternary:
        return params.planes(GroupedWeights.from_integers(np.ones((1, 1), np.int8)))
    return -(-model.layers[0].gate_proj.source.bits // params.w_width)
