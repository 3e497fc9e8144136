"""Words without gaps: sizes that there are, where words end, and what is cut from beats."""

import pytest

from lutra_golden.axi.packed import PackedParams, words_of


@pytest.mark.parametrize(
    ("word", "beat", "words", "beats"),
    [(80, 64, 4, 5), (120, 64, 8, 15), (15, 4, 4, 15), (12, 8, 2, 3), (96, 64, 2, 3)],
)
def test_periods(word: int, beat: int, words: int, beats: int) -> None:
    params = PackedParams(word_bytes=word, beat_bytes=beat)
    assert (params.period_words, params.period_beats) == (words, beats)
    assert params.part_bytes * words == beat
    assert [params.beats(n) for n in (0, words, words + 1)] == [0, beats, beats + -(-word // beat)]
    assert params.end(words - 1) == (beats - 1, words)
    for n in range(words):
        number, parts = params.end(n)
        assert 1 <= parts <= words
        assert number * beat + parts * params.part_bytes == (n + 1) * word


@pytest.mark.parametrize(("word", "beat"), [(64, 64), (128, 64), (40, 64), (80, 48), (65, 128)])
def test_sizes_that_are_refused(word: int, beat: int) -> None:
    assert not PackedParams.fits(word, beat)
    with pytest.raises(ValueError, match=rf"^word_bytes must be more than beat_bytes \({beat}\), "):
        PackedParams(word_bytes=word, beat_bytes=beat)


def test_words_begin_anew_with_a_transfer() -> None:
    params = PackedParams(word_bytes=3, beat_bytes=2)
    beats = [0x2211, 0x4433, 0x6655, 0xBBAA, 0xDDCC]
    assert list(words_of(params, [2, 0, 1], beats)) == [0x332211, 0x665544, 0xCCBBAA]
