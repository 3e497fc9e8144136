"""How many tokens of prompts a pass has."""

import pytest

from lutra.serving.chunks import PromptPace


def test_room_for_prompts() -> None:
    """What takes 0.25 s where others wait, 16 tokens at least, one in any case."""
    pace = PromptPace()
    assert [pace.room(64, n) for n in (0, 3, 64, 70)] == [64, 61, 1, 1]
    pace.took(15, 100.0)
    assert pace.token_s is None
    pace.took(100, 1.0)
    assert pace.token_s == pytest.approx(0.01)
    assert [pace.room(64, n) for n in (0, 3, 60)] == [64, 25, 4]
    pace.took(100, 2.0)
    assert pace.token_s == pytest.approx(0.013)
    pace.took(16, 160.0)
    assert [pace.room(64, n) for n in (0, 3, 60)] == [64, 16, 4]
