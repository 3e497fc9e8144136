"""``lutra bench``: tokens per second of prefill and decode, as llama-bench measures them."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lutra.commands.options import add_device, add_format, add_group, add_kv, add_threads
from lutra.devices.base import Device, Step
from lutra.devices.choose import choose_device, notes_on
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["N_GEN", "N_PROMPT", "Row", "add_bench", "bench"]

N_PROMPT, N_GEN = 512, 128
"""Default numbers of tokens in the tests of prefill and decode."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A test's result: tokens per second of every repetition."""

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
    def t_s(self) -> float:
        """Mean rate."""
        return float(np.mean(self.rates))

    @property
    def std(self) -> float:
        """Standard deviation of the rates; 0 for a single one."""
        return float(np.std(self.rates, ddof=1)) if len(self.rates) > 1 else 0.0


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra bench``."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="folder, GGUF file, Hugging Face id, a shipped model, or random:SHAPE for a real "
        "shape with random weights (default tales)",
    )
    add_format(parser, "W1.58A8 for ternary models, otherwise W4A8")
    add_group(parser)
    add_kv(parser)
    parser.add_argument(
        "-p",
        "--n-prompt",
        type=int,
        metavar="N",
        help=f"prompt length of the prefill test (default {N_PROMPT}, 0 leaves it out)",
    )
    parser.add_argument(
        "-n",
        "--n-gen",
        type=int,
        metavar="N",
        help=f"tokens of the decode test (default {N_GEN}, 0 leaves it out)",
    )
    parser.add_argument(
        "-b",
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="also decode N sequences together, their tokens counted together (default 1: no)",
    )
    parser.add_argument(
        "-r",
        "--repetitions",
        type=int,
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
    parser.set_defaults(command=_bench)


def _bench(args: argparse.Namespace) -> int:
    with StepProgress() as progress:
        model = open_packed_model(args.model, args.format, args.group, args.kv, progress=progress)
        # as many as llama-bench takes, or what a small model can
        n_prompt, n_gen = (
            min(usual, model.context) if given is None else given
            for given, usual in ((args.n_prompt, N_PROMPT), (args.n_gen, N_GEN))
        )
        needed = max(n_prompt, n_gen)
        if needed > model.context:
            raise LutraError(
                f"{needed} tokens do not fit the context of {model.context}: lower -p or -n"
            )
        device, reasons = choose_device(args.device, threads=args.threads, progress=progress)
        try:
            rows = bench(
                model,
                device,
                n_prompt=n_prompt,
                n_gen=n_gen,
                batch=args.batch,
                repetitions=args.repetitions,
                progress=progress,
            )
        finally:
            device.close()
    for note in notes_on(device, reasons):
        print(f"note: {note}", file=sys.stderr)
    if args.output == "json":
        print(
            json.dumps(
                [
                    {
                        "model": row.model,
                        "format": model.format,
                        "device": row.device,
                        "test": row.test,
                        "batch": row.batch,
                        "t_s": round(row.t_s, 3),
                        "std": round(row.std, 3),
                        "samples": [round(rate, 3) for rate in row.rates],
                    }
                    for row in rows
                ]
            )
        )
        return 0
    print("| model | format | device | test | t/s |")
    print("|---|---|---|---:|---:|")
    for row in rows:
        figures = f"{row.t_s:.2f} \N{PLUS-MINUS SIGN} {row.std:.2f}"
        print(f"| {row.model} | {model.format} | {row.device} | {row.label} | {figures} |")
    return 0


def bench(
    model: PackedModel,
    device: Device,
    *,
    n_prompt: int = N_PROMPT,
    n_gen: int = N_GEN,
    batch: int = 1,
    repetitions: int = 5,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure ``ppN``, prefill of N random tokens, and ``tgN``, decode of N tokens from an empty
    cache, the latter also of ``batch`` sequences together if that is more than one; a test of 0
    tokens is left out. One warm-up run precedes each test."""
    if n_prompt < 0 or n_gen < 0 or n_prompt + n_gen == 0 or repetitions < 1 or batch < 1:
        raise LutraError("-p and -n must be 0 or more, not both 0, and -b and -r 1 or more")
    device.load(model)
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
    rows: list[Row] = []
    for test, length, run, n in tests:
        if not length:
            continue
        row = Row(model=model.name, device=device.name, test=f"{test}{length}", rates=(), batch=n)
        rates = _rates(partial(run, n), n * length, repetitions, f"measuring {row.label}", progress)
        rows.append(replace(row, rates=rates))
    for session in sessions:
        session.close()
    return rows


def _rates(
    run: Callable[[], None],
    n_tokens: int,
    repetitions: int,
    stage: str,
    progress: Progress | None,
) -> tuple[float, ...]:
    seconds: list[float] = []
    for i in range(repetitions + 1):
        if progress:
            progress(stage, i / (repetitions + 1))
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    counted: Sequence[float] = seconds[1:]
    return tuple(n_tokens / each for each in counted)
