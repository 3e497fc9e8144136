"""The comparison: goals, tables and plot from figures that are given, and the committed page."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lutra_flows.pages import insert
from lutra_flows.synth.compare import (
    BEGIN,
    END,
    PAIRS,
    PAPER_TILES,
    compare,
    goals,
    plot,
    tables,
)
from lutra_flows.synth.report import Report
from lutra_golden.errors import LutraError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "engines.md"
AREA = {("mac", "W8A8"): 40.0, ("lut", "W1A8"): 9.0, ("lut", "W2A8"): 12.0, ("mixpe", "W4A8"): 25.0}


def reports(ternary: float = 7.5) -> list[Report]:
    """Made-up figures of every pair."""
    found: list[Report] = []
    for engine, fmt in PAIRS:
        one = Report(
            engine=engine,
            format=fmt,
            part="engine",
            tile=(1, 8, 64),
            target="xcup",
            macs_per_cycle=512.0,
            ff_share=0.25,
            tool="yosys 1",
        )
        for dsp in (64, 0) if engine == "mac" else (0,):
            per_mac = ternary if engine == "ternary" else 10.0
            fpga = replace(one, lut=1000, lut_ram=10, ff=2000, carry=5, dsp=dsp, bram=1.5, uram=0)
            found.append(replace(fpga, lut_per_mac=per_mac))
        area = AREA.get((engine, fmt), 30.0)
        cells = replace(one, target="liberty", library="tiny_all", memory_bits=4096)
        cells = replace(cells, area_um2=512 * area, area_um2_per_mac=area, path_ps=1234.5)
        found.append(cells)
    return found


def test_goals_are_ratios_of_one_run():
    w1, w2, w4, ternary = goals(reports())
    assert (w1.value, w1.limit, w1.met) == (pytest.approx(40 / 9, abs=1e-4), 4.0, True)
    assert (w2.value, w2.limit, w2.met) == (pytest.approx(40 / 12, abs=1e-4), 3.5, False)
    assert (w4.value, w4.limit, w4.met) == (pytest.approx(40 / 25, abs=1e-4), 1.4, True)
    assert (ternary.value, ternary.limit, ternary.met) == (7.5, 8.0, True)
    assert not goals(reports(ternary=8.5))[-1].met


def test_tables_have_every_pair():
    found = reports()
    text = tables(found, goals(found))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    for report in found:
        start = [report.format, report.engine, "M1 N8 K64", "512"]
        assert sum(row[:4] == start for row in rows) >= 2
    assert len({len(row) for row in rows if row[0].startswith("W")}) == 2
    assert "tiny_all" in text
    assert "**no**" in text


def test_tiles_of_the_paper_stand_beside_ours_and_reach_no_goal():
    found = reports()
    engine, fmt, tile = PAPER_TILES[0]
    ours = next(r for r in found if (r.engine, r.format, r.target) == (engine, fmt, "liberty"))
    found.append(replace(ours, tile=tile, area_um2_per_mac=1.0))
    assert goals(found) == goals(reports())
    rows = [line for line in tables(found, goals(found)).splitlines() if line.startswith("| W")]
    formats = [fmt for _, fmt in PAIRS]
    cells = [line.split(" | ") for line in rows if " kbit" not in line]
    places = [formats.index(row[0].strip("| ")) for row in cells]
    # two tables, each in the order of the formats
    assert sum(a > b for a, b in pairwise(places)) == 1
    assert sum("M2 N64 K4" in row for row in rows) == 1


def test_only_what_is_between_the_markers_changes():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    markers = (BEGIN, END)
    new = insert("engines.md", page, markers, "new")
    assert new == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert insert("engines.md", new, markers, "new") == new


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}"])
def test_a_page_without_markers_is_refused_before_anything_runs(tmp_path, page):
    (tmp_path / "engines.md").write_text(page)
    with pytest.raises(LutraError, match=r"^engines\.md must have the lines"):
        compare(tmp_path, (), lambda stage, share: pytest.fail(stage))
    assert (tmp_path / "engines.md").read_text() == page


def test_plot_is_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    paths = [tmp_path / name for name in ("a.png", "a.svg", "b.png", "b.svg")]
    plot(reports(), paths[:2])
    plot(reports(), paths[2:])
    a_png, a_svg, b_png, b_svg = (path.read_bytes() for path in paths)
    assert a_png.startswith(b"\x89PNG")
    assert b"<svg" in a_svg
    assert (a_png, a_svg) == (b_png, b_svg)
    plot(reports(ternary=20.0), paths[2:])
    assert paths[3].read_bytes() != a_svg


def test_the_committed_page_has_every_pair():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    generated = text.partition(BEGIN)[2].partition(END)[0]
    for engine, fmt in PAIRS:
        assert generated.count(f"| {fmt} | {engine} | ") >= 2, (engine, fmt)
    for name in ("engines.png", "engines.svg"):
        assert (PAGE.parent / name).exists()
