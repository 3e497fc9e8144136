"""Devices of a cluster as they differ: seconds of passes, and memory for keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lutra.serving.batch import MOST_AT_ONCE
from lutra.serving.plans.facts import pass_s
from lutra.serving.plans.profile import DeviceProfile
from lutra_golden.errors import LutraError

__all__ = ["Kv", "Machine"]


@dataclass(frozen=True, kw_only=True)
class Kv:
    """Keys and values of a model: ``token_bytes`` of a position, of all layers, as they are sent
    and as they are kept; ``context`` is the longest text."""

    token_bytes: int
    context: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of device with a model.

    Parameters
    ----------
    name : its name in tables.
    profile : seconds of its passes.
    kv : keys and values of the model.
    kv_bytes : memory for them.
    whole_context : True where a request reserves a whole context, as on an accelerator, not the
        tokens that it will have, as with pages.
    most : requests on the device at a time.
    """

    name: str
    profile: DeviceProfile
    kv: Kv
    kv_bytes: float
    whole_context: bool
    most: int = MOST_AT_ONCE

    def __post_init__(self) -> None:
        least = self.needs(self.kv.context)
        if self.kv_bytes < least:
            raise LutraError(
                f"{self.name} has no memory for a text of {self.kv.context} tokens beside the "
                f"model: {max(self.kv_bytes, 0) / 1e6:.0f} MB are left, {least / 1e6:.0f} needed"
            )

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.profile.n_layers

    def needs(self, tokens: int) -> int:
        """Bytes that a request with so many tokens in all reserves."""
        return self.kv.token_bytes * (self.kv.context if self.whole_context else tokens)

    def pass_s(self, sizes: Sequence[int], positions: Sequence[float]) -> float:
        """Seconds of a pass: tokens of each request, and their positions."""
        return pass_s(self.profile, sizes, positions, range(self.n_layers))

    def prompt_s(self, tokens: int) -> float:
        """Seconds of a prompt that has the device alone."""
        return self.pass_s([tokens], [0])

    @cached_property
    def token_s(self) -> float:
        """Seconds of a token of a prompt, of an average one."""
        return self.prompt_s(512) / 512

    @cached_property
    def answer_s(self) -> NDArray[np.float64]:
        """Seconds [most + 1] of a pass with a token of each of 0, 1, 2, ... requests, at a quarter
        of the context."""
        position = self.kv.context / 4
        each = [self.pass_s([1] * n, [position] * n) for n in range(1, self.most + 1)]
        return np.array([0.0, *each])
