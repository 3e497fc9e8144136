"""The page on quality: what is counted, what is wanted, what is kept of an interrupted run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.quantize.random_decoder import GROUP, random_decoder
from tests.host.random_model import LLAMAS, write_model

from lutra.evaluate.perplexity import Perplexity
from lutra.quantize.pack import pack_model
from lutra_flows import quality
from lutra_flows.pages import insert
from lutra_flows.quality import Point, Run, goals, mean_bits, tables
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format

POINT = Point(
    format="W4A8",
    method="rtn",
    budget=None,
    bits=4.28,
    ppl=10.1,
    stderr=0.2,
    tokens=50,
    golden=10.11,
)
POINTS = [
    POINT,
    replace(POINT, format="W4A16", ppl=10.05, golden=None),
    replace(POINT, format="W8A8", ppl=10.06, golden=None),
    replace(POINT, format="W3A8", bits=3.28, ppl=11, golden=None),
    replace(POINT, format="W3A8", bits=3.28, method="gptq", ppl=10.5, golden=None),
    replace(POINT, format="W3A8", bits=3.28, method="awq", ppl=11.5, golden=None),
    replace(POINT, budget=3.0, bits=3.28, ppl=10.7, golden=None),
]
BASE = Perplexity(ppl=10.0, stderr=0.1, tokens=50, bits_per_character=1.0)


def test_bits_count_scales_and_zero_points() -> None:
    packed = pack_model(random_decoder(), Format(w_bits=3, a_bits=8), GROUP)
    # 8 bits of a scale and 10 of a zero point for each group
    assert mean_bits(packed) == pytest.approx(3 + 18 / GROUP)


def test_goals_are_met_or_not() -> None:
    met = {goal.name: goal.met for goal in goals(POINTS, BASE.ppl)}
    assert met == {
        "W4A8, round to nearest: within 2 % of float": True,
        "W8A8, round to nearest: within 0.5 % of float": False,
        "W4A16, round to nearest: no worse than W4A8": True,
        "W3A8, GPTQ: better than round to nearest": True,
        "W3A8, AWQ: better than round to nearest": False,
        "budget of 3 bits, round to nearest: better than W3A8": True,
    }


def test_the_tables() -> None:
    lines = tables(POINTS, BASE).splitlines()
    assert lines[0] == "Float: 10.000 +/- 0.100, 50 predicted tokens."
    assert "| W3A8 | 3.28 | 11.000 (+10.00%) | 10.500 (+5.00%) |  | 11.500 (+15.00%) |  |" in lines
    assert "| W4A8 | 4.28 | 10.100 (+1.00%) |  |  |  |  |" in lines
    assert "| 3 | 3.28 | 10.700 (+7.00%) |" in lines
    assert "| W4A8 | round to nearest | 10.1000 | 10.1100 | +0.099% |" in lines
    assert "| W8A8, round to nearest: within 0.5 % of float | 10.050 | 10.060 | **no** |" in lines


def test_what_is_written_stays_between_the_markers() -> None:
    markers = (quality.BEGIN, quality.END)
    page = f"before\n{quality.BEGIN}\nold\n{quality.END}\nafter"
    new = f"before\n{quality.BEGIN}\nnew\n{quality.END}\nafter"
    assert insert("quality.md", page, markers, "new") == new
    message = f"^quality.md must have the lines '{quality.BEGIN}' and '{quality.END}': add them$"
    with pytest.raises(LutraError, match=message):
        insert("quality.md", "no markers", markers, "new")


def test_a_run_goes_on_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random model: first one method, then two; what was measured is not again."""
    pytest.importorskip("matplotlib")
    folder, text = write_model(tmp_path / "model", LLAMAS["llama-whole"]), tmp_path / "text.txt"
    text.write_text("the cat saw the hat that the rat had\n" * 20)
    rtn, gptq = Run(format="W4A8", method="rtn", checked=True), Run(format="W4A8", method="gptq")
    arguments = ["--train", str(text), "--valid", str(text), "--model", str(folder)]
    arguments += ["--group", "64", "--windows", "2", "--calib", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(quality, "RUNS", (rtn,))
    quality.main(arguments)
    record = tmp_path / "out/quality.json"
    first = json.loads(record.read_text())
    assert first["points"][0]["golden"] == pytest.approx(first["points"][0]["ppl"], rel=0.01)
    first["points"][0]["ppl"] = 12345.678
    record.write_text(json.dumps(first))
    monkeypatch.setattr(quality, "RUNS", (rtn, gptq))
    quality.main(arguments)
    points = json.loads(record.read_text())["points"]
    assert [point["method"] for point in points] == ["rtn", "gptq"]
    page = (tmp_path / "out/quality.md").read_text()
    assert "12345.678" in page
    assert f"{points[1]['ppl']:.3f}" in page
    for suffix in ("png", "svg"):
        assert (tmp_path / f"out/quality.{suffix}").stat().st_size > 1000
    with pytest.raises(LutraError, match=r"was measured with other settings: add --fresh"):
        quality.main([*arguments, "--seed", "1"])
    quality.main([*arguments, "--seed", "1", "--fresh"])
    assert "12345.678" not in (tmp_path / "out/quality.md").read_text()
