"""Stories and windows of the training text."""

import numpy as np
import pytest

pytest.importorskip("torch")

from lutra_flows.train.text import StoryTokens, drop_apparatus, epoch_windows, split_stories

PARAGRAPH = "Once upon a time there was a miller who had three sons, and they were all very lazy."


def test_stories_begin_below_their_headings():
    body = "\n".join([PARAGRAPH] * 10)
    text = f"A BOOK\nBy Nobody\nTHE MILLER\n{body}\nThe Three Sons\n{body}\nHe said so.\n"
    stories = split_stories(text)
    assert [s.heading for s in stories] == ["", "THE MILLER", "The Three Sons"]
    assert stories[-1].body.startswith("Once upon a time")
    assert stories[-1].body.endswith("He said so.")


def test_every_line_is_kept_once():
    lines = [
        "A BOOK",
        PARAGRAPH,
        "Short.",
        "THE END",
        *[PARAGRAPH] * 9,
        "The Fox",
        *[PARAGRAPH] * 9,
    ]
    stories = split_stories("\n".join(lines))
    kept = [line for s in stories for line in [s.heading, *s.body.split("\n")] if line]
    assert kept == lines


def test_apparatus_is_dropped_and_the_story_kept():
    book = f"The Etext of a Book\nPlease read on.\nThis etext was prepared\nTHE FOX\n{PARAGRAPH}"
    other = f"OTHER\nTranscribed from a copy\n{PARAGRAPH} A mere pretext."
    kept = drop_apparatus(f"{book}\n\n{other}")
    assert kept == f"THE FOX\n{PARAGRAPH}\n\nOTHER\n{PARAGRAPH} A mere pretext."


def test_windows_cover_the_stories_and_follow_from_the_seed():
    stories = [
        StoryTokens(
            heading=np.array([7], dtype=np.uint16),
            body=np.arange(10 * i, 10 * i + 10, dtype=np.uint16),
        )
        for i in range(1, 40)
    ]

    def windows(epoch: int, bos_share: float = 0.25):
        return epoch_windows(
            stories, window=8, bos=0, eos=1, seed=3, epoch=epoch, bos_share=bos_share
        )

    first = windows(0)
    assert first.shape[1] == 9
    assert np.array_equal(first, windows(0))
    assert not np.array_equal(first[:10], windows(1)[:10])
    assert len(set(windows(0, bos_share=0.0)[:, :-1].flatten())) > 380
    assert (windows(0, bos_share=1.0)[:, 0] == 0).all()


def test_a_text_shorter_than_a_window_is_refused():
    story = StoryTokens(heading=np.array([], np.uint16), body=np.array([5], np.uint16))
    with pytest.raises(ValueError, match="text is too short for one window of 8 tokens"):
        epoch_windows([story], window=8, bos=0, eos=1, seed=0, epoch=0)
