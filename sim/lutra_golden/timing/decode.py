"""Cycles of a pass, from the cycles of the units and the width of the weights' port."""

from dataclasses import dataclass

import numpy as np

from lutra_golden.attention.pairs import fetches
from lutra_golden.control.isa import NormSource
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose
from lutra_golden.matmul.engine import LANES, EngineParams, GroupedWeights
from lutra_golden.model.limits import HEAD_MAX
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.padding import built_head_dim
from lutra_golden.model.shapes import Gate
from lutra_golden.timing.attention import AttentionTiming
from lutra_golden.timing.matmul import MatmulTiming
from lutra_golden.timing.norm import norm_cycles
from lutra_golden.timing.residual import residual_cycles
from lutra_golden.timing.rope import rope_cycles

__all__ = ["PassPart", "decode_cycles", "pass_cycles", "pass_parts"]


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
    their port if that is longer: a word takes whole beats, and a beat ``beat_cycles``. Logits are
    stored while the head is computed. Latencies of memory, its refresh and the host's time are left
    out, every product counts as one command, and every layer as one like the first.
    """
    parts = pass_parts(
        model, config, position, n_tokens, n_logits, layers=layers, beat_cycles=beat_cycles
    )
    return sum(part.cycles * part.times for part in parts)


@dataclass(frozen=True, kw_only=True)
class PassPart:
    """An operation of a pass: the unit that it keeps busy, its cycles, the bytes that it reads.

    It comes ``times`` times, once in each layer. ``waits`` is true where its bytes take longer to
    come than the unit takes. Parameters of the vector unit are not counted as bytes.
    """

    name: str
    unit: str
    cycles: int
    times: int
    n_bytes: int = 0
    waits: bool = False


def pass_parts(
    model: PackedModel,
    config: AcceleratorConfig,
    position: int,
    n_tokens: int,
    n_logits: int,
    *,
    layers: range,
    beat_cycles: int = 1,
) -> list[PassPart]:
    """Operations of a pass, of which :func:`pass_cycles` is the sum, in their order."""
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

    def vector(name: str, cycles: int, times: int) -> PassPart:
        return PassPart(name=name, unit="vector", cycles=cycles, times=times)

    def norm(name: str, size: int, source: NormSource) -> PassPart:
        return vector(name, norm_cycles(size // LANES, n_tokens, source), len(layers))

    def matmul(name: str, rows: int, depth: int) -> PassPart:
        return product.part(name, rows, depth, bits, n_tokens, len(layers))

    read = sum(fetch.beats for fetch in fetches(config, 0, position, n_tokens, layer.window))
    attention = PassPart(
        name="attention",
        unit="attention",
        cycles=AttentionTiming(config).cycles(position, n_tokens, window=layer.window),
        times=len(layers),
        n_bytes=read * config.word_bytes,
    )
    add = residual_cycles(hidden // LANES, n_tokens)
    parts = [
        norm("input norm", hidden, NormSource.RESIDUAL),
        matmul("q, k, v", heads + 2 * kv, hidden),
        vector("rotary embedding", rope, len(layers)),
        attention,
        norm("attention norm", heads, NormSource.ATTENTION),
        matmul("output", hidden, heads),
        vector("residual of attention", add, len(layers)),
        norm("feed-forward input norm", hidden, NormSource.RESIDUAL),
        matmul("gate, up", 2 * inner, hidden),
        norm("feed-forward norm", inner, gate),
        matmul("down", hidden, inner),
        vector("residual of feed-forward", add, len(layers)),
    ]
    if layers.stop == len(model.layers) and n_logits:
        planes = _head_planes(config.matmul, model)
        cycles = norm_cycles(hidden // LANES, n_logits, NormSource.RESIDUAL)
        parts.append(vector("final norm", cycles, 1))
        parts.append(product.part("head", model.vocab_size, hidden, planes, n_logits, 1))
    return parts


class _Product:
    """A matrix with some tokens."""

    def __init__(self, config: AcceleratorConfig, beat_cycles: int) -> None:
        self._beat_cycles = beat_cycles
        self._timing, self._word_bytes = MatmulTiming(config.matmul), config.weight_word_bytes
        self._beat_bytes = config.port_of(Purpose.WEIGHTS).width // 8

    def part(
        self, name: str, rows: int, depth: int, planes: int, n_tokens: int, times: int
    ) -> PassPart:
        params = self._timing.params
        unit = max(2, params.block_rows)
        blocks = -(-rows // (LANES * unit)) * unit
        tiles = -(-depth // params.depth_tile)
        n_bytes = params.n_words(tiles, blocks, planes) * self._word_bytes
        engine = self._timing.cycles(tiles, blocks, planes, n_tokens)
        port = -(-n_bytes // self._beat_bytes) * self._beat_cycles
        return PassPart(
            name=name,
            unit="matmul",
            cycles=max(engine, port),
            times=times,
            n_bytes=n_bytes,
            waits=port > engine,
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
