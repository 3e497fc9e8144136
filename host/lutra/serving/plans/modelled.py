"""Profiles of accelerators that are not here, from cycle formulas at a clock."""

from collections.abc import Callable

from lutra.serving.plans.profile import DeviceProfile, Table
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BoardProfile, board_timing
from lutra_golden.timing.decode import pass_cycles

__all__ = ["model_accelerator"]

_POSITIONS = (0, 512, 4096)


def model_accelerator(
    model: PackedModel, config: AcceleratorConfig, board: BoardProfile, label: str, fingerprint: str
) -> DeviceProfile:
    """The profile of ``config``, which holds the model, on ``board``: *modelled*.

    See :func:`~lutra_golden.timing.decode.pass_cycles` for what it leaves out.
    """
    n_layers, most = len(model.layers), min(config.pass_tokens, model.context)
    memory = board_timing(board, config)
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

    def through(which: range, logits: int | None) -> Callable[[int, int], float]:
        """A chunk of one sequence with so many logits; None is a token of each of several."""
        return lambda n, p: pass_cycles(
            model,
            config,
            p,
            n,
            n if logits is None else logits,
            layers=which,
            memory=memory,
            n_sequences=n if logits is None else 1,
        )

    return DeviceProfile(
        device=label,
        kind="modelled",
        fingerprint=fingerprint,
        n_layers=n_layers,
        pass_tokens=most,
        chunk=table(through(layers, 1)),
        batch=table(through(layers, None)),
        layer=table(through(range(1), 0)),
    )
