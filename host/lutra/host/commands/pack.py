"""``lutra quantize``, ``lutra pack`` and ``lutra show``: packed models and what is in them."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lutra.host.checkpoints import open_checkpoint
from lutra.host.checkpoints.weights import Dense
from lutra.host.errors import LutraError
from lutra.host.formats.b128 import row_bytes
from lutra.host.formats.gguf import is_gguf
from lutra.host.formats.packed import PackedFile, PackedStore, is_packed, open_packed, write_packed
from lutra.host.models import find_model, load_model
from lutra.host.models.decoder import CONTEXT, LINEARS, Decoder
from lutra.host.packing import PackedModel, Packer
from lutra.host.progress import StepProgress
from lutra.host.quantize import DEFAULT_GROUP, GROUPS, default_format
from lutra.host.quantize.budget import BitPlan, Sensitivity
from lutra.host.quantize.calibration import calibration_windows
from lutra.host.quantize.driver import METHODS, Recipe, quantize_layers
from lutra.host.tokenizer import Tokenizer, copy_tokenizer
from lutra.sim.golden.matmul.format import FORMATS, Format

__all__ = ["add_pack", "add_quantize", "add_show"]

Progress = Callable[[str, float], None]


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra quantize``."""
    _add_source(parser)
    parser.add_argument("--method", choices=tuple(METHODS), default="rtn", help="default rtn")
    parser.add_argument("--act-order", action="store_true", help="of gptq: great columns first")
    parser.add_argument(
        "--bits-budget",
        type=float,
        metavar="BITS",
        help="mean bits of a weight; each layer gets its own by measured sensitivity",
    )
    parser.add_argument("--calib", type=Path, metavar="FILE", help="UTF-8 text to calibrate with")
    parser.add_argument("--calib-windows", type=int, default=32, help="of the text (32)")
    parser.add_argument("--calib-tokens", type=int, default=256, help="of a window (256)")
    parser.add_argument("--seed", type=int, default=0, help="of what is taken of the text (0)")
    parser.set_defaults(command=_quantize)


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra pack``."""
    _add_source(parser)
    parser.set_defaults(
        command=_quantize, method="rtn", act_order=False, bits_budget=None, calib=None
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model folder, GGUF file, id on Hugging Face, shipped name")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the packed model")
    parser.add_argument(
        "--format",
        type=str.upper,
        help=f"{', '.join(FORMATS)} (default: the one that the weights are in, else W4A8)",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=GROUPS,
        default=DEFAULT_GROUP,
        help=f"weights that share a scale and a zero point (default {DEFAULT_GROUP})",
    )
    parser.add_argument(
        "-c", "--ctx-size", type=int, help=f"positions (default: the model's, at most {CONTEXT})"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def _quantize(args: argparse.Namespace) -> int:
    path = find_model(args.source)
    if is_packed(path):
        raise LutraError(f"{path} is packed already: give the checkpoint that it was made of")
    if args.out.exists() and not (args.out.is_dir() and _ours(args.out)):
        raise LutraError(f"{args.out} exists and is no packed model: give another folder")
    model = load_model(path).limited(args.ctx_size)
    tokenizer = Tokenizer.open(path, model.config.bos_token_id)
    try:
        format = default_format(model) if args.format is None else Format.parse(args.format)
    except ValueError as error:
        raise LutraError(str(error)) from None
    recipe = Recipe(
        format=format,
        group=args.group,
        method=args.method,
        act_order=args.act_order,
        bits_budget=args.bits_budget,
    )
    calibration = None
    if args.calib is not None:
        calibration = _windows(args, tokenizer, model)
    tables: list[tuple[Sensitivity, BitPlan]] = []
    with StepProgress() as progress:
        packed, fingerprint = _pack(
            model, recipe, calibration, args.out, path, progress,
            lambda sensitivity, plan: tables.append((sensitivity, plan)),
        )  # fmt: skip
    copy_tokenizer(path, args.out)
    for sensitivity, plan in tables:
        _print_plan(sensitivity, plan)
    if args.json:
        print(json.dumps(_figures(open_packed(args.out))))
    else:
        print(f"{args.out}: {packed.name} in {packed.format}, fingerprint {fingerprint}")
    return 0


def _ours(out: Path) -> bool:
    """Whether a folder is a packed model, or one that an interrupt left, or empty."""
    names = [each.name for each in out.iterdir()]
    return is_packed(out) or not names or any(name.startswith(".partial-") for name in names)


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
    watch: Callable[[Sensitivity, BitPlan], None],
) -> tuple[PackedModel, str]:
    c = model.config
    settings: dict[str, object] = dict(recipe.settings(calibration))
    settings |= {"source": _identity(source), "context": c.max_position_embeddings}
    sizes = (c.hidden_size, c.intermediate_size, c.q_size, c.kv_size, c.head_dim)
    out.mkdir(parents=True, exist_ok=True)
    store = PackedStore(out, settings, sizes)
    packer = Packer(model.replaced(model.layers, recipe.format.a_bits))
    for _ in quantize_layers(
        model, recipe, calibration, packer=packer, store=store, progress=progress, watch=watch
    ):
        pass  # the store has it, and memory need not hold it
    packed = packer.finish(store)
    fingerprint = write_packed(out, packed, store)
    store.clear()
    return packed, fingerprint


def _identity(source: Path) -> list[object]:
    """What tells one checkpoint from another without reading it: names, sizes and times."""
    files = [source] if source.is_file() else sorted(source.glob("*"))
    stats = [(each.name, each.stat()) for each in files if each.is_file()]
    return [str(source.resolve()), [[name, s.st_size, s.st_mtime_ns] for name, s in stats]]


def _print_plan(sensitivity: Sensitivity, plan: BitPlan) -> None:
    table = Table(title="bits by measured sensitivity", box=None, pad_edge=False)
    rows = sensitivity.rows(plan)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    Console(highlight=False).print(table)


# -- show


def add_show(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra show``."""
    parser.add_argument("model", help="packed model, checkpoint, GGUF file or shipped name")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.set_defaults(command=_show)


def _show(args: argparse.Namespace) -> int:
    path = find_model(args.model)
    figures = _figures(open_packed(path)) if is_packed(path) else _source_figures(path)
    if args.json:
        print(json.dumps(figures))
        return 0
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures.items():
        if not isinstance(value, list):
            text = f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
            table.add_row(name.replace("_", " "), text)
    console.print(table)
    matrices = figures.get("matrices")
    if isinstance(matrices, list) and matrices:
        table = Table(box=None, pad_edge=False)
        for name in ("matrix", "rows", "depth", "bits", "group", "scale", "scales", "shift"):
            table.add_column(name, justify="left" if name == "matrix" else "right")
        for each in cast("list[list[object]]", matrices):
            table.add_row(*map(str, each))
        console.print()
        console.print(table)
    return 0


def _figures(file: PackedFile) -> dict[str, object]:
    model = file.model
    n_weights = n_bytes = 0
    matrices: list[list[object]] = []
    for i in range(len(model.layers)):
        layer = model.layers[i]
        for name in LINEARS:
            linear = layer.linear(name)
            w = linear.weights
            n, k = w.codes.shape
            bits = 2 if w.ternary else w.bits
            side = 0 if w.ternary else w.scale.size * (2 + (1 if w.scale_bits <= 8 else 2))
            n_weights += n * k
            n_bytes += n * row_bytes(k, bits) + side
            group, scales = (
                ("-", "-") if w.ternary else (w.group, f"{w.scale.min()}..{w.scale.max()}")
            )
            scale = float(linear.scale.m) * 2.0 ** float(linear.scale.e)
            matrices.append(
                [f"{i}.{name}", n, k, "ternary" if w.ternary else bits, group, f"{scale:.4g}",
                 scales, linear.shift]
            )  # fmt: skip
    head = model.head.nbytes + model.head_rows.nbytes
    return {
        "name": model.name,
        "architecture": model.architecture,
        "format": model.format,
        "fingerprint": file.fingerprint,
        "layers": len(model.layers),
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "heads": model.n_heads,
        "key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "vocabulary": model.vocab_size,
        "context": model.context,
        "weights": n_weights,
        "bits_per_weight": round(8 * n_bytes / n_weights, 3),
        "weight_bytes": n_bytes,
        "embedding_bytes": model.embedding.nbytes,
        "head_bytes": head,
        "file_bytes": file.n_bytes,
        "residual_fraction_bits": model.residual_frac,
        "matrices": matrices,
    }


def _source_figures(path: Path) -> dict[str, object]:
    model = load_model(path)
    checkpoint = open_checkpoint(path)
    c, weight = model.config, model.layers[0].q_proj
    kind = type(weight).__name__.lower()
    if isinstance(weight, Dense):
        kind = f"floating point, {weight.values.dtype}"
    n_weights = c.num_hidden_layers * sum(
        c.shape_of(name)[0] * c.shape_of(name)[1] for name in LINEARS
    )
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return {
        "name": model.name,
        "architecture": model.architecture,
        "file": "GGUF" if is_gguf(path) else "safetensors",
        "weights_are": kind,
        "runs_by_default_in": str(default_format(model)),
        "layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "heads": c.num_attention_heads,
        "key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocabulary": c.vocab_size,
        "context": c.max_position_embeddings,
        "rope": f"{c.rope.kind}, base {c.rope.theta:g}",
        "tensors": len(checkpoint.names()),
        "weights": n_weights,
        "file_bytes": sum(each.stat().st_size for each in files),
    }
