"""The whole of hardware verification: every part runs, and one table tells all of them."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "verify.py"


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "verify", module)
    spec.loader.exec_module(module)
    return module


def _says(text: str, status: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({status})"]


def _part(verify: ModuleType, name: str, text: str, status: int = 0):
    return verify.Part(
        name=name, command=_says(text, status), summary=re.compile(r"\d+ of \d+ .*|total .*")
    )


def test_runs_what_stands_behind_a_failure(
    verify: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    found = [
        _part(verify, "proofs", "lut  ok\nmac  FAILED\nrow  unproven\n1 of 3 passed", 1),
        _part(verify, "tests", "no line of the kind"),
        _part(verify, "coverage", "total   12"),
    ]
    monkeypatch.setattr(verify, "parts", lambda jobs, options: found)
    assert verify.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    last = lines[lines.index(next(line for line in lines if line.startswith("part "))) :]
    assert [line.split()[:2] for line in last[1:4]] == [
        ["proofs", "FAILED"],
        ["tests", "ok"],
        ["coverage", "ok"],
    ]
    assert last[1].endswith("1 of 3 passed")
    assert last[2].endswith("no result")
    assert last[3].endswith("total  12")
    assert last[4:] == ["", "proofs: exit status 1", "  mac  FAILED", "  row  unproven"]


def test_passes_where_every_part_does(
    verify: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    found = [_part(verify, "proofs", "3 of 3 passed")]
    monkeypatch.setattr(verify, "parts", lambda jobs, options: found)
    assert verify.main(["--jobs", "1"]) == 0


def test_counts_coverage_anew(
    verify: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    old = tmp_path / "coverage" / "old.dat"
    old.parent.mkdir()
    old.touch()
    monkeypatch.setattr(verify, "parts", lambda jobs, options: [])
    assert verify.main([]) == 0
    assert not old.exists()


def test_summaries_of_the_tools(verify: ModuleType) -> None:
    summaries = {part.name: part.summary for part in verify.parts(2, [])}
    for name, line in (
        ("proofs", "30 of 31 checks passed, 300 s of processor time"),
        ("tests and benches", "582 passed, 3 skipped in 450.12s (0:07:30)"),
        ("tests and benches", "1 failed, 4 passed in 2.00s"),
        ("coverage", "total   103200  98.8 %  9000  98.4 %"),
    ):
        assert summaries[name].fullmatch(line)


def test_options_go_to_pytest(verify: ModuleType) -> None:
    proofs, tests, coverage = verify.parts(3, ["-k", "arbiter"])
    assert proofs.command[-2:] == ["--jobs", "3"]
    assert tests.command[-2:] == ["-k", "arbiter"]
    assert verify.PROOFS in tests.command
    assert "arbiter" not in coverage.command


def test_no_jobs(verify: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--jobs", "0"]) == 2
    assert capsys.readouterr().err == "error: --jobs must be positive, not 0\n"


def test_proofs_are_where_they_are_left_out(verify: ModuleType) -> None:
    file, _, function = verify.PROOFS.partition("::")
    assert f"def {function}(" in (verify.ROOT / file).read_text(encoding="utf-8")
