"""Results of a generation: its pieces, its text and its statistics."""

from dataclasses import dataclass, field
from typing import Literal

from lutra.devices.base import HeadWork

__all__ = ["Completion", "FinishReason", "Logprob", "Logprobs", "Piece", "RunStats"]

FinishReason = Literal["stop", "length"]
"""Why a completion ended: ``stop`` at an end token or a stop string, ``length`` at ``max_tokens``
or where the context is full."""


@dataclass(frozen=True)
class Logprob:
    """The natural logarithm of a token's probability, and the token's text by itself."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Logprobs:
    """The logarithms of probabilities for one generated token: its ``own``, and the likeliest."""

    own: Logprob
    top: list[Logprob]


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that is clear with it.

    Text is empty inside a character, and where a stop string may have begun; more comes later.
    ``index`` counts the completions of a prompt from 0 on. ``logprobs`` are there if
    :class:`~lutra.text.sampling.SamplingParams` asks for them. The last piece of a completion has
    a ``finish_reason``, the others have None.
    """

    token: int
    text: str
    index: int = 0
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


@dataclass
class RunStats:
    """Statistics of one generation; seconds are device time, without checks and sampling.

    Of the ``prompt_tokens``, ``reused_tokens`` were on the device already, and the device has
    computed ``computed_tokens``: all others, unless the generation was interrupted before that.
    ``decode_steps`` are the tokens decoded behind the first one. Of ``drafted_tokens``, which were
    guessed and checked, ``accepted_tokens`` were right: they came without a pass of their own.
    ``predicted_s`` are ``prefill_s`` and ``decode_s`` together as the plan of several devices
    expected them, None of a device without a plan. ``head`` is what finding the best tokens in two
    stages took, where they alone were wanted and the device does that.
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
    predicted_s: float | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    head: HeadWork = field(default_factory=HeadWork)
    bit_exact: bool | None = None
    saturated: bool = False
    tokens: list[int] = field(default_factory=list[int])

    @property
    def decode_cycles_per_token(self) -> float | None:
        """Mean cycles of a decoded token; None without a clock or without decoded tokens."""
        if self.decode_cycles is None or not self.decode_steps:
            return None
        return self.decode_cycles / self.decode_steps

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Computed tokens of the prompt per second of the device here."""
        return self.computed_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Decoded tokens per second of the device here."""
        return self.decode_steps / self.decode_s if self.decode_steps and self.decode_s else None

    @property
    def prediction_error(self) -> float | None:
        """Share by which the prediction was too high; None if there was none."""
        seconds = self.prefill_s + self.decode_s
        return self.predicted_s / seconds - 1 if self.predicted_s is not None and seconds else None

    @property
    def simulated_cycles_per_s(self) -> float | None:
        """Simulated clock cycles per second of wall time."""
        cycles = (self.prefill_cycles or 0) + (self.decode_cycles or 0)
        seconds = self.prefill_s + self.decode_s
        return cycles / seconds if cycles and seconds else None


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    ``text`` ends before a stop string, ``tokens`` are all that were generated: an end token and
    those of the stop string, too. ``logprobs`` have one entry per token, None if they were not
    asked for. ``alternatives`` are the other ``n - 1`` completions of the prompt, of the seeds that
    follow.
    """

    text: str
    tokens: list[int]
    stats: RunStats
    finish_reason: FinishReason
    logprobs: list[Logprobs] | None = None
    alternatives: "list[Completion]" = field(default_factory=list["Completion"])
