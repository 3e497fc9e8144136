"""Profiles of accelerators that are not here, from cycle formulas at a clock."""

from collections.abc import Callable

from lutra.serving.plans.profile import DeviceProfile, Table
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BoardProfile, board_timing
from lutra_golden.timing.decode import pass_cycles

__all__ = ["model_accelerator"]

_POSITIONS = (0, 512, 4096)


def model_accelerator(
    model: PackedModel, config: AcceleratorConfig, board: BoardProfile, label: str, fingerprint: str
) -> DeviceProfile:
    """The profile of ``config``, which holds the model, on ``board``: *modelled*.

    A port that is wider than the board's waits for its beats.

    See :func:`~lutra_golden.timing.decode.pass_cycles` for what it leaves out. Tokens of several
    sessions count as those of one.
    """
    n_layers, most = len(model.layers), min(config.pass_tokens, model.context)
    timing = board_timing(board, config)
    beat_cycles = max(timing.rate(number)[1] for number in config.ports_of(Purpose.WEIGHTS))
    sizes = range(1, most + 1)
    last = model.context - most
    positions = sorted({min(position, last) for position in _POSITIONS})
    layers = range(n_layers)

    def table(cycles: Callable[[int, int], float]) -> Table:
        return Table(
            tokens=tuple(sizes),
            positions=tuple(positions),
            seconds=tuple(tuple(cycles(n, p) / board.clock_hz for p in positions) for n in sizes),
        )

    def through(which: range, logits: Callable[[int], int]) -> Callable[[int, int], float]:
        return lambda n, p: pass_cycles(
            model, config, p, n, logits(n), layers=which, beat_cycles=beat_cycles
        )

    return DeviceProfile(
        device=label,
        kind="modelled",
        fingerprint=fingerprint,
        n_layers=n_layers,
        pass_tokens=most,
        chunk=table(through(layers, lambda n: 1)),
        batch=table(through(layers, lambda n: n)),
        layer=table(through(range(1), lambda n: 0)),
    )
