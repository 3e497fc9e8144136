"""``lutra quantize`` and ``lutra pack``: from a checkpoint to a packed model."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lutra.commands.options import (
    add_activation_group,
    add_format,
    add_group,
    add_head,
    add_json,
    add_kv,
    add_offsets,
    real,
    whole,
)
from lutra.commands.show import packed_figures
from lutra.formats.gguf_split import model_files, model_name
from lutra.models import find_model, load_model
from lutra.models.decoder import CONTEXT, Decoder
from lutra.packed.file import VERSION, is_packed, open_packed, write_packed
from lutra.packed.layers import LayerSizes
from lutra.packed.store import PackedStore, is_unfinished
from lutra.progress import StepProgress
from lutra.quantize import default_format, default_parts, float_bits, group_of
from lutra.quantize.budget import CHOICES, BitPlan, Sensitivity
from lutra.quantize.calibration import calibration_windows
from lutra.quantize.driver import METHODS, Recipe, is_floating, quantize_layers, usable_windows
from lutra.text.tokenizer import Tokenizer, copy_tokenizer
from lutra_golden.errors import LutraError
from lutra_golden.machine import unwritable
from lutra_golden.matmul.format import Format
from lutra_golden.model.capabilities import COMMON_PARTS, EVERY_PART

__all__ = ["add_pack", "add_quantize"]

Progress = Callable[[str, float], None]
_LESS = (
    "packed with one scale per token, which every device runs: --a-group 32 --offsets is closer to "
    "the checkpoint, on all devices but boards that are built without"
)
_LARGER = (
    "embedding and head are int16 and five trits, which every device runs: --head 8 keeps the "
    "codes of the file, in fewer bytes, on all devices but accelerators with the ternary engine"
)


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra quantize``."""
    _add_source(parser)
    parser.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="rtn",
        help="quantisation method (default rtn, round to nearest; the others need --calib)",
    )
    parser.add_argument(
        "--act-order",
        action="store_true",
        help="gptq only: quantise columns in order of decreasing activation",
    )
    parser.add_argument(
        "--bits-budget",
        type=real(f"{CHOICES[0]} to {CHOICES[-1]}", lambda n: CHOICES[0] <= n <= CHOICES[-1]),
        metavar="BITS",
        help="average bits per weight, spread over the layers by measured sensitivity",
    )
    parser.add_argument("--calib", type=Path, metavar="FILE", help="calibration text in UTF-8")
    parser.add_argument(
        "--calib-windows",
        type=whole(1),
        default=32,
        metavar="N",
        help="number of calibration windows (default 32)",
    )
    parser.add_argument(
        "--calib-tokens",
        type=whole(2),
        default=256,
        metavar="N",
        help="tokens per calibration window (default 256)",
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="random seed for choosing calibration windows (default 0)",
    )
    parser.set_defaults(command=_quantize)


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra pack``."""
    _add_source(parser)
    parser.set_defaults(
        command=_quantize, method="rtn", act_order=False, bits_budget=None, calib=None
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="CHECKPOINT",
        help="folder, GGUF file, Hugging Face id, or a shipped model",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder to write the packed model to",
    )
    add_format(parser, "the checkpoint's own if its weights are integers, otherwise W8A8")
    add_group(parser)
    add_kv(parser, "8")
    add_activation_group(parser, "0, which every device runs")
    add_offsets(parser, "no, which every device runs")
    add_head(parser, "0")
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=whole(1),
        metavar="N",
        help=f"context length in tokens (default: the model's, at most {CONTEXT})",
    )
    add_json(parser)


def _quantize(args: argparse.Namespace) -> int:
    path = find_model(args.source)
    if is_packed(path):
        raise LutraError(f"{path} is packed already: give the checkpoint it was made from")
    if args.out.exists() and not (args.out.is_dir() and _ours(args.out)):
        raise LutraError(f"{args.out} exists and is not a packed model: give another folder")
    if reason := unwritable(args.out):
        raise LutraError(f"-o {args.out} cannot be written ({reason}): give another folder")
    if is_packed(args.out):
        print(f"note: the packed model in {args.out} is replaced", file=sys.stderr)
    model = load_model(path).limited(args.ctx_size)
    wanted = None if args.format is None else Format.parse(args.format)
    given = model, wanted, args.a_group, args.offsets, args.head
    parts = default_parts(*given, COMMON_PARTS)
    recipe = Recipe(
        format=wanted or default_format(model),
        group=group_of(wanted, args.group),
        method=args.method,
        act_order=args.act_order,
        bits_budget=args.bits_budget,
        kv_bits=args.kv,
        a_groups=parts.a_groups,
        offsets=parts.offsets,
        float_bits=float_bits(wanted),
        head_bits=parts.head_bits,
    )
    # a model without one, or with another model's, is refused before it is packed
    tokenizer = Tokenizer.open(path, model.config.bos_token_id)
    tokenizer.check_model(path, model.config.vocab_size)
    calibration = None if args.calib is None else _windows(args, tokenizer, model)
    usable_windows(model, recipe, calibration)
    # said before the work, which may take hours, and not behind it
    if METHODS[args.method] is not None and not is_floating(model.layers[0]):
        print(
            f"note: the weights of {model.name} are integers already and stay as they are: "
            f"--method {args.method} changes nothing",
            file=sys.stderr,
        )
    closest = default_parts(*given, EVERY_PART)
    for note, ours, closer in (
        (_LESS, parts.a_groups, closest.a_groups),
        (_LARGER, parts.head_bits, closest.head_bits),
    ):
        if ours != closer:
            print(f"note: {note}", file=sys.stderr)
    tables: list[tuple[Sensitivity, BitPlan]] = []
    try:
        with StepProgress() as progress:
            _pack(
                model, recipe, calibration, args.out, path, progress,
                lambda sensitivity, plan: tables.append((sensitivity, plan)),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: run the same command again to resume") from None
    for sensitivity, plan in tables:
        _print_plan(sensitivity, plan)
    packed = open_packed(args.out)
    if args.json:
        print(json.dumps(packed_figures(packed)))
    else:
        figures = f"{packed.model.format}, {packed.n_bytes:,} bytes"
        print(f"{args.out}: {model.name} in {figures}, fingerprint {packed.fingerprint}")
    return 0


def _ours(out: Path) -> bool:
    """True if a folder is empty, a packed model, or one that was interrupted."""
    return is_packed(out) or is_unfinished(out) or next(out.iterdir(), None) is None


def _windows(args: argparse.Namespace, tokenizer: Tokenizer, model: Decoder) -> NDArray[np.int64]:
    try:
        text = args.calib.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise LutraError(f"{args.calib} is not UTF-8 text: convert it first") from None
    length = min(args.calib_tokens, model.config.max_position_embeddings)
    bos = tokenizer.bos if tokenizer.add_bos else None
    tokens = tokenizer.encode(text, add_bos=False)
    return calibration_windows(tokens, args.calib_windows, length, args.seed, bos)


def _pack(
    model: Decoder,
    recipe: Recipe,
    calibration: NDArray[np.int64] | None,
    out: Path,
    source: Path,
    progress: Progress,
    on_plan: Callable[[Sensitivity, BitPlan], None],
) -> None:
    c = model.config
    settings: dict[str, object] = dict(recipe.settings(calibration))
    settings |= {"source": _identity(source), "context": c.max_position_embeddings}
    settings["version"] = VERSION  # layers are stored as their format has them
    sizes = LayerSizes(c.hidden_size, c.intermediate_size, c.q_size, c.kv_size, c.head_dim)
    store = PackedStore(out, settings, sizes)
    packer = recipe.packer(model)
    with store.held():
        for _ in quantize_layers(
            model, recipe, calibration, packer=packer, store=store, progress=progress,
            on_plan=on_plan,
        ):  # fmt: skip
            pass  # the store keeps each layer, so that memory need not
        progress("writing", 0.0)
        tokenizer = partial(copy_tokenizer, source)
        write_packed(out, packer.finish(store), store, tokenizer)
        store.clear()


def _identity(source: Path) -> list[object]:
    """Names, sizes and times of a checkpoint's files, to recognise it without reading it."""
    files = model_files(source) if source.is_file() else sorted(source.glob("*"))
    stats = [(each.name, each.stat()) for each in files if each.is_file()]
    place = source.parent.resolve() / model_name(source) if source.is_file() else source.resolve()
    return [str(place), [[name, s.st_size, s.st_mtime_ns] for name, s in stats]]


def _print_plan(sensitivity: Sensitivity, plan: BitPlan) -> None:
    print("bits chosen by measured sensitivity, and their cost in 1/1000 nat per token")
    table = Table(box=None, pad_edge=False)
    rows = sensitivity.rows(plan)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    Console(highlight=False).print(table)
