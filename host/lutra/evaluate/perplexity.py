"""Perplexity of a text: on a device, in integers, or of the same model in floating point."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.errors import LutraError

__all__ = ["Perplexity", "perplexity", "text_windows"]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """``ppl`` with its standard error, over ``tokens`` predictions of ``n_characters``."""

    ppl: float
    stderr: float
    tokens: int
    bits_per_character: float


def text_windows(tokens: list[int], *, window: int, bos: int | None) -> list[list[int]]:
    """Cut tokens into windows of ``bos`` and up to ``window - 1`` tokens, each predicted once.

    Without ``bos`` a window begins with the last token of the one before.
    """
    step = window - 1
    if bos is None:
        return [tokens[i : i + window] for i in range(0, len(tokens) - 1, step)]
    return [[bos, *tokens[i : i + step]] for i in range(0, len(tokens), step)]


def perplexity(
    logits: Callable[[list[int]], Iterable[NDArray[np.float64]]],
    windows: list[list[int]],
    n_characters: int,
    progress: Callable[[str, float], None] | None = None,
) -> Perplexity:
    """Evaluate ``logits`` over the windows: of a window's tokens to real logits ``[t, V]``, in as
    many parts as they come, of which one is in memory at a time."""
    if not windows:
        raise LutraError("the text is too short to predict anything: give a longer one")
    losses: list[NDArray[np.float64]] = []
    for i, window in enumerate(windows):
        if progress:
            progress("evaluating", i / len(windows))
        n_done = 1
        for x in logits(window[:-1]):
            top = x.max(axis=-1)
            log_sum = top + np.log(np.exp(x - top[:, None]).sum(axis=-1))
            losses.append(log_sum - x[np.arange(len(x)), window[n_done : n_done + len(x)]])
            n_done += len(x)
    nll = np.concatenate(losses)
    ppl = math.exp(nll.mean())
    return Perplexity(
        ppl=ppl,
        stderr=ppl * math.sqrt(nll.var() / max(len(nll) - 1, 1)),
        tokens=len(nll),
        bits_per_character=float(nll.sum()) / math.log(2) / max(n_characters, 1),
    )
