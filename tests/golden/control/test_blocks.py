"""Blocks of words: what is packed is read again, what does not fit is refused."""

import pytest

from lutra_golden.control.blocks import Word, pack, pack_words, unpack, unpack_words

LAYOUT = {"a": Word(0, "a number"), "b": Word(2, "a long one", 40)}


def test_values_lie_low_word_first_and_the_rest_is_zero() -> None:
    data = pack(LAYOUT, 20, {"a": 1, "b": 0xAB_0000_0002})
    assert unpack_words(data) == [1, 0, 2, 0xAB, 0]
    assert unpack(LAYOUT, data) == {"a": 1, "b": 0xAB_0000_0002}


def test_bits_that_mean_nothing_are_ignored() -> None:
    assert unpack(LAYOUT, pack_words([1, 9, 2, 0xFFFF_FF03, 9])) == {"a": 1, "b": 0x3_0000_0002}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"b": 1 << 40}, f"b must fit 40 bits, not {1 << 40}"),
        ({"a": -1}, "a must fit 32 bits, not -1"),
        ({"c": 1}, r"a block of \['a', 'b'\] has no \['c'\]"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        pack(LAYOUT, 20, values)


def test_words_have_32_bits() -> None:
    with pytest.raises(ValueError, match=r"^a word must fit 32 bits, not 4294967296$"):
        pack_words([1 << 32])
