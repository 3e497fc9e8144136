"""Drafts of a small model of the same vocabulary, which runs beside the large one.

Tokens of the small model are drawn by a copy of the text's own sampler, in its present state: of
like logits the same random numbers draw like tokens, so that drafts of drawn tokens are right as
often as the models agree.
"""

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from lutra.serving.loaded import LoadedModel
from lutra.serving.prefixes import common_prefix
from lutra.serving.sequence import TokenSequence
from lutra.serving.speculation.record import Record
from lutra.text.sampling import Sampler
from lutra_golden.errors import LutraError

__all__ = ["ModelDrafter", "ModelDrafts"]

_EXPECTED = 0.7  # share of right drafts before any were made
_SMOOTHING = 0.2  # share of the latest drafts in the expected time of the next one
_IMPOSSIBLE = -(1 << 40)  # a logit of tokens that the small model has not


class ModelDrafter:
    """Drafts of the model that is ``loaded``, for one with ``vocab_size`` tokens.

    ``clock`` gives the seconds that drafts take.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        vocab_size: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.loaded, self.vocab_size, self.clock = loaded, vocab_size, clock
        self.record = Record((_EXPECTED,), weight=8, keep=0.998)
        self.seconds_per_draft = 0.0
        """Expected seconds of a drafted token."""

    def begin(
        self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int]
    ) -> "ModelDrafts":
        """Drafts of what follows ``prompt``, up to one of ``ends``, drawn as by ``sampler``.

        The small model reads the prompt at once.
        """
        return ModelDrafts(self, prompt, sampler, ends)

    def took(self, n: int, seconds: float) -> None:
        """Note ``n`` drafts."""
        before = self.seconds_per_draft or seconds / n
        self.seconds_per_draft = before + _SMOOTHING * (seconds / n - before)


class ModelDrafts:
    """Tokens that a small model would say; none once its device has no room for the text."""

    def __init__(
        self, drafter: ModelDrafter, prompt: Sequence[int], sampler: Sampler, ends: Collection[int]
    ) -> None:
        self._drafter, self._sampler, self._ends = drafter, sampler, frozenset(ends)
        self._text, self._record = list(prompt), Record(drafter.record, weight=4, keep=0.95)
        self._drafted = list[int]()
        self._sequence: TokenSequence | None = None
        try:
            self._sequence, _ = drafter.loaded.begin(self._text)
            self._catch_up()
        except LutraError:
            self._give_up()

    def chances(self, most: int) -> list[float]:
        """Of all drafts the same one; none where the small model has no room for them."""
        # guesses that were not made for long may be right again
        self._record.fade()
        if self._sequence is None:
            return []
        room = self._drafter.loaded.device.model.context - len(self._text)
        return list(self._record.shares()[:1]) * min(most, max(room, 0))

    def draft(self, n: int) -> list[int]:
        """Run the small model for ``n`` tokens, or up to an end token, which is left out."""
        try:
            self._drafted = self._run(n)
        except LutraError:
            self._give_up()
        return self._drafted

    def go_on(self, tokens: Sequence[int]) -> None:
        """Take the tokens that came."""
        for token, draft in zip(tokens, self._drafted, strict=False):
            self._record.note(0, token == draft)
            if token != draft:
                break
        self._drafted = []
        self._text += tokens

    def close(self) -> None:
        """Keep the small model's keys and values for texts that begin alike."""
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self._drafter.loaded.end(sequence)

    def _give_up(self) -> None:
        sequence, self._sequence, self._drafted = self._sequence, None, []
        if sequence is not None:
            sequence.close()

    def _catch_up(self) -> TokenSequence:
        """The small model's sequence, which holds all of the text but its last token."""
        sequence, loaded = self._sequence, self._drafter.loaded
        assert sequence is not None, "it has not given up"
        loaded.check()
        done = common_prefix(sequence.tokens, self._text[:-1])
        sequence.truncate(done)
        size = loaded.device.pass_tokens
        for first in range(done, len(self._text) - 1, size):
            part = self._text[first : min(first + size, len(self._text) - 1)]
            sequence.run(part, len(part))
        return sequence

    def _run(self, n: int) -> list[int]:
        sequence, sampler = self._catch_up(), self._sampler.copy()
        token, found, start = self._text[-1], list[int](), self._drafter.clock()
        while len(found) < n:
            result, _ = sequence.run([token])
            logits = _fitted(result.logits[-1], self._drafter.vocab_size)
            token = sampler(logits, float(result.scale[-1]))
            if token in self._ends:
                break
            found.append(token)
        self._drafter.took(max(len(found), 1), self._drafter.clock() - start)
        return found


def _fitted(logits: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Logits of ``n`` tokens, which have as many ids in both models as they share."""
    return np.pad(logits[:n], (0, max(n - len(logits), 0)), constant_values=_IMPOSSIBLE)
