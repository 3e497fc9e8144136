"""Everything that a plan is chosen from: devices that have loaded a model, profiles and links."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from lutra.closing import Closing
from lutra.devices.base import Device
from lutra.devices.estimate import token_bytes
from lutra.serving.plans.carriers import Carrier, Direct, Shaped
from lutra.serving.plans.costs import Costs, Workload
from lutra.serving.plans.device import PlannedDevice
from lutra.serving.plans.facts import Fact
from lutra.serving.plans.layout import Plan, Route
from lutra.serving.plans.measure import (
    BUDGET_S,
    measure_crowd,
    measure_link,
    measure_meeting,
)
from lutra.serving.plans.profile import Crowd, Deviation, DeviceProfile, LinkProfile
from lutra.serving.plans.search import Choice, Slo, choose_plan
from lutra.serving.plans.sites import Site
from lutra.serving.plans.store import ProfileStore
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BOARD_PROFILES

__all__ = ["ETHERNET", "USUAL", "Planner", "planned_device", "workload_within"]

Progress = Callable[[str, float], None]
ETHERNET = LinkProfile(latency_s=1e-4, bytes_per_s=1.25e8, kind="modelled")
"""The link to a board that is not here, if nothing else is said: gigabit Ethernet."""
_QUICK_S = 0.25
"""Seconds that a pass of one token takes at most on devices that are measured at work together."""
USUAL = Workload(prompt=512, answer=128)
"""The workload if nothing else is said, as far as the context goes."""


class Planner(Closing):
    """Plans for ``model`` on ``sites``, whose ``devices`` have loaded it; None if one is not here.

    ``link`` takes the place of all links between devices. Profiles come from ``store``.
    """

    def __init__(
        self,
        model: PackedModel,
        sites: Sequence[Site],
        devices: Sequence[Device | None],
        *,
        link: LinkProfile | None = None,
        store: ProfileStore | None = None,
        by_cycles: bool = False,
        refresh: bool = False,
        budget_s: float = BUDGET_S,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.sites, self.devices = model, list(sites), list(devices)
        self._link, self._store = link, store or ProfileStore()
        self.profiles: dict[int, DeviceProfile] = {}
        for i, (site, device) in enumerate(zip(sites, devices, strict=True)):
            self.profiles[i] = site.profile(
                model, device, self._store, by_cycles=by_cycles, refresh=refresh,
                budget_s=budget_s, progress=progress,
            )  # fmt: skip
        self.links = self._links(progress)

    @classmethod
    def open(
        cls,
        model: PackedModel,
        sites: Sequence[Site],
        *,
        link: LinkProfile | None = None,
        store: ProfileStore | None = None,
        by_cycles: bool = False,
        refresh: bool = False,
        budget_s: float = BUDGET_S,
        progress: Progress | None = None,
    ) -> "Planner":
        """A planner whose devices are made and loaded here; :meth:`close` releases them."""
        devices: list[Device | None] = []
        try:
            for site in sites:
                device = site.make(progress) if site.is_here else None
                devices.append(device)
                if device is not None:
                    device.load(model)
            return cls(
                model, sites, devices, link=link, store=store, by_cycles=by_cycles,
                refresh=refresh, budget_s=budget_s, progress=progress,
            )  # fmt: skip
        except BaseException:
            _close(devices)
            raise

    @property
    def labels(self) -> list[str]:
        """Names of the devices."""
        return [site.label for site in self.sites]

    @property
    def carrier(self) -> Carrier:
        """A carrier of keys and values, as the links say."""
        if self._link is None:
            return Direct()
        return Shaped(latency_s=self._link.latency_s, bytes_per_s=self._link.bytes_per_s)

    @property
    def costs(self) -> Costs:
        """Costs of plans by the profiles as they are."""
        return Costs(self.model, self.profiles, self.links)

    def choose(
        self,
        workload: Workload,
        slo: Slo | None = None,
        alive: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Choice:
        """The plan for a workload, on the devices of these numbers, on all if left out."""
        return choose_plan(
            self.costs, workload, slo=slo, sites=alive, fits=self._fits, progress=progress
        )

    def correct(self, facts: Sequence[Fact]) -> None:
        """Correct the profiles of devices whose passes took longer or shorter than predicted, and
        keep them; nothing is learnt from passes of devices that have none here."""
        costs, found = self.costs, {site: list[Deviation]() for site in self.profiles}
        for fact in facts:
            if not {*fact.stage.sites, *fact.beside} <= set(self.profiles):
                continue
            predicted = costs.stage_s(fact.stage, fact.sizes, fact.positions, fact.beside)
            for site in fact.stage.sites:
                found[site].append(
                    Deviation(
                        tokens=min(sum(fact.sizes), self.profiles[site].pass_tokens),
                        seconds=fact.seconds,
                        predicted=predicted,
                        divided=bool(fact.stage.shares),
                    )
                )
        for site, deviations in found.items():
            corrected = self.profiles[site].corrected(deviations)
            if corrected is not self.profiles[site]:
                self.profiles[site] = corrected
                self._store.save(corrected)

    def close(self) -> None:
        """Release the devices."""
        _close(self.devices)

    def _links(self, progress: Progress | None) -> Mapping[tuple[int, int], LinkProfile]:
        found: dict[tuple[int, int], LinkProfile] = {}
        crowds = dict[tuple[str, str], Crowd]()
        for i, j in combinations(range(len(self.devices)), 2):
            source, target = self.devices[i], self.devices[j]
            if progress and source and target:
                progress(f"measuring {self.labels[i]} and {self.labels[j]} together", 0)
            meeting_s = None
            if source and target and self._link is None:
                if None not in (self.profiles[i].half, self.profiles[j].half):
                    meeting_s = measure_meeting((source, target))
            for a, b in ((i, j), (j, i)):
                found[a, b] = replace(
                    self._way(a, b), meeting_s=meeting_s, crowd=self._crowd(a, b, crowds)
                )
        return found

    def _way(self, i: int, j: int) -> LinkProfile:
        """The link from a device to another one."""
        source, target = self.devices[i], self.devices[j]
        if self._link is not None:
            return self._link
        if source is None or target is None:
            return ETHERNET
        return measure_link(source, target, Direct())

    def _crowd(self, i: int, j: int, known: dict[tuple[str, str], Crowd]) -> Crowd:
        """Crowd of a device beside another one at work; pairs of a kind are measured once."""
        source, target = self.devices[i], self.devices[j]
        profiles = self.profiles[i], self.profiles[j]
        if source is None or target is None or any(p.kind != "measured" for p in profiles):
            return ()
        if max(profile.decode_s(1, 0) for profile in profiles) > _QUICK_S:
            return ()
        pair = profiles[0].fingerprint, profiles[1].fingerprint
        if pair not in known:
            known[pair] = measure_crowd(source, target)
        return known[pair]

    def _fits(self, plan: Plan) -> bool:
        """True unless the weights of a stage exceed the memory of a modelled board."""
        each = token_bytes(self.model) / len(self.model.layers)
        for stage in (*plan.prefill, *plan.decode):
            for site in (self.sites[number] for number in stage.sites):
                needed = len(stage.layers) * each
                if not site.is_here and needed > BOARD_PROFILES[site.name].buffer_bytes:
                    return False
        return True


def planned_device(
    sites: Sequence[Site],
    *,
    workload: Workload | None = None,
    slo: Slo | None = None,
    store: ProfileStore | None = None,
    budget_s: float = BUDGET_S,
    progress: Progress | None = None,
) -> PlannedDevice:
    """One device of all ``sites``, planned for ``workload`` when a model is loaded; 512 tokens and
    128 of an answer, as far as the context goes, if left out."""
    for site in sites:
        if not site.is_here:
            site.make()  # says that it is modelled
    planner: Planner | None = None
    devices = [site.make(progress) for site in sites]

    def choose(model: PackedModel, alive: Sequence[int]) -> Sequence[Plan]:
        nonlocal planner
        found = planner
        if found is None or found.model is not model or not set(alive) <= set(found.profiles):
            # those that failed to load are not measured
            left = [sites[i] for i in alive]
            own = Planner(
                model, left, [devices[i] for i in alive], store=store, budget_s=budget_s,
                progress=progress,
            )  # fmt: skip
            own.profiles = {alive[i]: each for i, each in own.profiles.items()}
            own.links = {(alive[i], alive[j]): each for (i, j), each in own.links.items()}
            own.sites = list(sites)
            planner = found = own
        wanted = workload or workload_within(model)
        return found.choose(wanted, slo, alive, progress).chosen.plans

    def expect(
        route: Route, sizes: Sequence[int], positions: Sequence[int], beside: Sequence[int]
    ) -> float:
        assert planner is not None, "a plan is chosen"
        return planner.costs.pass_s(route, sizes, positions, beside)

    def learn(facts: Sequence[Fact]) -> None:
        assert planner is not None, "a plan is chosen"
        planner.correct(facts)

    labels = [site.label for site in sites]
    return PlannedDevice(devices, choose, labels=labels, expect=expect, learn=learn)


def _close(devices: Sequence[Device | None]) -> None:
    for device in devices:
        if device is not None:
            device.close()


def workload_within(
    model: PackedModel, prompt: int | None = None, answer: int | None = None, requests: int = 1
) -> Workload:
    """A workload for a model, what is left out as :data:`USUAL` has it or as far as the context
    goes; LutraError if what is given exceeds that."""
    context = model.context
    if prompt is None:
        prompt = min(USUAL.prompt, max(context * 3 // 4, 1), max(context - (answer or 1), 1))
    if answer is None:
        answer = min(USUAL.answer, max(context - prompt, 1))
    if prompt + answer > context:
        raise LutraError(
            f"{prompt} and {answer} tokens exceed the context of {context}: ask for fewer of a "
            "prompt, or of an answer"
        )
    return Workload(prompt=prompt, answer=answer, requests=requests)
