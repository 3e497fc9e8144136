"""Drafts from the text itself: what followed when its latest tokens stood in it before.

Answers that repeat much of their prompt, such as edited code, are guessed well, and a guess costs
next to nothing. Source: prompt lookup, Saxena 2023; the longest match, of equals the latest, is
what is followed here, and how far depends on how often such matches were right.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

from lutra.serving.speculation.record import Record
from lutra.text.sampling import Sampler

__all__ = ["NgramDrafter", "NgramDrafts"]

_SEEDS = 3  # tokens that a match is looked up by, fewer where those never came
_PLACES = 16  # latest places of a seed that are looked at
_LONGEST = 32  # tokens of a match that are counted
_KINDS = (1, 2, 3, 4, 6, 10, 16)  # longest match of each kind of guess but the last
_EXPECTED = (0.3, 0.45, 0.55, 0.65, 0.75, 0.8, 0.85, 0.9)
"""Shares of right guesses of each kind, before any were made."""
_KIND = [sum(length > most for most in _KINDS) for length in range(2 * _LONGEST)]
"""Kind of a guess by the length of the match before it."""


class NgramDrafter:
    """Drafts from each text itself; how long matches turned out is known to all."""

    seconds_per_draft = 0.0

    def __init__(self) -> None:
        self._record = Record(_EXPECTED, weight=8, keep=0.998)

    def begin(
        self, prompt: Sequence[int], sampler: Sampler, ends: Collection[int]
    ) -> "NgramDrafts":
        """Drafts of what follows ``prompt``; how tokens are drawn makes no difference."""
        return NgramDrafts(prompt, ends, Record(self._record, weight=4, keep=0.98))


class NgramDrafts:
    """Tokens behind the longest end of a text that stood in it before, the latest of equals."""

    def __init__(self, prompt: Sequence[int], ends: Collection[int], record: Record) -> None:
        self._text, self._ends, self._record = list(prompt), frozenset(ends), record
        # where tokens end that stand together, by one, two and three of them
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._indexed = 0
        self._guesses, self._kinds = list[int](), list[int]()

    def chances(self, most: int) -> list[float]:
        """Probabilities of the next drafts; none if the text's last token is new."""
        self._index()
        text, (length, end) = self._text, self._longest()
        self._guesses, self._kinds = [], []
        if length:
            guesses, period = text[end : end + most], len(text) - end
            # beyond the end of the text its own guesses go on
            for i in range(len(guesses) - period, most - period):
                guesses.append(guesses[i])
            n = next((i for i, token in enumerate(guesses) if token in self._ends), len(guesses))
            self._guesses, self._kinds = guesses[:n], _KIND[length : length + n]
        shares = self._record.shares()
        return [shares[kind] for kind in self._kinds]

    def draft(self, n: int) -> list[int]:
        """The first ``n`` guesses."""
        return self._guesses[:n]

    def go_on(self, tokens: Sequence[int]) -> None:
        """Take the tokens that came; guesses are compared whether they were drafted or not."""
        for token, guess, kind in zip(tokens, self._guesses, self._kinds, strict=False):
            self._record.note(kind, token == guess)
            if token != guess:
                break
        self._guesses, self._kinds = [], []
        self._text += tokens

    def close(self) -> None:
        """Nothing is held elsewhere."""

    def _index(self) -> None:
        """Note the places of what has come since the last time."""
        text, places = self._text, self._places
        for end in range(self._indexed + 1, len(text) + 1):
            for n in range(1, min(_SEEDS, end) + 1):
                places[tuple(text[end - n : end])].append(end)
        self._indexed = len(text)

    def _longest(self) -> tuple[int, int]:
        """Length of the longest match with the text's end, and the place behind it."""
        text, n_text = self._text, len(self._text)
        for n in range(min(_SEEDS, n_text), 0, -1):
            # the last place is the end itself
            places = self._places[tuple(text[n_text - n :])][-_PLACES - 1 : -1]
            longest, found = n - 1, 0
            for end in reversed(places):
                length = longest + 1
                if end < length or text[end - length : end] != text[n_text - length :]:
                    continue
                while length < min(_LONGEST, end) and text[end - length - 1] == text[-length - 1]:
                    length += 1
                longest, found = length, end
                if length == _LONGEST:
                    break
            if found:
                return longest, found
        return 0, 0
