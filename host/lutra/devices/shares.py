"""Shares of a step: devices that compute the rows of each layer together, and meet in between."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lutra.closing import Closing
from lutra.devices.base import Step, StepResult
from lutra_golden.arith.fixed import Int
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import LayerShare, exchange_widths

__all__ = ["Meeting", "PartyLeft", "Share", "SharingDevice", "first_best", "joined"]


class PartyLeft(LutraError):
    """Another party of a meeting has failed, and left it."""


class Meeting(Closing):
    """Memory in which ``parties`` put what they compute of a layer, each in a thread of its own.

    ``arrays`` int32 ``[rows, N]`` are those of :data:`~lutra_golden.model.shares.EXCHANGES`. Each
    is written, by everybody in columns of their own, only after all have read what it had before:
    they meet in between. A pass of M tokens takes the first M rows.
    """

    def __init__(self, model: PackedModel, rows: int, parties: int) -> None:
        self.rows, self.parties = rows, parties
        self.arrays: dict[str, NDArray[np.int32]] = {
            name: np.zeros((rows, width), np.int32)
            for name, width in exchange_widths(model).items()
        }
        self._barrier = threading.Barrier(parties)

    def wait(self) -> None:
        """Wait for all parties; PartyLeft if one has left."""
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise PartyLeft("another device of the share has failed") from None

    def leave(self) -> None:
        """Come no more, so that the others do not wait for ever."""
        self._barrier.abort()

    def close(self) -> None:
        """Release what the system has of it; nobody is there any more."""

    def whole(self, what: str, part: Int, columns: Sequence[range]) -> Int:
        """All columns ``[M, N]`` of one of the arrays, of which ``part`` has ``columns``."""
        array, first = self.arrays[what][: len(part)], 0
        for each in columns:
            array[:, each.start : each.stop] = part[:, first : first + len(each)]
            first += len(each)
        self.wait()
        return array.astype(np.int64)


@dataclass(frozen=True)
class Share:
    """The ``rows`` of each layer that are a device's, and the ``meeting`` with the others."""

    rows: LayerShare
    meeting: Meeting


@runtime_checkable
class SharingDevice(Protocol):
    """A device that computes shares: all such devices of one step have all keys and values."""

    meeting: type[Meeting]
    """The kind of meeting that its like hold among themselves, a subclass of :class:`Meeting`."""

    def run_share(self, steps: Sequence[Step], share: Share) -> list[StepResult]:
        """Run a share of steps, in passes of as many tokens as the meeting has rows; the others run
        the same steps of theirs.

        Logits are those of the share's rows of the head ``[n, rows]``, and the arg-max is among
        them, or -1 where there are none. PartyLeft if another device has left; otherwise as
        :meth:`~lutra.devices.base.Device.run`.
        """
        ...


def first_best(logits: NDArray[np.integer], rows: range) -> NDArray[np.int64]:
    """Numbers of the largest logits ``[n, rows]``, the first of equals; -1 where there are none."""
    if not rows:
        return np.full(len(logits), -1, np.int64)
    return logits.argmax(axis=1) + rows.start


def joined(results: Sequence[StepResult], shares: Sequence[LayerShare]) -> StepResult:
    """The result of a step, of which each device has its share."""
    some = [
        (result, share.vocabulary.start)
        for result, share in zip(results, shares, strict=True)
        if share.vocabulary
    ]
    first, every = some[0][0], np.arange(len(some[0][0].argmax))
    best = np.stack([each.logits[every, each.argmax - start] for each, start in some])
    # vocabularies ascend, so that of equals the first one is the whole's
    argmax = np.stack([each.argmax for each, _ in some])[best.argmax(axis=0), every]
    return StepResult(
        logits=np.concatenate([each.logits for each, _ in some], axis=1),
        scale=first.scale,
        argmax=argmax,
        saturated=any(each.saturated for each in results),
        residual=first.residual,
    )
