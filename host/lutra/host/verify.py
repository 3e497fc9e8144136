"""Whether a packed model is the model that it was made of: both side by side on a text.

Three runs of the same tokens: the source in floating point, the packed weights in floating point,
and the packed model in integers, as every device runs it. Layer by layer their residual streams
are compared. What separates the first two is quantisation, or a fault in reading or packing; what
separates the last two is the integer path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.host.compiler import compile_model
from lutra.host.configure import configure
from lutra.host.devices.golden import GoldenDevice
from lutra.host.errors import LutraError
from lutra.host.models import load_model
from lutra.host.models.decoder import Decoder
from lutra.host.packing import PackedModel, reference

__all__ = ["LayerError", "Verification", "run_source", "transformers_run", "verify"]

Float = NDArray[np.float64]
Run = tuple[list[Float], Float]
"""The residual stream after each layer, ``[T, D]``, and the logits ``[T, V]``."""
Progress = Callable[[str, float], None]

LIMITS = {1: 1.5, 2: 1.0, 3: 0.6}
"""Relative error of a layer that quantisation alone does not exceed, by bits of a weight."""
_LIMIT = 0.3  # of more bits, and of ternary weights
_INTEGER_LIMIT = 0.1  # of the integer path against the same weights in floating point


@dataclass(frozen=True)
class LayerError:
    """Relative errors (RMS of the difference over RMS) of the residual stream after a layer:
    of the integers against the source, and against the packed weights in floating point."""

    source: float
    integer: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a comparison gave.

    ``kl`` is the mean Kullback-Leibler divergence of the next token's distribution from the
    source's, in nats; ``logits`` the RMS of the logits' difference over their standard deviation.
    ``first_over`` says which layer is the first beyond a limit, and of which comparison.
    """

    layers: list[LayerError]
    limit: float
    logits: float
    top1: float
    kl: float
    tokens: int
    runner: str

    @property
    def first_over(self) -> str | None:
        """The first layer over a limit; None if there is none."""
        for i, each in enumerate(self.layers):
            if not each.integer <= _INTEGER_LIMIT:
                return f"layer {i}: the integer path is {each.integer:.3f} off the packed weights"
            if not each.source <= self.limit:
                return f"layer {i}: {each.source:.3f} off the source, more than {self.limit:g}"
        return None


def verify(
    model: PackedModel,
    source: Path,
    tokens: Sequence[int],
    *,
    limit: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a packed model with the checkpoint that it was made of, on ``tokens``."""
    if not 2 <= len(tokens) <= model.context:
        raise LutraError(
            f"the text must have 2 to {model.context} tokens, not {len(tokens)}: give another one"
        )
    report = progress or _silent
    decoder = load_model(source)
    c = decoder.config
    for name, ours, theirs in (
        ("hidden_size", model.hidden_size, c.hidden_size),
        ("number of layers", len(model.layers), c.num_hidden_layers),
        ("vocabulary", model.vocab_size, c.vocab_size),
    ):
        if ours != theirs:
            raise LutraError(
                f"the packed model has a {name} of {ours}, {source} of {theirs}: give the "
                "checkpoint that it was made of"
            )
    ids = np.array(tokens, np.int64)
    report("running the source", 0.0)
    found = transformers_run(source, ids)
    runner = "transformers" if found else "lutra in floating point"
    expected, logits = found or run_source(decoder, ids)
    report("running the packed weights in floating point", 0.33)
    rounded, _ = run_source(reference(model), ids)
    report("running the integers", 0.67)
    integers, actual = _run_integers(model, tokens)
    if limit is None:
        limit = _LIMIT if model.ternary else LIMITS.get(model.w_bits, _LIMIT)
    p, q = _log_softmax(logits), _log_softmax(actual)
    return Verification(
        layers=[
            LayerError(_relative(x, wanted), _relative(x, same))
            for x, wanted, same in zip(integers, expected, rounded, strict=True)
        ],
        limit=limit,
        logits=float(np.sqrt(((actual - logits) ** 2).mean()) / logits.std()),
        top1=float((actual.argmax(axis=1) == logits.argmax(axis=1)).mean()),
        kl=float((np.exp(p) * (p - q)).sum(axis=1).mean()),
        tokens=len(tokens),
        runner=runner,
    )


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


def transformers_run(source: Path, tokens: NDArray[np.int64]) -> Run | None:
    """The source by transformers in float32; None where that, or PyTorch, is not installed, or
    where it does not read this checkpoint (a GGUF file, a format that needs a GPU)."""
    if not source.is_dir():
        return None
    try:
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
    except ImportError:
        return None
    states: list[Float] = []

    def keep(_module: object, _inputs: object, output: Any) -> None:
        # a layer of older versions gives a tuple
        hidden: Any = output[0] if type(output) is tuple else output
        states.append(hidden.reshape(-1, hidden.shape[-1]).double().numpy())

    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        torch.nn.Module.float(model)
        for layer in model.model.layers:
            layer.register_forward_hook(keep)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = model(torch.from_numpy(tokens[None])).logits[0].double().numpy()
    except (ImportError, OSError, ValueError, AttributeError, RuntimeError, KeyError):
        return None
    return states, logits


def _run_integers(model: PackedModel, tokens: Sequence[int]) -> Run:
    program = compile_model(model, configure(model, "nano-wide"))
    device = GoldenDevice()
    device.load(program)
    interpreter = device.interpreter
    parts: list[list[Float]] = []

    def keep() -> None:
        n = interpreter.registers["N_TOKENS"]
        stream = interpreter.residual[:n, : model.hidden_size]
        parts[-1].append(np.ldexp(stream.astype(np.float64), -model.residual_frac))

    interpreter.on_residual = keep
    tile, logits = program.config.m_tile, list[Float]()
    for first in range(0, len(tokens), tile):
        parts.append([])
        result = device.run_tile(tokens[first : first + tile], first, 0)
        logits.append(result.logits * result.scale[:, None])
    # every layer adds to the residual stream twice
    states = [np.concatenate(each) for each in zip(*parts, strict=True)][1::2]
    return states, np.concatenate(logits)
