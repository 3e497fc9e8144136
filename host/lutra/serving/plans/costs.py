"""Costs of a plan: seconds of requests that come at once, from the profiles of its devices.

Requests of equal length are followed pass by pass, as the batch of :mod:`lutra.serving.batch`
forms them, with the seconds that profiles have for each pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise, permutations
from math import ceil

from lutra.arguments import check_whole
from lutra.serving.chunks import PromptPace
from lutra.serving.plans.facts import pass_s
from lutra.serving.plans.layout import Plan, Route, RowShare, Stage
from lutra.serving.plans.legs import chunk_size
from lutra.serving.plans.measure import kv_bytes_of
from lutra.serving.plans.profile import DeviceProfile, Kind, LinkProfile, weakest
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import EXCHANGES

__all__ = ["Cost", "Costs", "Workload"]

PassSeconds = Callable[[Sequence[int], Sequence[int]], float]
"""Seconds of a pass: tokens of each session, and their positions."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``requests`` that come at once, each with ``prompt`` tokens and an ``answer`` of tokens."""

    prompt: int
    answer: int
    requests: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "answer", "requests"):
            value = getattr(self, name)
            check_whole(name, value)
            if value < 1:
                raise LutraError(f"{name} must be 1 or more, not {value}")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Predicted seconds: until the first token (``ttft_s``), mean over the requests, and per token
    behind it (``tpot_s``), until all are done (``seconds``), and of a hand-over that nothing hides
    (``exposed_s``). The ``kind`` is that of the profiles."""

    ttft_s: float
    tpot_s: float
    seconds: float
    exposed_s: float
    kind: Kind


@dataclass
class _Run:
    """One request on its way: tokens of the prompt that are ``done``, tokens ``made`` and when."""

    done: int = 0
    times: list[float] = field(default_factory=list[float])


class Costs:
    """Costs of plans for ``model`` on devices with these ``profiles``, by number.

    ``links`` are those from one device to another, ``residual`` what a token brings from one stage
    of a pipeline to the next.
    """

    def __init__(
        self,
        model: PackedModel,
        profiles: Mapping[int, DeviceProfile],
        links: Mapping[tuple[int, int], LinkProfile],
    ) -> None:
        self._model, self.profiles, self.links = model, profiles, links

    def of(self, plans: Sequence[Plan], workload: Workload) -> Cost:
        """Cost of requests that are divided evenly between ``plans``."""
        exposed = 0.0
        counts = [len(range(i, workload.requests, len(plans))) for i in range(len(plans))]
        busy = [(plan, n) for plan, n in zip(plans, counts, strict=True) if n]
        if len(busy) == 1 and plans[0].kind == "phase split":
            found, exposed = self._split(plans[0], workload, workload.requests)
        else:
            found = self._side_by_side(busy, workload)
        answer = workload.answer
        gaps = [(run.times[-1] - run.times[0]) / max(answer - 1, 1) for run in found]
        pairs = {pair for plan in plans for pair in _hops(plan)}
        devices = (self.profiles[site] for plan in plans for site in plan.sites)
        links = (self.links[pair] for pair in pairs)
        return Cost(
            ttft_s=sum(run.times[0] for run in found) / len(found),
            tpot_s=sum(gaps) / len(gaps),
            seconds=max(run.times[-1] for run in found),
            exposed_s=exposed,
            kind=weakest(each.kind for each in chain(devices, links)),
        )

    # -- prompts and answers on the same devices

    def _side_by_side(self, busy: Sequence[tuple[Plan, int]], workload: Workload) -> list[_Run]:
        """Requests of several plans, so many of each, whose devices crowd each other as long as
        they have work."""
        ends = [float("inf")] * len(busy)
        runs: list[list[_Run]] = []
        for _ in range(2 if len(busy) > 1 else 1):  # until then all are at work all the time
            runs = []
            for i, (plan, n) in enumerate(busy):
                others = [
                    (site, ends[j])
                    for j, (other, _) in enumerate(busy)
                    if j != i
                    for site in other.sites
                ]
                runs.append(self._together(plan.decode, workload, n, others))
            ends = [max(run.times[-1] for run in own) for own in runs]
        return list(chain.from_iterable(runs))

    def _together(
        self, route: Route, workload: Workload, n: int, others: Sequence[tuple[int, float]]
    ) -> list[_Run]:
        """Requests that share passes, prompts in chunks where others wait for their tokens;
        ``others`` are devices that are at work, and until when."""
        runs, now, pace = [_Run() for _ in range(n)], 0.0, PromptPace()
        most = min(self.profiles[stage.site].pass_tokens for stage in route)
        while left := [run for run in runs if len(run.times) < workload.answer]:
            decoding = [run for run in left if run.times]
            room = pace.room(most, len(decoding))
            parts = [(run, 1, workload.prompt + len(run.times) - 1) for run in decoding]
            for run in left:
                if run.times or not room:
                    continue
                size = min(workload.prompt - run.done, room)
                parts.append((run, size, run.done))
                room -= size
            sizes, positions = [size for _, size, _ in parts], [at for _, _, at in parts]
            steps = self._alike(runs, parts, workload)
            beside = [site for site, end in others if end > now]
            seconds = self.pass_s(route, sizes, [at + (steps - 1) / 2 for at in positions], beside)
            if beside:  # until one of them has ended
                left_s = min(end for _, end in others if end > now) - now
                steps = max(1, min(steps, ceil(min(left_s / max(seconds, 1e-12), steps))))
            pace.took(sum(size for run, size, _ in parts if not run.times and size > 1), seconds)
            for step in range(steps):
                for run, size, _ in parts:
                    if not run.times:
                        run.done += size
                    if run.times or run.done == workload.prompt:
                        run.times.append(now + (step + 1) * seconds)
            now += steps * seconds
        return runs

    def _alike(
        self, runs: Sequence[_Run], parts: Sequence[tuple[_Run, int, int]], workload: Workload
    ) -> int:
        """Passes that are alike but for their positions: some where nobody has a prompt left."""
        if any(run.done < workload.prompt for run in runs):
            return 1
        return max(1, min(16, min(workload.answer - len(run.times) for run, _, _ in parts)))

    def pass_s(
        self,
        route: Route,
        sizes: Sequence[int],
        positions: Sequence[float],
        beside: Sequence[int] = (),
    ) -> float:
        """Seconds of a pass through all stages of a route, ``beside`` devices that are at work."""
        if len(route) > 1 and (size := chunk_size(sizes, len(route))) < max(sizes):
            return self._chunks_s(route, sizes, positions, size)
        stages = [self.stage_s(stage, sizes, positions, beside) for stage in route]
        return sum(stages) + sum(self._hops_s(route, sum(sizes)))

    def _chunks_s(
        self, route: Route, sizes: Sequence[int], positions: Sequence[float], size: int
    ) -> float:
        """Seconds of chunks that follow each other through the stages."""
        ends = [0.0] * len(route)
        for first in range(0, max(sizes), size):
            part = [
                (min(size, n - first), at + first)
                for n, at in zip(sizes, positions, strict=True)
                if n > first
            ]
            own, at = [n for n, _ in part], [p for _, p in part]
            hops = [0.0, *self._hops_s(route, sum(own))]
            before = 0.0
            for i, stage in enumerate(route):
                begin = max(ends[i], before + hops[i])
                before = ends[i] = begin + self.stage_s(stage, own, at)
        return ends[-1]

    def stage_s(
        self,
        stage: Stage,
        sizes: Sequence[int],
        positions: Sequence[float],
        beside: Sequence[int] = (),
    ) -> float:
        """Seconds of a pass through one stage, ``beside`` other devices that are at work."""
        shares, each = stage.shares or (RowShare(stage.site, 1.0),), list[float]()
        all_rows = sum(share.rows for share in shares)
        all_heads = sum(share.heads_weight for share in shares)
        for share in shares:
            site, rows, heads = share.site, share.rows / all_rows, share.heads_weight / all_heads
            seconds = pass_s(self.profiles[site], sizes, positions, stage.layers, rows, heads)
            lost = (self.links[site, other].crowded(sum(sizes)) - 1 for other in beside)
            each.append(seconds * (1 + sum(lost)))
        if not stage.shares:
            return each[0]
        waits = [self.links[pair].meeting_s or 0.0 for pair in permutations(stage.sites, 2)]
        return max(each) + len(EXCHANGES) * len(stage.layers) * max(waits)

    def _hops_s(self, route: Route, tokens: int) -> list[float]:
        """Seconds of the residual stream from each stage to the next."""
        n_bytes = 4 * self._model.hidden_size * tokens
        return [self._link_s(a.site, b.site, n_bytes) for a, b in pairwise(route)]

    def _link_s(self, source: int, target: int, n_bytes: float) -> float:
        return 0.0 if source == target else self.links[source, target].seconds(n_bytes)

    # -- prompts here, answers there

    def _split(self, plan: Plan, workload: Workload, n: int) -> tuple[list[_Run], float]:
        """Requests whose prompts are computed one after another, and answered together elsewhere;
        and the seconds of the hand-over that are not hidden.

        A device that has both is busy with prompts until the last one is there: passes of answers
        in between make them wait for as long.
        """
        prefill = self._prompt_s(plan, workload.prompt)
        exposed = self._exposed_s(plan, workload.prompt, prefill)
        runs = [_Run(workload.prompt, [(i + 1) * prefill]) for i in range(n)]
        ready = [run.times[0] + exposed for run in runs]
        prompts_at, answers_at = (
            {site for stage in route for site in stage.sites}
            for route in (plan.prefill, plan.decode)
        )
        if prompts_at & answers_at:
            ready = [ready[-1]] * n
        now = 0.0
        while left := [i for i, run in enumerate(runs) if len(run.times) < workload.answer]:
            coming = min(ready[i] for i in left)
            now = max(now, coming)
            own = [runs[i] for i in left if ready[i] <= now]
            later = [ready[i] for i in left if ready[i] > now]
            at = [workload.prompt + len(run.times) - 1 for run in own]
            steps = min(16, min(workload.answer - len(run.times) for run in own))
            seconds = self.pass_s(plan.decode, [1] * len(own), [p + (steps - 1) / 2 for p in at])
            if later:  # until another one comes
                steps = max(1, min(steps, int((min(later) - now) / max(seconds, 1e-12)) + 1))
            for step in range(steps):
                for run in own:
                    run.times.append(now + (step + 1) * seconds)
            now += steps * seconds
        return runs, exposed

    def _prompt_s(self, plan: Plan, prompt: int) -> float:
        """Seconds of a prompt: layer by layer where it is one device's."""
        seconds = self.pass_s(plan.prefill, [prompt], [0])
        if len(plan.prefill) == 1 and plan.is_handed_over:
            profile = self.profiles[plan.prefill[0].site]
            seconds += (profile.n_layers - 1) * profile.call_s
        return seconds

    def _exposed_s(self, plan: Plan, prompt: int, prefill_s: float) -> float:
        """Seconds for which answers wait for keys and values when the prompt is computed.

        Layers are taken to be finished one after another, and each sent when it is.
        """
        model, n_layers = self._model, plan.n_layers
        n_bytes = kv_bytes_of(model, prompt, 1)
        arrived: dict[int, float] = {}
        for stage in plan.prefill:
            for layer in stage.layers:
                # a stage of a pipeline sends its layers when all tokens have passed it
                last = layer if len(plan.prefill) == 1 else stage.layers.stop - 1
                done = prefill_s * (last + 1) / n_layers
                for target in next(s.sites for s in plan.decode if layer in s.layers):
                    if target in stage.sites:
                        continue
                    begin = max(done, arrived.get(target, 0.0))
                    arrived[target] = begin + self._link_s(stage.site, target, n_bytes)
        return max(max(arrived.values(), default=0.0) - prefill_s, 0.0)


def _hops(plan: Plan) -> set[tuple[int, int]]:
    """Links that a plan uses."""
    pairs = {(a.site, b.site) for route in (plan.prefill, plan.decode) for a, b in pairwise(route)}
    for stage in plan.prefill:
        for other in plan.decode:
            if set(stage.layers) & set(other.layers):
                pairs |= {(stage.site, site) for site in other.sites if site not in stage.sites}
    for stage in (*plan.prefill, *plan.decode):
        pairs |= set(permutations(stage.sites, 2))
    return {(a, b) for a, b in pairs if a != b}
