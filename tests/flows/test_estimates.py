"""Points of the cycle formulas: one is simulated again, and gives what was recorded."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lutra.devices.golden import GoldenDevice
from lutra.estimate import points
from lutra.estimate.points import POINTS, RECORDED, Record, records
from lutra_flows import estimates
from lutra_flows.estimates import main, packed, run, simulate
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

POINT = POINTS[1]
QUICK = [POINT, next(each for each in POINTS if "qwen2.5" in each.model)]
"""A shipped model, and a random one that takes no seconds to make."""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another file of records, with two of them."""
    path = tmp_path / "points.json"
    two = {name: asdict(record) for name, record in list(records().items())[:2]}
    path.write_text(json.dumps(two))
    monkeypatch.setattr(estimates, "RECORDED", path)
    monkeypatch.setattr(estimates, "records", lambda: {k: Record(**v) for k, v in two.items()})
    return path


def test_the_file_is_as_it_is_written() -> None:
    ordered = {point.name: asdict(records()[point.name]) for point in POINTS}
    assert RECORDED.read_text(encoding="utf-8") == json.dumps(ordered, indent=1) + "\n"
    assert points.RECORDED == RECORDED


@pytest.mark.rtl
@pytest.mark.usefixtures("no_coverage")
def test_a_point_takes_what_was_recorded() -> None:
    pytest.importorskip("amaranth")
    pytest.importorskip("cocotb_tools")
    assert simulate(POINT, packed(POINT)) == records()[POINT.name]


@pytest.mark.parametrize("point", QUICK, ids=lambda point: point.name)
def test_models_of_points_have_the_sizes_of_their_outlines(point: points.Point) -> None:
    model, outline = packed(point), point.outline()
    assert (model.name, model.format, model.vocab_size, len(model.layers)) == (
        outline.name, outline.format, outline.vocab_size, len(outline.layers),
    )  # fmt: skip


def test_a_pass_behind_random_keys_and_values() -> None:
    device = GoldenDevice()
    point = replace(POINT, position=30, sequences=2)
    device.load(packed(point))
    one, two = run(device, point)
    assert one.logits.shape == two.logits.shape == (1, device.model.vocab_size)
    assert not np.array_equal(one.logits, two.logits)
    [several] = run(device, replace(POINT, tokens=5, logits=3))
    assert len(several.logits) == 3
    [again] = run(device, replace(POINT, tokens=5, logits=3))
    np.testing.assert_array_equal(several.logits, again.logits)


def test_formulas_alone(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was simulated stays."""
    before = json.loads(recorded.read_text())
    name = POINTS[0].name
    before[name]["estimated"] = 1
    recorded.write_text(json.dumps(before))
    assert main(["--formulas"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith(f"| {name} | ")
    after = json.loads(recorded.read_text())
    assert after[name]["estimated"] == POINTS[0].estimated()
    assert after[name]["simulated"] == before[name]["simulated"]


def test_some_points(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others stay as they are; a model is made once for all of its points."""
    made: list[str] = []
    monkeypatch.setattr(estimates, "packed", lambda point: made.append(point.model))
    record = Record(simulated=100, estimated=99, counters={"load_busy": 1})
    monkeypatch.setattr(estimates, "simulate", lambda point, model: record)
    assert main(["tales on kv260"]) == 0
    assert made == ["tales"]
    assert capsys.readouterr().out.count("| 100 | 99 | -1.00% |") == 3
    found = json.loads(recorded.read_text())
    names = [point.name for point in POINTS[:2]]
    names += [point.name for point in POINTS if "tales on kv260" in point.name]
    assert list(found) == names


def test_other_logits_are_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(GoldenDevice):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

        def load(self, model: PackedModel) -> None:
            super().load(replace(model, head=model.head[::-1].copy()))

    monkeypatch.setattr(estimates, "AcceleratorDevice", Other)
    with pytest.raises(LutraError, match=r"decode at 30, tales on nano: logits differ from golden"):
        simulate(POINT, packed(POINT))
