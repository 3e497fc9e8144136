"""Words and beats: what is refused, and values by hand."""

import random
import re

import pytest

from lutra_golden.axi.width import Transfer, WidthParams, beats_of, word_beats, words_of


@pytest.mark.parametrize(
    ("word", "beat", "message"),
    [
        (0, 4, "word_bytes must be positive, not 0"),
        (8, 8, "word_bytes must not be beat_bytes, 8: connect both sides"),
        (12, 8, "word_bytes must be a multiple of beat_bytes (8), not 12"),
        (8, 24, "beat_bytes must be word_bytes (8) times a power of two, not 24"),
        (512, 4, "ratio must be at most 64, not 128"),
    ],
)
def test_illegal_values_are_refused(word: int, beat: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        WidthParams(word_bytes=word, beat_bytes=beat)


def test_a_word_of_three_beats() -> None:
    params = WidthParams(word_bytes=3, beat_bytes=1)
    assert (params.narrows, params.ratio) == (True, 3)
    words = Transfer(0x30, 2)
    assert beats_of(params, words) == Transfer(0x30, 6)
    assert list(words_of(params, [words], [1, 2, 3, 4, 5, 6])) == [0x030201, 0x060504]
    written = list(word_beats(params, [words], [(0x030201, 0b101), (0x060504, 0b010)]))
    assert written == [(1, 1), (0, 0), (3, 1), (0, 0), (5, 1), (0, 0)]


def test_words_that_share_a_beat() -> None:
    params = WidthParams(word_bytes=1, beat_bytes=4)
    assert (params.narrows, params.ratio) == (False, 4)
    for addr, count, beats in ((0, 0, 0), (3, 0, 0), (3, 1, 1), (3, 2, 2), (0, 4, 1), (7, 6, 3)):
        assert beats_of(params, Transfer(addr, count)) == Transfer(addr, beats)
    words = [Transfer(3, 2), Transfer(8, 1)]
    assert list(words_of(params, words, [0x44332211, 0x88776655, 0xCCBBAA99])) == [0x44, 0x55, 0x99]
    written = list(word_beats(params, words, [(0x44, 1), (0x55, 1), (0x99, 0)]))
    assert written == [(0x44000000, 0b1000), (0x55, 0b0001), (0, 0)]


@pytest.mark.parametrize(("word", "beat"), [(16, 4), (12, 4), (4, 32), (2, 4)])
def test_what_is_written_is_read(word: int, beat: int) -> None:
    rng, params = random.Random(1), WidthParams(word_bytes=word, beat_bytes=beat)
    transfers = [Transfer(word * rng.randrange(99), rng.randrange(9)) for _ in range(30)]
    n = sum(each.count for each in transfers)
    words = [(rng.getrandbits(8 * word), (1 << word) - 1) for _ in range(n)]
    beats = [data for data, _ in word_beats(params, transfers, words)]
    assert len(beats) == sum(beats_of(params, each).count for each in transfers)
    assert list(words_of(params, transfers, beats)) == [data for data, _ in words]
