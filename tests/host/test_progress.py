"""Progress: silent for short steps, lines of text where there is no terminal."""

import re
import time

import pytest

from lutra import progress
from lutra.progress import StepProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_short_steps_say_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with StepProgress() as report:
        for i in range(9):
            report("packing the weights", i / 9)
            clock[0] += 1
    assert capsys.readouterr() == ("", "")


def test_long_steps_say_how_long_they_still_take(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with StepProgress() as report:
        for i in range(5):
            report("building", i / 4)
            clock[0] += 6
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "building: 50%, about 12 s left",
        "building: 100%, about 0 s left",
    ]


def test_every_step_has_its_own_time(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with StepProgress() as report:
        report("first", 0.0)
        clock[0] += 9
        report("second", 0.0)
        clock[0] += 9
        report("second", 0.5)
        clock[0] += 2
        report("second", 0.55)
    assert capsys.readouterr().err == "second: 55%, about 9 s left\n"


def test_a_stage_in_the_middle_is_estimated_by_its_own_speed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with StepProgress() as report:
        for fraction in (0.5, 0.6, 0.7):
            report("compiling", fraction)
            clock[0] += 10
    assert capsys.readouterr().err.splitlines() == [
        "compiling: 60%, about 40 s left",
        "compiling: 70%, about 30 s left",
    ]


def test_a_stage_that_stands_still_has_no_estimate(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its time goes by, and would count the estimate up; a line a minute says that it runs."""
    with StepProgress() as report:
        for fraction in (0.0, *[0.3] * 8, 0.6):
            report("generating", fraction)
            clock[0] += 10
    assert capsys.readouterr().err.splitlines() == [
        "generating: 30%, about 23 s left",
        "generating: 30%, still running after 70 s",
        "generating: 60%, about 60 s left",
    ]


def test_a_stage_that_reports_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with StepProgress() as report:
        said = ""
        with report.waiting("placing", 0.0):
            while not said:
                clock[0] += 61  # a line that is written while others are read is lost
                time.sleep(0.01)
                said = capsys.readouterr().err
    assert re.fullmatch(r"placing: 0%, still running after \d+ s\n", said)


def test_a_terminal_gets_a_bar_that_vanishes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(KeyboardInterrupt), StepProgress() as report:
        report("packing the weights", 0.25)
        report("packing the weights", 0.5)
        report("simulating", 2.0)
        raise KeyboardInterrupt
    output = capsys.readouterr()
    assert output.out == ""
    assert "packing the weights" in output.err
    assert "simulating" in output.err
    assert "\x1b[?25h" in output.err  # the cursor is shown again
