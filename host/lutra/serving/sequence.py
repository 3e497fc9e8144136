"""One sequence on a device, and also on the golden device if results are checked."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lutra.devices.base import Device, GreedyResult, Session, Step, StepResult
from lutra_golden.errors import LutraError

__all__ = ["Mismatch", "TokenSequence", "compare", "run_together"]


class Mismatch(LutraError):
    """The device's logits are not the golden model's."""


@dataclass
class TokenSequence:
    """The ``tokens`` whose keys and values a session of ``device`` holds.

    With ``golden``, a device that has the same model, every step runs there as well, in the
    session ``reference``, and a difference raises :class:`Mismatch`. A sequence whose step raised
    anything is to be closed. ``saturated_at`` is where the first call began in which a value left
    its range.
    """

    device: Device
    session: Session
    golden: Device | None = None
    reference: Session | None = None
    tokens: list[int] = field(default_factory=list[int])
    saturated_at: int | None = None

    @classmethod
    def open(cls, device: Device, golden: Device | None) -> "TokenSequence":
        """A new, empty sequence; LutraError if a device has no room for it."""
        reference = None if golden is None else golden.session()
        return cls(device, device.session(), golden, reference)

    def run(
        self, tokens: Sequence[int], logits_from: int = 0, best: int = 0
    ) -> tuple[StepResult, float]:
        """Go on with ``tokens``; logits of them from that one on, of the ``best`` so many alone if
        these are enough, and the device's seconds."""
        [result], seconds = run_together([(self, tokens, logits_from, best)])
        return result, seconds

    def greedy(self, token: int, n: int, ends: Collection[int]) -> tuple[GreedyResult, float]:
        """Go on with ``token`` and up to ``n`` greedy tokens; those, and the device's seconds.

        See :meth:`Device.greedy`. There are no logits that could be checked: ``golden`` is None.
        """
        assert self.golden is None, "every logit is to be checked"
        start = time.perf_counter()
        result = self.device.greedy(self.session, token, n, ends)
        seconds = time.perf_counter() - start
        self.took([token, *result.tokens[:-1]], result.saturated)
        return result, seconds

    def took(self, tokens: Sequence[int], saturated: bool) -> None:
        """Note the tokens that were processed by a call."""
        if saturated and self.saturated_at is None:
            self.saturated_at = len(self.tokens)
        self.tokens.extend(tokens)

    @property
    def saturated(self) -> bool:
        """True if a value of one of the tokens left its range."""
        return self.saturated_at is not None and self.saturated_at < len(self.tokens)

    def fork(self, n: int) -> "TokenSequence":
        """Another sequence that holds the first ``n`` tokens."""
        reference = None if self.reference is None else self.reference.fork(n)
        return replace(
            self, session=self.session.fork(n), reference=reference, tokens=self.tokens[:n]
        )

    def reserve(self, n: int, spare: int = 0) -> None:
        """Have memory for ``n`` tokens in all, and for ``spare`` steps of other sequences; NoRoom
        if there is none."""
        self.session.reserve(n, spare)
        if self.reference is not None:
            self.reference.reserve(n, spare)

    def truncate(self, n: int) -> None:
        """Drop everything after the first ``n`` tokens."""
        self.session.truncate(n)
        if self.reference is not None:
            self.reference.truncate(n)
        del self.tokens[n:]
        if not self.saturated:
            self.saturated_at = None

    def close(self) -> None:
        """Release the sessions."""
        self.session.close()
        if self.reference is not None:
            self.reference.close()


def run_together(
    parts: Sequence[tuple[TokenSequence, Sequence[int], int, int]],
) -> tuple[list[StepResult], float]:
    """Go on with several sequences of one device, which share passes: the ``tokens`` of each, from
    which of them on there are logits, and how many of the best are enough, 0 for all; their
    results, and the device's seconds. With a reference there are always all.

    See :class:`TokenSequence`. Should the device fail, every sequence is as it was.
    """
    first = parts[0][0]
    position = [len(sequence.tokens) for sequence, *_ in parts]
    start = time.perf_counter()
    results = first.device.run(
        [
            Step(
                session=sequence.session,
                tokens=tokens,
                logits_from=logits_from,
                best=best if first.golden is None else 0,
            )
            for sequence, tokens, logits_from, best in parts
        ]
    )
    seconds = time.perf_counter() - start
    for (sequence, tokens, *_), result in zip(parts, results, strict=True):
        sequence.took(tokens, result.saturated)
    if first.golden is not None:
        expected = first.golden.run(
            [
                Step(session=sequence.reference, tokens=tokens, logits_from=logits_from)
                for sequence, tokens, logits_from, _ in parts
                if sequence.reference is not None
            ]
        )
        for at, (_, _, logits_from, _), one, other in zip(
            position, parts, results, expected, strict=True
        ):
            compare(first.device.name, one, other, at + logits_from)
    return results, seconds


def compare(name: str, result: StepResult, expected: StepResult, position: int) -> None:
    """Raise :class:`Mismatch` unless both results, of the device ``name`` and of the golden one,
    are the same; their first logits are those at ``position``."""
    if (
        np.array_equal(result.logits, expected.logits)
        and np.array_equal(result.scale, expected.scale)
        and np.array_equal(result.argmax, expected.argmax)
        and result.saturated == expected.saturated
    ):
        return
    if result.logits.shape != expected.logits.shape:
        raise Mismatch(
            f"device {name} gives logits {list(result.logits.shape)}, the golden model "
            f"{list(expected.logits.shape)}: this is a bug in the device, please report it"
        )
    where = np.argwhere(result.logits != expected.logits)
    place = (
        f"first at position {position + where[0][0]}, logit {where[0][1]}"
        if len(where)
        else "in the scale, the arg-max or the saturation flag"
    )
    raise Mismatch(
        f"device {name} differs from the golden model in {len(where)} of {result.logits.size} "
        f"logits, {place}: this is a bug in the hardware or the model, please report it with the "
        "prompt and the seed"
    )
