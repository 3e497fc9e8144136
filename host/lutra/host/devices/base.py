"""What a device is: something that holds a program and runs tiles of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lutra.host.errors import LutraError
from lutra.host.program import Program

__all__ = ["Device", "DeviceError", "TileResult", "check_tile"]


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
    """One accelerator, simulated or real."""

    name: str

    def load(self, program: Program) -> None:
        """Take a program; the KV cache starts empty."""
        ...

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        """Process ``tokens`` (at most ``m_tile``) from ``position``; logits from that index on."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last tile; empty where there are none."""
        ...

    def close(self) -> None:
        """Release what the device holds."""
        ...


def check_tile(program: Program, tokens: Sequence[int], position: int, logits_from: int) -> None:
    """Refuse a tile that does not fit the program's model or configuration."""
    n, tile = len(tokens), program.config.m_tile
    if not 1 <= n <= tile:
        raise LutraError(f"a tile has 1 to {tile} tokens, not {n}")
    for token in tokens:
        if not 0 <= token < program.vocab_size:
            raise LutraError(f"token id {token} is outside the vocabulary of {program.vocab_size}")
    if position < 0 or position + n > program.context:
        raise LutraError(
            f"positions {position}..{position + n - 1} exceed the context of {program.context}: "
            "shorten the prompt or -n"
        )
    if not 0 <= logits_from <= n:
        raise LutraError(f"logits_from must be in 0..{n}, not {logits_from}")
