"""Tokens per second with and without drafts: ``python -m lutra_flows.speculation -m FILE``.

Each prompt is answered with drafts and without, in turns; both answers are the same, or it is an
error. Prompts are texts in files, whose names begin with their kind: ``edit_``, ``summary_``.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutra import LLM, SamplingParams
from lutra.devices.choose import DEVICES
from lutra.progress import StepProgress
from lutra.serving.generation import Generation, complete, prefill
from lutra.serving.loaded import LoadedModel
from lutra.serving.results import RunStats
from lutra.serving.speculation.adaptive import AdaptiveSpeculation
from lutra.serving.speculation.drafts import Drafter
from lutra.serving.speculation.model import ModelDrafter
from lutra.serving.speculation.ngrams import NgramDrafter
from lutra.serving.speculation.plain import Speculation
from lutra_flows.pages import markdown_table
from lutra_golden.errors import LutraError

__all__ = ["PROMPTS", "Answered", "answer", "main", "table"]

PROMPTS = Path(__file__).parents[2] / "tests" / "flows" / "prompts"
"""The prompts of this repository."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer of so many ``tokens`` without drafts and with some.

    ``plain_s`` and ``drafted_s`` are the seconds behind the first token, ``plain_cycles`` and
    ``drafted_cycles`` those of the device if it has a clock.
    """

    name: str
    tokens: int
    plain_s: float
    drafted_s: float
    drafted: int
    accepted: int
    plain_cycles: int | None = None
    drafted_cycles: int | None = None

    @property
    def gain(self) -> float:
        """Times as many tokens per second."""
        return self.plain_s / self.drafted_s

    @property
    def gain_in_cycles(self) -> float | None:
        """The same by the device's clock."""
        if self.plain_cycles is None or not self.drafted_cycles:
            return None
        return self.plain_cycles / self.drafted_cycles

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass with or without drafts gave."""
        return (self.tokens - 1) / (self.tokens - 1 - self.accepted)


def answer(
    llm: LLM,
    loaded: LoadedModel,
    name: str,
    text: str,
    max_tokens: int,
    sampling: SamplingParams,
    drafting: Speculation,
    *,
    drafts_first: bool = False,
) -> Answered:
    """Answer a prompt without drafts and with those of ``drafting``; LutraError if the tokens
    differ."""
    prompt = _prompt(llm, text)
    room = llm.context - len(prompt)
    if room < 2:
        raise LutraError(f"prompt {name} has {len(prompt)} tokens, the context {llm.context}")
    ways = (Speculation(), drafting)
    found: dict[Speculation, tuple[RunStats, float]] = {}
    for way in reversed(ways) if drafts_first else ways:
        loaded.speculation = way
        generation = Generation(prompt, min(max_tokens, room), sampling, RunStats())
        begun = prefill(loaded, prompt, sampling.n_best, generation.stats)
        pieces = complete(begun, generation, llm.tokenizer, llm.eos)
        next(pieces)
        start = time.perf_counter()
        for _ in pieces:
            pass
        found[way] = generation.stats, time.perf_counter() - start
        loaded.end(begun.sequence)
    (plain, plain_s), (drafted, drafted_s) = found[ways[0]], found[ways[1]]
    if plain.tokens != drafted.tokens:
        raise LutraError(f"prompt {name} has other tokens with drafts: this is a bug, report it")
    return Answered(
        name=name,
        tokens=len(plain.tokens),
        plain_s=plain_s,
        drafted_s=drafted_s,
        drafted=drafted.drafted_tokens,
        accepted=drafted.accepted_tokens,
        plain_cycles=plain.decode_cycles,
        drafted_cycles=drafted.decode_cycles,
    )


def _prompt(llm: LLM, text: str) -> list[int]:
    """Tokens of a prompt: what a user says, where the model chats."""
    if llm.tokenizer.chat_template is None:
        return llm.encode(text)
    plain = llm.tokenizer.as_text(text)
    rendered = llm.chat_template.render([{"role": "user", "content": plain}])
    return llm.tokenizer.encode_template(rendered)


def table(found: Sequence[Answered]) -> str:
    """The answers as Markdown, and their means by kind and of all."""
    head = ["prompt", "tokens", "tokens/s without drafts", "with", "gain", "tokens a pass"]
    head += ["drafts right"]
    clocked = all(each.gain_in_cycles is not None for each in found)
    head += ["gain in cycles"] if clocked else []
    rows = [
        [
            each.name,
            str(each.tokens),
            f"{(each.tokens - 1) / each.plain_s:.1f}",
            f"{(each.tokens - 1) / each.drafted_s:.1f}",
            f"{each.gain:.2f}",
            f"{each.tokens_per_pass:.2f}",
            f"{each.accepted} of {each.drafted}",
            *([f"{each.gain_in_cycles:.2f}"] if clocked else []),
        ]
        for each in found
    ]
    kinds = list(dict.fromkeys(each.name.partition("_")[0] for each in found))
    lines = [markdown_table(head, rows, numbers_from=1)]
    for kind in [*kinds, ""] if len(kinds) > 1 else [""]:
        own = [each for each in found if each.name.startswith(kind)]
        gains = [each.gain for each in own]
        lines.append(
            f"\n{kind or 'all'}: {len(own)} prompts, {np.mean([e.tokens for e in own]):.0f} tokens "
            f"on average, gain {np.mean(gains):.2f} on average, {min(gains):.2f} at least"
        )
    return "\n".join(lines)


def _texts(folder: Path, kinds: Sequence[str]) -> dict[str, str]:
    paths = sorted(folder.glob("*.txt"))
    texts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in paths
        if not kinds or any(path.stem.startswith(kind) for kind in kinds)
    }
    if not texts:
        raise LutraError(f"{folder} has no such prompts: give --prompts a folder of .txt files")
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the prompts one after the other; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.speculation", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("-m", "--model", default="tales", help="model (default %(default)s)")
    parser.add_argument("-dev", "--device", default="cpu", choices=DEVICES)
    parser.add_argument("-t", "--threads", type=int, metavar="N")
    parser.add_argument("--draft", metavar="MODEL", help="drafts of a small model, not n-grams")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="folder of prompts")
    parser.add_argument("--only", nargs="+", default=(), metavar="START", help="of these names")
    parser.add_argument("-n", "--answer", type=int, default=256, help="tokens of an answer at most")
    parser.add_argument("--temp", type=float, default=0.0, help="temperature (default greedy)")
    args = parser.parse_args(argv)
    try:
        if args.answer < 2:
            raise LutraError(f"--answer must be 2 or more, not {args.answer}")
        texts = _texts(args.prompts, args.only)
        sampling = SamplingParams(temperature=args.temp)
        found: list[Answered] = []
        with (
            StepProgress() as progress,
            LLM(
                args.model, args.device, threads=args.threads, speculation="off", progress=progress
            ) as llm,
        ):
            loaded = LoadedModel(llm.packed, llm.device, None, 1 << 28)
            drafting = AdaptiveSpeculation(_drafter(llm, args.draft, args.threads))
            for i, (name, text) in enumerate(texts.items()):
                progress(f"prompt {name}", i / len(texts))
                found.append(
                    answer(
                        llm, loaded, name, text, args.answer, sampling, drafting,
                        drafts_first=i % 2 == 1,
                    )
                )  # fmt: skip
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


def _drafter(llm: LLM, draft: str | None, threads: int | None) -> Drafter:
    if draft is None:
        return NgramDrafter()
    small = LLM(draft, llm.device.name, threads=threads, speculation="off")
    loaded = LoadedModel(small.packed, small.device, None, 1 << 28)
    return ModelDrafter(loaded, llm.packed.vocab_size)


if __name__ == "__main__":
    sys.exit(main())
