"""What a device is: something that holds a model and runs tiles of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lutra.compile.program import Program
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = [
    "Device",
    "DeviceError",
    "Limits",
    "ModelDevice",
    "ProgramDevice",
    "TileResult",
    "check_tile",
]


class DeviceError(LutraError):
    """The device itself failed: a hang, a bus error, a fault."""


@dataclass(frozen=True)
class TileResult:
    """Logits of the tokens that asked for them.

    ``logits`` is ``[n, vocab]`` int64, each worth ``scale`` ``[n]``; ``argmax`` is ``[n]``;
    ``cycles`` is None where the device has no clock; ``saturated`` tells that the residual stream
    reached the end of its range somewhere.
    """

    logits: NDArray[np.int64]
    scale: NDArray[np.float64]
    argmax: NDArray[np.int64]
    cycles: int | None
    saturated: bool = False


class Device(Protocol):
    """Something that holds a model and runs tiles of tokens of it."""

    name: str

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        """Process ``tokens`` from ``position``; logits from that index of them on."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last tile; empty where there are none."""
        ...

    def close(self) -> None:
        """Release what the device holds."""
        ...


class ProgramDevice(Device, Protocol):
    """An accelerator, simulated or real: a tile is at most its configuration's ``pass_tokens``."""

    def load(self, program: Program) -> None:
        """Take a program; the KV cache starts empty."""
        ...


@runtime_checkable
class ModelDevice(Device, Protocol):
    """A processor that runs a packed model as it is stored, without a program."""

    @property
    def tile(self) -> int:
        """Tokens of a tile at most."""
        ...

    def load_model(self, model: PackedModel) -> None:
        """Take a model; the KV cache starts empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds a tile: its tokens, their ids, their positions."""

    tile: int
    vocab_size: int
    context: int

    @classmethod
    def of(cls, program: Program) -> "Limits":
        """Those of a program on an accelerator."""
        return cls(
            tile=program.config.pass_tokens, vocab_size=program.vocab_size, context=program.context
        )


def check_tile(limits: Limits, tokens: Sequence[int], position: int, logits_from: int) -> None:
    """Refuse a tile that does not fit the model or the device."""
    n = len(tokens)
    if not 1 <= n <= limits.tile:
        raise LutraError(f"a tile has 1 to {limits.tile} tokens, not {n}")
    for token in tokens:
        if not 0 <= token < limits.vocab_size:
            raise LutraError(f"token id {token} is outside the vocabulary of {limits.vocab_size}")
    if position < 0 or position + n > limits.context:
        raise LutraError(
            f"positions {position}..{position + n - 1} exceed the context of {limits.context}: "
            "shorten the prompt or -n"
        )
    if not 0 <= logits_from <= n:
        raise LutraError(f"logits_from must be in 0..{n}, not {logits_from}")
