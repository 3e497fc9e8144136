"""Words that lie in memory without gaps, each of more than a beat and not of whole ones."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lutra_golden.params import check_positive

__all__ = ["PackedParams", "words_of"]

_PERIOD_MAX = 64


@dataclass(frozen=True, kw_only=True)
class PackedParams:
    """Sizes of a word and of a beat, which is smaller and no divisor of it.

    ``period_words`` words are as long as ``period_beats`` beats, at the least.
    """

    word_bytes: int
    beat_bytes: int

    def __post_init__(self) -> None:
        check_positive(self)
        word, beat = self.word_bytes, self.beat_bytes
        if not self.fits(word, beat):
            raise ValueError(
                f"word_bytes must be more than beat_bytes ({beat}), not a multiple of it, and both "
                f"of a common part that a beat has a power of two up to {_PERIOD_MAX} of, not "
                f"{word}"
            )

    @staticmethod
    def fits(word_bytes: int, beat_bytes: int) -> bool:
        """True if there are such parameters."""
        period = beat_bytes // math.gcd(word_bytes, beat_bytes)
        return word_bytes > beat_bytes and 1 < period <= _PERIOD_MAX and not period & (period - 1)

    @property
    def part_bytes(self) -> int:
        """Bytes that words and beats are both made of."""
        return math.gcd(self.word_bytes, self.beat_bytes)

    @property
    def period_words(self) -> int:
        """Words after which one begins with a beat again."""
        return self.beat_bytes // self.part_bytes

    @property
    def period_beats(self) -> int:
        """Beats of ``period_words`` words."""
        return self.word_bytes // self.part_bytes

    def beats(self, n_words: int) -> int:
        """Beats that so many words lie in."""
        return -(-n_words * self.period_beats // self.period_words)

    def end(self, word: int) -> tuple[int, int]:
        """The beat of its period in which a word ends, and how many parts of it are the word's."""
        beat, rest = divmod((word + 1) * self.period_beats, self.period_words)
        return (beat, rest) if rest else (beat - 1, self.period_words)


def words_of(params: PackedParams, transfers: Iterable[int], beats: Iterable[int]) -> Iterator[int]:
    """Words of transfers of so many each, out of the beats that were read for them."""
    stream = iter(beats)
    for n_words in transfers:
        count = params.beats(n_words)
        wide = sum(next(stream) << 8 * params.beat_bytes * index for index in range(count))
        for index in range(n_words):
            yield wide >> 8 * params.word_bytes * index & (1 << 8 * params.word_bytes) - 1
