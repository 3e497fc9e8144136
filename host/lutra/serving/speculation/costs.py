"""Seconds that a pass takes by its number of tokens, learnt from passes."""

from dataclasses import dataclass

__all__ = ["PassCosts"]

_LASTS = 512  # passes for which a size is remembered that does not come again
_ONCE_LASTS = 64  # the same for a size that came once only, which something may have disturbed
_PAYS = 0.95  # of the time of a token, below which it takes less
_SMOOTHING = 0.25  # share of the latest pass in what is expected of the next one
_SPIKE = 2.0  # times the expected seconds; what takes longer was disturbed


@dataclass
class _Size:
    seconds: float
    last: int  # number of the pass that had it last
    n_passes: int = 1


class PassCosts:
    """Seconds that passes of so many tokens take.

    Sizes that did not come are estimated from those that did: in between on a straight line, beyond
    on the line through the first and the last of them. A size that has not come for a long time is
    forgotten, since contexts grow and machines get other work.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._passes = 0

    def took(self, n_tokens: int, seconds: float) -> None:
        """Note a pass."""
        self._passes += 1
        known = self._sizes.get(n_tokens)
        if known is None:
            self._sizes[n_tokens] = _Size(seconds, self._passes)
            return
        if known.n_passes == 1:
            known.seconds = min(known.seconds, seconds)  # what is done first takes longer
        else:
            latest = min(seconds, _SPIKE * known.seconds)
            known.seconds += _SMOOTHING * (latest - known.seconds)
        known.n_passes += 1
        known.last = self._passes

    def age(self, n_tokens: int) -> int | None:
        """Passes since one of this size came, None if fewer than two did."""
        known = self._sizes.get(n_tokens)
        return None if known is None or known.n_passes < 2 else self._passes - known.last

    def reach(self, base: int) -> int:
        """Tokens beyond ``base`` of the largest pass that is remembered."""
        return max((n - base for n, _ in self._remembered()), default=0)

    def shares(self, base: int) -> bool:
        """True if tokens of some larger pass took less than those of one of ``base``."""
        most = _PAYS * self._sizes[base].seconds / base
        return any(seconds < most * n for n, seconds in self._remembered() if n > base)

    def of(self, base: int, more: int) -> list[float]:
        """Expected seconds of passes of ``base`` tokens, which is known, up to ``base + more``."""
        first = base, self._sizes[base].seconds
        known = [first, *((n, s) for n, s in self._remembered() if n > base)]
        last, seconds = known[-1]
        if last > base:
            slope = max((seconds - first[1]) / (last - base), 0.0)
        else:
            slope = seconds / base
        found: list[float] = []
        at = 0
        for n in range(base, base + more + 1):
            while at + 1 < len(known) and known[at + 1][0] <= n:
                at += 1
            low, least = known[at]
            if at + 1 < len(known):
                high, most = known[at + 1]
                found.append(least + (most - least) * (n - low) / (high - low))
            else:
                found.append(least + slope * (n - low))
        return found

    def _remembered(self) -> list[tuple[int, float]]:
        """Sizes and their seconds, in order."""
        return [
            (n, size.seconds)
            for n, size in sorted(self._sizes.items())
            if self._passes - size.last <= (_ONCE_LASTS if size.n_passes == 1 else _LASTS)
        ]
