"""The run of all planted faults: one that cannot be tried leaves the others."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("amaranth")

from tests.system import planted
from tests.system.planted import FAULTS, Outcome, grouped, tried_together
from tests.system.variants import Shared, UnshareableError

from lutra_sim.mutants.mutant import Mutant


def silent(fault: Mutant, detail: str) -> Outcome:
    return Outcome(
        fault=fault.fault,
        file=fault.file,
        kind="silent",
        named=False,
        unit=None,
        detail=detail,
        cpu_s=0.0,
    )


@pytest.mark.parametrize("spoils", [[], [3], [1, 6], list(range(7))])
def test_the_others_still_share_a_simulator(
    spoils: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever spoil the netlist, those alone have their own simulator."""
    group = [Shared(fault=fault, components={}) for fault in FAULTS[:7]]
    bad = {id(group[i]) for i in spoils}

    def outcomes(group: Sequence[Shared], n_jobs: int) -> Iterator[Outcome]:
        if any(id(each) in bad for each in group):
            raise UnshareableError(range(1, len(group) + 1), "CombinationalCycle")
        for each in group:
            yield silent(each.fault, "shared")

    monkeypatch.setattr(planted, "outcomes", outcomes)
    monkeypatch.setattr(planted, "outcome", lambda fault: silent(fault, "own"))
    found = {each.fault: each.detail for each in tried_together(group, 1)}
    expected = {
        each.fault.fault: "own" if i in spoils else "shared" for i, each in enumerate(group)
    }
    assert found == expected


def test_some_leave_the_others_together(monkeypatch: pytest.MonkeyPatch) -> None:
    group = [Shared(fault=fault, components={}) for fault in FAULTS[:3]]
    sizes = list[int]()

    def outcomes(group: Sequence[Shared], n_jobs: int) -> Iterator[Outcome]:
        sizes.append(len(group))
        if len(group) == 3:
            raise UnshareableError([2], "other ports")
        for each in group:
            yield silent(each.fault, "shared")

    monkeypatch.setattr(planted, "outcomes", outcomes)
    monkeypatch.setattr(planted, "outcome", lambda fault: silent(fault, "own"))
    assert [each.detail for each in tried_together(group, 1)] == ["shared", "shared", "own"]
    assert sizes == [3, 2]


def test_a_source_that_cannot_be_imported_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(fault: Mutant) -> Any:
        raise NameError("undefined")

    monkeypatch.setattr(planted, "shared", shared)
    assert list(grouped(FAULTS[:2])) == FAULTS[:2]


def test_a_fault_without_hardware_is_said() -> None:
    found = {"unbuilt": "CombinationalCycle: Combinational cycle detected, path:"}
    line = planted._outcome(FAULTS[0], found, 1.0).line()
    assert line.endswith(": no hardware: CombinationalCycle: Combinational cycle detected, path:")
