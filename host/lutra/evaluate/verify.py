"""Comparison of a packed model with its checkpoint: both run side by side on a text.

Three runs of the same tokens: the source in floating point, the packed weights in floating point,
and the packed model in integers, as every device runs it. Part by part they are compared. A part
fed with what the source has before it shows what quantisation cost there, or a fault in reading or
packing it, apart from what the parts before it did; the integers beside the packed weights in
floating point show the integer path.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Integers
from lutra.evaluate.divergence import Divergence
from lutra.evaluate.losses import losses
from lutra.evaluate.peer import LlamaCpp
from lutra.formats.gguf import is_gguf
from lutra.models import load_model
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.quantize.reference import reference
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.model.decoder import Decoder as IntegerDecoder
from lutra_golden.model.decoder import Rows
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS

__all__ = [
    "LUTRA",
    "PartError",
    "Verification",
    "llama_cpp_logits",
    "run_source",
    "transformers_run",
    "verify",
]

Float = NDArray[np.float64]
Run = tuple[list[Float], Float]
"""The residual stream after each layer, ``[T, D]``, and the logits ``[T, V]``."""
Progress = Callable[[str, float], None]

# Error of a part that rounding alone does not reach: by the least bits of its weights; and of
# those that the source has as integers, of embedding and head.
_LIMITS = {1: 1.3, 2: 1.0, 3: 0.6, 4: 0.3, 6: 0.15}
_LIMIT = 0.1
_INTEGER_LIMIT = 0.1
_TOKENS = 64  # run at a time
LUTRA = "lutra in floating point"
"""Runner of the source where no other program is here that reads it."""


@dataclass(frozen=True, kw_only=True)
class PartError:
    """Relative errors (RMS of the difference over RMS) of the embedding, a layer, or the head.

    ``own`` is that of the packed weights in floating point, fed with what the source has before
    the part; of a layer, what it adds to the residual stream. ``limit`` is what that may be.
    ``total`` is that of the integers after the part against the source's, ``integer`` against the
    packed weights in floating point; the embedding has neither.
    """

    name: str
    own: float
    limit: float
    total: float | None = None
    integer: float | None = None

    @property
    def fault(self) -> str | None:
        """Description of the excess over the limit; None if there is none."""
        if self.integer is not None and not self.integer <= _INTEGER_LIMIT:
            return (
                f"{self.name}: the integers are {self.integer:.3f} off the packed weights, more "
                f"than {_INTEGER_LIMIT:g}"
            )
        if not self.own <= self.limit:
            return f"{self.name}: {self.own:.3f} off the checkpoint, more than {self.limit:g}"
        return None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of a comparison, part by part, and of the logits at the end.

    ``kl`` is the mean Kullback-Leibler divergence of the next token's distribution from the
    source's, in nats; ``logits`` the RMS of the logits' difference over their standard deviation;
    ``runner`` what ran the source, in llama.cpp its logits alone; ``losses`` what each rounding
    costs alone, in floating point.
    """

    parts: list[PartError]
    logits: float
    top1: float
    kl: float
    tokens: int
    runner: str
    losses: Mapping[str, Divergence]

    @property
    def first_over(self) -> str | None:
        """The first part over a limit, and how; None if there is none."""
        return next((part.fault for part in self.parts if part.fault), None)


def verify(
    model: PackedModel,
    source: Path,
    tokens: Sequence[int],
    *,
    limit: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a packed model with the checkpoint that it was made of, on ``tokens``.

    ``limit`` is the relative error that each part may have; without it, what its bits suggest.
    """
    if not 2 <= len(tokens) <= model.context:
        raise LutraError(
            f"the text must have 2 to {model.context} tokens, not {len(tokens)}: give another one"
        )
    report = progress or _silent
    decoder = load_model(source)
    _check_sizes(model, decoder, source)
    ids = np.array(tokens, np.int64)
    report("running the source", 0.0)
    found = transformers_run(source, ids)
    runner = "transformers" if found else LUTRA
    states, expected = found or run_source(decoder, ids)
    peer = None if found else llama_cpp_logits(source, tokens)
    runner, judged = (runner, expected) if peer is None else ("llama.cpp", peer)
    report("running the integers", 0.0)
    integers, actual = _run_integers(model, tokens)

    packed = reference(model)
    x, before = packed.embed(ids), decoder.embed(ids)
    own_limit = _LIMIT if limit is None else limit
    parts = [PartError(name="embedding", own=_relative(x, before), limit=own_limit)]
    for i, (after, whole) in enumerate(zip(states, integers, strict=True)):
        report("comparing", i / len(states))
        layer, window = packed.layers[i], packed.config.windows[i]
        x = packed.layer(layer, x, window)
        added = packed.layer(layer, before, window) - before
        parts.append(
            PartError(
                name=f"layer {i}",
                own=_relative(added, after - before),
                limit=_limit(layer, decoder.layers[i], model.value_bits)
                if limit is None
                else limit,
                total=_relative(whole, after),
                integer=_relative(whole, x),
            )
        )
        before = after
    parts.append(
        PartError(
            name="head",
            own=_relative(packed.logits(before), expected),
            limit=own_limit,
            total=_relative(actual, expected),
            integer=_relative(actual, packed.logits(x)),
        )
    )
    p, q = _log_softmax(judged), _log_softmax(actual)
    return Verification(
        parts=parts,
        logits=float(np.sqrt(((actual - judged) ** 2).mean()) / max(judged.std(), 1e-30)),
        top1=float((actual.argmax(axis=1) == judged.argmax(axis=1)).mean()),
        kl=float((np.exp(p) * (p - q)).sum(axis=1).mean()),
        tokens=len(tokens),
        runner=runner,
        losses=losses(model, [list(tokens)], decoder, report),
    )


def _check_sizes(model: PackedModel, decoder: Decoder, source: Path) -> None:
    c = decoder.config
    for name, ours, theirs in (
        ("hidden_size", model.hidden_size, c.hidden_size),
        ("intermediate_size", model.intermediate_size, c.intermediate_size),
        ("num_hidden_layers", len(model.layers), c.num_hidden_layers),
        ("num_attention_heads", model.n_heads, c.num_attention_heads),
        ("num_key_value_heads", model.n_kv_heads, c.num_key_value_heads),
        ("vocab_size", model.vocab_size, c.vocab_size),
    ):
        if ours != theirs:
            raise LutraError(
                f"the packed model has {name} {ours}, {source} has {theirs}: give the "
                "checkpoint it was made from"
            )


def _limit(packed: DecoderLayer, source: DecoderLayer, kv_bits: int) -> float:
    """By the least bits that a float matrix of the source, or the KV cache, was rounded to."""
    bits = [kv_bits]
    for name in LINEARS:
        weight = packed.linear(name)
        if isinstance(source.linear(name), Dense) and isinstance(weight, Integers):
            bits.append(weight.weights.bits)
    return _LIMITS.get(min(bits), _LIMIT)


def _silent(_stage: str, _share: float) -> None:
    pass


def _relative(actual: Float, expected: Float) -> float:
    return float(np.sqrt(((actual - expected) ** 2).mean() / max((expected**2).mean(), 1e-30)))


def _log_softmax(x: Float) -> Float:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def run_source(decoder: Decoder, tokens: NDArray[np.int64]) -> Run:
    """A model in floating point, layer by layer."""
    x, states = decoder.embed(tokens), list[Float]()
    for layer, window in zip(decoder.layers, decoder.config.windows, strict=True):
        x = decoder.layer(layer, x, window)
        states.append(x)
    return states, decoder.logits(x)


def llama_cpp_logits(source: Path, tokens: Sequence[int]) -> Float | None:
    """Logits of the source by llama.cpp; None where it is not installed, or does not read it."""
    if not is_gguf(source):
        return None
    try:
        peer = LlamaCpp(source, len(tokens))
    except LutraError:
        return None
    found = peer.logits(tokens).astype(np.float64)
    peer.close()
    return found


class _Tensor(Protocol):
    """The part of PyTorch's tensor interface that is used here."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def reshape(self, *shape: int) -> "_Tensor": ...
    def double(self) -> "_Tensor": ...
    def numpy(self) -> Float: ...


def transformers_run(source: Path, tokens: NDArray[np.int64]) -> Run | None:
    """The source by transformers in float32; None where that, or PyTorch, is not installed, or
    where it does not read this checkpoint (a GGUF file, a format that needs a GPU)."""
    if not source.is_dir():
        return None
    try:
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
        # the command has a bar of its own
        transformers.utils.logging.disable_progress_bar()
    except ImportError:
        return None
    states: list[Float] = []

    def keep(_module: object, _inputs: object, output: "_Tensor | tuple[_Tensor, ...]") -> None:
        # a layer of older versions gives a tuple
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden.reshape(-1, hidden.shape[-1]).double().numpy())

    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model: Any
            report: Mapping[str, Collection[object]]
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            # tensors that it has no place for, or has made up, are another model
            if any(report[each] for each in ("missing_keys", "mismatched_keys")):
                return None
            torch.nn.Module.float(model)
            for layer in model.model.layers:
                layer.register_forward_hook(keep)
            logits = model(torch.from_numpy(tokens[None])).logits[0].double().numpy()
    except (ImportError, OSError, ValueError, AttributeError, RuntimeError, KeyError):
        return None
    return states, logits


def _run_integers(model: PackedModel, tokens: Sequence[int]) -> Run:
    decoder = IntegerDecoder(model)
    caches = decoder.caches()
    parts: list[list[Float]] = []
    logits: list[Float] = []
    for first in range(0, len(tokens), _TOKENS):
        x = decoder.embed(tokens[first : first + _TOKENS])
        rows, states = [Rows(caches, slice(0, len(x)), first)], list[Float]()
        for i in range(len(model.layers)):
            x = decoder.layer(i, x, rows)
            states.append(np.ldexp(x.astype(np.float64), -model.residual_frac))
        values, scale = decoder.head(x)
        logits.append(values * (scale_to_float(scale) * model.head_scale)[:, None])
        parts.append(states)
    return [np.concatenate(each) for each in zip(*parts, strict=True)], np.concatenate(logits)
