"""The command ``lutra``: its commands and exit codes; everything else is in the library."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn, cast

from lutra.commands.report import fail
from lutra.packed.kept import wait_until_kept
from lutra_golden.errors import LutraError

__all__ = ["command_parser", "main"]

_AddArguments = Callable[[argparse.ArgumentParser], None]

_COMMANDS = {
    "run": ("generate", "generate text and report the speed"),
    "chat": ("generate", "chat with a model in the terminal"),
    "serve": ("serve", "serve a model over HTTP with OpenAI's interface"),
    "lend": ("lend", "lend a device of this machine to a Lutra elsewhere"),
    "perplexity": ("perplexity", "measure the perplexity of a text"),
    "bench": ("bench", "measure tokens per second of prefill and decode"),
    "plan": ("plan", "divide requests between devices, with predicted times"),
    "estimate": ("estimate", "estimate the speed of a model on a board that is not here"),
    "devices": ("devices", "list the devices of this machine"),
    "doctor": ("doctor", "check this machine, each problem with the command that mends it"),
    "quantize": ("pack", "quantise a model, with or without calibration, and pack it"),
    "pack": ("pack", "pack a model, keeping weights that are integers already"),
    "cache": ("cache", "list or remove the packed models that are kept"),
    "show": ("show", "print the sizes, formats and matrices of a model"),
    "tune": ("tune", "autotune the GPU kernels on this machine"),
    "verify": ("verify", "compare a packed model with its checkpoint, layer by layer"),
    "bisect": ("bisect", "find the unit that is wrong where a device differs from golden"),
    "deploy": ("deploy", "copy Lutra, a bitstream and a model to a board, and test it"),
    "selftest": ("selftest", "test memory, registers and each unit of an accelerator"),
}
"""Commands, each with its module here, imported when it is needed, and what it does."""
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.ENOENT: "give one that exists",
    errno.EISDIR: "give a file, not a folder",
    errno.EACCES: "check its permissions",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for an error the user can correct)."""
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        # a terminal that cannot show a character of the story still shows the rest
        reconfigure(errors="replace")
    try:
        given = sys.argv[1:] if argv is None else argv
        only = given[0] if given and given[0] in _COMMANDS else None
        args, unknown = command_parser(only).parse_known_args(given)
        if unknown:
            raise LutraError(
                f"unrecognized arguments: {' '.join(unknown)}: see lutra {args.name} --help"
            )
        command: Callable[[argparse.Namespace], int] = args.command
        code = command(args)
        print(end="", flush=True)
        wait_until_kept()
    except LutraError as error:
        return fail(str(error))
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 1
    except MemoryError:
        return fail("not enough memory: use a smaller model or a shorter context")
    except OSError as error:
        if error.filename is None:
            _discard_output()
        advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
        return fail(f"{error.filename or 'output'}: {error.strerror or error}: {advice}")
    return code


def _discard_output() -> None:
    """Drop unwritten output, so that Python reports no second error when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        raise LutraError(f"{message}: see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)
        super().exit(status, message)


def command_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Parser of all commands, or ``only`` of one of the host's: modules of others take time."""
    parser = _Parser(
        prog="lutra",
        description="Run low-bit language models on FPGAs, simulated hardware, CPUs and GPUs.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="name")

    def add(name: str, add_arguments: _AddArguments, summary: str) -> None:
        description = f"{summary[0].upper()}{summary[1:]}."
        add_arguments(commands.add_parser(name, help=summary, description=description))

    for name in _COMMANDS if only is None else (only,):
        module, summary = _COMMANDS[name]
        found = getattr(import_module(f"lutra.commands.{module}"), f"add_{name}")
        add(name, cast("_AddArguments", found), summary)
    if only is None:
        from importlib.metadata import entry_points

        from lutra import __version__

        parser.add_argument("--version", action="version", version=f"lutra {__version__}")
        # packages above the host, such as lutra_flows, add their own
        for command in sorted(entry_points(group="lutra.commands"), key=lambda entry: entry.name):
            add_arguments = command.load()
            summary = " ".join(add_arguments.__doc__.split()).rstrip(".")
            add(command.name, add_arguments, summary[0].lower() + summary[1:])
    return parser
