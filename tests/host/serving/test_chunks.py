"""How many tokens of prompts a pass has."""

import pytest

from lutra.serving.chunks import PromptPace, prompt_room


def test_room_for_prompts() -> None:
    """As many as take 0.25 s where others wait, 16 tokens at least if a pass has room for them."""
    pace = PromptPace()
    assert [pace.room(64, n) for n in (0, 3, 48)] == [64, 61, 16]
    pace.took(15, 100.0)
    assert pace.token_s is None
    pace.took(100, 1.0)
    assert pace.token_s == pytest.approx(0.01)
    assert [pace.room(64, n) for n in (0, 3, 45, 60)] == [64, 25, 19, 25]
    pace.took(100, 2.0)
    assert pace.token_s == pytest.approx(0.013)
    pace.took(16, 160.0)
    assert [pace.room(64, n) for n in (0, 3, 60)] == [64, 16, 16]


@pytest.mark.parametrize(
    ("pass_tokens", "n_decoding", "room"),
    [
        # half a pass is the least; else the rest of a second one
        (8, 4, 4),
        (8, 5, 11),
        (8, 7, 9),
        (8, 8, 8),
        (8, 12, 4),
        (8, 13, 11),
        # of long passes it is 16 tokens
        (64, 49, 79),
        (64, 64, 64),
        (64, 112, 16),
        (7, 3, 4),
        (1, 0, 1),
        (1, 3, 1),
    ],
)
def test_prompts_do_not_starve(pass_tokens: int, n_decoding: int, room: int) -> None:
    """Prompts have a fair share of the passes, which are full, however many answers there are."""
    assert prompt_room(pass_tokens, n_decoding, None) == room
    assert not (n_decoding + room) % pass_tokens
    # answers wait for 0.25 s or 16 tokens where prompts are slow
    assert prompt_room(pass_tokens, n_decoding, 1.0) == (min(room, 16) if n_decoding else room)
