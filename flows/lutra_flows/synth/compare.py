"""All engines and formats side by side: table, plot and goals, in one run with one library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lutra_flows.pages import Goal, insert, markdown_table
from lutra_flows.synth.designs import Material, design
from lutra_flows.synth.liberty import Library
from lutra_flows.synth.report import Progress, Report, Request, synthesize
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = [
    "BEGIN",
    "END",
    "PAIRS",
    "PAPER_TILES",
    "compare",
    "goals",
    "plot",
    "tables",
]

PAIRS = (
    ("lut", "W1A8"),
    ("mac", "W1A8"),
    ("ternary", "W1.58A8"),
    ("lut", "W1.58A8"),
    ("mac", "W1.58A8"),
    ("lut", "W2A8"),
    ("mac", "W2A8"),
    ("lut", "W4A8"),
    ("mixpe", "W4A8"),
    ("mac", "W4A8"),
    ("lut", "W4A16"),
    ("mixpe", "W4A16"),
    ("mac", "W4A16"),
    ("lut", "W8A8"),
    ("mixpe", "W8A8"),
    ("mac", "W8A8"),
)
"""Engines and formats of the comparison: every engine that takes a format without waste."""
PAPER_TILES = (("lut", "W1A8", (2, 64, 4)), ("lut", "W2A8", (2, 64, 8)))
"""LUT Tensor Core's tile M2 N64 K4, and its equal in MAC/cycle at two bits, for comparison."""
BEGIN = "<!-- begin: lutra synth --compare -->"
END = "<!-- end: lutra synth --compare -->"
_CELL_COLUMNS = ["format", "engine", "tile", "MAC/cycle", "area, um2", "um2 per MAC/cycle"]
_CELL_COLUMNS += ["denser than mac W8A8", "flip-flops", "longest path, ps", "memories, kbit"]
_FPGA_COLUMNS = ["format", "engine", "tile", "MAC/cycle", "LUT, logic", "LUT, memory"]
_FPGA_COLUMNS += ["LUT per MAC/cycle", "FF", "CARRY", "DSP", "BRAM", "URAM"]
_COLOURS = {"lut": "#4477aa", "ternary": "#228833", "mixpe": "#ccbb44", "mac": "#bb5566"}


def compare(
    out: Path, libraries: Sequence[Library], progress: Progress, *, n_parallel: int = 2
) -> tuple[list[Report], list[Goal]]:
    """Synthesise all pairs, and write the plot and the tables of ``engines.md`` in ``out``."""
    page = out / "engines.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Engines\n\n{BEGIN}\n{END}\n"
    insert(
        "engines.md", text, (BEGIN, END), ""
    )  # a page without markers should not cost half an hour first
    requests: list[Request] = []
    for engine, fmt, tile in (*((*pair, None) for pair in PAIRS), *PAPER_TILES):
        # the paper's tile is one for silicon; its shallow depth tiles are more memories than the
        # wheel of Yosys can map to an FPGA
        if tile is None:
            requests.append(Request(design=design(engine, fmt, tile), target="xcup"))
        if engine == "mac":
            luts = design(engine, fmt, tile, material=Material.LUTS)
            requests.append(Request(design=luts, target="xcup", no_dsp=True))
        cells = design(engine, fmt, tile, material=Material.CELLS)
        requests.append(Request(design=cells, target="liberty", libraries=libraries))
    reports = synthesize(requests, n_parallel=n_parallel, progress=progress)
    reached = goals(reports)
    out.mkdir(parents=True, exist_ok=True)
    plot(reports, [out / "engines.png", out / "engines.svg"])
    new = insert("engines.md", text, (BEGIN, END), tables(reports, reached))
    page.write_text(new, encoding="utf-8")
    return reports, reached


def goals(reports: Sequence[Report]) -> list[Goal]:
    """The goals of the comparison with the figures that it gave."""

    def area(engine: str, fmt: str) -> float:
        return next(
            r.area_um2_per_mac
            for r in reports
            if (r.engine, r.format) == (engine, fmt) and r.area_um2_per_mac
        )

    baseline = area("mac", "W8A8")
    ternary = next(r.lut_per_mac for r in reports if r.engine == "ternary" and r.lut_per_mac)
    return [
        Goal(
            name=f"area per MAC/cycle, mac W8A8 / {engine} {fmt}",
            value=round(baseline / area(engine, fmt), 4),
            limit=limit,
        )
        for engine, fmt, limit in (
            ("lut", "W1A8", 4.0),
            ("lut", "W2A8", 3.5),
            ("mixpe", "W4A8", 1.4),
        )
    ] + [Goal(name="LUT per MAC/cycle, ternary on xcup", value=ternary, limit=8.0, at_most=True)]


def tables(reports: Sequence[Report], reached: Sequence[Goal]) -> str:
    """The generated part of ``engines.md``."""
    formats = [fmt for _, fmt in PAIRS]
    reports = sorted(reports, key=lambda r: formats.index(r.format))
    cells = [r for r in reports if r.target == "liberty"]
    baseline = next(r.area_um2_per_mac for r in cells if (r.engine, r.format) == ("mac", "W8A8"))
    names = (cells[0].library or "").replace(" ", ", ")
    of_goals = [
        (
            g.name,
            f"{'at most' if g.at_most else 'at least'} {g.limit:g}",
            f"{g.value:.2f}",
            "yes" if g.met else "**no**",
        )
        for g in reached
    ]
    lines = [
        f"Synthesised with {reports[0].tool}; library: {names}.",
        "",
        markdown_table(("goal", "limit", "synthesised", "met"), of_goals),
        "",
        "Standard cells, without memories of more than 32 words and without wires:",
        "",
    ]
    of_cells = list[list[str]]()
    for r in cells:
        assert r.area_um2_per_mac and baseline and r.memory_bits is not None
        row = [r.format, r.engine, _tile(r), f"{r.macs_per_cycle:g}", f"{r.area_um2:,.0f}"]
        row += [f"{r.area_um2_per_mac:.2f}", f"{baseline / r.area_um2_per_mac:.2f} x"]
        row += [f"{r.ff_share:.0%}", "-" if r.path_ps is None else f"{r.path_ps:,.0f}"]
        of_cells.append([*row, f"{r.memory_bits / 1024:.0f}"])
    lines += [markdown_table(_CELL_COLUMNS, of_cells), ""]
    lines += ["xcup (UltraScale+); the second row of `mac` multiplies in LUTs:", ""]
    of_fpga = list[list[str]]()
    for r in reports:
        if r.target == "xcup":
            row = [r.format, r.engine, _tile(r), f"{r.macs_per_cycle:g}", f"{r.lut:,}"]
            row += [f"{r.lut_ram:,}", f"{r.lut_per_mac:.2f}", f"{r.ff:,}", f"{r.carry:,}"]
            of_fpga.append([*row, f"{r.dsp}", f"{r.bram:g}", f"{r.uram}"])
    return "\n".join([*lines, markdown_table(_FPGA_COLUMNS, of_fpga)])


def _tile(report: Report) -> str:
    return "M{} N{} K{}".format(*report.tile)


def plot(reports: Sequence[Report], paths: Sequence[Path]) -> None:
    """Bars of LUTs and of area per MAC/cycle, by format and engine, without the paper's tiles."""
    reports = [r for r in reports if (r.engine, r.format, r.tile) not in PAPER_TILES]
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise LutraError(f"matplotlib is not installed: run `{install_command('synth')}`") from None
    mpl.rcParams["svg.hashsalt"] = "lutra"  # the same figures give the same file
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    formats = list(dict.fromkeys(r.format for r in reports))
    for axes, title, key, chosen in (
        (panels[0], "LUT per MAC/cycle, xcup (no DSP)", "lut_per_mac", _without_dsp(reports)),
        (
            panels[1],
            "cell area, um$^2$ per MAC/cycle",
            "area_um2_per_mac",
            [r for r in reports if r.target == "liberty"],
        ),
    ):
        labelled: set[str] = set()
        for place, fmt in enumerate(formats):
            group = [r for r in chosen if r.format == fmt]
            for index, report in enumerate(group):
                x = place + 0.27 * (index - (len(group) - 1) / 2)
                label = None if report.engine in labelled else report.engine
                value = getattr(report, key)
                bar = axes.bar(x, value, 0.25, color=_COLOURS[report.engine], label=label)
                axes.bar_label(bar, fmt="%.1f", fontsize=7)
                labelled.add(report.engine)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(formats)), formats)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def _without_dsp(reports: Sequence[Report]) -> list[Report]:
    """One xcup report per engine and format; without DSP blocks if measured, to compare fairly."""
    seen = {(r.engine, r.format): r for r in reports if r.target == "xcup"}
    for report in reports:
        if report.target == "xcup" and not report.dsp:
            seen[report.engine, report.format] = report
    return list(seen.values())
