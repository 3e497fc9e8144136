"""Points at which the RTL was simulated, what it took there, and the error of estimates.

``python -m lutra_flows.estimates`` simulates them and writes what it finds; nothing is measured
where an estimate is made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lutra.compile.configure import configure
from lutra.estimate.outline import open_outline
from lutra.models import RANDOM
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BOARD_PROFILES, board_timing
from lutra_golden.timing.decode import PassPart, pass_parts
from lutra_golden.timing.memory import NANO_MEMORY, MemoryTiming

__all__ = ["POINTS", "RECORDED", "ModelError", "Point", "Record", "model_error", "records"]

RECORDED = Path(__file__).with_name("points.json")
"""File of what was simulated, by the name of the point."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A pass of a model on a configuration, each of ``sequences`` from ``position`` on.

    Of ``tokens`` of each sequence the last gives logits if there are several sequences, otherwise
    the last ``logits``. ``config`` is a named configuration or an emulated board; a beat of
    ``nano`` takes ``beat_cycles``. A random shape may have fewer layers and a smaller vocabulary.
    """

    model: str
    config: str
    position: int
    tokens: int = 1
    sequences: int = 1
    logits: int = 1
    beat_cycles: int = 1
    format: str | None = None
    group: int | None = None
    n_layers: int | None = None
    vocab_size: int | None = None
    context: int | None = None

    @property
    def name(self) -> str:
        """All that tells it from other points, in words."""
        what = self.model.removeprefix(RANDOM)
        if self.n_layers is not None:
            what = f"a layer of {what}" if self.n_layers == 1 else f"{self.n_layers} of {what}"
        of = "" if self.format is None else f" in {self.format}"
        speed = "" if self.beat_cycles == 1 else f", a beat in {self.beat_cycles} cycles"
        if self.sequences > 1:
            phase = f"decode of {self.sequences} sequences"
        else:
            phase = "decode" if self.tokens == 1 else f"prefill of {self.tokens}"
        head = "" if self.logits else ", no head"
        return f"{phase} at {self.position}{head}, {what}{of} on {self.config}{speed}"

    @property
    def n_tokens(self) -> int:
        """Tokens of the pass."""
        return self.tokens * self.sequences

    @property
    def n_logits(self) -> int:
        """Tokens with logits."""
        return self.sequences if self.sequences > 1 else self.logits

    def memory(self, config: AcceleratorConfig) -> MemoryTiming:
        """Memory behind the ports."""
        board = BOARD_PROFILES.get(self.config)
        if board is not None:
            return board_timing(board, config)
        rate = 1, self.beat_cycles
        return replace(NANO_MEMORY, rates=(rate,))

    def outline(self) -> PackedModel:
        """Sizes of the model."""
        return _outline(
            self.model, self.format, self.group, self.n_layers, self.vocab_size, self.context
        )

    def parts(self) -> list[PassPart]:
        """Operations of the pass, by formulas."""
        model, config = self.outline(), self.configuration()
        return pass_parts(
            model,
            config,
            self.position,
            self.n_tokens,
            self.n_logits,
            layers=range(len(model.layers)),
            memory=self.memory(config),
            n_sequences=self.sequences,
        )

    def configuration(self) -> AcceleratorConfig:
        """Configuration that runs the model."""
        return _configuration(self.outline(), self.config)

    def estimated(self) -> int:
        """Cycles of the pass by formulas."""
        return sum(part.cycles for part in self.parts())


@cache
def _outline(
    name: str,
    format: str | None,
    group: int | None,
    n_layers: int | None,
    vocab_size: int | None,
    context: int | None,
) -> PackedModel:
    model = open_outline(name, format, group)
    return replace(
        model,
        layers=list(model.layers[:n_layers]) if n_layers else model.layers,
        vocab_size=vocab_size or model.vocab_size,
        context=context or model.context,
    )


def _configuration(model: PackedModel, name: str) -> AcceleratorConfig:
    board = BOARD_PROFILES.get(name)
    single = replace(model, layers=[model.layers[0]])
    return configure(single, name if board is None else board.config)


def _whole_layer(shape: str, format: str | None, *configs: str) -> list[Point]:
    """A layer of a real shape, at full size, and a small head."""
    return [
        Point(
            model=RANDOM + shape, config=config, position=position, tokens=tokens, logits=1,
            format=format, n_layers=1, vocab_size=2048, context=2048,
        )
        for config in configs
        for position, tokens in ((1500, 1), (64, 8))
    ]  # fmt: skip


POINTS: Sequence[Point] = (
    *(Point(model="tales", config="nano", position=position) for position in (0, 30, 247)),
    Point(model="tales", config="nano", position=0, tokens=8, logits=0),
    Point(model="tales", config="nano", position=8, tokens=8),
    Point(model="tales", config="nano", position=240, tokens=5, logits=5),
    *(
        Point(model="tales", config="nano", position=16, sequences=sequences, beat_cycles=cycles)
        for sequences, cycles in ((8, 1), (1, 2), (8, 2), (1, 4), (8, 4))
    ),
    *(
        Point(model="tales", config=config, position=position, tokens=tokens)
        for config in ("kv260", "u55c", "pynq_z2")
        for position, tokens in ((30, 1), (240, 1), (8, 8))
    ),
    *(
        Point(model="tales-llama", config=config, position=position, tokens=tokens, format="W4A8")
        for config in ("nano", "kv260")
        for position, tokens in ((100, 1), (8, 8))
    ),
    *_whole_layer("bitnet-2b-4t", None, "kv260"),
    *_whole_layer("bonsai-1.7b", None, "kv260"),
    *_whole_layer("qwen2.5-0.5b", "W4A8", "u55c"),
)
"""Shapes, configurations, phases and contexts."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Cycles that the RTL took at a point, every logit of which equalled the golden device's, with
    its performance counters, and what the formulas say."""

    simulated: int
    estimated: int
    counters: Mapping[str, int]

    @property
    def error(self) -> float:
        """The estimate less what was simulated, as a fraction of the latter."""
        return self.estimated / self.simulated - 1


@cache
def records() -> Mapping[str, Record]:
    """Records, by the name of the point."""
    try:
        found = json.loads(RECORDED.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LutraError(f"{RECORDED} cannot be read ({error}): install Lutra again") from None
    return {name: Record(**record) for name, record in found.items()}


@dataclass(frozen=True, kw_only=True)
class ModelError:
    """Errors of the cycles over ``n_points``, fractions: the largest, the name of its point, and
    the mean of the magnitudes."""

    worst: float
    point: str
    mean: float
    n_points: int


@cache
def model_error() -> ModelError:
    """The error of the formulas over all that was recorded."""
    errors = {name: abs(record.error) for name, record in records().items()}
    point = max(errors, key=lambda name: errors[name])
    return ModelError(
        worst=errors[point],
        point=point,
        mean=sum(errors.values()) / len(errors),
        n_points=len(errors),
    )
