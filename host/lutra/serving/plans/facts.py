"""Seconds that passes took, beside those that a profile predicts."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from lutra.serving.plans.layout import Stage
from lutra.serving.plans.profile import DeviceProfile

__all__ = ["Fact", "Facts", "pass_s"]

_KEPT = 4096


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Passes of a ``stage``: ``sizes`` tokens of each session, from ``positions`` on, took
    ``seconds``, ``beside`` other devices that were at work."""

    stage: Stage
    sizes: tuple[int, ...]
    positions: tuple[int, ...]
    seconds: float
    beside: tuple[int, ...] = ()


def pass_s(
    profile: DeviceProfile,
    sizes: Sequence[int],
    positions: Sequence[float],
    layers: range,
    rows: float = 1.0,
    heads: float | None = None,
) -> float:
    """Seconds of ``sizes`` tokens of some sessions, each from its position on, through ``layers``,
    of which so much of the ``rows`` is computed, and of the ``heads``, as much if left out.

    Several prompts count as one that attends to as many positions in all. More tokens than share a
    pass are cut into several.
    """
    whole = _whole_s(profile, sizes, positions, layers)
    return whole * profile.of_rows(sum(sizes), sum(positions) / len(positions), rows, heads)


def _whole_s(
    profile: DeviceProfile, sizes: Sequence[int], positions: Sequence[float], layers: range
) -> float:
    n, n_layers = sum(sizes), profile.n_layers
    if max(sizes) == 1:
        position = sum(positions) / n
        passes, rest = divmod(n, profile.pass_tokens)
        seconds = passes * _decoding_s(profile, profile.pass_tokens, position, layers)
        return seconds + (_decoding_s(profile, rest, position, layers) if rest else 0.0)
    attended = sum(m * p + m * (m + 1) / 2 for m, p in zip(sizes, positions, strict=True))
    total, done = 0.0, 0
    while done < n:
        size = min(profile.pass_tokens, n - done)
        # of all passes those that come later attend to more
        position = (attended - n * (n + 1) / 2) / n + done
        layer_s = profile.layer.at(size, position)
        total += len(layers) * layer_s
        if layers.stop == n_layers:
            total += max(profile.chunk.at(size, position) - n_layers * layer_s, 0.0)
        done += size
    return total


def _decoding_s(profile: DeviceProfile, sessions: int, position: float, layers: range) -> float:
    """Seconds of one pass with a token of each of some sessions."""
    if layers.stop == profile.n_layers:
        return profile.tail_s(sessions, position, len(layers))
    return len(layers) * profile.layer.at(sessions, position)


class Facts:
    """The latest facts; those of several threads may come at once."""

    def __init__(self) -> None:
        self._kept: deque[Fact] = deque(maxlen=_KEPT)

    def note(self, fact: Fact) -> None:
        """Keep a fact."""
        self._kept.append(fact)

    def __len__(self) -> int:
        return len(self._kept)

    def take(self) -> list[Fact]:
        """All, the earliest first; they are not kept any longer."""
        taken = list[Fact]()
        while self._kept:
            taken.append(self._kept.popleft())
        return taken
