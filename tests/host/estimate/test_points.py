"""Formulas beside every pass that was simulated: errors that are printed are the errors."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from lutra.estimate import points
from lutra.estimate.points import POINTS, Point, Record, model_error, records
from lutra_golden.control.registers import COUNTERS
from lutra_golden.core.ports import Purpose
from lutra_golden.errors import LutraError
from lutra_golden.timing.boards import BOARD_PROFILES, board_timing

WORST, MEAN = 0.03, 0.01
"""Errors that the formulas are held to."""


def test_every_point_is_recorded() -> None:
    """``python -m lutra_flows.estimates`` records them."""
    assert list(records()) == [point.name for point in POINTS]
    assert len({point.name for point in POINTS}) == len(POINTS) >= 16


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_the_recorded_estimate_is_that_of_the_formulas(point: Point) -> None:
    """Otherwise: ``python -m lutra_flows.estimates --formulas``."""
    record = records()[point.name]
    assert record.estimated == point.estimated()
    assert abs(record.error) < WORST


def test_the_error_that_is_printed() -> None:
    found = model_error()
    errors = {name: abs(record.error) for name, record in records().items()}
    assert found.worst == max(errors.values()) == errors[found.point]
    assert found.mean == pytest.approx(sum(errors.values()) / len(errors))
    assert found.mean < MEAN
    assert found.n_points == len(POINTS)


def test_points_are_of_many_kinds() -> None:
    """Shapes, configurations, phases and contexts."""
    assert {each.config for each in POINTS} == {*BOARD_PROFILES, "nano"} - {"u50"}
    assert len({each.model for each in POINTS}) >= 5
    assert len({each.configuration().matmul.kind for each in POINTS}) >= 2
    for phase in (1, 8):
        assert len({each.position for each in POINTS if each.n_tokens == phase}) >= 3
    assert max(each.position for each in POINTS) > 1000


def test_bytes_are_those_that_were_counted() -> None:
    """Beats of the weights' port, whatever waits: of layers and of the head."""
    for point in POINTS:
        parts, config = point.parts(), point.configuration()
        expected = sum(part.n_bytes for part in parts if part.unit == "matmul")
        beats = records()[point.name].counters["weight_read_beats"]
        beat = config.ports[config.ports_of(Purpose.WEIGHTS)[0]]
        assert beats * beat.n_bytes == pytest.approx(expected, rel=0.002), point.name


def test_the_unit_that_is_busy_is_the_one() -> None:
    """Cycles of the matmul engine's parts, where it does not wait for memory, are those in which
    it was busy."""
    for point in POINTS:
        if point.config == "nano" and point.beat_cycles == 1:
            cycles = sum(part.cycles for part in point.parts() if part.unit == "matmul")
            busy = records()[point.name].counters["matmul_busy"]
            assert cycles == pytest.approx(busy, rel=0.02), point.name


def test_a_record() -> None:
    record = Record(simulated=200, estimated=190, counters={})
    assert record.error == pytest.approx(-0.05)
    counters = next(iter(records().values())).counters
    assert {"cycles", *counters} == set(COUNTERS)


def test_the_memory_of_a_point() -> None:
    """That of its board, or a slower one of the simulated accelerator."""
    board = next(point for point in POINTS if point.config == "kv260")
    config = board.configuration()
    assert board.memory(config) == board_timing(BOARD_PROFILES["kv260"], config)
    slow = next(point for point in POINTS if point.beat_cycles == 4)
    memory = slow.memory(slow.configuration())
    assert memory.rates == ((1, 4),)


def test_names_tell_points_apart() -> None:
    assert Point(model="tales", config="nano", position=30).name == "decode at 30, tales on nano"
    changed = {
        Point(model="tales", config="nano", position=3).name,
        Point(model="tales", config="nano", position=3, tokens=8).name,
        Point(model="tales", config="nano", position=3, tokens=8, logits=0).name,
        Point(model="tales", config="nano", position=3, sequences=8).name,
        Point(model="tales", config="nano", position=3, beat_cycles=2).name,
        Point(model="tales", config="nano", position=3, format="W4A8").name,
        Point(model="tales", config="nano", position=3, n_layers=1).name,
        Point(model="tales", config="nano", position=3, n_layers=2).name,
    }
    assert len(changed) == 8


def test_records_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "RECORDED", tmp_path / "points.json")
    with pytest.raises(LutraError, match=r"points\.json cannot be read .*: install Lutra again"):
        records.__wrapped__()
    record = Record(simulated=2, estimated=3, counters={"load_busy": 1})
    (tmp_path / "points.json").write_text(json.dumps({"a": asdict(record)}))
    assert records.__wrapped__() == {"a": record}
    assert {field.name for field in fields(record)} == {"simulated", "estimated", "counters"}
