"""The list of faults applies to the RTL as it is, and the runner tells caught from survived."""

import shutil
from pathlib import Path

import pytest

from lutra_sim.mutants import __main__ as runner
from lutra_sim.mutants.__main__ import ROOT, apply, main, run_tests
from lutra_sim.mutants.catalogue import MUTANTS, Mutant


def _mutant(**changes: object) -> Mutant:
    fields = {"fault": "wrong", "file": "a.py", "old": "1", "new": "2", "tests": ("t.py",)}
    return Mutant(**(fields | changes))  # type: ignore[arg-type]


def test_there_are_enough_of_different_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_applies(mutant: Mutant, tmp_path: Path) -> None:
    path = tmp_path / mutant.file
    path.parent.mkdir(parents=True)
    shutil.copy(ROOT / "hw/lutra_hw" / mutant.file, path)
    original = path.read_text(encoding="utf-8")
    apply(mutant, tmp_path)
    changed = path.read_text(encoding="utf-8")
    assert changed != original
    compile(changed, mutant.file, "exec")
    for test in mutant.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).is_file()


@pytest.mark.parametrize(("text", "count"), [("2", 0), ("11", 2)])
def test_applies_to_one_place_only(text: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ValueError) as error:
        apply(_mutant(), tmp_path)
    assert str(error.value) == f"a.py must have '1' once, not {count} times"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        apply(_mutant(), tmp_path)
    assert str(error.value) == "a.py must have '1' once, not 0 times"


ROUNDING = MUTANTS[0]
# the same file changed without a consequence
HARMLESS = Mutant(
    fault="none",
    file=ROUNDING.file,
    old=ROUNDING.old,
    new=ROUNDING.old.replace(" + 1)", " + 2 - 1)"),
    tests=ROUNDING.tests,
)
NO_TEST = Mutant(
    fault="no test",
    file=ROUNDING.file,
    old=ROUNDING.old,
    new=ROUNDING.new,
    tests=("hw/arith/test_fixed.py::test_of_nothing",),
)


@pytest.mark.parametrize(
    ("mutant", "status", "says"),
    [
        (ROUNDING, 0, "caught"),
        (HARMLESS, 1, "SURVIVED"),
        (NO_TEST, 1, "ERROR: tests do not pass without the fault"),
    ],
    ids=lambda value: value.fault if isinstance(value, Mutant) else "",
)
def test_runner(
    mutant: Mutant,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("amaranth")
    pytest.importorskip("cocotb_tools")
    monkeypatch.setattr(runner, "MUTANTS", [mutant])
    assert main([]) == status
    printed = capsys.readouterr().out
    assert says in printed
    assert f"{int(says == 'caught')} of 1 mutants caught" in printed


def test_the_checkout_is_left_alone(tmp_path: Path) -> None:
    """Tests see the RTL of the folder they are given, and no other."""
    (tmp_path / "lutra_hw").mkdir(parents=True)
    (tmp_path / "lutra_hw/__init__.py").write_text("raise RuntimeError('a copy')\n")
    status, _ = run_tests(ROUNDING.tests, tmp_path)
    assert status != 0


def test_unknown_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err == "error: no mutant's name has nothing\n"
