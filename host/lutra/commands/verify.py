"""``lutra verify``: a packed model compared with its checkpoint."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lutra.commands.options import add_json, real
from lutra.commands.tables import print_losses
from lutra.evaluate.verify import LUTRA, verify
from lutra.models import find_model
from lutra.packed.file import is_packed, open_packed
from lutra.packed.store import check_finished
from lutra.progress import StepProgress
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

__all__ = ["add_verify"]

_PROMPT = "Once upon a time there was a king who had three daughters, and the youngest was so"


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra verify``."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of the packed model")
    parser.add_argument(
        "--against",
        required=True,
        metavar="CHECKPOINT",
        help="its checkpoint: folder, GGUF file, Hugging Face id, or a shipped model",
    )
    parser.add_argument(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="text to run both models on (default: the opening of a fairy tale, as much of it as "
        "the context holds)",
    )
    parser.add_argument(
        "--limit",
        type=real("above 0", lambda limit: limit > 0),
        metavar="ERROR",
        help="largest relative rounding error of a part (default: by the bits of its weights)",
    )
    add_json(parser)
    parser.set_defaults(command=_verify)


def _verify(args: argparse.Namespace) -> int:
    check_finished(args.model)
    if not is_packed(args.model):
        raise LutraError(f"{args.model} is not a packed model: make one with lutra pack")
    source = find_model(args.against)
    if is_packed(source):
        raise LutraError(f"{source} is packed itself: give the checkpoint it was made from")
    model = open_packed(args.model).model
    tokenizer = Tokenizer.open(args.model, model.bos)
    if args.prompt is None:
        tokens = tokenizer.encode(_PROMPT)[: model.context]
    else:
        tokens = tokenizer.encode(args.prompt)
    with StepProgress() as progress:
        found = verify(model, source, tokens, limit=args.limit, progress=progress)
    code = 1 if found.first_over else 0
    if args.json:
        figures = asdict(found) | {"first_over": found.first_over, "format": model.format}
        figures["kind"] = "measured"
        print(json.dumps(figures))
        return code
    console = Console(highlight=False, markup=False)
    console.print(f"relative errors, measured; the checkpoint was run by {found.runner}")
    if found.runner == LUTRA:
        console.print(
            "which also reads the packed model: a fault of reading the checkpoint does not show "
            "(transformers can judge a folder, llama-cpp-python a GGUF file; install it)"
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for name in ("rounding", "limit", "integers", "in all"):
        table.add_column(name, justify="right")
    for part in found.parts:
        figures = (part.own, part.limit, part.integer, part.total)
        table.add_row(part.name, *("-" if x is None else f"{x:.4f}" for x in figures))
    console.print(table)
    console.print(f"logits: RMS error {found.logits:.4f} of their standard deviation")
    console.print(f"top-1 agreement: {found.top1:.1%} of {found.tokens} tokens")
    console.print(f"KL divergence: {found.kl:.5f} nats")
    print_losses(found.losses)
    if found.first_over:
        console.print(f"first part over its limit: {found.first_over}", style="bold")
    else:
        console.print("all parts are within their limits")
    return code
