"""Striping: a stream of wide beats as lanes, each of which lies in memory in one piece."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lutra_golden.axi.width import Transfer
from lutra_golden.params import check_positive, check_power_of_two

__all__ = ["LANES_MAX", "StripeParams", "joined", "lanes_of", "striped"]

_Kind = TypeVar("_Kind", bound=np.generic)

LANES_MAX = 32
"""Lanes of the widest stripe: ports of the largest memories of FPGAs."""


@dataclass(frozen=True, kw_only=True)
class StripeParams:
    """A stripe of ``n_lanes`` lanes, each read by ``beat_bytes`` through a port of its own.

    The lanes' beats side by side, the first lane in the low bits, are a beat of the whole.
    """

    n_lanes: int
    beat_bytes: int

    def __post_init__(self) -> None:
        check_positive(self)
        check_power_of_two(self, "n_lanes", "beat_bytes")
        if self.n_lanes > LANES_MAX:
            raise ValueError(f"n_lanes must be at most {LANES_MAX}, not {self.n_lanes}")

    @property
    def whole_bytes(self) -> int:
        """Bytes of a beat of all lanes together."""
        return self.n_lanes * self.beat_bytes


def lanes_of(params: StripeParams, whole: Transfer) -> list[Transfer]:
    """Beats that each lane reads for the beats ``whole``: the lanes lie one behind the other."""
    stride = whole.count * params.beat_bytes
    return [Transfer(whole.addr + lane * stride, whole.count) for lane in range(params.n_lanes)]


def striped(params: StripeParams, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes of a stream, filled up to whole beats with zeros, in the order they have in memory."""
    filled = np.concatenate([data, np.zeros(-len(data) % params.whole_bytes, np.uint8)])
    beats = filled.reshape(-1, params.n_lanes, params.beat_bytes)  # [beats, lanes, bytes]
    return beats.transpose(1, 0, 2).reshape(-1)


def joined(params: StripeParams, memory: NDArray[_Kind]) -> NDArray[_Kind]:
    """Undo :func:`striped`: bytes of whole beats in memory, or anything that there is one of for
    each, in the order of the stream."""
    lanes = memory.reshape(params.n_lanes, -1, params.beat_bytes)
    return lanes.transpose(1, 0, 2).reshape(-1)
