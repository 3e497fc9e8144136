"""``lutra bench``: tokens per second of prefill and decode, as llama-bench measures them."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lutra.commands.options import (
    add_activation_group,
    add_device,
    add_format,
    add_group,
    add_head,
    add_json,
    add_kv,
    add_threads,
    check_kv,
    rounding,
    whole,
)
from lutra.devices.base import Device, Step
from lutra.devices.choose import DeviceOptions
from lutra.models.decoder import DecoderConfig
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra.serving.placement import Placement
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel

__all__ = ["N_GEN", "N_PROMPT", "Row", "add_bench", "bench", "measure"]

N_PROMPT, N_GEN = 512, 128
"""Default numbers of tokens in the tests of prefill and decode."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A test's result: tokens per second of every repetition so far."""

    model: str
    device: str
    test: str
    rates: tuple[float, ...]
    batch: int = 1
    """Sequences that ran together; their tokens are counted together."""

    @property
    def label(self) -> str:
        """The test, and how many sequences ran unless it was one."""
        return self.test if self.batch == 1 else f"{self.test} x {self.batch}"

    @property
    def t_s(self) -> float | None:
        """Mean rate; None before the first repetition."""
        return float(np.mean(self.rates)) if self.rates else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the rates; None unless there are two."""
        return float(np.std(self.rates, ddof=1)) if len(self.rates) > 1 else None

    @property
    def figures(self) -> str:
        """Mean and deviation as text, as far as there are any."""
        mean = "-" if self.t_s is None else f"{self.t_s:.2f}"
        return mean if self.std is None else f"{mean} \N{PLUS-MINUS SIGN} {self.std:.2f}"


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra bench``."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="folder, GGUF file, Hugging Face id, a shipped model, or random:SHAPE for a real "
        "shape with random weights (default tales)",
    )
    add_format(
        parser,
        "the checkpoint's own if its weights are integers, otherwise W8A8, with random: W4A8",
    )
    add_group(parser)
    add_kv(parser)
    add_activation_group(
        parser, "0 for a random model or with --format, otherwise 32 if the model is not ternary"
    )
    add_head(parser, "0 for a random model or with --format, otherwise a GGUF file's codes")
    parser.add_argument(
        "-p",
        "--n-prompt",
        type=whole(0),
        metavar="N",
        help=f"prompt length of the prefill test (default {N_PROMPT}, 0 leaves it out)",
    )
    parser.add_argument(
        "-n",
        "--n-gen",
        type=whole(0),
        metavar="N",
        help=f"tokens of the decode test (default {N_GEN}, 0 leaves it out)",
    )
    parser.add_argument(
        "-b",
        "--batch",
        type=whole(1),
        default=1,
        metavar="N",
        help="also decode N sequences together, their tokens counted together (default 1: no)",
    )
    parser.add_argument(
        "-r",
        "--repetitions",
        type=whole(1),
        default=5,
        metavar="N",
        help="repetitions of each test (default 5)",
    )
    add_device(parser, "auto", "auto, the fastest that works")
    add_threads(parser)
    parser.add_argument(
        "-o",
        "--output",
        choices=("md", "json"),
        default="md",
        help="Markdown table or JSON (default md)",
    )
    add_json(parser)
    parser.set_defaults(command=_bench)


def _bench(args: argparse.Namespace) -> int:
    if args.n_prompt == args.n_gen == 0:
        raise LutraError("-p 0 and -n 0 leave nothing to measure: give one of them more")
    check_kv(args.kv, args.device, falls_back=False)
    rows: dict[str, Row] = {}
    interrupted = False
    with StepProgress() as progress:
        placement = Placement(args.device, DeviceOptions(threads=args.threads), progress)

        def before_packing(format: Format, config: DecoderConfig) -> None:
            _lengths(args, config.max_position_embeddings)
            placement.prepare(format)

        model = open_packed_model(
            args.model,
            **rounding(args),
            progress=progress,
            capabilities=placement.capabilities,
            before_packing=before_packing,
        )
        n_prompt, n_gen = _lengths(args, model.context)
        placement.choose(model)
        placement.load(model)
        device = placement.device
        try:
            for row in measure(
                model,
                device,
                n_prompt=n_prompt,
                n_gen=n_gen,
                batch=args.batch,
                repetitions=args.repetitions,
                progress=progress,
            ):
                rows[row.label] = row
        except KeyboardInterrupt:
            interrupted = True
        finally:
            device.close()
    if interrupted and not rows:
        raise KeyboardInterrupt
    for note in placement.notes:
        print(f"note: {note}", file=sys.stderr)
    show = _print_json if args.json or args.output == "json" else _print_table
    show(model.format, list(rows.values()), interrupted)
    return 130 if interrupted else 0


def _lengths(args: argparse.Namespace, context: int) -> tuple[int, int]:
    """Tokens of prefill and decode: those of llama-bench, or what a small model can."""
    n_prompt, n_gen = (
        min(usual, context) if given is None else given
        for given, usual in ((args.n_prompt, N_PROMPT), (args.n_gen, N_GEN))
    )
    needed = max(n_prompt, n_gen)
    if needed > context:
        raise LutraError(f"{needed} tokens do not fit the context of {context}: lower -p or -n")
    return n_prompt, n_gen


def _print_json(format: str, rows: Sequence[Row], interrupted: bool) -> None:
    found = [
        {
            "model": row.model,
            "format": format,
            "device": row.device,
            "test": row.test,
            "batch": row.batch,
            "t_s": None if row.t_s is None else round(row.t_s, 3),
            "std": None if row.std is None else round(row.std, 3),
            "samples": [round(rate, 3) for rate in row.rates],
            "kind": "measured",
            "interrupted": interrupted and row is rows[-1],
        }
        for row in rows
    ]
    print(json.dumps(found))


def _print_table(format: str, rows: Sequence[Row], interrupted: bool) -> None:
    print("| model | format | device | test | t/s, measured |")
    print("|---|---|---|---:|---:|")
    for row in rows:
        figures = row.figures
        if interrupted and row is rows[-1]:
            figures += f", interrupted after {len(row.rates)}"
        print(f"| {row.model} | {format} | {row.device} | {row.label} | {figures} |")


def bench(
    model: PackedModel,
    device: Device,
    *,
    n_prompt: int = N_PROMPT,
    n_gen: int = N_GEN,
    batch: int = 1,
    repetitions: int = 5,
) -> list[Row]:
    """Load ``model``, and return the rows of :func:`measure` when all repetitions are done."""
    device.load(model)
    rows = measure(
        model, device, n_prompt=n_prompt, n_gen=n_gen, batch=batch, repetitions=repetitions
    )
    return list({row.label: row for row in rows}.values())


def measure(
    model: PackedModel,
    device: Device,
    *,
    n_prompt: int,
    n_gen: int,
    batch: int,
    repetitions: int,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Measure a device that has loaded ``model``: ``ppN``, prefill of N random tokens, and
    ``tgN``, decode of N tokens from an empty cache, the latter also of ``batch`` sequences together
    if that is more than one; a test of 0 tokens is left out. One warm-up run precedes each test. A
    test's row comes when it begins and after every repetition."""
    if n_prompt < 0 or n_gen < 0 or n_prompt + n_gen == 0 or repetitions < 1 or batch < 1:
        raise LutraError(
            "n_prompt and n_gen must be 0 or more, not both 0, batch and repetitions 1 or more"
        )
    shape = (batch, max(n_prompt, n_gen))
    texts: list[list[int]] = np.random.default_rng(0).integers(0, model.vocab_size, shape).tolist()
    sessions = [device.session() for _ in texts]

    def prefill(_n: int) -> None:
        sessions[0].truncate(0)
        prompt = texts[0][:n_prompt]
        device.run([Step(session=sessions[0], tokens=prompt, logits_from=n_prompt - 1)])

    def decode(n: int) -> None:
        for session in sessions[:n]:
            session.truncate(0)
        for i in range(n_gen):
            device.run([Step(session=sessions[j], tokens=[texts[j][i]]) for j in range(n)])

    tests = [("pp", n_prompt, prefill, 1), ("tg", n_gen, decode, 1)]
    if batch > 1:
        tests.append(("tg", n_gen, decode, batch))
    for test, length, run, n in tests:
        if not length:
            continue
        row = Row(model=model.name, device=device.name, test=f"{test}{length}", rates=(), batch=n)
        for i in range(repetitions + 1):
            if progress:
                progress(f"measuring {row.label}", i / (repetitions + 1))
            yield row
            start = time.perf_counter()
            run(n)
            seconds = time.perf_counter() - start
            if i:
                row = replace(row, rates=(*row.rates, n * length / seconds))
        yield row
    for session in sessions:
        session.close()
