"""Estimates beside every figure of the documentation that was simulated."""

import re

import pytest
from tests.pyproject import ROOT

from lutra.estimate.points import MODEL_ERROR, POINTS, Point


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return {point.name: point.error() for point in POINTS}


def test_the_error_that_is_printed_is_the_largest(errors: dict[str, float]) -> None:
    worst = max(errors, key=lambda name: abs(errors[name]))
    assert MODEL_ERROR.point == worst
    assert pytest.approx(abs(errors[worst]), abs=5e-5) == MODEL_ERROR.worst
    assert MODEL_ERROR.n_points == len(errors) == len(POINTS)
    assert MODEL_ERROR.source == next(each.source for each in POINTS if each.name == worst)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_points_are_figures_of_the_documentation(point: Point) -> None:
    """A pass of several tokens or passes is written down as one of them, or as their sum."""
    page, _, heading = point.source.partition(", ")
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}.*?(?=^## |\Z)", text, re.S | re.M | re.I)
    assert section is not None
    tokens = point.passes[0][1] if point.heads[0] == point.passes[0][1] else 1
    figures = point.cycles / tokens, point.cycles * len(point.passes)
    assert any(f"{round(figure):,}" in section[0] for figure in figures)


def test_memory_that_keeps_up_is_within_six_percent(errors: dict[str, float]) -> None:
    """What is left out, latencies above all, is less than that; loads that run ahead are more."""
    even = [name for name in errors if "nano" in name and "beat in 2" not in name]
    even = [name for name in even if "beat in 4" not in name]
    assert len(even) == 6
    assert all(-0.06 < errors[name] < 0 for name in even)


def test_a_prompt_has_one_head(errors: dict[str, float]) -> None:
    """Its first pass has none."""
    assert -0.02 < errors["prefill of 16, tales on nano"] < 0
