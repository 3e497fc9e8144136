"""A picture of the plans that there are: time to the first token, and per token behind it."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lutra.serving.plans.search import Choice, pareto
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["check_plot", "new_figure", "write_plot"]

_SUFFIXES = (".svg", ".png")


def check_plot(path: Path) -> None:
    """Refuse a plot that cannot be written, before anything is measured for it."""
    if path.suffix not in _SUFFIXES:
        raise LutraError(f"a plot must end in {' or '.join(_SUFFIXES)}, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise LutraError(f"the folder of {path} does not exist: make it, or give another")
    new_figure()


def write_plot(choice: Choice, labels: Sequence[str], path: Path) -> None:
    """Write all alternatives, with the front of those that no other one beats in both times."""
    figure = new_figure()
    axes = figure.subplots()
    for kind in dict.fromkeys(each.kind for each in choice.alternatives):
        costs = [each.cost for each in choice.alternatives if each.kind == kind]
        axes.plot(
            [c.ttft_s for c in costs], [1000 * c.tpot_s for c in costs], "o",
            markersize=4, alpha=0.6, label=kind,
        )  # fmt: skip
    front = [each.cost for each in pareto(choice.alternatives)]
    axes.step(
        [c.ttft_s for c in front], [1000 * c.tpot_s for c in front], "k-",
        where="post", linewidth=1, label="no other is better in both",
    )  # fmt: skip
    chosen = choice.chosen.cost
    axes.plot([chosen.ttft_s], [1000 * chosen.tpot_s], "k*", markersize=13, label="chosen")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"time to the first token, s ({chosen.kind})")
    axes.set_ylabel(f"time per token, ms ({chosen.kind})")
    axes.set_title(choice.chosen.describe(labels), fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def new_figure() -> Any:  # of a package that may not be here, nor what describes it
    """An empty figure of matplotlib; LutraError if that is not installed."""
    try:
        mpl, figure = import_module("matplotlib"), import_module("matplotlib.figure")
    except ImportError:
        raise LutraError(
            f"--plot needs matplotlib, which is not installed: run `{install_command('synth')}`"
        ) from None
    mpl.rcParams["svg.hashsalt"] = "lutra"  # the same figures give the same file
    return figure.Figure(figsize=(7.5, 5), layout="constrained")
