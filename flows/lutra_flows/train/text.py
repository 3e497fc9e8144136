"""Training text: books cut into stories, stories into token windows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Story",
    "StoryTokens",
    "drop_apparatus",
    "encode_stories",
    "epoch_windows",
    "split_stories",
]

_SMALL_WORDS = frozenset("a an and as at but by for from in into of on or the to upon with".split())
_FRONT_LINES = 150
_FRONT_MATTER = re.compile(r"gutenberg|\be-?texts?\b", re.IGNORECASE)
_APPARATUS = re.compile(
    r"gutenberg|\be-?texts?\b|\be-?book was|gutcheck|https?://|\w@\w|"
    r" amended to |\[picture|\[illus|^transcribed from|^copyright,|^all rights reserved",
    re.IGNORECASE,
)
_MAX_HEADING_CHARS = 80
_MIN_PARAGRAPH_CHARS = 80
_MIN_STORY_CHARS = 600


@dataclass(frozen=True, kw_only=True)
class Story:
    """One story: its heading (may be empty) and its body, paragraphs one to a line."""

    heading: str
    body: str


@dataclass(frozen=True, kw_only=True)
class StoryTokens:
    """Token ids of one story's heading line (may be empty) and of its body."""

    heading: NDArray[np.uint16]
    body: NDArray[np.uint16]


def drop_apparatus(text: str) -> str:
    """Remove what electronic editions put around books: licences, transcribers' notes, captions.

    Books are separated by empty lines. Where one opens with a distributor's header, everything
    down to the last mention of the distributor goes; elsewhere single lines do.
    """
    books: list[str] = []
    for book in text.split("\n\n"):
        lines = book.split("\n")
        front = [i for i, line in enumerate(lines[:_FRONT_LINES]) if _FRONT_MATTER.search(line)]
        kept = lines[front[-1] + 1 :] if front else lines
        books.append("\n".join(line for line in kept if not _APPARATUS.search(line)))
    return "\n\n".join(books)


def _is_heading(line: str, following: str) -> bool:
    """A short capitalised line without a sentence's end, above a paragraph."""
    if not 3 <= len(line) <= _MAX_HEADING_CHARS or len(following) < _MIN_PARAGRAPH_CHARS:
        return False
    if line.isupper():
        return line[0] not in "'\"(" and line[-1] not in "'\"!?,;:"
    if line[0] in "'\"(" or line[-1] in ".,;:!?'\")-":
        return False
    words = [w for w in re.findall(r"[A-Za-z']+", line) if w.lower() not in _SMALL_WORDS]
    return bool(words) and all(w[0].isupper() for w in words)


def split_stories(text: str) -> list[Story]:
    """Cut a text with one paragraph per line at its headings.

    Pieces too short to be a story (title pages, tables of contents, running heads) stay with the
    piece before them, so every line of ``text`` is in exactly one story.
    """
    lines = [line for line in text.split("\n") if line]
    pieces: list[list[str]] = [[]]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if _is_heading(line, following):
            pieces.append([])
        pieces[-1].append(line)
    stories: list[list[str]] = []
    for piece in pieces:
        if stories and sum(map(len, piece)) < _MIN_STORY_CHARS:
            stories[-1].extend(piece)
        elif piece:
            stories.append(piece)
    out: list[Story] = []
    for story in stories:
        headed = len(story) > 1 and _is_heading(story[0], story[1])
        body = story[1:] if headed else story
        out.append(Story(heading=story[0] if headed else "", body="\n".join(body)))
    return out


def encode_stories(tokenizer: Tokenizer, stories: Sequence[Story]) -> list[StoryTokens]:
    """Token ids of every story, without special tokens."""

    def encode(texts: list[str]) -> list[NDArray[np.uint16]]:
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.asarray(e.ids, dtype=np.uint16) for e in encodings]

    headings = encode([f"{s.heading}\n" if s.heading else "" for s in stories])
    bodies = encode([s.body for s in stories])
    return [StoryTokens(heading=h, body=b) for h, b in zip(headings, bodies, strict=True)]


def epoch_windows(
    stories: Sequence[StoryTokens],
    *,
    window: int,
    bos: int,
    eos: int,
    seed: int,
    epoch: int,
    heading_share: float = 0.5,
    bos_share: float = 0.25,
) -> NDArray[np.int64]:
    """Shuffled windows of one epoch, ``[n_windows, window + 1]``; a function of seed and epoch.

    Stories follow one another in random order, each between ``bos`` and ``eos`` and in
    ``heading_share`` of the cases under its heading; the stream is cut at a random phase. A
    ``bos_share`` of the windows begin with ``bos`` in place of their first token, so that text
    which is cut anywhere and prefixed with ``bos`` (as perplexity tools do) is not a surprise.
    """
    rng = np.random.default_rng([seed, epoch])
    marks = np.array([bos, eos], dtype=np.uint16)

    def parts() -> Iterator[NDArray[np.uint16]]:
        for i in rng.permutation(len(stories)):
            yield marks[:1]
            if rng.random() < heading_share:
                yield stories[i].heading
            yield stories[i].body
            yield marks[1:]

    stream = np.concatenate(list(parts())).astype(np.int64)
    stream = stream[rng.integers(window) :]
    n_windows = (len(stream) - 1) // window
    if n_windows < 1:
        raise ValueError(f"text is too short for one window of {window} tokens")
    starts = rng.permutation(n_windows) * window
    windows = stream[starts[:, None] + np.arange(window + 1)]
    windows[rng.random(n_windows) < bos_share, 0] = bos
    return windows
