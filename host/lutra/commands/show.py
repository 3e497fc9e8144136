"""``lutra show``: contents of a packed model or a checkpoint."""

import argparse
import json
import math
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from lutra.checkpoints import Checkpoint, open_checkpoint
from lutra.checkpoints.gguf import GgufCheckpoint
from lutra.checkpoints.weights import Dense, Grouped, Weight
from lutra.commands.options import add_json
from lutra.formats.gguf import is_gguf
from lutra.models import find_model, load_model
from lutra.models.decoder import LAYERS, OUTER, Decoder, matrix_name
from lutra.packed.file import PackedFile, is_packed, open_packed
from lutra.packed.store import check_finished
from lutra.quantize import default_parts
from lutra.quantize.kept import KEPT
from lutra.quantize.vocabulary import default_head
from lutra.quantize.widths import expected_format
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.matmul.format import TERNARY_NAME
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.shapes import LINEARS
from lutra_golden.model.stored import StoredWeights

__all__ = ["add_show", "default_format_of", "packed_figures"]


def add_show(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra show``."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder, GGUF file, Hugging Face id, or a shipped model",
    )
    add_json(parser)
    parser.set_defaults(command=_show)


def _show(args: argparse.Namespace) -> int:
    path = find_model(args.model)
    check_finished(path)
    figures = packed_figures(open_packed(path)) if is_packed(path) else _source_figures(path)
    if args.json:
        print(json.dumps(figures))
        return 0
    console = Console(highlight=False, markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures.items():
        if not isinstance(value, list):
            text = f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
            table.add_row(name.replace("_", " "), text)
    console.print(table)
    for value in figures.values():
        if isinstance(value, list):
            console.print()
            console.print(_table(cast("list[dict[str, object]]", value)))
    return 0


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        text = isinstance(value, str) and name != "scale"
        table.add_column(name.replace("_", " "), justify="left" if text else "right")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    return table


def packed_figures(file: PackedFile) -> dict[str, object]:
    """Figures of a packed model, as ``lutra show --json`` prints them."""
    model = file.model
    n_weights = n_bytes = 0
    matrices: list[dict[str, object]] = []
    for i in range(len(model.layers)):
        layer = model.layers[i]
        for name in LINEARS:
            linear = layer.linear(name)
            w = linear.weights
            n, k = w.codes.shape
            ternary = w.ternary
            n_weights += n * k
            n_bytes += linear.stored.n_bytes
            matrices.append(
                {
                    "matrix": f"{i}.{name}",
                    "rows": n,
                    "depth": k,
                    "bits": TERNARY_NAME if w.trits else linear.stored.bits,
                    "group": None if ternary else w.group,
                    "scale": f"{scale_to_float(linear.scale):.4g}",
                    "scales": None if ternary else f"{w.scale.min()}..{w.scale.max()}",
                    "shift": linear.shift,
                }
            )
    embedding, head = model.embedding.nbytes, model.head.nbytes + model.head_rows.nbytes
    kinds = "int16", "five trits"
    if (coded := model.vocabulary) is not None:
        embedding, head = coded.embedding.stored.n_bytes, coded.head.stored.n_bytes
        kinds = _codes(coded.embedding.stored), _codes(coded.head.stored)
    return {
        "name": model.name,
        "architecture": model.architecture,
        "format": model.format,
        "key_bits": model.key_bits,
        "value_bits": model.value_bits,
        "activation_group": None if model.a_groups is None else model.a_groups.size,
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
        "embedding": kinds[0],
        "head": kinds[1],
        "embedding_bytes": embedding,
        "head_bytes": head,
        "file_bytes": file.n_bytes,
        "residual_fraction_bits": model.residual_frac,
        "matrices": matrices,
    }


def _codes(stored: StoredWeights) -> str:
    """Kind of embedding or head in codes."""
    return f"{stored.bits} bits" + ("" if stored.group is None else f" in groups of {stored.group}")


def _source_figures(path: Path) -> dict[str, object]:
    model = load_model(path)
    checkpoint = open_checkpoint(path)
    c, weight = model.config, model.layers[0].q_proj
    n_weights = c.num_hidden_layers * sum(
        c.shape_of(name)[0] * c.shape_of(name)[1] for name in LINEARS
    )
    files = list(path.glob("*.safetensors"))
    if isinstance(checkpoint, GgufCheckpoint):
        files = list(checkpoint.file.files)
    figures: dict[str, object] = {
        "name": model.name,
        "architecture": model.architecture,
        "file": "GGUF" if is_gguf(path) else "safetensors",
        "weights_are": _kind(weight),
        "runs_by_default_in": default_format_of(model, checkpoint),
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
    if isinstance(checkpoint, GgufCheckpoint):
        figures |= _vocabulary(checkpoint, model)
        figures["types"] = _types(checkpoint)
    return figures


def default_format_of(model: Decoder, checkpoint: Checkpoint) -> str:
    """The format that the device ``cpu`` runs a checkpoint in."""

    def kind_of(i: int, name: str) -> str:
        # layers of a folder are alike
        if not isinstance(checkpoint, GgufCheckpoint):
            return name
        return checkpoint.tensor(matrix_name(i, name)).kind.name

    parts = default_parts(model, None, None, None, None, EVERY_PART)
    return expected_format(model, parts, kind_of)


def _vocabulary(checkpoint: GgufCheckpoint, model: Decoder) -> dict[str, object]:
    """The types of a file's embedding and head, and what they become by default."""
    held = [name for name in OUTER if name in checkpoint.names()]
    coded = default_head(model.embed_tokens, model.lm_head, None, runs=True, offsets=True)
    found: dict[str, object] = {}
    for what, name, plain in (("embedding", held[0], "int16"), ("head", held[-1], "five trits")):
        kept = f"codes and scales, {plain} on boards and engine ternary" if coded else plain
        found[what] = f"{checkpoint.tensor(name).kind.name}: {kept}"
    return found


def _types(checkpoint: GgufCheckpoint) -> list[dict[str, object]]:
    """The types of a file's layers, and what is kept of each."""
    counts: dict[str, tuple[int, int, int]] = {}
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        if len(tensor.shape) > 1 and name.startswith(LAYERS):
            n, weights, n_bytes = counts.get(tensor.kind.name, (0, 0, 0))
            weights += math.prod(tensor.shape)
            counts[tensor.kind.name] = (n + 1, weights, n_bytes + tensor.n_bytes)
    return [
        {
            "type": name,
            "matrices": n,
            "weights": weights,
            "bits": round(8 * n_bytes / weights, 3),
            "runs_in": KEPT[name].runs_in,
            "exact": KEPT[name].exact,
        }
        for name, (n, weights, n_bytes) in sorted(counts.items())
    ]


def _kind(weight: Weight) -> str:
    if isinstance(weight, Dense):
        return f"{weight.values.dtype}"
    if isinstance(weight, Grouped):
        return f"{weight.bits} bits in groups of {weight.group}"
    return "ternary"
