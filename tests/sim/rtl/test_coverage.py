"""Coverage is added up over runs, by component, and what is missing is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lutra_sim.rtl.coverage import main, merge, read_points
from lutra_sim.rtl.device import Simulator

# the same component in its own bench and in the accelerator
BODY = """module {header}(clk, a);
  reg {dump}  = 0;
  wire {dump}unused ;
  {child}  child (.a(a));
  always @* begin
    if ({dump}) begin end
    if (a) begin
      b = 1;
      c = 2;
    end
  end
endmodule
"""
BENCH = "\n" + BODY.format(
    header="norm", dump="\\$auto$verilog_backend.cc:2355:dump_module$1 ", child="\\norm.root"
)
TOP = "// made by somebody\n\n\n" + BODY.format(
    header="\\accelerator.vector.norm ",
    dump="\\$auto$verilog_backend.cc:2355:dump_module$27 ",
    child="\\accelerator.vector.norm.root",
)


def point(
    file: Path, module: str, line: int, count: int, lines: str, kind: str = "line", what: str = ""
) -> str:
    fields = {
        "f": str(file),
        "l": str(line),
        "n": "3",
        "t": kind,
        "page": f"v_{kind}/{module}",
        "o": what,
        "S": lines,
        "h": "TOP",
    }
    text = "".join(f"\x01{key}\x02{value}" for key, value in fields.items() if value)
    return f"C '{text}' {count}\n"


def points(file: Path, module: str, first: int, block: int, taken: int, passed: int) -> str:
    """Points of ``BODY`` whose header is line ``first``."""

    def at(line: int, count: int, lines: list[int], kind: str = "line", what: str = "") -> str:
        shown = ",".join(str(first + number) for number in lines)
        return point(file, module, first + line, count, shown, kind, what)

    return "".join(
        [
            "# SystemC::Coverage-3\n",
            at(1, 1, [1]),
            at(4, block, [4]),
            at(5, 0, [5], "branch", "if"),
            at(5, block, [], "branch", "else"),
            at(6, taken, [6, 7, 8], "branch", "if"),
            at(6, passed, [], "branch", "else"),
            "C '\x01f\x02x.v\x01l\x021\x01page\x02v_toggle/norm' 3\n",
        ]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs of the bench, of the accelerator, and of something whose Verilog is gone."""
    bench, top = tmp_path / "norm.v", tmp_path / "accelerator.v"
    bench.write_text(BENCH)
    top.write_text(TOP)
    runs = tmp_path / "coverage"
    (runs / "more").mkdir(parents=True)
    (runs / "a.dat").write_text(points(top, "accelerator.vector.norm", 4, 9, 0, 9))
    (runs / "b.dat").write_text(points(bench, "norm", 2, 5, 0, 5))
    (runs / "more" / "c.dat").write_text(point(tmp_path / "gone.v", "other", 7, 1, "7-9,12"))
    return runs


def test_read_points(folder: Path) -> None:
    first, *_, last = read_points(folder / "b.dat")
    assert (first.kind, first.line, first.lines, first.count) == ("line", 3, (3,), 1)
    assert (last.kind, last.line, last.lines, last.comment) == ("branch", 8, (), "else")


def test_merge(folder: Path) -> None:
    norm, other = merge(sorted(folder.glob("**/*.dat")))
    assert (norm.name, Path(norm.file).name) == ("accelerator.vector.norm", "accelerator.v")
    # neither the declaration counts nor what Yosys added
    assert norm.lines == {8: True, 10: False, 11: False, 12: False}
    assert norm.missing == [10, 11, 12]
    assert (norm.share, sorted(norm.branches.values())) == (0.25, [False, True])
    assert other.lines == {7: True, 8: True, 9: True, 12: True}

    # what one run leaves out another may do
    bench = folder.parent / "norm.v"
    (folder / "d.dat").write_text(points(bench, "norm", 2, 1, 1, 0))
    norm, other = merge(sorted(folder.glob("**/*.dat")))
    assert (norm.name, norm.missing, norm.share) == ("accelerator.vector.norm", [], 1.0)


def test_modules_that_differ_stay_apart(folder: Path) -> None:
    bench = folder.parent / "norm.v"
    bench.write_text(BENCH.replace("c = 2", "c = 3"))
    names = [module.name for module in merge(sorted(folder.glob("**/*.dat")))]
    assert names == ["accelerator.vector.norm", "norm", "other"]


def test_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["module", "lines", "run", "branches", "gone"] in lines
    assert ["accelerator.vector.norm", "4", "25.0", "%", "2", "50.0", "%"] in lines
    assert ["other", "4", "100.0", "%", "0", "100.0", "%"] in lines
    assert ["total", "8", "62.5", "%", "2", "50.0", "%"] in lines
    assert "1 of 2 modules below 90.0 % of their lines\n" in text
    assert f"  25.0 %  accelerator.vector.norm  {folder.parent}/accelerator.v:10-12\n" in text


def test_nothing_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTRA_COVERAGE_DIR", str(tmp_path))
    assert main([]) == 2
    assert capsys.readouterr().err == (
        f"error: no coverage in '{tmp_path}': run `make sim`, which collects it\n"
    )
    monkeypatch.delenv("LUTRA_COVERAGE_DIR")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert f"'{tmp_path}/build/coverage'" in capsys.readouterr().err


@pytest.mark.cocotb
def test_coverage_of_a_device(
    open_device: Callable[..., Simulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTRA_COVERAGE_DIR", str(tmp_path / "coverage"))
    monkeypatch.setenv("LUTRA_COVERAGE", "1")
    device = open_device()
    device.close()
    (path,) = (tmp_path / "coverage").iterdir()
    modules = {module.name: module for module in merge([path])}
    assert modules.keys() == {
        "accelerator",
        "accelerator.registers",
        "accelerator.registers.doorbells",
        "accelerator.registers.lite",
    }
    assert 0.5 < modules["accelerator.registers.lite"].share <= 1.0
    assert modules["accelerator"].share < 0.9
