"""Cost of quantisation: a model in every format by every method, as a page with a plot.

``python -m lutra_flows.quality --train FILE --valid FILE`` fills ``docs/quality.md`` between its
markers. Each figure is kept in ``docs/quality.json`` as it is measured; a run that is interrupted
goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.devices.base import Step
from lutra.devices.golden import GoldenDevice
from lutra.evaluate.perplexity import Perplexity, perplexity, text_windows
from lutra.models import find_model, load_model
from lutra.models.decoder import Decoder
from lutra.progress import StepProgress
from lutra.quantize.calibration import calibration_windows, in_float
from lutra.quantize.driver import Recipe, quantize_model
from lutra.quantize.reference import reference
from lutra.text.tokenizer import Tokenizer
from lutra_flows.pages import Goal, insert, markdown_table
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.matmul.engine import SCALE_WIDTH, ZERO_WIDTH
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS

__all__ = [
    "BEGIN",
    "END",
    "RUNS",
    "Point",
    "Run",
    "goals",
    "main",
    "mean_bits",
    "plot",
    "tables",
]

BEGIN = "<!-- begin: lutra_flows.quality -->"
END = "<!-- end: lutra_flows.quality -->"
_LABELS = {
    "rtn": "round to nearest",
    "gptq": "GPTQ",
    "gptq-act-order": "GPTQ, act-order",
    "awq": "AWQ",
    "smoothquant": "SmoothQuant",
}
_COLOURS = {
    "rtn": "#888888",
    "gptq": "#4477aa",
    "gptq-act-order": "#66ccee",
    "awq": "#228833",
    "smoothquant": "#ccbb44",
}
_PLOT_TOP = 34.0  # of the plot's perplexities; beyond it one bit would hide the others


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe by the names that a table has; ``checked`` also runs on the golden device."""

    format: str
    method: str
    budget: float | None = None
    checked: bool = False

    def recipe(self, group: int) -> Recipe:
        """The quantisation recipe of this run."""
        return Recipe(
            format=Format.parse(self.format),
            group=group,
            method=self.method.removesuffix("-act-order"),
            act_order=self.method.endswith("-act-order"),
            bits_budget=self.budget,
        )


RUNS = (
    *(Run(format="W4A8", method=m, checked=m in ("rtn", "gptq")) for m in _LABELS),
    *(Run(format=f, method=m) for f in ("W3A8", "W2A8") for m in _LABELS),
    *(
        Run(format="W4A8", method=m, budget=b, checked=b == 3 and m == "gptq")
        for b in (2.5, 3.0, 3.5, 4.0)
        for m in ("rtn", "gptq")
    ),
    *(Run(format=f, method=m) for f in ("W8A8", "W4A16", "W6A8") for m in _LABELS),
    *(Run(format="W1A8", method=m) for m in ("rtn", "gptq", "gptq-act-order")),
)
"""Measurements, in this order."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured run. ``bits`` are those of a weight of the layers, scales and zero points
    counted; ``golden`` is the perplexity on the golden device, if it was run."""

    format: str
    method: str
    budget: float | None
    bits: float
    ppl: float
    stderr: float
    tokens: int
    golden: float | None


def mean_bits(model: PackedModel) -> float:
    """Bits of a weight of the layers as an accelerator stores them, with its group's share of a
    scale and a zero point."""
    bits = n = 0
    for layer in model.layers:
        for name in LINEARS:
            w = layer.linear(name).weights
            bits += w.bits * w.codes.size + (SCALE_WIDTH + ZERO_WIDTH) * w.scale.size
            n += w.codes.size
    return bits / n


def goals(points: Sequence[Point], base: float) -> list[Goal]:
    """Goals of the page, from the measured points."""
    found = {(p.format, p.method, p.budget): p.ppl for p in points}
    out: list[Goal] = []

    def want(name: str, key: tuple[str, str, float | None], limit: float | None) -> None:
        if key in found and limit is not None:
            out.append(Goal(name=name, value=found[key], limit=limit, at_most=True))

    for method, label in _LABELS.items():
        want(f"W4A8, {label}: within 2 % of float", ("W4A8", method, None), 1.02 * base)
        want(f"W8A8, {label}: within 0.5 % of float", ("W8A8", method, None), 1.005 * base)
        limit = found.get(("W4A8", method, None))
        want(f"W4A16, {label}: no worse than W4A8", ("W4A16", method, None), limit)
    for format in ("W3A8", "W2A8"):
        for method in ("gptq", "awq"):
            limit = found.get((format, "rtn", None))
            name = f"{format}, {_LABELS[method]}: better than round to nearest"
            want(name, (format, method, None), limit)
    for bits in (3, 4):
        for method in ("rtn", "gptq"):
            limit = found.get((f"W{bits}A8", method, None))
            name = f"budget of {bits} bits, {_LABELS[method]}: better than W{bits}A8"
            want(name, ("W4A8", method, float(bits)), limit)
    return out


def tables(points: Sequence[Point], base: Perplexity) -> str:
    """The generated part of ``quality.md``."""
    formats = list(dict.fromkeys(p.format for p in points if p.budget is None))
    formats.sort(key=lambda name: (Format.parse(name).w_bits, Format.parse(name).a_bits))
    by_key = {(p.format, p.method, p.budget): p for p in points}

    def cell(format: str, method: str, budget: float | None = None) -> str:
        point = by_key.get((format, method, budget))
        if point is None:
            return ""
        return f"{point.ppl:.3f} ({point.ppl / base.ppl - 1:+.2%})"

    lines = [f"Float: {base.ppl:.3f} +/- {base.stderr:.3f}, {base.tokens} predicted tokens.", ""]
    of_formats = list[list[str]]()
    for format in formats:
        bits = next(p.bits for p in points if p.format == format and p.budget is None)
        of_formats.append([format, f"{bits:.2f}", *(cell(format, m) for m in _LABELS)])
    lines += [markdown_table(["format", "bits per weight", *_LABELS.values()], of_formats)]
    lines += ["", "With a budget of bits, activations of eight bits:", ""]
    methods = list(dict.fromkeys(p.method for p in points if p.budget is not None))
    of_budgets = list[list[str]]()
    for budget in sorted({p.budget for p in points if p.budget is not None}):
        bits = next(p.bits for p in points if p.budget == budget)
        row = [f"{budget:g}", f"{bits:.2f}", *(cell("W4A8", m, budget) for m in methods)]
        of_budgets.append(row)
    heads = ["budget", "bits per weight", *(_LABELS[m] for m in methods)]
    lines += [markdown_table(heads, of_budgets)]
    lines += ["", "On the golden device, in integers, beside floating point:", ""]
    in_integers = list[list[str]]()
    for p in points:
        if p.golden is not None:
            format = p.format if p.budget is None else f"budget {p.budget:g}"
            row = [format, _LABELS[p.method], f"{p.ppl:.4f}", f"{p.golden:.4f}"]
            in_integers.append([*row, f"{p.golden / p.ppl - 1:+.3%}"])
    heads = ["format", "method", "float path", "integers", "difference"]
    lines += [markdown_table(heads, in_integers), ""]
    reached = [
        (g.name, f"{g.limit:.3f}", f"{g.value:.3f}", "yes" if g.met else "**no**")
        for g in goals(points, base.ppl)
    ]
    lines += [markdown_table(["goal", "at most", "measured", "met"], reached)]
    return "\n".join(lines)


def plot(points: Sequence[Point], base: float, paths: Sequence[Path]) -> None:
    """Perplexity against bits per weight: a line per method, budgets with hollow marks."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise LutraError(f"matplotlib is not installed: run `{install_command('flows')}`") from None
    mpl.rcParams["svg.hashsalt"] = "lutra"  # the same figures give the same file
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for method, label in _LABELS.items():
        eight = [p for p in points if p.method == method and p.format.endswith("A8")]
        line = sorted((p.bits, p.ppl) for p in eight if p.budget is None)
        mixed = sorted((p.bits, p.ppl) for p in eight if p.budget is not None)
        colour = _COLOURS[method]
        if line:
            axes.plot(*zip(*line, strict=True), "o-", ms=4, lw=1, color=colour, label=label)
        if mixed:
            style = {"color": colour, "mfc": "none", "ms": 7, "lw": 1}
            axes.plot(*zip(*mixed, strict=True), "s:", label=f"{label}, bit budget", **style)
    axes.axhline(base, color="black", lw=0.8, ls="--", label="float")
    axes.set_ylim(base - 0.3, _PLOT_TOP)
    axes.set_xlim(left=2)
    axes.set_xlabel("bits per weight of the layers, scales and zero points counted")
    axes.set_ylabel("perplexity, activations of 8 bits")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


class _Bench:
    """A model with its texts: measures runs."""

    def __init__(self, args: argparse.Namespace, progress: StepProgress) -> None:
        path = find_model(args.model)
        self.model = load_model(path)
        self.progress, self.group = progress, args.group
        tokenizer = Tokenizer(path, self.model.config.bos_token_id)
        length, bos = self.model.config.max_position_embeddings, self.model.config.bos_token_id
        if bos is None:
            raise LutraError(f"{args.model} has no token that begins a text: use another model")
        valid = tokenizer.encode(args.valid.read_text(encoding="utf-8"), add_bos=False)
        self.windows = text_windows(valid, window=length, bos=bos)[: args.windows]
        train = tokenizer.encode(args.train.read_text(encoding="utf-8"), add_bos=False)
        self.calibration = calibration_windows(train, args.calib, length, args.seed, bos)

    def float_ppl(self) -> Perplexity:
        """Perplexity of the model as it is."""
        return self._ppl(self.model, "float")

    def _ppl(self, model: Decoder, name: str) -> Perplexity:
        layers = [in_float(model.layers[i]) for i in range(len(model.layers))]
        model = replace(model, layers=layers, dtype=np.float32)

        def logits(window: list[int]) -> list[NDArray[np.float64]]:
            return [model.forward(np.array(window)).astype(np.float64)]

        return perplexity(logits, self.windows, 1, lambda _, part: self.progress(name, part))

    def measure(self, run: Run) -> Point:
        """Quantise, pack and evaluate."""
        budget = "" if run.budget is None else f" at {run.budget:g} bits"
        name = f"{run.format} {run.method}{budget}"
        packed = quantize_model(
            self.model, run.recipe(self.group), self.calibration, progress=self.progress
        )
        found = self._ppl(reference(packed), name)
        golden = self._golden(packed, f"{name}, golden device") if run.checked else None
        return Point(
            format=run.format,
            method=run.method,
            budget=run.budget,
            bits=mean_bits(packed),
            ppl=found.ppl,
            stderr=found.stderr,
            tokens=found.tokens,
            golden=golden,
        )

    def _golden(self, packed: PackedModel, name: str) -> float:
        device = GoldenDevice()
        device.load(packed)
        session = device.session()

        def logits(window: list[int]) -> list[NDArray[np.float64]]:
            session.truncate(0)
            [result] = device.run([Step(session=session, tokens=window)])
            return [result.logits * result.scale[:, None]]

        ppl = perplexity(logits, self.windows, 1, lambda _, part: self.progress(name, part))
        return ppl.ppl


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lutra_flows.quality", description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="text to calibrate on")
    parser.add_argument("--valid", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--model", default="tales-llama", help="folder or shipped name")
    parser.add_argument("--group", type=int, default=64, help="weights that share a scale (64)")
    parser.add_argument("--windows", type=int, default=24, help="of the text, evaluated (24)")
    parser.add_argument("--calib", type=int, default=32, help="windows to calibrate on (32)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these windows (0)")
    parser.add_argument("--formats", nargs="*", help="only these, and no budgets")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of quality.md")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure what is not measured yet, and write page, plot and figures."""
    args = _parser().parse_args(argv)
    page, record = args.out / "quality.md", args.out / "quality.json"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Quality\n\n{BEGIN}\n{END}\n"
    insert(
        "quality.md", text, (BEGIN, END), ""
    )  # a page without markers should not cost half an hour first
    settings = {
        name: getattr(args, name) for name in ("model", "group", "windows", "calib", "seed")
    }
    points, base = _recorded(record, settings) if not args.fresh else ([], None)
    done = {(p.format, p.method, p.budget) for p in points}
    with StepProgress() as progress:
        bench = _Bench(args, progress)
        base = base or bench.float_ppl()
        for run in RUNS:
            key = (run.format, run.method, run.budget)
            if key in done or (args.formats and (run.budget or run.format not in args.formats)):
                continue
            points.append(bench.measure(run))
            content = {
                "settings": settings,
                "float": asdict(base),
                "points": [asdict(point) for point in points],
            }
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(points, base.ppl, [args.out / "quality.png", args.out / "quality.svg"])
    new = insert("quality.md", text, (BEGIN, END), tables(points, base))
    page.write_text(new, encoding="utf-8")


def _recorded(record: Path, settings: dict[str, object]) -> tuple[list[Point], Perplexity | None]:
    """Points measured before with the same settings."""
    if not record.exists():
        return [], None
    content = json.loads(record.read_text(encoding="utf-8"))
    if content["settings"] != settings:
        raise LutraError(
            f"{record} was measured with other settings: add --fresh to measure all again, or give "
            "another --out"
        )
    return [Point(**point) for point in content["points"]], Perplexity(**content["float"])


if __name__ == "__main__":
    main()
