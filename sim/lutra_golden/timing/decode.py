"""Cycles of a pass, from the cycles of the units and the memory behind the ports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lutra_golden.attention.attention import first_seen
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
from lutra_golden.timing.matmul import engine_timing
from lutra_golden.timing.memory import NANO_MEMORY, MemoryTiming
from lutra_golden.timing.norm import norm_cycles
from lutra_golden.timing.residual import logits_cycles, residual_cycles
from lutra_golden.timing.rope import rope_cycles
from lutra_golden.timing.weights import ISSUE_CYCLES, WeightStream

__all__ = ["PassPart", "decode_cycles", "pass_cycles", "pass_parts", "peak_macs"]

# from the end of the operation before: waits are met, and the instruction is decoded
_UNIT_START = 2
_VECTOR_START = 4
_OWN_START = 3
"""Of the vector unit, behind an operation of its own."""
_WRITE_END = 4
"""From the last word that the vector unit writes to its data on the port."""
_RUN_START = 74
"""From the doorbell to the first instruction, beside two reads, of descriptor and program."""


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
    memory: MemoryTiming = NANO_MEMORY,
    n_sequences: int = 1,
) -> int:
    """Cycles of a pass of ``n_tokens`` from ``position`` on through ``layers``: an estimate.

    The tokens are those of ``n_sequences``, as many of each, all from ``position`` on. Behind the
    last layer the head gives logits of ``n_logits`` tokens. Units take turns, as each needs what
    the one before it made, while weights come ahead of their use as far as there is room for them.
    Loads of parameters are hidden behind that, and logits are stored while the next rows of the
    head are computed. Random stalls and the host's time are left out.
    """
    parts = pass_parts(
        model, config, position, n_tokens, n_logits, layers=layers, memory=memory,
        n_sequences=n_sequences,
    )  # fmt: skip
    return sum(part.cycles for part in parts)


@dataclass(frozen=True, kw_only=True)
class PassPart:
    """An operation of a pass in all layers: the unit that it keeps busy, its cycles, the bytes that
    it reads, its multiply-accumulates.

    ``waits`` is true where its bytes take longer to come than the unit takes. Parameters of the
    vector unit are not counted as bytes.
    """

    name: str
    unit: str
    cycles: int
    n_bytes: int = 0
    n_macs: int = 0
    waits: bool = False


@dataclass(frozen=True)
class _Operation:
    """A part of one layer, whose cycles depend on the weights that have come."""

    part: PassPart
    take: Callable[[WeightStream], float]


_Taken = list[tuple[PassPart, float]]
"""Operations and their cycles."""


def pass_parts(
    model: PackedModel,
    config: AcceleratorConfig,
    position: int,
    n_tokens: int,
    n_logits: int,
    *,
    layers: range,
    memory: MemoryTiming = NANO_MEMORY,
    n_sequences: int = 1,
) -> list[PassPart]:
    """Operations of a pass, of which :func:`pass_cycles` is the sum, in their order."""
    made = _Operations(model, config, memory, n_tokens, n_sequences, position)
    weights = WeightStream(config, memory)
    begin = made.begin(inside=layers.start > 0)
    parts = _taken(begin, weights)
    # a layer before which as many weights have come takes as long
    known: dict[tuple[int, float], tuple[_Taken, float]] = {}
    counts: dict[tuple[int, float], int] = {}
    for index in layers:
        key = model.layers[index].window, weights.ahead
        if key not in known:
            known[key] = _taken(made.layer(key[0]), weights), weights.ahead
        weights.ahead = known[key][1]
        counts[key] = counts.get(key, 0) + 1
    parts += _added([(known[key][0], n) for key, n in counts.items()])
    if layers.stop < len(model.layers):
        parts += _taken(made.leave(), weights)
    elif n_logits:
        parts += _taken(made.head(n_logits), weights)
    return [replace(part, cycles=round(cycles)) for part, cycles in parts]


def _taken(operations: Sequence[_Operation], weights: WeightStream) -> _Taken:
    """Operations one after another."""
    return [(each.part, each.take(weights)) for each in operations]


def _added(layers: Sequence[tuple[_Taken, int]]) -> _Taken:
    """Layers, each of which comes several times, as one."""
    found: _Taken = []
    for same in zip(*(parts for parts, _ in layers), strict=True):
        cycles, n_bytes, n_macs = 0.0, 0, 0
        for (part, taken), (_, n) in zip(same, layers, strict=True):
            cycles, n_bytes = cycles + n * taken, n_bytes + n * part.n_bytes
            n_macs += n * part.n_macs
        found.append((replace(same[0][0], n_bytes=n_bytes, n_macs=n_macs), cycles))
    return found


def peak_macs(model: PackedModel, config: AcceleratorConfig) -> float:
    """Multiply-accumulates per cycle of the engine, with the digits of the layers' weights."""
    params = config.matmul
    step = params.step_tokens * params.step_rows * params.step_depth
    return step / _planes(params, model)


class _Operations:
    """Makes the operations of a pass."""

    def __init__(
        self,
        model: PackedModel,
        config: AcceleratorConfig,
        memory: MemoryTiming,
        n_tokens: int,
        n_sequences: int,
        position: int,
    ) -> None:
        self._model, self._config, self._memory = model, config, memory
        self._n_tokens, self._n_sequences, self._position = n_tokens, n_sequences, position
        self._timing = engine_timing(config.matmul)
        self._latency = memory.mean_read_latency + ISSUE_CYCLES
        self._written = _WRITE_END + memory.mean_write_latency
        self._layers: dict[int, list[_Operation]] = {}

    def begin(self, *, inside: bool) -> list[_Operation]:
        """From the doorbell to the first norm; ``inside`` a model, a residual stream is read."""
        model, config, n = self._model, self._config, self._n_tokens
        words, rope = model.hidden_size // LANES, config.head_dim // LANES
        tables = 2 if inside or model.vocabulary is not None else 1
        cycles = _RUN_START + 2 * self._memory.mean_read_latency
        cycles += tables * self._load(n * words, words)
        cycles += self._load(n * rope, rope) + self._load(words)
        n_bytes = 2 * LANES * (n * (tables * words + rope) + words)
        return [_plain("instructions and embedding", "load", cycles, n_bytes)]

    def layer(self, window: int) -> list[_Operation]:
        """A layer whose queries see the latest ``window`` positions; 0 is all."""
        if window not in self._layers:
            self._layers[window] = self._layer(window)
        return self._layers[window]

    def leave(self) -> list[_Operation]:
        """The residual stream on its way to the next range of layers."""
        cycles = logits_cycles(self._model.hidden_size // LANES, 0, self._n_tokens)
        return [_plain("residual stream", "vector", _OWN_START + cycles + self._written)]

    def head(self, n_logits: int) -> list[_Operation]:
        """The head, whose logits are stored while its next rows are computed."""
        model, matmul = self._model, self._config.matmul
        planes = _head_planes(matmul, model)
        product = self._product(
            "head", model.vocab_size, model.hidden_size, planes, n_tokens=n_logits
        )
        blocks = min(matmul.acc_blocks // 2, self._most_blocks(planes))
        last = logits_cycles(min(blocks, -(-model.vocab_size // LANES)), 0, n_logits)
        store = _plain("last logits", "vector", _VECTOR_START + last + self._written)
        norm = self._norm("final norm", model.hidden_size, NormSource.RESIDUAL, n_logits)
        return [norm, product, store]

    def _layer(self, window: int) -> list[_Operation]:
        model, config, n = self._model, self._config, self._n_tokens
        heads = config.head_dim * config.n_heads
        kv = built_head_dim(model.head_dim) * model.n_kv_heads
        hidden, inner = model.hidden_size, model.intermediate_size
        layer = model.layers[0]
        bits = _planes(config.matmul, model)
        gate = NormSource.GATE if model.gate is Gate.RELU2 else NormSource.SWIGLU
        centre = layer.bias is not None and layer.bias.centre is not None
        rope = rope_cycles(config, n, bias=model.biased, qk_norm=model.head_normed, centre=centre)
        add = _VECTOR_START + residual_cycles(hidden // LANES, n)
        return [
            self._norm("input norm", hidden, NormSource.RESIDUAL),
            self._product("q, k, v", heads + 2 * kv, hidden, bits),
            _plain("rotary embedding", "vector", _VECTOR_START + rope + self._written),
            self._attention(window),
            self._norm("attention norm", heads, NormSource.ATTENTION),
            self._product("output", hidden, heads, bits),
            _plain("residual of attention", "vector", add),
            self._norm("feed-forward input norm", hidden, NormSource.RESIDUAL),
            self._product("gate, up", 2 * inner, hidden, bits),
            self._norm("feed-forward norm", inner, gate),
            self._product("down", hidden, inner, bits),
            _plain("residual of feed-forward", "vector", add),
        ]

    def _load(self, n_words: int, factor: int = 1) -> float:
        """Cycles of the load unit, which multiplies addresses by ``factor`` bit by bit."""
        return n_words + factor.bit_length() + 5 + self._latency

    def _norm(
        self, name: str, size: int, source: NormSource, n_tokens: int | None = None
    ) -> _Operation:
        start = _OWN_START if source == NormSource.RESIDUAL else _VECTOR_START
        n = self._n_tokens if n_tokens is None else n_tokens
        return _plain(name, "vector", start + norm_cycles(size // LANES, n, source))

    def _attention(self, window: int) -> _Operation:
        """One sequence after another: keys and values come while pairs are computed."""
        config, position = self._config, self._position
        n = self._n_tokens // self._n_sequences
        timing, first = AttentionTiming(config), self._latency
        words = sum(fetch.beats for fetch in fetches(config, 0, position, n, window))
        (number,) = config.ports_of(Purpose.ATTENTION)
        beats, per_beat = self._memory.rate(number)
        port = config.ports[number]
        read = words * max(1.0, config.word_bytes / port.n_bytes)
        read *= per_beat / beats / self._memory.refreshed
        unit = timing.cycles(position, n, round(first), window)
        tail = first + timing.finish_cycles(n)
        pairs = sum(p + 1 - first_seen(p, window) for p in range(position, position + n))
        shared = number in config.ports_of(Purpose.WEIGHTS)
        n_sequences = self._n_sequences

        def take(weights: WeightStream) -> float:
            others = min(read, weights.missing_cycles) if shared else 0.0
            cycles = _UNIT_START + n_sequences * max(unit, tail + read + others)
            weights.flow(cycles - n_sequences * read if shared else cycles)
            return cycles

        part = PassPart(
            name="attention",
            unit="attention",
            cycles=0,
            n_bytes=n_sequences * words * config.word_bytes,
            n_macs=n_sequences * 2 * pairs * config.n_heads * config.head_dim,
            waits=tail + read > unit,
        )
        return _Operation(part, take)

    def _product(
        self, name: str, rows: int, depth: int, planes: int, n_tokens: int | None = None
    ) -> _Operation:
        """A matrix with the tokens, in commands that follow each other without a pause."""
        n = self._n_tokens if n_tokens is None else n_tokens
        timing, params = self._timing, self._timing.params
        unit = max(2, params.block_rows)
        blocks = -(-rows // (LANES * unit)) * unit
        tiles = -(-depth // params.tile_depth(planes))
        n_words = params.n_words(tiles, blocks, planes)
        engine = timing.cycles(tiles, blocks, planes, n)
        # the words of the last depth tile are read again for each group of tokens
        groups = -(-n // params.step_tokens)
        again = params.pass_words(min(blocks, self._most_blocks(planes)), planes)
        tail = timing.latency + (groups - 1) * max(again, timing.spacing)
        word_cycles = WeightStream(self._config, self._memory).word_cycles
        part = PassPart(
            name=name,
            unit="matmul",
            cycles=0,
            n_bytes=n_words * self._config.weight_word_bytes,
            n_macs=rows * depth * n,
            waits=n_words * word_cycles > engine,
        )
        return _Operation(
            part, lambda weights: _UNIT_START + weights.product(n_words, engine, tail)
        )

    def _most_blocks(self, planes: int) -> int:
        """Blocks of a command whose words of a pass fill half of the ring, if they are replayed."""
        params = self._config.matmul
        unit = max(2, params.block_rows)
        if not params.replays:
            return params.acc_blocks
        words = params.pass_words(unit, planes)
        return max(1, params.weight_buffer_words // 2 // words) * unit


def _plain(name: str, unit: str, cycles: float, n_bytes: int = 0) -> _Operation:
    """An operation that takes its time, in which weights come."""

    def take(weights: WeightStream) -> float:
        weights.flow(cycles)
        return cycles

    return _Operation(PassPart(name=name, unit=unit, cycles=0, n_bytes=n_bytes), take)


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
