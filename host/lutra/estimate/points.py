"""Cycles that were simulated on the RTL and written down, which estimates are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lutra.compile.configure import configure
from lutra.estimate.outline import open_outline
from lutra_golden.timing.boards import BOARD_PROFILES, board_timing
from lutra_golden.timing.decode import pass_cycles

__all__ = ["MODEL_ERROR", "POINTS", "ModelError", "Point"]

_PASS = 8  # tokens of a pass of these configurations


@dataclass(frozen=True, kw_only=True)
class Point:
    """Passes of a model on the RTL, every logit of which was compared: their mean ``cycles``.

    A pass is a position and a number of tokens; ``heads`` says of how many tokens each gives
    logits. ``config`` is a named configuration or the
    board that was emulated, a beat takes ``beat_cycles`` where memory was slowed down. ``source``
    is the place of the figure in the documentation.
    """

    name: str
    model: str
    config: str
    passes: Sequence[tuple[int, int]]
    heads: Sequence[int]
    cycles: float
    source: str
    beat_cycles: int = 1

    def estimated(self) -> float:
        """The mean of the cycles by formulas."""
        model = open_outline(self.model)
        board = BOARD_PROFILES.get(self.config)
        config = configure(model, self.config)
        beat = self.beat_cycles
        if board is not None:
            beat *= board_timing(board, config).weight_rate[1]
        layers = range(len(model.layers))
        each = zip(self.passes, self.heads, strict=True)
        cycles = [
            pass_cycles(model, config, at, n, logits, layers=layers, beat_cycles=beat)
            for (at, n), logits in each
        ]
        return float(np.mean(cycles))

    def error(self) -> float:
        """The estimate less what was simulated, as a fraction of the latter."""
        return self.estimated() / self.cycles - 1


def _point(
    name: str,
    config: str,
    positions: range,
    cycles: float,
    source: str,
    *,
    tokens: int = 1,
    beat_cycles: int = 1,
) -> Point:
    return Point(
        name=f"{name}, tales on {config}", model="tales", config=config,
        passes=[(at, tokens) for at in positions], heads=[tokens] * len(positions),
        cycles=cycles, source=source, beat_cycles=beat_cycles,
    )  # fmt: skip


def _count(n: int) -> str:
    return "1 sequence" if n == 1 else f"{n} sequences"


def _speed(beat_cycles: int) -> str:
    return "a beat in every cycle" if beat_cycles == 1 else f"a beat in {beat_cycles} cycles"


_GAP = "docs/results.md, between two tokens"
_BATCH = "docs/results.md, sequences that are decoded together"
_STORY = "docs/results.md, the story"

POINTS: Sequence[Point] = (
    _point(
        "decode at 30", "nano", range(30, 31), 22_542,
        "docs/results.md, where the cycles of a decoded token go",
    ),
    _point("decode at 16 to 78", "nano", range(16, 79), 23_088, _STORY),
    # the head comes once, in the second of two passes, whose cycles were written down together
    Point(
        name="prefill of 16, tales on nano", model="tales", config="nano",
        passes=[(0, _PASS), (_PASS, _PASS)], heads=[0, 1], cycles=233_479 / 2, source=_STORY,
    ),
    _point("decode at 0 to 23", "nano", range(24), 22_107, _GAP),
    _point("decode at 0 to 23", "u55c", range(24), 29_956, _GAP),
    _point("decode at 0 to 23", "kv260", range(24), 118_427, _GAP),
    *(
        _point(
            f"decode at 16 to 19, {_count(tokens)}, {_speed(beat)}", "nano",
            range(16, 20), cycles * tokens, _BATCH, tokens=tokens, beat_cycles=beat,
        )
        for beat, alone, together in ((1, 22_523, 20_312), (2, 28_799, 20_528), (4, 57_173, 21_507))
        for tokens, cycles in ((1, alone), (_PASS, together))
    ),
)  # fmt: skip
"""All whole-model figures of the documentation whose positions are known."""


@dataclass(frozen=True, kw_only=True)
class ModelError:
    """The largest error over ``n_points``, a fraction, and the point that has it."""

    worst: float
    point: str
    source: str
    n_points: int


MODEL_ERROR = ModelError(
    worst=0.2101,
    point="decode at 16 to 19, 1 sequence, a beat in 2 cycles, tales on nano",
    source=_BATCH,
    n_points=len(POINTS),
)
"""The error of the formulas, which a test computes from every point."""
