"""``lutra tune``: measure tiles of the GPU's kernels on this machine, and keep the best."""

import argparse

from lutra.host.errors import LutraError
from lutra.kernels_gpu import missing

__all__ = ["add_tune"]


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra tune``: what follows is passed on."""
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="--models, --formats, --tokens, -o FILE: see python -m lutra.kernels_gpu.tune --help",
    )
    parser.set_defaults(command=_tune)


def _tune(args: argparse.Namespace) -> int:
    if (reason := missing()) is not None:
        raise LutraError(f"there is nothing to tune, {reason}")
    from lutra.kernels_gpu.tune import main

    return main(args.arguments)
