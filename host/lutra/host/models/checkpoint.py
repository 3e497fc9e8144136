"""Reading ``config.json`` and tensors, checked: what the architectures have in common."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.host.errors import LutraError
from lutra.host.formats.safetensors import read_safetensors

__all__ = ["ConfigFile", "DecoderConfig", "Tensors"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The fields of ``config.json`` that matter, under their own names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    bos_token_id: int
    eos_token_id: int

    @property
    def q_size(self) -> int:
        """Width of all queries together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys together, and of all values."""
        return self.num_key_value_heads * self.head_dim


class ConfigFile:
    """A ``config.json`` and its checks; LutraError names the file, the field and the value."""

    def __init__(self, path: Path) -> None:
        try:
            content: object = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LutraError(
                f"{path} does not exist: give a model folder or one of the shipped names"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise LutraError(f"{path} is not JSON ({error}): copy the model again") from None
        self.path, self._raw = path, _object(content)

    def get(self, name: str, within: str | None = None) -> object:
        """A field, of the object ``within`` if given; None where it is missing."""
        return (_object(self._raw.get(within)) if within else self._raw).get(name)

    def require(self, name: str, value: object, expected: object, advice: str) -> None:
        """Refuse a value that is not supported."""
        if value != expected:
            raise LutraError(
                f"{self.path}: {name} {value!r} is not supported; supported is {expected!r}: "
                f"{advice}"
            )

    def decoder(self, *, multiples: Mapping[str, int]) -> DecoderConfig:
        """The sizes; those in ``multiples`` must be multiples of so much."""
        hidden_size, n_heads = self._whole("hidden_size"), self._whole("num_attention_heads")
        head_dim = self._whole("head_dim") if self.get("head_dim") is not None else None
        config = DecoderConfig(
            hidden_size=hidden_size,
            intermediate_size=self._whole("intermediate_size"),
            num_hidden_layers=self._whole("num_hidden_layers"),
            num_attention_heads=n_heads,
            num_key_value_heads=self._whole("num_key_value_heads"),
            head_dim=head_dim or hidden_size // n_heads,
            vocab_size=self._whole("vocab_size"),
            max_position_embeddings=self._whole("max_position_embeddings"),
            rms_norm_eps=self._real("rms_norm_eps"),
            rope_theta=self._real("rope_theta"),
            bos_token_id=self._token("bos_token_id"),
            eos_token_id=self._token("eos_token_id"),
        )
        for name, divisor in (
            *multiples.items(),
            ("num_attention_heads", config.num_key_value_heads),
        ):
            value = getattr(config, name)
            if value % divisor or not value:
                raise LutraError(
                    f"{self.path}: {name} must be a multiple of {divisor}, not {value}"
                )
        return config

    def _real(self, name: str) -> float:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LutraError(f"{self.path}: {name} must be a number, not {value!r}")
        if not 0 < value < math.inf:
            raise LutraError(f"{self.path}: {name} must be positive, not {value}")
        return float(value)

    def _whole(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LutraError(f"{self.path}: {name} must be a positive whole number, not {value!r}")
        return value

    def _token(self, name: str) -> int:
        value, size = self.get(name), self._whole("vocab_size")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise LutraError(
                f"{self.path}: {name} must be a token id in 0..{size - 1}, not {value!r}"
            )
        return value


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


class Tensors:
    """The tensors of a ``model.safetensors``, taken by name and shape."""

    def __init__(self, path: Path, architecture: str) -> None:
        self.path, self._architecture = path, architecture
        self._tensors = read_safetensors(path)

    def take(self, name: str, *shape: int) -> NDArray[np.generic]:
        """The tensor of this name, which must have this shape."""
        if name not in self._tensors:
            raise LutraError(
                f"{self.path} has no tensor {name}: it is not a whole {self._architecture} model"
            )
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise LutraError(f"{self.path}: {name} must be {list(shape)}, not {list(tensor.shape)}")
        return tensor

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        """The same as float32, finite."""
        values = self.take(name, *shape).astype(np.float32)
        if not np.isfinite(values).all():
            raise LutraError(
                f"{self.path}: {name} holds infinities or NaNs: export the model again"
            )
        return values
