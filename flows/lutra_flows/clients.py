"""Requests that run at once on one device: ``python -m lutra_flows.clients -m FILE``.

All come at the same time, with prompts of random tokens, and go on greedily for as many tokens as
they are to make. Their passes are shared (:mod:`lutra.serving.batch`).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lutra import LLM
from lutra.devices.base import Device
from lutra.devices.choose import DEVICES
from lutra.progress import StepProgress
from lutra.serving.batch import Batch, Request
from lutra.serving.loaded import LoadedModel
from lutra.text.sampling import Sampler, SamplingParams
from lutra_flows.pages import markdown_table
from lutra_golden.errors import LutraError

__all__ = ["Served", "main", "serve", "table"]

_CLIENTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Served:
    """Requests of one run: ``seconds`` of all, of prompt and answer; until each had its first
    token (``first``), and of a pass when none has a prompt left (``per_pass``)."""

    clients: int
    prompt: int
    answer: int
    seconds: float
    first: Sequence[float]
    per_pass: float

    @property
    def total_tokens_per_s(self) -> float:
        """Tokens of prompts and answers."""
        return self.clients * (self.prompt + self.answer) / self.seconds

    @property
    def answer_tokens_per_s(self) -> float:
        """Tokens of answers, when no prompt is left."""
        return self.clients / self.per_pass


def serve(device: Device, clients: int, prompt: int, answer: int, seed: int = 0) -> Served:
    """Run ``clients`` requests of ``prompt`` tokens, which make ``answer`` tokens each, two or
    more."""
    rng, loaded = np.random.default_rng(seed), LoadedModel(device.model, device, None, 0)
    batch, errors = Batch(loaded), list[BaseException]()
    first: dict[int, float] = {}
    begin = time.perf_counter()

    def request(i: int) -> Request:
        made: list[int] = []

        def accept(token: int, _result: object) -> bool:
            first.setdefault(i, time.perf_counter() - begin)
            made.append(token)
            return len(made) == answer

        def ended(error: BaseException | None) -> None:
            if error is not None:
                errors.append(error)

        tokens = rng.integers(0, device.model.vocab_size, prompt).tolist()
        sampler = Sampler(SamplingParams(temperature=0))
        return Request(prompt=tokens, sampler=sampler, accept=accept, ended=ended)

    requests = [request(i) for i in range(clients)]
    begin = time.perf_counter()
    for each in requests:
        batch.add(each)
    passes: list[float] = []
    decoding = False
    while True:
        start = time.perf_counter()
        if not batch.step():
            break
        if decoding and batch.n_running == clients:
            passes.append(time.perf_counter() - start)
        decoding = len(first) == clients
    seconds = time.perf_counter() - begin
    if errors:
        raise errors[0]
    return Served(
        clients=clients,
        prompt=prompt,
        answer=answer,
        seconds=seconds,
        first=[first[i] for i in range(clients)],
        per_pass=float(np.median(passes)),
    )


def table(found: Sequence[Served]) -> str:
    """The runs as Markdown."""
    head = "requests at once", "tokens/s, prompts and answers", "tokens/s, answers alone"
    head += "a pass, ms", "first token, s: median, last"
    rows = [
        (
            each.clients,
            f"{each.total_tokens_per_s:.0f}",
            f"{each.answer_tokens_per_s:.0f}",
            f"{1000 * each.per_pass:.1f}",
            f"{np.median(each.first):.2f}, {max(each.first):.2f}",
        )
        for each in found
    ]
    return markdown_table(head, rows, numbers_from=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one size after the other; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.clients", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("-m", "--model", default="tales", help="model (default %(default)s)")
    parser.add_argument("-dev", "--device", default="cpu", choices=DEVICES)
    parser.add_argument("-t", "--threads", type=int, metavar="N")
    parser.add_argument(
        "-c", "--clients", type=int, nargs="+", default=_CLIENTS, help="requests at once"
    )
    parser.add_argument("-p", "--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("-n", "--answer", type=int, default=64, help="tokens of an answer")
    args = parser.parse_args(argv)
    try:
        for name, least in (("clients", 1), ("prompt", 1), ("answer", 3)):
            given = getattr(args, name)
            for value in given if isinstance(given, list | tuple) else [given]:
                if value < least:
                    raise LutraError(f"--{name} must be {least} or more, not {value}")
        with StepProgress() as progress:
            with LLM(args.model, args.device, threads=args.threads, progress=progress) as llm:
                if args.prompt + args.answer > llm.context:
                    raise LutraError(
                        f"{args.prompt} and {args.answer} tokens exceed the context of "
                        f"{llm.context}: give fewer"
                    )
                serve(llm.device, 1, 8, 3)  # what is read for the first time takes longer
                found: list[Served] = []
                for i, clients in enumerate(args.clients):
                    progress(f"{clients} requests at once", i / len(args.clients))
                    found.append(serve(llm.device, clients, args.prompt, args.answer))
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
