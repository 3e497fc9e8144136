"""Greedy tokens that a stream lets its device make at a time: few where they are slow."""

__all__ = ["RUN_S", "Pace"]

RUN_S = 0.1
"""Seconds that text may wait for while a device makes greedy tokens."""


class Pace:
    """Tokens of the next call: 1, and twice as many while they are expected within :data:`RUN_S`.

    ``most`` is the bound of the device. After a call that took longer there are half as many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.n_tokens = 1
        """Tokens of the next call."""

    def took(self, n_tokens: int, seconds: float) -> None:
        """Note a call that made ``n_tokens``."""
        if seconds > RUN_S:
            self.n_tokens = max(self.n_tokens // 2, 1)
        elif 2 * self.n_tokens * seconds <= RUN_S * n_tokens:
            self.n_tokens = min(2 * self.n_tokens, self._most)
