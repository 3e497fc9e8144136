"""Options that several commands have: one flag, one default and one help text for each."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from lutra.devices.choose import DEVICES, is_device, most_threads
from lutra.devices.hardware import BOARD_SCHEME, LENT_SCHEME
from lutra.llm import SPECULATION
from lutra.models import shipped_models
from lutra.quantize import DEFAULT_GROUP
from lutra.quantize.vocabulary import HEAD_BITS, PLAIN_HEAD
from lutra_golden.arith.quantize import ACTIVATION_GROUPS
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import FORMATS, GROUPS, Format
from lutra_golden.model.cache import KV_NAMES, Kv, kv_name, kv_pair
from lutra_golden.timing.boards import AGENT, BOARD_PROFILES

__all__ = [
    "Place",
    "Rounding",
    "add_activation_group",
    "add_board",
    "add_chat_template",
    "add_device",
    "add_format",
    "add_group",
    "add_head",
    "add_json",
    "add_kv",
    "add_model",
    "add_offsets",
    "add_place",
    "add_speculation",
    "add_threads",
    "check_kv",
    "given_chat_template",
    "place",
    "real",
    "rounding",
    "whole",
]

_PLACES = f"{BOARD_SCHEME}HOST", f"{LENT_SCHEME}HOST"
"""Forms of addresses of devices."""


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Parser of an option that is a whole number, from ``low`` and up to ``high``."""
    expected = f"{low} or more" if high is None else f"{low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be {expected}, not {text}")
        return value

    return parse


def real(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """Parser of an option that is a finite number which ``fits``; ``expected`` is that in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
        if not (math.isfinite(value) and fits(value)):
            raise argparse.ArgumentTypeError(f"must be {expected}, not {text}")
        return value

    return parse


def add_format(parser: argparse.ArgumentParser, default: str) -> None:
    """``--format``; ``default`` describes the default in words."""
    parser.add_argument(
        "--format",
        type=_format,
        help=f"bits of weights (W) and activations (A): {', '.join(FORMATS)}; W1.58g128A8 is with "
        f"weights in groups of 128 (default {default})",
    )


def _format(text: str) -> str:
    try:
        return str(Format.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_group(parser: argparse.ArgumentParser) -> None:
    """``--group``; None where the format, or a packed model, may have a group of its own."""
    parser.add_argument(
        "--group",
        type=int,
        choices=GROUPS,
        help=f"weights that share one scale and zero point (default {DEFAULT_GROUP})",
    )


def add_activation_group(parser: argparse.ArgumentParser, default: str) -> None:
    """``--a-group``, which a packed model does not take; ``default`` in words."""
    parser.add_argument(
        "--a-group",
        type=int,
        choices=(0, *ACTIVATION_GROUPS),
        help="activations that share an exponent under their token's scale, for more precise A8 on "
        f"all devices but boards that are built without, 0 for none (default {default})",
    )


def add_offsets(parser: argparse.ArgumentParser, default: str) -> None:
    """``--offsets``, which a packed model does not take; ``default`` in words."""
    parser.add_argument(
        "--offsets",
        action=argparse.BooleanOptionalAction,
        help="keep the offsets of a checkpoint's groups (Q4_K, Q4_1 and the like) as they are, in "
        f"half the memory, on all devices but boards that are built without (default {default})",
    )


def add_head(parser: argparse.ArgumentParser, default: str) -> None:
    """``--head``, which a packed model does not take; ``default`` in words."""
    parser.add_argument(
        "--head",
        type=int,
        choices=(PLAIN_HEAD, *HEAD_BITS),
        help="bits of embedding and head at most, as codes in groups, on all devices but "
        "accelerators with the ternary engine; codes of a GGUF file that have no more are kept. 0 "
        f"is int16 and five trits, which every device runs (default {default})",
    )


def add_kv(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``--kv``; None where a packed model has bits of its own."""
    parser.add_argument(
        "--kv",
        type=_kv,
        metavar="{" + ",".join(KV_NAMES) + "}",
        default=default,
        help="bits of cached keys and values, 8/4 or 8,4 for keys of 8 and values of 4 (default 8)",
    )


def check_kv(kv: str | None, device: str | list[str], *, falls_back: bool) -> None:
    """Refuse bits of keys and values that the device has not, before anything is loaded.

    ``falls_back``: the device ``auto`` becomes one that has them. A device that is lent says so
    itself.
    """
    able = ("golden", "cpu", "auto") if falls_back else ("golden", "cpu")
    names = [device] if isinstance(device, str) else device
    here = [name for name in names if not name.startswith(LENT_SCHEME)]
    unable = [name for name in here if name.partition(":")[0] not in able]
    if kv == "8/4" and unable:
        raise LutraError(
            f"device {unable[0]} caches keys and values with the same number of bits, not --kv "
            "8/4: add -dev cpu or golden, or give --kv 8 or --kv 4"
        )


def add_device(
    parser: argparse.ArgumentParser, default: str | None, note: str, *, several: bool = False
) -> None:
    """``-dev``; ``note`` says the default in words. It may name ``several`` devices."""
    more = (
        ", or several with commas, such as cpu:1,rtl, as lutra plan divides requests between them"
    )
    parser.add_argument(
        "-dev",
        "--device",
        type=_devices if several else _device,
        metavar="{" + ",".join([*DEVICES, *_PLACES]) + "}",
        default=default,
        help=f"device that runs the model{more * several} (default {note})",
    )


def add_board(parser: argparse.ArgumentParser) -> None:
    """``--emulate`` and ``--bitstream`` of the devices that are boards."""
    boards = sorted(each.name for each in BOARD_PROFILES.values() if each.runtime != AGENT)
    parser.add_argument(
        "--emulate",
        choices=boards,
        metavar="BOARD",
        help="simulate a board instead of using a real one, with -dev pynq or xrt: "
        f"{', '.join(boards)}",
    )
    parser.add_argument(
        "--bitstream",
        type=Path,
        metavar="FILE",
        help="bitstream to load into a real board, with -dev pynq (.bit, with the .hwh beside it), "
        "xrt (.xclbin) or auto",
    )


def _kv(text: str) -> str:
    try:
        return kv_name(kv_pair(text))
    except LutraError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _device(text: str) -> str:
    if not is_device(text):
        names = ", ".join([*DEVICES, *_PLACES])
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {names})")
    return text


def _devices(text: str) -> str | list[str]:
    """One device, or the devices of a plan."""
    if "," not in text:
        return _device(text)
    from lutra.serving.plans.sites import parse_sites

    names = text.split(",")
    try:
        parse_sites(names)
    except LutraError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads`` of the device ``cpu``."""
    parser.add_argument(
        "-t",
        "--threads",
        type=whole(1, most_threads()),
        metavar="N",
        help="threads of the device cpu (default: one per core)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as one line of JSON, the last of the output",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """``-m`` and what it is run as: format, groups, keys and values, engine."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="folder, GGUF file, Hugging Face id, or a shipped model: "
        f"{', '.join(shipped_models())} (default tales)",
    )
    add_format(parser, "the checkpoint's own if its weights are integers, otherwise W8A8")
    add_group(parser)
    add_kv(parser)
    add_activation_group(parser, "0 with --format, otherwise 32 there if the model is not ternary")
    add_offsets(parser, "no with --format, otherwise yes there")
    add_head(parser, "0 with --format, otherwise the codes of a GGUF file there")
    parser.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        help="matmul engine of an accelerator (default ternary for W1.58A8, otherwise lut)",
    )


def add_place(parser: argparse.ArgumentParser, default: str, note: str) -> None:
    """``-dev`` and what it is built and run with: board, threads, configuration."""
    add_device(parser, default, note, several=True)
    add_board(parser)
    add_threads(parser)
    parser.add_argument(
        "--config", choices=CONFIGS, help="configuration of an accelerator (default nano)"
    )


class Rounding(TypedDict, total=False):
    """The numbers that a model is rounded to, as :class:`~lutra.llm.LLM` has it."""

    format: str | None
    group: int | None
    kv_bits: Kv | None
    a_group: int | None
    offsets: bool | None
    head_bits: int | None


class Place(TypedDict, total=False):
    """Choices that a device is built and run with, as :class:`~lutra.llm.LLM` has it."""

    config: str | None
    engine: str | None
    threads: int | None
    emulate: str | None
    bitstream: Path | None


def rounding(args: argparse.Namespace) -> Rounding:
    """Values of those options of :func:`add_model` that a command has."""
    names = {"kv_bits": "kv", "head_bits": "head"}
    found = {key: names.get(key, key) for key in Rounding.__annotations__}
    return Rounding(**{key: getattr(args, name) for key, name in found.items() if name in args})


def place(args: argparse.Namespace) -> Place:
    """Values of those options of :func:`add_place`, and of ``--engine``, that a command has."""
    return Place(**{key: getattr(args, key) for key in Place.__annotations__ if key in args})


def add_speculation(parser: argparse.ArgumentParser) -> None:
    """``--speculate``."""
    parser.add_argument(
        "--speculate",
        metavar="{off,ngram,MODEL}",
        help="guess tokens and check several at a time, which changes their speed alone: ngram "
        "takes them from the text so far, MODEL from a small model of the same vocabulary "
        f"({', '.join(f'default {way} on {name}' for name, way in SPECULATION.items())}, off "
        "elsewhere)",
    )


def add_chat_template(parser: argparse.ArgumentParser) -> None:
    """``--chat-template``."""
    parser.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja chat template to use instead of the model's own",
    )


def given_chat_template(args: argparse.Namespace) -> str | None:
    """Text of ``--chat-template``, None where it is left out."""
    path: Path | None = args.chat_template
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LutraError(f"{path} is not UTF-8 text: convert it") from None
