"""Results of a generation: its pieces, its text and its statistics."""

from dataclasses import dataclass, field

__all__ = ["Completion", "Piece", "RunStats"]


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that it completes (empty inside a character)."""

    token: int
    text: str


@dataclass
class RunStats:
    """Statistics of one generation; seconds are device time, without checks and sampling.

    Of the ``prompt_tokens``, ``reused_tokens`` were on the device already, and the device has
    computed ``computed_tokens``: all others, unless the generation was interrupted before that.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    prefill_cycles: int | None = None
    decode_cycles: int | None = None
    decode_steps: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    bit_exact: bool | None = None
    saturated: bool = False
    tokens: list[int] = field(default_factory=list[int])

    @property
    def decode_cycles_per_token(self) -> float | None:
        """Mean cycles of a decode step; None without a clock or without decode steps."""
        if self.decode_cycles is None or not self.decode_steps:
            return None
        return self.decode_cycles / self.decode_steps

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Computed tokens of the prompt per second of the device here."""
        return self.computed_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Decode steps per second of the device here."""
        return self.decode_steps / self.decode_s if self.decode_steps and self.decode_s else None

    @property
    def simulated_cycles_per_s(self) -> float | None:
        """Simulated clock cycles per second of wall time."""
        cycles = (self.prefill_cycles or 0) + (self.decode_cycles or 0)
        seconds = self.prefill_s + self.decode_s
        return cycles / seconds if cycles and seconds else None


@dataclass(frozen=True)
class Completion:
    """A finished generation."""

    text: str
    tokens: list[int]
    stats: RunStats
