"""Guesses from the text itself: the longest match, the latest of equals, and how far it goes."""

from collections.abc import Sequence

import numpy as np
import pytest

from lutra.serving.speculation.ngrams import NgramDrafter, NgramDrafts
from lutra.text.sampling import Sampler, SamplingParams

SAMPLER = Sampler(SamplingParams())


def drafts(text: Sequence[int], ends: Sequence[int] = ()) -> NgramDrafts:
    return NgramDrafter().begin(text, SAMPLER, ends)


def guesses(text: Sequence[int], most: int = 4, ends: Sequence[int] = ()) -> list[int]:
    found = drafts(text, ends)
    assert len(found.chances(most)) == len(found.draft(most))
    return found.draft(most)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([], []),
        ([1], []),
        ([1, 2, 3], []),
        ([1, 2, 3, 4, 5, 1], [2, 3, 4, 5]),
        ([1, 7, 1, 8, 1, 9, 5, 1], [9, 5, 1, 9]),  # the latest of equals
        ([1, 2, 7, 5, 3, 2, 8, 5, 1, 2], [7, 5, 3, 2]),  # the longest, not the latest
        ([9, 1, 2, 3, 4, 8, 1, 2, 3, 5, 9, 1, 2, 3], [4, 8, 1, 2]),
        ([6, 6], [6, 6, 6, 6]),  # what is guessed goes on
        ([1, 2, 3, 1, 2], [3, 1, 2, 3]),
    ],
)
def test_what_followed_before(text: list[int], expected: list[int]) -> None:
    assert guesses(text) == expected


def test_nothing_behind_an_end() -> None:
    assert guesses([1, 2, 3, 99, 4, 1], 5, [99]) == [2, 3]
    assert guesses([1, 99, 1], 5, [99]) == []


def test_so_many_as_are_asked_for() -> None:
    found = drafts([1, 2, 3, 4, 1])
    assert len(found.chances(2)) == 2 and found.draft(1) == [2]
    assert found.chances(0) == [] and found.draft(0) == []


def test_the_text_goes_on() -> None:
    """Guesses are those of the whole text, however it came, and whether or not they were asked
    for."""
    rng = np.random.default_rng(3)
    text = rng.integers(0, 5, 300).tolist()
    found, at = drafts(text[:20]), 20
    while at < len(text):
        if rng.random() < 0.7:
            found.chances(6)
            assert found.draft(6) == guesses(text[:at], 6)
        n = int(rng.integers(1, 5))
        found.go_on(text[at : at + n])
        at += n


def brute(text: Sequence[int]) -> int:
    """Tokens of the longest match with the end of a text."""
    n = len(text)
    lengths = [
        next((k for k in range(32) if k >= end or text[end - 1 - k] != text[n - 1 - k]), 32)
        for end in range(1, n)
    ]
    return max(lengths, default=0)


def test_the_longest_match_decides_how_likely_guesses_are() -> None:
    """Those of a longer match are more likely, before anything is known."""
    rng = np.random.default_rng(4)
    seen: dict[int, float] = {}
    for n in range(2, 60):
        text = rng.integers(0, 3, n).tolist()
        if brute(text):
            seen[brute(text)] = drafts(text).chances(1)[0]
    ordered = [seen[length] for length in sorted(seen)]
    assert ordered == sorted(ordered) and len(set(ordered)) > 3
    long = list(range(40)) * 2
    chances = drafts(long[:-8]).chances(4)
    assert chances == [chances[0]] * 4


def test_chances_follow_what_comes() -> None:
    """Of this text, and a little of others; guesses count that nobody drafted."""
    drafter = NgramDrafter()
    text = list(range(50))
    first, other = (drafter.begin(text, SAMPLER, ()) for _ in range(2))
    before = other.chances(1)[:1]
    for token in range(30):
        first.chances(1)
        first.go_on([token])
    assert before == []
    for each in (first, other):
        each.go_on([7])
    unknown = drafts([*text, 7]).chances(1)[0]
    assert first.chances(1)[0] > unknown
    wrong = drafter.begin(text, SAMPLER, ())
    for token in (3, 9, 3, 11, 20, 3, 30, 12):
        wrong.go_on([token])
        wrong.chances(4)
    assert wrong.chances(1)[0] < other.chances(1)[0]


def test_only_guesses_behind_right_ones_are_compared() -> None:
    found = drafts([1, 2, 3, 4, 1])
    before = found.chances(4)
    assert found.draft(4) == [2, 3, 4, 1]
    found.go_on([2, 9, 4])  # a right guess of kind 0, a wrong one of kind 1
    found.go_on([8, 1])
    after = found.chances(3)
    assert after[0] > before[0] and after[1] < before[1] and after[2] == before[2]
