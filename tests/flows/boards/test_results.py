"""Figures out of Vivado's reports; the reports are written here, in the shape that UG906 shows."""

from pathlib import Path

import pytest

from lutra_flows.boards.results import read_results, timing_met
from lutra_flows.boards.scripts import REPORTS
from lutra_golden.errors import LutraError

TIMING = """\
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
      {wns}        0.000                      0               104711        {whs}        0.000
"""
UTILIZATION = """\
+----------------------------+-------+-------+------------+-----------+-------+
|          Site Type         |  Used | Fixed | Prohibited | Available | Util% |
+----------------------------+-------+-------+------------+-----------+-------+
| {kind} LUTs                   | 51234 |     0 |          0 |    117120 | 43.75 |
| {kind} Registers              | 40321 |     0 |          0 |    234240 | 17.21 |
| Block RAM Tile    | 94.5 |     0 |          0 |       144 | 65.63 |
| URAM              |    0 |     0 |          0 |        64 |  0.00 |
| DSPs              |  320 |     0 |          0 |      1248 | 25.64 |
"""
POWER = """\
+--------------------------+--------------+
| Total On-Chip Power (W)  | 4.217        |
| Design Power Budget (W)  | Unspecified* |
"""


def _write(folder: Path, wns: str = "0.213", whs: str = "0.010", kind: str = "CLB") -> Path:
    texts = {
        "timing": TIMING.format(wns=wns, whs=whs),
        "utilization": UTILIZATION.format(kind=kind),
        "power": POWER,
    }
    for what, text in texts.items():
        (folder / REPORTS[what]).write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["CLB", "Slice"])
def test_figures_and_their_kinds(kind: str, tmp_path: Path) -> None:
    figures = read_results(_write(tmp_path, kind=kind))
    assert {name: figure.value for name, figure in figures.items()} == {
        "setup_slack": 0.213, "hold_slack": 0.010, "lut": 51234, "ff": 40321, "dsp": 320,
        "bram": 94.5, "uram": 0, "power": 4.217,
    }  # fmt: skip
    assert figures["power"].kind == "modelled"
    assert {f.kind for name, f in figures.items() if name != "power"} == {"placed and routed"}
    assert timing_met(figures)


@pytest.mark.parametrize(("wns", "whs"), [("-0.001", "0.010"), ("0.213", "-0.002")])
def test_a_missed_clock_is_seen(wns: str, whs: str, tmp_path: Path) -> None:
    assert not timing_met(read_results(_write(tmp_path, wns, whs)))


@pytest.mark.parametrize("what", REPORTS)
def test_a_report_that_is_not_there_or_empty(what: str, tmp_path: Path) -> None:
    path = _write(tmp_path) / REPORTS[what]
    path.write_text("")
    with pytest.raises(LutraError, match=r"report has no "):
        read_results(tmp_path)
    path.unlink()
    with pytest.raises(LutraError, match=r"there is no report .*: look into vivado.log"):
        read_results(tmp_path)
