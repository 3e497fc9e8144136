"""``lutra tune``: autotune the GPU kernels on this machine."""

import argparse

from lutra_golden.errors import LutraError
from lutra_kernels import missing, tune

__all__ = ["add_tune"]


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra tune``."""
    tune.add_arguments(parser)
    parser.set_defaults(command=_tune)


def _tune(args: argparse.Namespace) -> int:
    if (reason := missing()) is not None:
        raise LutraError(f"cannot tune: {reason}")
    tune.run(args)
    return 0
