"""``lutra perplexity``: perplexity of a text, in integers or in floating point."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.commands.options import (
    add_device,
    add_json,
    add_model,
    add_threads,
    check_kv,
    place,
    rounding,
    whole,
)
from lutra.commands.tables import print_losses
from lutra.devices.golden import GoldenDevice
from lutra.evaluate.divergence import Divergence
from lutra.evaluate.losses import losses
from lutra.evaluate.perplexity import perplexity, text_windows
from lutra.llm import LLM
from lutra.models.decoder import Decoder
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError

__all__ = ["add_perplexity"]

_FEW = 1000
"""Tokens below which a text of the same kind may have quite another perplexity."""
_ROWS = 128  # of logits in floating point at a time


def add_perplexity(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra perplexity``."""
    add_model(parser)
    add_json(parser)
    parser.add_argument(
        "-f", "--file", type=Path, required=True, metavar="FILE", help="text in UTF-8"
    )
    add_device(parser, None, "auto, or interpreted with --engine")
    add_threads(parser)
    parser.add_argument(
        "--float",
        action="store_true",
        help="evaluate in floating point: a checkpoint as it is, or rounded to --format if that "
        "is given; a packed model with its packed weights",
    )
    parser.add_argument(
        "--windows",
        type=whole(1),
        metavar="N",
        help="use only the first N windows of the text",
    )
    parser.add_argument(
        "--losses",
        action="store_true",
        help="also evaluate what each rounding costs alone, in floating point; takes several times "
        "as long",
    )
    parser.set_defaults(command=_perplexity)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, n, _ROWS))


def _perplexity(args: argparse.Namespace) -> int:
    try:
        text = args.file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LutraError(f"{args.file} is not UTF-8 text: convert it first") from None
    if args.float:
        for option in ("device", "threads", "engine"):
            if getattr(args, option) is not None:
                raise LutraError(f"--float runs on no device: leave --{option} out")
    device = args.device or ("interpreted" if args.engine else "auto")
    if not args.float:
        check_kv(args.kv, device, falls_back=True)
    with StepProgress() as progress:
        llm = LLM(
            args.model,
            GoldenDevice() if args.float else device,
            **rounding(args),
            **place(args),
            progress=progress,
            load=not args.float,
        )
        tokens = llm.tokenizer.encode(text, add_bos=False)
        bos = llm.tokenizer.bos if llm.tokenizer.add_bos else None
        windows = text_windows(tokens, window=llm.context, bos=bos)
        if not windows:
            raise LutraError(
                f"{args.file} has {len(tokens)} tokens, and at least {1 if bos is not None else 2} "
                "are needed to predict one: give a longer text"
            )
        windows = windows[: args.windows]
        if args.windows is not None:
            text = llm.tokenizer.decode([token for window in windows for token in window[1:]])

        def integer(window: list[int]) -> Iterator[NDArray[np.float64]]:
            for values, scale in llm.logits_by_pass(window):
                for rows in _blocks(len(values)):
                    yield values[rows] * scale[rows, None]
                del values  # before the next pass makes its own

        as_it_is = args.float and not args.format and llm.source is not None

        def real(source: Decoder) -> Callable[[list[int]], Iterator[NDArray[np.float64]]]:
            def logits(window: list[int]) -> Iterator[NDArray[np.float64]]:
                x = source.stream(np.array(window))
                for rows in _blocks(len(x)):
                    yield source.logits(x[rows])

            return logits

        logits = integer
        if args.float:
            logits = real(llm.source if as_it_is and llm.source else llm.rounded)
        result = perplexity(logits, windows, len(text), progress)
        if result.tokens < _FEW:
            progress.pause()
            print(
                f"note: a perplexity of {result.tokens} tokens says little: give a text of "
                f"{_FEW:,} or more",
                file=sys.stderr,
            )
        parts: dict[str, Divergence] = {}
        if args.losses:
            parts = losses(llm.packed, windows, llm.source, progress)
    if args.json:
        figures = {"model": args.model, "device": "float" if args.float else llm.device.name}
        figures |= {"engine": None if args.float else llm.device.facts().get("engine")}
        # a checkpoint of ternary weights is rounded already
        as_it_is = as_it_is and not llm.packed.ternary
        figures |= {"format": None if as_it_is else llm.packed.format}
        figures |= {"group": None if as_it_is else llm.packed.group}
        figures |= {"kv_bits": None if as_it_is else llm.packed.kv}
        figures |= {"ppl": result.ppl, "stderr": result.stderr, "tokens": result.tokens}
        figures |= {"kind": "measured"}
        if parts:
            figures |= {"losses": {name: asdict(each) for name, each in parts.items()}}
        print(json.dumps(figures | {"bits_per_character": result.bits_per_character}))
    else:
        print(f"Final estimate: PPL = {result.ppl:.4f} +/- {result.stderr:.5f}")
        characters = f"{result.bits_per_character:.4f} bits per character"
        where = "in floating point" if args.float else f"on device {llm.device.name}"
        print(f"{characters}, {result.tokens} tokens; measured {where}")
        if parts:
            print_losses(parts)
    llm.close()
    return 0
