"""Figures out of Vivado's reports, each with its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lutra_flows.boards.scripts import REPORTS
from lutra_golden.errors import LutraError

__all__ = ["Figure", "read_results", "timing_met"]

PLACED = "placed and routed"
MODELLED = "modelled"
_RESOURCES = {
    "lut": r"(?:CLB|Slice) LUTs\*?",
    "ff": r"(?:CLB|Slice) Registers",
    "dsp": r"DSPs",
    "bram": r"Block RAM Tile",
    "uram": r"URAM",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value, its unit, and what it was had by."""

    value: float
    unit: str
    kind: str


def read_results(reports: Path) -> Mapping[str, Figure]:
    """Figures of the reports in a folder; LutraError names what a report lacks."""
    texts = {}
    for what, name in REPORTS.items():
        try:
            texts[what] = (reports / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            raise LutraError(
                f"there is no report {reports / name}: look into vivado.log why the build stopped"
            ) from None
    return {
        **_timing(texts["timing"]),
        **_utilization(texts["utilization"]),
        **_power(texts["power"]),
    }


def timing_met(figures: Mapping[str, Figure]) -> bool:
    """True if no path is slower than the clock, and none is too fast."""
    return figures["setup_slack"].value >= 0 and figures["hold_slack"].value >= 0


def _timing(text: str) -> Mapping[str, Figure]:
    """The first line of numbers of the design's summary."""
    header = re.search(r"^\s*WNS\(ns\)\s+TNS\(ns\)[^\n]*WHS\(ns\)[^\n]*\n[-\s]*\n(.*)$", text, re.M)
    numbers = re.findall(r"-?\d+\.?\d*", header[1]) if header else []
    if len(numbers) < 5:
        raise LutraError("the timing report has no summary: was the design routed?")
    # WNS, TNS, failing and all endpoints, WHS
    return {
        "setup_slack": Figure(value=float(numbers[0]), unit="ns", kind=PLACED),
        "hold_slack": Figure(value=float(numbers[4]), unit="ns", kind=PLACED),
    }


def _utilization(text: str) -> Mapping[str, Figure]:
    found: dict[str, Figure] = {}
    for name, pattern in _RESOURCES.items():
        row = re.search(rf"^\|\s*{pattern}\s*\|\s*([\d.]+)\s*\|", text, re.M)
        if row is not None:
            found[name] = Figure(value=float(row[1]), unit="", kind=PLACED)
    missing = {"lut", "ff", "dsp", "bram"} - found.keys()
    if missing:
        raise LutraError(f"the utilisation report has no {', '.join(sorted(missing))}")
    return found


def _power(text: str) -> Mapping[str, Figure]:
    row = re.search(r"^\|\s*Total On-Chip Power \(W\)\s*\|\s*([\d.]+)", text, re.M)
    if row is None:
        raise LutraError("the power report has no total")
    # without activity of real tokens, a model of a model
    return {"power": Figure(value=float(row[1]), unit="W", kind=MODELLED)}
