"""Targets are measured, or named."""

import shutil

import pytest

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.cpu import choice
from lutra.devices.cpu.choice import choose_targets
from lutra.devices.cpu.library import target_names
from lutra.devices.cpu.steps import Matrix
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError

AVAILABLE = [name for name, available in target_names().items() if available]


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_targets.cache_clear()
    monkeypatch.delenv("LUTRA_CPU_TARGET", raising=False)
    monkeypatch.setattr(choice, "_FEW", (64, 128, (1, 4)))
    monkeypatch.setattr(choice, "_MANY", (64, 128, (8,)))


@pytest.mark.parametrize("groups", [None, ActivationGroups()])
def test_what_is_measured_is_there(groups: ActivationGroups | None) -> None:
    few, many = choose_targets(2, groups)
    assert few in AVAILABLE
    assert many in AVAILABLE
    assert len(AVAILABLE) == 1 or "scalar" not in (few, many)


class Seconds(float):
    def min(self) -> float:
        return self


def test_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of product by its own times, one and a few tokens together; the first of those that
    are as fast."""
    if len(AVAILABLE) < 3:
        pytest.skip("this machine has no choice")
    first, second = AVAILABLE[:2]
    times = {(first, 1): 1.0, (first, 4): 4.0, (first, 8): 1.04}
    times |= {(second, 1): 1.2, (second, 4): 2.0, (second, 8): 1.0}
    asked: set[int] = set()

    def seconds(
        target: str, pool: object, matrices: list[object], a: list[object], bits: int
    ) -> Seconds:
        asked.add(bits)
        return Seconds(times.get((target, len(a)), 9.0))

    monkeypatch.setattr(choice, "matmul_seconds", seconds)
    assert choose_targets(1) == (second, first)
    assert asked == {8}


def test_activations_in_groups_have_products_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their times say nothing about those of others: either choice is made by its own."""
    if len(AVAILABLE) < 3:
        pytest.skip("this machine has no choice")
    first, second = AVAILABLE[:2]

    def seconds(
        target: str, pool: object, matrices: list[Matrix], a: list[object], bits: int
    ) -> Seconds:
        grouped = matrices[0].c.group > 0
        assert bits == (15 if grouped else 8)
        return Seconds(1.0 if target == (second if grouped else first) else 2.0)

    monkeypatch.setattr(choice, "matmul_seconds", seconds)
    assert choose_targets(1, ActivationGroups()) == (second, second)
    assert choose_targets(1) == (first, first)


def test_a_named_target_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_CPU_TARGET", "scalar")
    assert choose_targets(1) == ("scalar", "scalar")


def test_a_target_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_CPU_TARGET", "mmx")
    names = ", ".join(AVAILABLE)
    message = rf"^LUTRA_CPU_TARGET must be one of {names} on this machine, not 'mmx'$"
    with pytest.raises(LutraError, match=message):
        choose_targets(1)
