"""Predictions beside facts: random requests run by their plans, and timed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from lutra.serving.batch import Request
from lutra.serving.engine import make_engine
from lutra.serving.loaded import LoadedModel
from lutra.serving.plans.costs import Workload
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra.serving.plans.planner import Planner
from lutra.serving.plans.search import Alternative, Slo
from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.model.packed import PackedModel

__all__ = ["CheckedPoint", "check_predictions", "run_workload", "summary"]

Progress = Callable[[str, float], None]
_REQUESTS = 4  # that come at once, at most, if the workload has one


@dataclass(frozen=True, kw_only=True)
class CheckedPoint:
    """A workload with its plan, and what it took: as :class:`Cost` has it, *measured*."""

    workload: Workload
    plan: Alternative
    ttft_s: float
    tpot_s: float
    seconds: float

    @property
    def error(self) -> float:
        """Share by which the prediction of all seconds is too high."""
        return self.plan.cost.seconds / self.seconds - 1

    def describe(self, labels: Sequence[str]) -> str:
        """One line."""
        w, c = self.workload, self.plan.cost
        return (
            f"{w.prompt} + {w.answer} tokens x {w.requests}: {c.seconds:.3f} s predicted, "
            f"{self.seconds:.3f} s measured ({self.error:+.1%}), first token {c.ttft_s:.3f} and "
            f"{self.ttft_s:.3f} s; {self.plan.describe(labels)}"
        )

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Plain values."""
        w, c = self.workload, self.plan.cost
        return {
            "prompt": w.prompt, "answer": w.answer, "requests": w.requests,
            "plan": self.plan.describe(labels), "predicted_s": c.seconds,
            "measured_s": self.seconds, "error": self.error, "predicted_ttft_s": c.ttft_s,
            "measured_ttft_s": self.ttft_s, "kind": c.kind,
        }  # fmt: skip


def summary(points: Sequence[CheckedPoint]) -> str:
    """The errors of all points in a line."""
    errors = np.abs([point.error for point in points])
    return (
        f"prediction of {len(points)} random requests: off by {errors.mean():.1%} on average, "
        f"{errors.max():.1%} at most (measured)"
    )


def check_predictions(
    planner: Planner,
    workload: Workload,
    n: int,
    *,
    slo: Slo | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[CheckedPoint]:
    """Run ``n`` random workloads of up to these sizes by the plan of each; devices are here.

    Of what their passes took, profiles are corrected afterwards.
    """
    rng = np.random.default_rng(seed)
    most = max(workload.requests, _REQUESTS)
    for i in range(n):
        if progress:
            progress("comparing predictions with facts", i / n)
        point = Workload(
            prompt=int(rng.integers(1, workload.prompt + 1)),
            answer=int(rng.integers(min(2, workload.answer), workload.answer + 1)),
            requests=int(rng.integers(1, most + 1)),
        )
        plan = planner.choose(point, slo).chosen
        yield run_workload(planner, point, plan, seed=seed + i)


def run_workload(
    planner: Planner, workload: Workload, plan: Alternative, *, seed: int = 0
) -> CheckedPoint:
    """Time a workload of random tokens on the planner's devices, which keep the model."""
    devices = [device for device in planner.devices if device is not None]
    device = PlannedDevice(
        devices, fixed(*plan.plans), labels=planner.labels, carrier=planner.carrier
    )
    device.load(planner.model)
    loaded = LoadedModel(planner.model, device, None, 0)
    with closing(make_engine(loaded)) as engine:
        clients = [_Client(workload.answer) for _ in range(workload.requests)]
        prompts = _prompts(planner.model, workload, seed)
        begin = time.perf_counter()
        for client, prompt in zip(clients, prompts, strict=True):
            engine.submit(client.request(prompt))
        for client in clients:
            client.finished.wait()
    for client in clients:
        if client.error is not None:
            raise client.error
    first = [client.times[0] - begin for client in clients]
    last = [client.times[-1] - begin for client in clients]
    gaps = [(b - a) / max(workload.answer - 1, 1) for a, b in zip(first, last, strict=True)]
    planner.correct(device.took.take())
    return CheckedPoint(
        workload=workload,
        plan=plan,
        ttft_s=float(np.mean(first)),
        tpot_s=float(np.mean(gaps)),
        seconds=max(last),
    )


def _prompts(model: PackedModel, workload: Workload, seed: int) -> list[list[int]]:
    shape = workload.requests, workload.prompt
    return np.random.default_rng(seed).integers(0, model.vocab_size, shape).tolist()


class _Client:
    """Notes when its tokens come."""

    def __init__(self, answer: int) -> None:
        self._answer = answer
        self.times: list[float] = []
        self.error: BaseException | None = None
        self.finished = Event()

    def request(self, prompt: Sequence[int]) -> Request:
        return Request(
            prompt=prompt,
            sampler=Sampler(SamplingParams(temperature=0)),
            accept=self._accept,
            ended=self._ended,
        )

    def _accept(self, _token: int, _result: object) -> bool:
        self.times.append(time.perf_counter())
        return len(self.times) == self._answer

    def _ended(self, error: BaseException | None) -> None:
        self.error = error
        self.finished.set()
