"""``lutra synth``: arguments and printing; see ``flows/README.md``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lutra.commands.options import add_json, whole
from lutra.progress import StepProgress
from lutra_flows.synth.designs import Material, Part, design
from lutra_flows.synth.report import TARGETS, Report, Request, libraries, synthesize
from lutra_flows.synth.yosys import MACRO_WORDS
from lutra_golden.core.config import ENGINES
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import FORMATS

__all__ = ["add_command"]


def add_command(parser: argparse.ArgumentParser) -> None:
    """Report the FPGA resources or cell area of a matmul engine, as synthesised by Yosys."""
    parser.add_argument("--engine", default="lut", help=f"{', '.join(ENGINES)} (default lut)")
    parser.add_argument(
        "--format",
        help=f"{', '.join(FORMATS)} (default W2A8, W1.58A8 for ternary, W4A8 for mixpe)",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="M,N,K",
        help="tokens, rows and depth of a step (default: 512 MAC/cycle, 576 for ternary)",
    )
    parser.add_argument(
        "--max-planes",
        type=whole(1),
        metavar="N",
        help="most digits of a weight that the engine is built for (default: the format's; nano "
        "has 5 of ternary)",
    )
    parser.add_argument(
        "--target", default="xcup", choices=TARGETS, help="technology to map to (default xcup)"
    )
    parser.add_argument(
        "--liberty",
        type=Path,
        metavar="FILE",
        help="cell library for --target liberty: .lib or .lib.gz, a folder, or a pattern",
    )
    parser.add_argument(
        "--part",
        choices=[part.value for part in Part if part != Part.WHOLE],
        help="engine, or only the datapath of one token (default engine)",
    )
    parser.add_argument(
        "--whole", action="store_true", help="synthesise the whole accelerator with this engine"
    )
    parser.add_argument(
        "--no-dsp", action="store_true", help="build multipliers from LUTs instead of DSP blocks"
    )
    add_json(parser)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="synthesise all engines and formats for xcup and --liberty, and write engines.md",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs"),
        help="folder of engines.md for --compare (default docs)",
    )
    parser.set_defaults(command=_synth)


def _tile(text: str) -> tuple[int, int, int]:
    try:
        step_tokens, step_rows, step_depth = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be M,N,K, three integers, not {text!r}") from None
    return step_tokens, step_rows, step_depth


def _synth(args: argparse.Namespace) -> int:
    if args.liberty is not None and args.target != "liberty" and not args.compare:
        raise LutraError(f"--liberty is for --target liberty, not {args.target}")
    if args.whole and args.part is not None:
        raise LutraError(f"--whole and --part {args.part} exclude each other")
    if args.compare:
        return _compare(args)
    wants_cells = args.target == "liberty"
    chosen = design(
        args.engine,
        args.format or {"ternary": "W1.58A8", "mixpe": "W4A8"}.get(args.engine, "W2A8"),
        args.tile,
        max_planes=args.max_planes,
        part=Part.WHOLE if args.whole else Part(args.part or Part.ENGINE),
        material=Material.CELLS if wants_cells else Material.LUTS if args.no_dsp else Material.DSP,
    )
    request = Request(
        design=chosen,
        target=args.target,
        no_dsp=args.no_dsp,
        libraries=libraries(args.liberty) if wants_cells else (),
    )
    with StepProgress() as progress:
        (report,) = synthesize([request], n_parallel=2, progress=progress)
    if args.json:
        print(json.dumps(report.json()))
    else:
        _print(report)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from lutra_flows.synth.compare import compare

    with StepProgress() as progress:
        reports, goals = compare(args.out, libraries(args.liberty, "--compare"), progress)
    if args.json:
        figures = {"reports": [r.json() for r in reports], "goals": [vars(g) for g in goals]}
        print(json.dumps(figures))
    else:
        table = Table("goal", "at least or at most", "synthesised", "met", box=None, pad_edge=False)
        for goal in goals:
            met = "yes" if goal.met else "NO"
            table.add_row(goal.name, f"{goal.limit:g}", f"{goal.value:.2f}", met)
        Console(highlight=False).print(table)
        print(f"wrote {args.out / 'engines.md'}")
    return 0


def _short(names: str | None) -> str | None:
    """Abbreviated names of libraries."""
    found = (names or "").split()
    return f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else names


def _print(report: Report) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    def row(name: str, value: object, unit: str = "", kind: str = "") -> None:
        if value is not None:
            text = f"{value:,.4g}" if isinstance(value, float) else f"{value}"
            text = f"{value:,}" if isinstance(value, int) else text
            table.add_row(name, f"{text}{unit and ' '}{unit}", kind)

    share = None if report.ff_share is None else f"{report.ff_share:.0%}"
    row("engine", f"{report.engine} {report.format}")
    row("part", report.part)
    row("tile", ",".join(map(str, report.tile)))
    row("digits of a weight", report.max_planes)
    row("target", report.target)
    row("library", _short(report.library))
    row("MAC/cycle", report.macs_per_cycle)
    row("LUT, logic", report.lut, kind="synthesised")
    row("LUT, memory", report.lut_ram, kind="synthesised")
    row("LUT per MAC/cycle", report.lut_per_mac, kind="synthesised")
    row("flip-flops", report.ff, kind="synthesised")
    row("carry cells", report.carry, kind="synthesised")
    row("DSP", report.dsp, kind="synthesised")
    row("block RAM", report.bram, kind="synthesised")
    row("URAM", report.uram, kind="synthesised")
    row("cell area", report.area_um2, "um2", "synthesised, without memories and wires")
    row("um2 per MAC/cycle", report.area_um2_per_mac, kind="synthesised")
    row("longest path", report.path_ps, "ps", "ABC's timer, without wires and set-up")
    row("flip-flop share", share, kind="of flip-flops and LUTs" if report.lut else "of the area")
    row(
        "memories",
        report.memory_bits,
        "bits",
        f"left out: more than {MACRO_WORDS} words; {report.memory_ports} ports",
    )
    row("tool", report.tool)
    Console(highlight=False).print(table)
