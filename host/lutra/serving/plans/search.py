"""The search for a plan: alternatives with their costs, the choice, and the reason for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from math import comb, perm

from lutra.serving.plans.costs import Cost, Costs, Workload
from lutra.serving.plans.layout import Plan, Route, RowShare, Stage, by_rows, whole
from lutra_golden.errors import LutraError

__all__ = ["AS_GOOD", "Alternative", "Choice", "Slo", "choose_plan", "pareto"]

Progress = Callable[[str, float], None]
_EXACT = 2000  # pipelines that are all looked at
_UNLIKE = 0.1  # of a pass, by which attention's part differs between devices
_LEAST_SHARE = 0.02  # of rows, as fewer are not worth the meetings
AS_GOOD = 1.02
"""A plan with fewer devices may take this much longer."""


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Seconds that a user may wait: for the first token, and for each one after it."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def missed(self, cost: Cost) -> float:
        """How many times as long as allowed the worse one takes; at most 1 is met."""
        shares = [
            taken / allowed
            for taken, allowed in ((cost.ttft_s, self.ttft_s), (cost.tpot_s, self.tpot_s))
            if allowed is not None
        ]
        return max(shares, default=0.0)

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Of ``ttft=0.5,tpot=0.05``, either of them; LutraError if it is anything else."""
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1.0
            if name not in ("ttft", "tpot") or name in found or not 0 < seconds < float("inf"):
                raise LutraError(
                    f"an SLO must be ttft=SECONDS, tpot=SECONDS or both with a comma, not {text!r}"
                )
            found[name] = seconds
        return cls(ttft_s=found.get("ttft"), tpot_s=found.get("tpot"))


@dataclass(frozen=True)
class Alternative:
    """One plan, or several that share the requests, with the cost; ``fits`` if there is memory."""

    plans: tuple[Plan, ...]
    cost: Cost

    @property
    def kind(self) -> str:
        """The plan's, or ``side by side`` of several."""
        return self.plans[0].kind if len(self.plans) == 1 else "side by side"

    @property
    def sites(self) -> frozenset[int]:
        """Devices that take part."""
        return frozenset(site for plan in self.plans for site in plan.sites)

    def describe(self, labels: Sequence[str]) -> str:
        """The plan in words."""
        if len(self.plans) == 1:
            return self.plans[0].describe(labels)
        return "whole requests on " + " and ".join(
            labels[plan.decode[0].site] for plan in self.plans
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All ``alternatives``, the quickest first, the one that was ``chosen`` and the ``reason``;
    ``exact`` if every plan of these kinds was looked at."""

    alternatives: list[Alternative]
    chosen: Alternative
    reason: str
    exact: bool


def choose_plan(
    costs: Costs,
    workload: Workload,
    *,
    slo: Slo | None = None,
    sites: Sequence[int] | None = None,
    fits: Callable[[Plan], bool] = lambda plan: True,
    progress: Progress | None = None,
) -> Choice:
    """The plan for ``workload`` on ``sites``, all that have a profile if left out.

    Of plans that meet ``slo`` the one that is done first, of those that are as quick within 2 % the
    one with the fewest devices; if none meets it, the one that misses it least. A plan counts if it
    ``fits`` in memory.
    """
    slo = slo or Slo()
    own = sorted(costs.profiles) if sites is None else sorted(sites)
    profiles = [costs.profiles[site] for site in own]
    n_layers = profiles[0].n_layers
    exact = all(_n_pipelines(n_layers, len(own), n) <= _EXACT for n in range(2, len(own) + 1))
    found: list[Alternative] = []

    expected = _n_alternatives(n_layers, len(own), workload.requests)

    def consider(*plans: Plan) -> None:
        if progress:
            progress("comparing plans", min(len(found) / expected, 0.99))
        if all(fits(plan) for plan in plans):
            found.append(Alternative(plans, costs.of(plans, workload)))

    for site in own:
        consider(Plan.on(site, n_layers))
    for n in range(2, min(len(own), workload.requests) + 1):
        for some in combinations(own, n):
            consider(*(Plan.on(site, n_layers) for site in some))
    for route in _row_routes(costs, own, n_layers, workload):
        consider(Plan(route, route))
        for stage in route:
            for site in stage.sites:
                # all devices for prompts, one of them for answers: it has all keys already
                consider(Plan(route, whole(site, n_layers)))
    for a, b in permutations(own, 2):
        consider(Plan(whole(a, n_layers), whole(b, n_layers)))
    routes = list(_routes(costs, own, n_layers))
    for route in routes:
        consider(Plan(route, route))
        for stage in route:
            # all devices for prompts, one of them for answers
            consider(Plan(route, whole(stage.site, n_layers)))
    if not found:
        raise LutraError(
            "no plan fits the memory of these devices: give more of them, or a smaller model"
        )
    found.sort(key=lambda each: (each.cost.seconds, len(each.sites)))
    chosen = _best(found, slo)
    return Choice(
        alternatives=found, chosen=chosen, reason=_reason(found, chosen, slo), exact=exact
    )


def _best(found: Sequence[Alternative], slo: Slo) -> Alternative:
    meeting = [each for each in found if slo.missed(each.cost) <= 1]
    if not meeting:
        return min(found, key=lambda each: slo.missed(each.cost))
    quickest = min(each.cost.seconds for each in meeting)
    as_quick = [each for each in meeting if each.cost.seconds <= AS_GOOD * quickest]
    return min(as_quick, key=lambda each: (len(each.sites), each.cost.seconds))


def _reason(found: Sequence[Alternative], chosen: Alternative, slo: Slo) -> str:
    if slo.missed(chosen.cost) > 1:
        return (
            f"no plan meets the SLO; this one misses it least, by a factor of "
            f"{slo.missed(chosen.cost):.2f}"
        )
    quicker = [each for each in found if each.cost.seconds < chosen.cost.seconds]
    missing = [each for each in quicker if slo.missed(each.cost) > 1]
    if missing:
        return f"the quickest of those that meet the SLO; {len(missing)} quicker ones miss it"
    if quicker:
        share = chosen.cost.seconds / quicker[0].cost.seconds - 1
        return (
            f"{len(chosen.sites)} of the devices do as well: the quickest plan is only "
            f"{share:.1%} quicker, with {len(quicker[0].sites)}"
        )
    others = [each for each in found if each.sites != chosen.sites or each.kind != chosen.kind]
    if not others:
        return "the only plan"
    return f"the quickest: the next kind of plan takes {_times(others[0], chosen)} as long"


def _times(other: Alternative, chosen: Alternative) -> str:
    return f"{other.cost.seconds / chosen.cost.seconds:.2f} times"


def pareto(found: Sequence[Alternative]) -> list[Alternative]:
    """Those that no other one beats in the time to the first token and per token, in that order."""
    front: list[Alternative] = []
    for each in sorted(found, key=lambda a: (a.cost.ttft_s, a.cost.tpot_s)):
        if not front or each.cost.tpot_s < front[-1].cost.tpot_s:
            front.append(each)
    return front


# -- rows


def _row_routes(
    costs: Costs, sites: Sequence[int], n_layers: int, workload: Workload
) -> Iterator[Route]:
    """Rows of each layer divided between two devices and more that can: so that all take as long
    for a token of each answer, or else for a prompt; heads as the rows, or all on one of them if
    attention is not about the same part of a pass on each."""
    for n in range(2, len(sites) + 1):
        for some in combinations(sites, n):
            if any(costs.links[pair].meeting_s is None for pair in permutations(some, 2)):
                continue
            found: dict[Route, None] = {}
            for tokens, position in ((workload.requests, workload.prompt), (workload.prompt, 0)):
                without = [
                    costs.profiles[site].of_rows(tokens, position, 1.0, 0.0) for site in some
                ]
                unlike = max(without) - min(without) > _UNLIKE
                for attending in (None, *(some if unlike else ())):
                    shares = _even_rows(costs, some, tokens, position, attending)
                    if shares is not None:
                        found[by_rows(shares, n_layers)] = None
            yield from found


def _even_rows(
    costs: Costs, sites: Sequence[int], tokens: int, position: int, attending: int | None
) -> list[RowShare] | None:
    """Shares with which all sites take as long; None if one of them is better left out.

    A site takes ``a + b * share`` seconds, ``a`` for what everybody computes, and for all heads if
    it is the one that is ``attending``.
    """
    heads = None if attending is None else {site: float(site == attending) for site in sites}
    fixed, per_share = list[float](), list[float]()
    for site in sites:
        profile = costs.profiles[site]
        seconds = profile.chunk.at(min(tokens, profile.pass_tokens), position)
        own = None if heads is None else heads[site]
        none, every = (seconds * profile.of_rows(tokens, position, n, own) for n in (0.0, 1.0))
        fixed.append(none)
        per_share.append(max(every - none, 1e-12))
    even = (1 + sum(a / b for a, b in zip(fixed, per_share, strict=True))) / sum(
        1 / b for b in per_share
    )
    shares = [round((even - a) / b, 2) for a, b in zip(fixed, per_share, strict=True)]
    if min(shares) < _LEAST_SHARE:
        return None
    return [
        RowShare(site, share, None if heads is None else heads[site])
        for site, share in zip(sites, shares, strict=True)
    ]


# -- pipelines


def _n_alternatives(n_layers: int, n_sites: int, requests: int) -> int:
    """Plans that are looked at, about: there are most of the pipelines, each also with answers on
    one of its devices alone."""
    found = n_sites + sum(comb(n_sites, n) for n in range(2, min(n_sites, requests) + 1))
    found += perm(n_sites, 2)
    for n in range(2, min(n_sites, n_layers) + 1):
        cuts = _n_pipelines(n_layers, n_sites, n)
        found += (n + 1) * (cuts if cuts <= _EXACT else perm(n_sites, n))
    return found


def _n_pipelines(n_layers: int, n_sites: int, stages: int) -> int:
    return perm(n_sites, stages) * comb(n_layers - 1, stages - 1)


def _routes(costs: Costs, sites: Sequence[int], n_layers: int) -> Iterator[Route]:
    """Pipelines of two devices and more: all, or where there are too many of a length, for each
    order of devices the one that is balanced, by moving one layer at a time."""
    for n in range(2, min(len(sites), n_layers) + 1):
        if _n_pipelines(n_layers, len(sites), n) <= _EXACT:
            for order in permutations(sites, n):
                for cuts in combinations(range(1, n_layers), n - 1):
                    yield _route(order, cuts, n_layers)
        else:
            for order in permutations(sites, n):
                yield _balanced(costs, order, n_layers)


def _route(order: Sequence[int], cuts: Sequence[int], n_layers: int) -> Route:
    ends = [0, *cuts, n_layers]
    return tuple(
        Stage(site, range(*pair)) for site, pair in zip(order, pairwise(ends), strict=True)
    )


def _balanced(costs: Costs, order: Sequence[int], n_layers: int) -> Route:
    """Layers in proportion to speed at first; then one goes from the slowest stage to a neighbour
    as long as that makes the slowest one quicker."""
    per_layer: Mapping[int, float] = {
        site: max(costs.profiles[site].layer.at(1, 0), 1e-12) for site in order
    }
    speed = [1 / per_layer[site] for site in order]
    counts = [max(1, round(n_layers * each / sum(speed))) for each in speed]
    while sum(counts) != n_layers:
        step = 1 if sum(counts) < n_layers else -1
        able = [i for i in range(len(order)) if counts[i] + step >= 1]
        i = min(able, key=lambda i: step * (counts[i] + step) * per_layer[order[i]])
        counts[i] += step

    def slowest(given: Sequence[int]) -> float:
        return max(n * per_layer[site] for n, site in zip(given, order, strict=True))

    while True:
        moved: list[list[int]] = []
        for i, j in [*pairwise(range(len(order))), *pairwise(reversed(range(len(order))))]:
            if counts[i] > 1:
                other = list(counts)
                other[i], other[j] = other[i] - 1, other[j] + 1
                moved.append(other)
        best = min(moved, key=slowest, default=counts)
        if slowest(best) >= slowest(counts):
            break
        counts = best
    cuts = [sum(counts[: i + 1]) for i in range(len(counts) - 1)]
    return _route(order, cuts, n_layers)
