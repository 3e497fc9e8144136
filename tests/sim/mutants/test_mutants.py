"""The faults apply to the packages as they are, and the runner tells caught from survived."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from lutra_sim.mutants import __main__ as runner
from lutra_sim.mutants.__main__ import ROOT, main, run_tests
from lutra_sim.mutants.catalogue import MUTANTS, SURVIVORS
from lutra_sim.mutants.mutant import Mutant, apply


def _mutant(**changes: object) -> Mutant:
    fields = {"fault": "wrong", "file": "a.py", "old": "1", "new": "2", "tests": ("t.py",)}
    return Mutant(**(fields | changes))  # type: ignore[arg-type]


def test_there_are_enough_of_different_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 100


COMPUTING = (
    "hw/lutra_hw",
    "sim/lutra_golden",
    "host/lutra/packed",
    "host/lutra/quantize",
    "host/lutra/compile",
    "host/lutra/estimate",
    "host/lutra/devices",
    "kernels_gpu/lutra_kernels",
)
"""Folders of what computes tokens, or what these are computed by."""
ASIDE = {
    "declarations of ports, arguments and parameters": """
        hw/lutra_hw/axi/signatures.py hw/lutra_hw/control/context.py hw/lutra_hw/ports.py
        sim/lutra_golden/params.py sim/lutra_golden/vector/unit.py host/lutra/quantize/target.py
        sim/lutra_golden/strings.py sim/lutra_golden/core/packaging.py
        sim/lutra_golden/core/fabric.py
    """,
    "headers without a function of their own": """
        attend.h kernels.h lutra_cpu.h matmul.h pool.h vector.h
    """,
    "cycles and times": """
        sim/lutra_golden/timing/ host/lutra/devices/cpu/bench.py host/lutra/devices/cpu/csrc/bench.c
        kernels_gpu/lutra_kernels/bench.py kernels_gpu/lutra_kernels/timing.py
        kernels_gpu/lutra_kernels/tune.py kernels_gpu/lutra_kernels/shapes.py
        kernels_gpu/lutra_kernels/report.py kernels_gpu/lutra_kernels/matmul/random.py
        host/lutra/packed/random.py host/lutra/devices/accelerator/bench.py
        host/lutra/devices/estimate.py host/lutra/quantize/bench.py
    """,
    "which way is taken, or how it is built": """
        hw/lutra_hw/matmul/engines.py hw/lutra_hw/netlist.py sim/lutra_golden/errors.py
        sim/lutra_golden/install.py
        sim/lutra_golden/machine.py host/lutra/devices/choose.py host/lutra/devices/cpu/choice.py
        host/lutra/devices/cpu/build.py layout.c targets.c x86_detect.h
        kernels_gpu/lutra_kernels/__init__.py kernels_gpu/lutra_kernels/catalogue.py
        kernels_gpu/lutra_kernels/compile.py kernels_gpu/lutra_kernels/errors.py
        kernels_gpu/lutra_kernels/jit.py kernels_gpu/lutra_kernels/launch.py
        host/lutra/devices/auto.py host/lutra/devices/processors.py
        host/lutra/devices/boards.py host/lutra/devices/describe.py
        host/lutra/devices/hardware.py host/lutra/devices/accelerator/bitstreams.py
        kernels_gpu/lutra_kernels/interpret/calls.py variants.py
    """,
    "what looks on": """
        sim/lutra_golden/control/recorder.py host/lutra/quantize/kept.py
        host/lutra/devices/activity.py
    """,
    "what this kind of machine cannot run, or no test without Verilator": """
        target_neon.c target_armv8.c neon.h host/lutra/devices/accelerator/rtl.py
    """,
    "no test of its runs without the package pynq, which the environment of faults has not": """
        host/lutra/devices/accelerator/pynq.py host/lutra/devices/accelerator/pynq_interrupt.py
        host/lutra/devices/emulated/zynq.py host/lutra/devices/emulated/pynq_board.py
    """,
}
"""Modules that need no faults, by the reason; ends of paths, or folders."""


def test_every_module_that_computes_tokens_has_three() -> None:
    aside = [name for names in ASIDE.values() for name in names.split()]
    modules = {
        path.relative_to(ROOT).as_posix(): sum(1 for line in path.open() if line.strip())
        for folder in COMPUTING
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".c", ".h")
    }
    assert all(any(name in each for each in modules) for name in aside)
    counts = Counter(mutant.file for mutant in MUTANTS)
    few = {
        name: counts[name]
        for name, n_lines in modules.items()
        if n_lines > 3  # of a package that says what it holds
        and counts[name] < 3
        and not any(name.endswith(each) or (each[-1] == "/" and each in name) for each in aside)
    }
    assert not few


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_applies(mutant: Mutant, tmp_path: Path) -> None:
    path = tmp_path / mutant.file
    path.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, path)
    original = path.read_text(encoding="utf-8")
    apply(mutant, tmp_path)
    changed = path.read_text(encoding="utf-8")
    assert changed != original
    if path.suffix == ".py":
        compile(changed, mutant.file, "exec")
    for test in mutant.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).is_file()


def test_survivors_are_few_and_there() -> None:
    assert len(SURVIVORS) <= 3
    assert SURVIVORS.keys() <= {mutant.name for mutant in MUTANTS}


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


ROUNDING = next(m for m in MUTANTS if m.file == "sim/lutra_golden/arith/fixed.py")
# the same file changed without a consequence
HARMLESS = Mutant(
    fault="none",
    file=ROUNDING.file,
    old=ROUNDING.old,
    new=ROUNDING.old.replace("& 1)", "& 1) + 0"),
    tests=ROUNDING.tests,
)
NO_TEST = Mutant(
    fault="no test",
    file=ROUNDING.file,
    old=ROUNDING.old,
    new=ROUNDING.new,
    tests=("golden/arith/test_fixed.py::test_of_nothing",),
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
    monkeypatch.setattr(runner, "PACKAGES", {"golden": [mutant]})
    assert main([]) == status
    printed = capsys.readouterr().out
    assert says in printed
    assert f"{int(says == 'caught')} of 1 mutants caught" in printed


def test_a_listed_survivor_passes_and_may_go_once_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "PACKAGES", {"golden": [ROUNDING, HARMLESS]})
    monkeypatch.setattr(runner, "SURVIVORS", {HARMLESS.name: "changes nothing"})
    assert main(["--jobs", "1"]) == 0
    end = capsys.readouterr().out.splitlines()[-2:]
    assert end[0].startswith("1 of 2 mutants caught in ")
    assert end[1] == f"{HARMLESS.name}: survives: changes nothing"
    monkeypatch.setattr(runner, "SURVIVORS", {ROUNDING.name: "a reason"})
    assert main(["--jobs", "1", "rounding"]) == 0
    assert "caught: take it off the list of survivors" in capsys.readouterr().out


def test_an_endless_loop_ends(tmp_path: Path) -> None:
    """A fault that never ends uses up its processor time, and is noticed."""
    (tmp_path / "sim/lutra_golden").mkdir(parents=True)
    (tmp_path / "sim/lutra_golden/__init__.py").write_text("while True:\n    pass\n")
    run = run_tests(ROUNDING.tests, tmp_path, 2)
    assert (run.status, run.line) == (1, "no end within 2 s of processor time")
    assert 1 < run.cpu_s < 10


def test_the_checkout_is_left_alone(tmp_path: Path) -> None:
    """Tests see the packages of the folder they are given, and no other."""
    (tmp_path / "sim/lutra_golden").mkdir(parents=True)
    (tmp_path / "sim/lutra_golden/__init__.py").write_text("raise RuntimeError('a copy')\n")
    assert run_tests(ROUNDING.tests, tmp_path).status != 0


def test_unknown_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere"]) == 2
    assert capsys.readouterr().err == "error: no mutant's name has nowhere\n"
