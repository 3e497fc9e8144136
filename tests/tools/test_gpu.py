"""``make gpu`` without a GPU: its steps, what it makes of their output, and its refusal."""

import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a machine that has a GPU."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_gpu_count", lambda: 1)
    return module


def python(gpu: ModuleType, name: str, code: str, **changes: Any) -> Any:
    """A step that runs ``code``."""
    step = gpu.Step(name=name, command=[sys.executable, "-c", code], limit=20)
    return replace(step, **changes)


def test_steps_come_in_this_order(gpu: ModuleType) -> None:
    names = [step.name for step in gpu.STEPS]
    assert names == ["environment", "device", "tests", "tune", "kernels", "model"]
    assert gpu.LIMIT < 600 and all(0 < step.limit < gpu.LIMIT for step in gpu.STEPS)
    tests = gpu.STEPS[2]
    assert "tests/kernels_gpu" in tests.command and tests.environment == {"LUTRA_TEST_CUDA": "1"}
    environment = gpu.STEPS[0]
    assert (gpu.ROOT / environment.command[1]).is_file()
    assert environment.command[2:] == ["dev", "gpu"]


def test_without_a_gpu_one_line_at_once(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_gpu_count", lambda: 0)
    monkeypatch.setattr(gpu, "check", lambda *_: pytest.fail("nothing may be installed or run"))
    assert gpu.main([]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error == (
        "error: no CUDA device found: make gpu needs a GPU of compute capability 8.0 or higher and "
        "its driver; make test checks the kernels without one\n"
    )


def test_the_last_line_is_one_object(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"device": "a GPU", "torch": "2.9", "triton": "3.7.1"}
    steps = [
        python(gpu, "device", f"print('{json.dumps(about)}')"),
        python(gpu, "tests", "print('3 passed, 1 skipped in 0.1s')", figures=gpu._tests),
    ]
    monkeypatch.setattr(gpu, "STEPS", steps)
    assert gpu.main(["--jobs", "2"]) == 0
    output, error = capsys.readouterr()
    report = json.loads(output)
    assert output.count("\n") == 1
    assert report["ok"] and report["device"] == about
    assert [line.split()[0] for line in error.splitlines()] == [
        "device", "device:", "tests", "tests:",
    ]  # fmt: skip
    assert report["figures"] == [
        {
            "step": "tests",
            "name": f"tests {outcome}",
            "value": n,
            "unit": "tests",
            "kind": "counted",
        }
        for outcome, n in (("passed", 3), ("skipped", 1))
    ]
    assert report["steps"]["tests"] == {
        "ok": True, "seconds": report["steps"]["tests"]["seconds"], "limit": 20,
    }  # fmt: skip


def test_a_failed_step_does_not_hide_the_others(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = "print('FAILED a/test_b.py::test_c - no'); print('1 failed, 2 passed in 1s'); exit(1)"
    steps = [
        gpu.Step(name="environment", command=[str(SCRIPT / "absent")], limit=5),
        python(gpu, "tests", failed, figures=gpu._tests),
        python(gpu, "tune", "pass", figures=gpu._tuned),
        python(gpu, "model", "print('no JSON')", figures=gpu._rates),
        python(gpu, "last", "print('[]')", figures=gpu._rates),
    ]
    monkeypatch.setattr(gpu, "STEPS", steps)
    assert gpu.main([]) == 1
    report = json.loads(capsys.readouterr().out)
    done = report["steps"]
    assert not report["ok"]
    assert [step["ok"] for step in done.values()] == [False, False, False, False, True]
    assert done["environment"]["error"].endswith("absent did not start: Not a directory")
    assert done["tests"]["error"] == "exit status 1: 1 failed, 2 passed in 1s"
    assert done["tests"]["failed"] == ["a/test_b.py::test_c"]
    assert done["tune"]["error"].startswith("its output cannot be read: ")
    assert done["model"]["error"].startswith("its output cannot be read: ")
    assert {figure["name"]: figure["value"] for figure in report["figures"]} == {
        "tests failed": 1, "tests passed": 2,
    }  # fmt: skip


def test_a_step_that_hangs_is_ended_with_what_it_started(gpu: ModuleType, tmp_path: Path) -> None:
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); print('begun', flush=True); "
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    steps = [python(gpu, "hangs", code, limit=2), python(gpu, "after", "pass")]
    report = gpu.check(steps, 60, 1)
    assert report["steps"]["hangs"]["error"] == "not done after 2 s: begun"
    assert report["steps"]["after"]["ok"]
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of a step that was ended is still there")


def test_all_steps_together_have_a_limit(gpu: ModuleType) -> None:
    steps = [python(gpu, name, "import time; time.sleep(30)") for name in ("one", "two")]
    report = gpu.check(steps, 1, 1)
    assert report["seconds"] < 10
    error = "not started: the steps before it took all the time"
    assert report["steps"]["two"]["error"] == error


def test_figures_have_a_kind(gpu: ModuleType, tmp_path: Path) -> None:
    rates = json.dumps([{"model": "random", "test": "pp512", "t_s": 9.5, "std": 0.5}])
    (tmp_path / "tuned.json").write_text(json.dumps({"tiles": {"gemv/w2": {}}, "expand": []}))
    row = {
        "path": "gemv", "model": "2b-4t", "name": "qkv", "format": "W1.58", "m": 1, "us": 2.0,
        "read_share": 0.8, "over_bf16": None,
    }  # fmt: skip
    bench = {"read_gb_per_s": 4000.0, "rows": [row]}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    measured = {"kind": "measured on hardware"}
    assert gpu._rates(rates, tmp_path) == [
        {"name": "random pp512", "value": 9.5, "unit": "tokens/s", "std": 0.5, **measured}
    ]
    assert gpu._kernels("", tmp_path) == [
        {"name": "reading", "value": 4000.0, "unit": "GB/s", **measured},
        {
            "name": "gemv 2b-4t qkv W1.58 M=1", "value": 2.0, "unit": "us", "read_share": 0.8,
            **measured,
        },
    ]  # fmt: skip
    assert gpu._tuned("", tmp_path) == [
        {"name": "shapes tuned", "value": 1, "unit": "shapes", "kind": "counted"}
    ]
