"""Rotary position embedding's frequencies, scaled for long contexts as checkpoints ask for.

Sources: RoFormer (arXiv 2104.09864); position interpolation (arXiv 2306.15595), ``linear``; NTK
aware scaling, ``dynamic``; YaRN (arXiv 2309.00071), ``yarn``; "The Llama 3 Herd of Models" (arXiv
2407.21783), ``llama3``.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.formats.config_file import ConfigFile
from lutra_golden.errors import LutraError

__all__ = ["ROPE_TYPES", "Rope", "read_rope"]

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "factors")
"""Kinds of scaling, by the names that ``config.json`` gives them; ``factors`` is of GGUF files."""
Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Base of the frequencies and how they are scaled; field names are those of ``config.json``.

    ``original`` is the context that the model was trained with before its context was extended.
    ``dynamic`` depends on the length of the text, which is taken to be the whole context: a
    program serves every position with one table. ``factors`` divide the frequency of each pair of
    dimensions, and belong to the kind of that name.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ROPE_TYPES:
            raise ValueError(f"kind must be one of {', '.join(ROPE_TYPES)}, not {self.kind!r}")
        for name in ("theta", "factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.kind in ("dynamic", "yarn", "llama3") and self.original < 1:
            raise ValueError(f"original must be a number of positions, not {self.original}")
        if self.kind == "yarn" and self.theta == 1:
            raise ValueError("theta must not be 1 with the kind 'yarn'")
        if (self.kind == "factors") != bool(self.factors):
            raise ValueError("factors must be given with the kind 'factors', and with no other")
        for factor in self.factors:
            if not 0 < factor < math.inf:
                raise ValueError(f"factors must be positive, not {factor}")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor must be below high_freq_factor ({self.high_freq_factor}), "
                f"not {self.low_freq_factor}"
            )

    def frequencies(self, head_dim: int, context: int) -> Float:
        """Radians per position of each pair of dimensions, ``[head_dim / 2]``."""
        theta, pairs = self.theta, np.arange(0, head_dim, 2) / head_dim
        if self.kind == "dynamic" and context > self.original:
            stretch = self.factor * context / self.original - (self.factor - 1)
            theta *= stretch ** (head_dim / (head_dim - 2))
        plain = theta**-pairs
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "yarn":
            return self._yarn(plain, head_dim)
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "factors":
            if len(self.factors) != len(plain):
                raise ValueError(f"factors must be {len(plain)}, not {len(self.factors)}")
            return plain / np.array(self.factors)
        return plain

    def _yarn(self, plain: Float, head_dim: int) -> Float:
        """Fast pairs as they are, slow ones stretched, a ramp between."""

        def pair_of(turns: float) -> float:
            wave = self.original / (turns * 2 * math.pi)
            return head_dim * math.log(wave) / (2 * math.log(self.theta))

        low, high = pair_of(self.beta_fast), pair_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (np.arange(head_dim // 2) - low) / max(high - low, 0.001)
        stretched = np.clip(ramp, 0, 1)
        return plain / self.factor * stretched + plain * (1 - stretched)

    def _llama3(self, plain: Float) -> Float:
        """Wavelengths beyond the original context stretched, short ones as they are."""
        turns = self.original * plain / (2 * math.pi)
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        return plain * smooth + plain / self.factor * (1 - smooth)

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines, by which YaRN sharpens the attention."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0

    def table(self, n: int, head_dim: int, context: int) -> tuple[Float, Float]:
        """Cosines and sines of the first ``n`` positions, ``[n, head_dim / 2]`` each."""
        angles = np.outer(np.arange(n, dtype=np.float64), self.frequencies(head_dim, context))
        return np.cos(angles) * self.magnitude, np.sin(angles) * self.magnitude


def read_rope(file: ConfigFile) -> Rope:
    """Rotary embedding, from ``rope_scaling`` if there is one, else ``rope_parameters``.

    The base is there or beside them, in ``rope_theta``. That order is transformers'.
    """
    within = "rope_scaling" if file.get("rope_scaling") else "rope_parameters"
    said = file.get(within)
    fields = cast("dict[str, object]", said) if isinstance(said, dict) else {}
    nested = [name for name, value in fields.items() if isinstance(value, dict)]
    if nested or not (said is None or isinstance(said, dict)):
        where = f"has {', '.join(nested)}" if nested else f"is {said!r}"
        raise LutraError(
            f"{file.path}: {within} must be one object of numbers, but it {where}: use a model "
            "with the same rotary embedding in all layers"
        )
    inside = file.get("rope_theta", within) is not None
    theta = file.real("rope_theta", within if inside else None)
    named = file.get("rope_type", within) or file.get("type", within) or "default"
    if named not in ROPE_TYPES:
        raise LutraError(
            f"{file.path}: rope_type {named!r} is not supported; supported are "
            f"{', '.join(ROPE_TYPES[:-1])}: use a model with one of these"
        )
    partial = file.get("partial_rotary_factor", within) or file.get("partial_rotary_factor")
    file.require(
        "partial_rotary_factor", partial, None, 1, 1.0, advice="use a model that rotates all"
    )
    context = file.whole("max_position_embeddings")
    original = context
    # a dynamic scaling begins behind the context in the file, whatever else the file says
    if named != "dynamic":
        name = "original_max_position_embeddings"
        original = file.whole(name, within, default=file.whole(name, default=context))
    truncate = file.get("truncate", within)
    try:
        return Rope(
            theta=theta,
            kind=str(named),
            factor=file.real("factor", within, default=max(1.0, context / original)),
            original=original,
            low_freq_factor=file.real("low_freq_factor", within, default=1.0),
            high_freq_factor=file.real("high_freq_factor", within, default=4.0),
            beta_fast=file.real("beta_fast", within, default=32.0),
            beta_slow=file.real("beta_slow", within, default=1.0),
            attention_factor=_attention_factor(file, within),
            truncate=truncate is not False,
            factors=_factors(file, within),
        )
    except ValueError as error:
        raise LutraError(f"{file.path}: {within}: {error}") from None


def _factors(file: ConfigFile, within: str) -> tuple[float, ...]:
    """The divisors of a GGUF file's ``rope_freqs``."""
    values: list[float] = []
    listed = file.get("factors", within)
    for each in cast("list[object]", listed) if isinstance(listed, list) else []:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise LutraError(f"{file.path}: factors must be numbers, not {each!r}")
        values.append(float(each))
    return tuple(values)


def _attention_factor(file: ConfigFile, within: str) -> float | None:
    if file.get("attention_factor", within) is not None:
        return file.real("attention_factor", within)
    if file.get("mscale", within) and file.get("mscale_all_dim", within):
        log = 0.1 * math.log(max(file.real("factor", within, default=1.0), 1.0))
        one, all_dims = file.real("mscale", within), file.real("mscale_all_dim", within)
        return (one * log + 1) / (all_dims * log + 1)
    return None
