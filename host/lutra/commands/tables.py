"""Tables that several commands print."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from lutra.evaluate.divergence import Divergence

__all__ = ["print_losses"]


def print_losses(losses: Mapping[str, Divergence]) -> None:
    """Print what each rounding costs alone."""
    table = Table(box=None, pad_edge=False)
    table.add_column("rounded alone")
    for name in ("KL, nats", "perplexity"):
        table.add_column(name, justify="right")
    for name, each in losses.items():
        kl = f"{each.kl:.5f} +/- {each.kl_stderr:.5f}"
        table.add_row(name, kl, f"{each.change:+.2%} +/- {each.change_stderr:.2%}")
    Console(highlight=False, markup=False).print(table)
