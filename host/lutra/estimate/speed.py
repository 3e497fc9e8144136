"""Tokens per second, time to the first token and memory of a model on a board: *modelled*."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lutra.compile.configure import configure
from lutra.compile.fit import check_fit
from lutra.estimate.points import ModelError, model_error
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BOARD_PROFILES, BoardProfile, board_timing
from lutra_golden.timing.decode import PassPart, pass_parts, peak_macs
from lutra_golden.timing.memory import NANO_MEMORY
from lutra_golden.timing.weights import WeightStream

__all__ = ["TARGETS", "Estimate", "Memory", "Phase", "estimate"]

TARGETS = tuple(dict.fromkeys((*BOARD_PROFILES, *CONFIGS)))
"""Names that a speed can be estimated of: boards, and configurations that belong to none."""

_MIB = 1 << 20
_ENGINE, _WEIGHTS = "products of the matmul engine", "weights on their memory port"
_LIMITS = {
    "load": "the load unit",
    "vector": "the vector unit",
    "attention": "the attention unit",
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Passes of prefill or decode: operations added up over all passes, at ``clock_hz``.

    ``tokens`` come of them. ``waits`` of a part is true if its weights come late in every pass.
    """

    parts: Sequence[PassPart]
    tokens: int
    clock_hz: int

    @property
    def cycles(self) -> int:
        """Clock cycles of all passes."""
        return sum(part.cycles for part in self.parts)

    @property
    def n_bytes(self) -> int:
        """Bytes of weights, keys and values that are read."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """Time of all passes."""
        return self.cycles / self.clock_hz

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def limit(self) -> tuple[str, float]:
        """The part that takes most of the cycles, and its share of them."""
        shares: dict[str, int] = {}
        for part in self.parts:
            name = _LIMITS.get(part.unit, _WEIGHTS if part.waits else _ENGINE)
            shares[name] = shares.get(name, 0) + part.cycles
        name = max(shares, key=lambda each: shares[each])
        return name, shares[name] / self.cycles


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a model needs: matrices, the embedding and the rotary table; keys and values of
    all sequences. Without ``available`` there is no limit."""

    weights: int
    kv: int
    available: int | None

    @property
    def missing(self) -> int:
        """Bytes that there are too few."""
        return 0 if self.available is None else max(0, self.weights + self.kv - self.available)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Speed of a model on a board, or on a configuration at the clock that it is built for.

    ``prefill`` is of one prompt, ``decode`` of a token of each of ``sequences``, each of which has
    ``context`` positions before it. ``peak_macs_per_s`` are multiply-accumulates of the engine with
    the digits of the layers' weights, ``bytes_per_s`` what the port of weights moves.
    """

    target: str
    model: str
    format: str
    config: str
    prompt: int
    context: int
    sequences: int
    prefill: Phase
    decode: Phase
    memory: Memory
    peak_macs_per_s: float
    bytes_per_s: float
    error: ModelError = field(default_factory=model_error)
    kind: str = "modelled"

    @property
    def ttft_s(self) -> float:
        """Seconds until the last sequence has its first token, prompts one after another."""
        return self.prefill.seconds * self.sequences


def estimate(
    model: PackedModel,
    target: str,
    *,
    prompt: int = 128,
    context: int | None = None,
    sequences: int = 1,
    engine: str | None = None,
) -> Estimate:
    """Speed of ``model``, or of its outline, on a board or a configuration of :data:`TARGETS`.

    A token is decoded behind ``context`` positions, by default behind the prompt. LutraError if the
    model has fewer positions, the configuration cannot hold it, or the board has too little memory;
    it then names what fits. See :func:`~lutra_golden.timing.decode.pass_cycles` for what is left
    out.
    """
    at = prompt if context is None else context
    needed = max(prompt, at + 1)
    if needed > model.context:
        raise LutraError(
            f"a prompt of {prompt} tokens and a token behind {at} positions need {needed} "
            f"positions, {model.name} has {model.context}: give -p {min(prompt, model.context)} "
            f"-c {min(at, model.context - 1)}"
        )
    board = BOARD_PROFILES.get(target)
    model = replace(model, context=needed)
    config = _configured(model, target, engine)
    memory = _memory(model, config, sequences, board)
    if memory.missing:
        raise LutraError(_refusal(model, target, memory, sequences, at, engine))
    clock_hz = config.clock_hz if board is None else board.clock_hz
    timing = NANO_MEMORY if board is None else board_timing(board, config)
    layers = range(len(model.layers))

    def passes(position: int, tokens: int, logits: int, sequences: int = 1) -> list[PassPart]:
        return pass_parts(
            model, config, position, tokens, logits, layers=layers, memory=timing,
            n_sequences=sequences,
        )  # fmt: skip

    most = config.pass_tokens
    prefill = [
        passes(first, min(most, prompt - first), int(first + most >= prompt))
        for first in range(0, prompt, most)
    ]
    decode = [
        passes(at, n, n, n)
        for n in (min(most, sequences - first) for first in range(0, sequences, most))
    ]
    return Estimate(
        target=target,
        model=model.name,
        format=model.format,
        config=config.name,
        prompt=prompt,
        context=at,
        sequences=sequences,
        prefill=Phase(parts=_added(prefill), tokens=prompt, clock_hz=clock_hz),
        decode=Phase(parts=_added(decode), tokens=sequences, clock_hz=clock_hz),
        memory=memory,
        peak_macs_per_s=peak_macs(model, config) * clock_hz,
        bytes_per_s=clock_hz * config.weight_word_bytes / WeightStream(config, timing).word_cycles,
    )


def _configured(model: PackedModel, target: str, engine: str | None) -> AcceleratorConfig:
    """The configuration that a board, or a name, gets for the model; LutraError if it is none."""
    board = BOARD_PROFILES.get(target)
    if board is None and target not in CONFIGS:
        raise LutraError(f"--config must be one of {', '.join(TARGETS)}, not {target!r}")
    single = replace(model, layers=[model.layers[0]])
    config = configure(single, target if board is None else board.config, engine)
    check_fit(single, config)
    return config


def _memory(
    model: PackedModel, config: AcceleratorConfig, sequences: int, board: BoardProfile | None
) -> Memory:
    layers = range(len(model.layers))
    parts = pass_parts(model, config, 0, 1, 1, layers=layers)
    n_bytes = sum(part.n_bytes for part in parts if part.unit == "matmul")
    # rows of the embedding are int16, or two halves of what they are in the residual stream
    n_bytes += model.vocab_size * model.hidden_size * (2 if model.vocabulary is None else 4)
    n_bytes += 2 * model.context * config.head_dim
    return Memory(
        weights=n_bytes,
        kv=len(model.layers) * config.kv_layer_bytes * sequences,
        available=None if board is None else board.buffer_bytes,
    )


def _refusal(
    model: PackedModel, target: str, memory: Memory, sequences: int, at: int, engine: str | None
) -> str:
    """Why a board has too little memory, and the nearest that has enough."""
    assert memory.available is not None
    needs = (
        f"{model.name} in {model.format} needs {_mib(memory.weights)} for its weights and "
        f"{_mib(memory.kv)} for keys and values ({sequences} x {at + 1} positions), board "
        f"{target} has {_mib(memory.available)}"
    )
    board = BOARD_PROFILES[target]
    left = memory.available - memory.weights
    fewer = left * sequences // memory.kv
    if fewer > 0:
        return f"{needs}: give -b {fewer} or less"
    # a cache is built for a power of two of positions
    n = 1 << model.context.bit_length() >> 1
    while left > 0 and n > 1:
        smaller = replace(model, context=n)
        config = _configured(smaller, target, engine)
        if not _memory(smaller, config, 1, board).missing:
            return f"{needs}: give -c {n - 1} -p {n - 1} -b 1 or less"
        n //= 2
    for other in sorted(BOARD_PROFILES.values(), key=lambda each: each.buffer_bytes):
        config = _configured(model, other.name, engine)
        if not _memory(model, config, sequences, other).missing:
            return f"{needs}: give --config {other.name}, which has {_mib(other.buffer_bytes)}"
    return f"{needs}: give fewer bits (--format) or a smaller model, as no board holds this one"


def _added(passes: Sequence[Sequence[PassPart]]) -> list[PassPart]:
    """Passes as one: the cycles and bytes of each operation added up, in order."""
    found: dict[str, PassPart] = {}
    for part in (part for parts in passes for part in parts):
        before = found.get(part.name)
        found[part.name] = (
            part
            if before is None
            else replace(
                part,
                cycles=before.cycles + part.cycles,
                n_bytes=before.n_bytes + part.n_bytes,
                n_macs=before.n_macs + part.n_macs,
                waits=before.waits and part.waits,
            )
        )
    return list(found.values())


def _mib(n_bytes: int) -> str:
    return f"{-(-n_bytes // _MIB):,} MiB"
