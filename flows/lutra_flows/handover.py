"""Prompts here, answers in another process: ``python -m lutra_flows.handover -m FILE``.

A second process lends its device (``lutra lend``). Keys and values go there over sockets, of the
latency and the bytes per second of ``--link``, while the prompt is computed here. Printed is what
of that the second token still waits for.
"""

import argparse
import math
import re
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lutra.devices.base import Device, Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice
from lutra.devices.remote.device import RemoteDevice
from lutra.devices.remote.shape import LinkShape
from lutra.models import RANDOM
from lutra.open_model import open_packed_model
from lutra.packed.random import random_packed
from lutra.progress import StepProgress
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra.serving.plans.layout import Plan, whole
from lutra.serving.plans.measure import kv_bytes_of
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["HandOver", "lent", "main", "measure"]

_READY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """Seconds of a request: until its first token where all is on one device (``alone_s``), and
    where prompts are here and answers elsewhere (``first_s``); then until all keys and values are
    there (``exposed_s``), and of the tokens that follow, of one and the other.

    ``layer_s`` is what the link takes for one layer's, ``n_bytes`` crossed it of ``layers`` layers.
    """

    prompt: int
    layers: int
    alone_s: float
    first_s: float
    exposed_s: float
    alone_token_s: float
    token_s: float
    layer_s: float
    n_bytes: int

    @property
    def share(self) -> float:
        """Exposed part of the time to the first token."""
        return self.exposed_s / self.first_s

    @property
    def met(self) -> bool:
        """True if what is exposed is no more than one layer's transfer, or 5 % of the time to the
        first token."""
        return self.exposed_s <= max(self.layer_s, 0.05 * self.first_s)

    def lines(self) -> list[str]:
        """The figures in words."""
        unhidden_s = self.layers * self.layer_s
        return [
            (
                f"prompt of {self.prompt} tokens, {self.layers} layers, {self.n_bytes:,} bytes on "
                f"the link; one layer's transfer: {self.layer_s * 1e3:.1f} ms"
            ),
            f"first token: {self.first_s:.2f} s, on one device {self.alone_s:.2f} s",
            (
                f"a token after it: {self.token_s * 1e3:.1f} ms there, on one device "
                f"{self.alone_token_s * 1e3:.1f} ms"
            ),
            (
                f"hand-over after the first token: {self.exposed_s * 1e3:.1f} ms, {self.share:.3%} "
                f"of the time to it; if nothing were hidden: {unhidden_s * 1e3:.1f} ms"
            ),
        ]


@contextmanager
def lent(name: str, threads: int | None) -> Generator[str]:
    """Address of a device that a process of its own lends."""
    command = [sys.executable, "-m", "lutra", "lend", "-dev", name, "--port", "0"]
    command += [] if threads is None else ["--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"lutra://\S+", process.stdout.readline())
            if found is None:
                raise LutraError("the second process lends no device: see what it says above")
            yield found[0]
        finally:
            process.terminate()


def measure(
    model: PackedModel,
    here: Device,
    there: RemoteDevice,
    shape: LinkShape,
    prompt: int,
    answer: int,
) -> HandOver:
    """Answer a prompt of random tokens on ``here`` alone, then with answers ``there``, over a link
    that has ``shape``; LutraError if tokens differ."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, prompt).tolist()
    n_layers = len(model.layers)
    latency_s, bytes_per_s = shape.latency_s, shape.bytes_per_s
    shape.latency_s, shape.bytes_per_s = 0.0, float("inf")
    alone = PlannedDevice([here], fixed(Plan.on(0, n_layers)))
    alone.load(model)
    expected = _answer(alone, tokens, answer, shape)
    split = Plan(whole(0, n_layers), whole(1, n_layers))
    with PlannedDevice([here, there], fixed(split)) as both:
        both.load(model)
        both.session().close()
        shape.latency_s, shape.bytes_per_s, shape.n_bytes = latency_s, bytes_per_s, 0
        found = _answer(both, tokens, answer, shape)
        if both.notes:
            raise LutraError("; ".join(both.notes))
    if found.tokens != expected.tokens:
        raise LutraError(f"tokens differ: {found.tokens} instead of {expected.tokens}")
    return HandOver(
        prompt=prompt,
        layers=n_layers,
        alone_s=expected.first_s,
        first_s=found.first_s,
        exposed_s=found.exposed_s,
        alone_token_s=expected.token_s,
        token_s=found.token_s,
        layer_s=2 * latency_s + kv_bytes_of(model, prompt, 1) / bytes_per_s,
        n_bytes=found.n_bytes,
    )


@dataclass(frozen=True)
class _Answer:
    tokens: list[int]
    first_s: float
    exposed_s: float
    token_s: float
    n_bytes: int


def _answer(device: PlannedDevice, tokens: Sequence[int], n: int, shape: LinkShape) -> _Answer:
    session, start = device.session(), time.perf_counter()
    [result] = device.run([Step(session=session, tokens=tokens, logits_from=len(tokens) - 1)])
    first_s = time.perf_counter() - start
    start = time.perf_counter()
    for part in list(session.parts.values()):
        for each in list(part.arriving):
            each.result()
    exposed_s, n_bytes = time.perf_counter() - start, shape.n_bytes
    made, seconds = [_argmax(result)], list[float]()
    while len(made) < n:
        start = time.perf_counter()
        [result] = device.run([Step(session=session, tokens=made[-1:])])
        seconds.append(time.perf_counter() - start)
        made.append(_argmax(result))
    session.close()
    return _Answer(made, first_s, exposed_s, float(np.median(seconds)), n_bytes)


def _argmax(result: StepResult) -> int:
    return int(result.argmax[-1])


def _link(text: str) -> LinkShape:
    try:
        latency, n_bytes = (float(each) for each in text.split(","))
    except ValueError:
        latency, n_bytes = -1.0, 0.0
    if not (0 <= latency < math.inf and 0 < n_bytes < math.inf):
        raise LutraError(
            f"--link must be seconds of latency and bytes per second, such as 1e-4,1.25e8, not "
            f"{text!r}"
        )
    return LinkShape(latency_s=latency, bytes_per_s=n_bytes)


def _opened(name: str, context: int, n_layers: int | None, progress: StepProgress) -> PackedModel:
    if n_layers is None:
        return open_packed_model(name, context=context, progress=progress)
    if not name.startswith(RANDOM) or n_layers < 1:
        raise LutraError("--layers is 1 or more, of a model random:SHAPE: leave it out")
    return random_packed(name, context=context, n_layers=n_layers, progress=progress)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one hand-over; returns the exit code, 1 if more is exposed than may be."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.handover", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("-m", "--model", default="tales", help="model (default %(default)s)")
    parser.add_argument("-dev", "--device", default="cpu", choices=("cpu", "golden"))
    parser.add_argument(
        "-t", "--threads", type=int, default=1, metavar="N", help="of each device (default 1)"
    )
    parser.add_argument(
        "-p", "--prompt", type=int, default=8000, help="tokens of the prompt (default %(default)s)"
    )
    parser.add_argument(
        "-n", "--answer", type=int, default=16, help="tokens of the answer (default %(default)s)"
    )
    parser.add_argument(
        "--layers", type=int, metavar="N", help="of a model random:SHAPE, fewer than it has"
    )
    parser.add_argument(
        "--link", default="1e-4,1.25e8", metavar="LATENCY,BYTES",
        help="seconds of latency and bytes per second (default %(default)s, gigabit Ethernet)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        shape = _link(args.link)
        for name, least in (("prompt", 1), ("answer", 2), ("threads", 1)):
            if getattr(args, name) < least:
                raise LutraError(f"--{name} must be {least} or more, not {getattr(args, name)}")
        cpu = args.device == "cpu"
        with StepProgress() as progress:
            context = args.prompt + args.answer
            model = _opened(args.model, context, args.layers, progress)
            if model.context < context:
                raise LutraError(
                    f"{args.prompt} and {args.answer} tokens exceed the context of "
                    f"{model.context}: give fewer"
                )
        with (
            lent(args.device, args.threads if cpu else None) as address,
            CpuDevice(args.threads) if cpu else GoldenDevice() as here,
            RemoteDevice(address, shape=shape) as there,
        ):
            found = measure(model, here, there, shape, args.prompt, args.answer)
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(found.lines()))
    return 0 if found.met else 1


if __name__ == "__main__":
    sys.exit(main())
