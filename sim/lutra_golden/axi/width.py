"""Words of a unit as beats of a port: the beats of a transfer, and their contents."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lutra_golden.params import check_positive

__all__ = ["Transfer", "WidthParams", "beats_of", "word_beats", "words_of"]

MAX_RATIO = 64


@dataclass(frozen=True, kw_only=True)
class WidthParams:
    """Widths on both sides of a converter.

    A word is ``ratio`` beats, or a beat ``ratio`` words, which is a power of two then; a word is
    never as wide as a beat, for which no converter is needed.
    """

    word_bytes: int
    beat_bytes: int

    def __post_init__(self) -> None:
        check_positive(self)
        word, beat = self.word_bytes, self.beat_bytes
        if word == beat:
            raise ValueError(f"word_bytes must not be beat_bytes, {word}: connect both sides")
        if not self.narrows and (beat % word or self.ratio & (self.ratio - 1)):
            raise ValueError(
                f"beat_bytes must be word_bytes ({word}) times a power of two, not {beat}"
            )
        if self.narrows and word % beat:
            raise ValueError(f"word_bytes must be a multiple of beat_bytes ({beat}), not {word}")
        if self.ratio > MAX_RATIO:
            raise ValueError(f"ratio must be at most {MAX_RATIO}, not {self.ratio}")

    @property
    def narrows(self) -> bool:
        """True if the port is narrower than a word."""
        return self.word_bytes > self.beat_bytes

    @property
    def ratio(self) -> int:
        """Beats of a word, or words of a beat."""
        wide, narrow = max(self.word_bytes, self.beat_bytes), min(self.word_bytes, self.beat_bytes)
        return wide // narrow


@dataclass(frozen=True)
class Transfer:
    """Consecutive words, or beats, from a byte address on."""

    addr: int
    count: int


def beats_of(params: WidthParams, words: Transfer) -> Transfer:
    """The beats that ``words`` lie in; of no words, none."""
    if params.narrows or not words.count:
        return Transfer(words.addr, words.count * (params.ratio if params.narrows else 1))
    first = words.addr // params.beat_bytes
    end = -(-(words.addr + words.count * params.word_bytes) // params.beat_bytes)
    return Transfer(words.addr, end - first)


def words_of(
    params: WidthParams, transfers: Iterable[Transfer], beats: Iterable[int]
) -> Iterator[int]:
    """Words of ``transfers``, cut from the beats that were read for them, low bytes first."""
    stream = iter(beats)
    for words in transfers:
        count = beats_of(params, words).count
        wide = sum(next(stream) << 8 * params.beat_bytes * index for index in range(count))
        skipped = 0 if params.narrows else words.addr % params.beat_bytes
        for index in range(words.count):
            yield wide >> 8 * (skipped + params.word_bytes * index) & _mask(params.word_bytes)


def word_beats(
    params: WidthParams, transfers: Iterable[Transfer], words: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Beats with their strobes that write ``words`` with theirs; other bytes have no strobe.

    Data without a strobe are zero.
    """
    done = 0
    for transfer in transfers:
        skipped = 0 if params.narrows else transfer.addr % params.beat_bytes
        data = strobes = 0
        for index in range(transfer.count):
            word, strobe = words[done + index]
            at = skipped + params.word_bytes * index
            data |= word << 8 * at
            strobes |= strobe << at
        done += transfer.count
        for index in range(beats_of(params, transfer).count):
            strobe = strobes >> params.beat_bytes * index & (1 << params.beat_bytes) - 1
            beat = data >> 8 * params.beat_bytes * index & _mask(params.beat_bytes)
            yield _strobed(beat, strobe), strobe


def _mask(n_bytes: int) -> int:
    return (1 << 8 * n_bytes) - 1


def _strobed(data: int, strobe: int) -> int:
    """``data`` with zeros where ``strobe`` is."""
    lanes = range(strobe.bit_length())
    return sum((data >> 8 * i & 255) << 8 * i for i in lanes if strobe >> i & 1)
