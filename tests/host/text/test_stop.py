"""Stop strings: where text ends does not depend on the pieces that it comes in."""

import random

import pytest

from lutra.text.stop import StopFilter


def parts(text: str, stops: list[str], lengths: list[int]) -> tuple[list[str], bool]:
    """Texts that come of pieces of ``lengths``, the last one the rest, and of the flush."""
    stop, out = StopFilter(stops), list[str]()
    for n in lengths:
        out.append(stop.push(text[:n]))
        text = text[n:]
    return [*out, stop.push(text), stop.flush()], stop.found


def cut(text: str, stops: list[str]) -> str:
    """Character by character: the text before the longest string that is complete first."""
    for end in range(1, len(text) + 1):
        complete = [each for each in stops if text[:end].endswith(each)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def test_nothing_of_a_stop_string_comes() -> None:
    assert parts("one. two\n\nthree", ["\n\n"], [4, 4, 1, 1]) == (
        ["one.", " two", "", "", "", ""],
        True,
    )


def test_text_that_may_become_one_is_held_until_it_is_clear() -> None:
    assert parts("a END OF", ["END."], [2, 1, 2, 1]) == (["a ", "", "", "END ", "OF", ""], False)
    # of what is held a shorter end may still become one
    assert parts("aaab!", ["aab"], [2, 1]) == (["", "a", "", ""], True)
    assert parts("so EN", ["END"], [3]) == (["so ", "", "EN"], False)


def test_without_stop_strings_all_comes_at_once() -> None:
    assert parts("abc", [], [1, 1]) == (["a", "b", "c", ""], False)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["cd", "b"], "a"),
        (["abc", "b"], "a"),  # the shorter one is complete first
        (["c", "abc", "bc"], ""),  # of those that end together the longest
        (["e", "f"], "abcd"),
        (["abcdef"], "abcd"),
    ],
)
def test_which_of_several(stops: list[str], expected: str) -> None:
    text = "abcd" if stops == ["abcdef"] else "abcdef"
    for n in range(len(text) + 1):
        assert "".join(parts(text, stops, [n])[0]) == expected


def test_pieces_do_not_matter() -> None:
    rng = random.Random(5)
    found_some = 0
    for _ in range(3000):
        text = "".join(rng.choices("abü", k=rng.randrange(14)))
        stops = ["".join(rng.choices("abü", k=rng.randint(1, 4))) for _ in range(rng.randrange(4))]
        lengths = [rng.randrange(4) for _ in range(rng.randrange(8))]
        out, found = parts(text, stops, lengths)
        assert "".join(out) == cut(text, stops)
        assert found == any(each in text for each in stops)
        found_some += found
    assert 500 < found_some < 2500
