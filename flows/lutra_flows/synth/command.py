"""``lutra synth``: arguments and printing; see ``flows/README.md``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lutra.commands.options import add_json, whole
from lutra.progress import StepProgress
from lutra_flows.synth.designs import (
    Groups,
    Material,
    Part,
    design,
    narrowest_format,
    whole_design,
)
from lutra_flows.synth.parts import PARTS, Fpga
from lutra_flows.synth.report import TARGETS, Report, Request, libraries, synthesize
from lutra_flows.synth.yosys import MACRO_WORDS
from lutra_golden.arith.quantize import ACTIVATION_GROUPS, ActivationGroups
from lutra_golden.core.boards import BOARDS
from lutra_golden.core.config import ENGINES
from lutra_golden.core.fabric import Fabric
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import FORMATS

__all__ = ["add_command"]

_BOARDS = tuple(name for name, board in BOARDS.items() if board.fpga is not None)
_PIECES = tuple(part.value for part in Part if part != Part.WHOLE)


def add_command(parser: argparse.ArgumentParser) -> None:
    """Report the FPGA resources or cell area of a matmul engine, as synthesised by Yosys."""
    parser.add_argument("--engine", help=f"{', '.join(ENGINES)} (default lut)")
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
        "--a-group",
        type=int,
        choices=ACTIVATION_GROUPS,
        help="build groups of activations, of this size (default: one scale per token)",
    )
    parser.add_argument(
        "--offset-width",
        type=whole(1),
        metavar="BITS",
        help="build offsets of groups of weights, of so many bits (default: zero points)",
    )
    parser.add_argument(
        "--depth-tile",
        type=whole(1),
        metavar="N",
        help="least group of weights; divides --a-group (default 64, or the depth of a step)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        help="technology to map to (default xcup, or that of the FPGA in --part)",
    )
    parser.add_argument(
        "--liberty",
        type=Path,
        metavar="FILE",
        help="cell library for --target liberty: .lib or .lib.gz, a folder, or a pattern",
    )
    parser.add_argument(
        "--part",
        choices=[*_PIECES, *PARTS],
        help="engine, or only the datapath of one token (default engine); with --whole, the FPGA "
        f"that it must fit: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--whole", action="store_true", help="synthesise the whole accelerator with this engine"
    )
    parser.add_argument(
        "--board",
        choices=_BOARDS,
        help="count the configuration of a board, and compare it with the board's FPGA",
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
        metavar="FOLDER",
        help="folder that --compare writes engines.md to (default docs, in a clone of Lutra)",
    )
    parser.set_defaults(command=_synth)


def _tile(text: str) -> tuple[int, int, int]:
    try:
        step_tokens, step_rows, step_depth = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be M,N,K, three integers, not {text!r}") from None
    return step_tokens, step_rows, step_depth


def _synth(args: argparse.Namespace) -> int:
    if args.board is not None:
        return _board(args)
    fpga = PARTS.get(args.part)
    if fpga is not None and not args.whole:
        raise LutraError(f"--part {args.part} is an FPGA: add --whole to ask if it fits")
    if args.whole and args.part in _PIECES:
        raise LutraError(f"--whole and --part {args.part} exclude each other")
    if fpga is not None and args.target not in (None, fpga.target):
        raise LutraError(f"--part {args.part} is of --target {fpga.target}, not {args.target}")
    target = args.target or (fpga.target if fpga else "xcup")
    if args.liberty is not None and target != "liberty" and not args.compare:
        raise LutraError(f"--liberty is for --target liberty, not {target}")
    if args.compare:
        return _compare(args)
    wants_cells = target == "liberty"
    engine = args.engine or "lut"
    try:
        chosen = design(
            engine,
            args.format or narrowest_format(engine),
            args.tile,
            max_planes=args.max_planes,
            part=Part.WHOLE if args.whole else Part(args.part or Part.ENGINE),
            material=Material.CELLS
            if wants_cells
            else Material.LUTS
            if args.no_dsp
            else Material.DSP,
            groups=Groups(
                activations=None if args.a_group is None else ActivationGroups(size=args.a_group),
                offset_width=args.offset_width or 0,
                depth_tile=args.depth_tile,
            ),
            fabric=Fabric.XCUP if target == "xcup" and not args.no_dsp else Fabric.GENERIC,
        )
    except LutraError as error:
        raise _of_tile(error) from None
    request = Request(
        design=chosen,
        target=target,
        no_dsp=args.no_dsp,
        libraries=libraries(args.liberty) if wants_cells else (),
    )
    return _report(args, request, fpga)


def _board(args: argparse.Namespace) -> int:
    """Count the configuration of ``--board``, which chooses everything else."""
    for option in (
        "engine",
        "format",
        "tile",
        "max_planes",
        "a_group",
        "offset_width",
        "depth_tile",
        "target",
        "liberty",
        "part",
        "out",
    ):
        if getattr(args, option) is not None:
            raise LutraError(f"--board chooses all of it: leave --{option.replace('_', '-')} out")
    if args.whole or args.compare or args.no_dsp:
        raise LutraError("--board chooses all of it: leave --whole, --compare and --no-dsp out")
    board = BOARDS[args.board]
    assert board.fpga is not None
    fpga = PARTS[board.fpga]
    return _report(args, Request(design=whole_design(board.config), target=fpga.target), fpga)


def _report(args: argparse.Namespace, request: Request, fpga: Fpga | None) -> int:
    with StepProgress() as progress:
        (report,) = synthesize([request], n_parallel=2, progress=progress)
    if args.json:
        figures = report.json()
        if fpga is not None:
            figures["fits"] = {
                "part": vars(fpga),
                "fits": all(used <= there for _, used, there in _usage(report, fpga)),
            }
        print(json.dumps(figures))
    else:
        _print(report)
        if fpga is not None:
            _print_fit(report, fpga)
    return 0


def _of_tile(error: LutraError) -> LutraError:
    """The error with the letters of ``--tile`` in place of the parameters' names."""
    text = str(error)
    for name, letter in (("step_tokens", "M"), ("step_rows", "N"), ("step_depth", "K")):
        if text.startswith(f"{name} "):
            return LutraError(f"--tile: {letter}{text.removeprefix(name)}")
    return error


def _usage(report: Report, fpga: Fpga) -> list[tuple[str, float, int]]:
    """Names of resources, and how many the design takes and the part has."""
    return [
        ("LUT", (report.lut or 0) + (report.lut_ram or 0), fpga.lut),
        ("flip-flops", report.ff or 0, fpga.ff),
        ("DSP", report.dsp or 0, fpga.dsp),
        ("block RAM", report.bram or 0, fpga.bram),
        ("URAM", report.uram or 0, fpga.uram),
    ]


def _print_fit(report: Report, fpga: Fpga) -> None:
    usage = _usage(report, fpga)
    table = Table(fpga.name, "takes", "has", "share", box=None, pad_edge=False)
    for name, used, there in usage:
        share = f"{used / there:.0%}" if there else "-"
        table.add_row(name, f"{used:,}", f"{there:,}", share)
    Console(highlight=False).print(table)
    short = [name for name, used, there in usage if used > there]
    answer = f"does not fit: too little {', '.join(short)}" if short else "fits, before placement"
    print(f"{fpga.name} {answer} (totals: {fpga.source})")


def _compare(args: argparse.Namespace) -> int:
    from lutra_flows.synth.compare import compare

    found = libraries(args.liberty, "--compare")
    out: Path = args.out or Path("docs")
    if args.out is None and not (out / "engines.md").exists():
        raise LutraError(f"{out / 'engines.md'} does not exist here: give --out FOLDER")
    with StepProgress() as progress:
        reports, goals = compare(out, found, progress)
    if args.json:
        figures = {"reports": [r.json() for r in reports], "goals": [vars(g) for g in goals]}
        print(json.dumps(figures))
    else:
        table = Table("goal", "at least or at most", "synthesised", "met", box=None, pad_edge=False)
        for goal in goals:
            met = "yes" if goal.met else "NO"
            table.add_row(goal.name, f"{goal.limit:g}", f"{goal.value:.2f}", met)
        Console(highlight=False).print(table)
        print(f"wrote {out / 'engines.md'}")
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

    whole = "flip-flops and LUTs" if report.lut else "the area"
    share = None if report.ff_share is None else f"{report.ff_share:.0%}"
    row("engine", f"{report.engine} {report.format}")
    row("part", report.part)
    row("tile", ",".join(map(str, report.tile)))
    row("digits of a weight", report.max_planes)
    row("target", report.target)
    row("library", _short(report.library))
    row("MAC/cycle", report.macs_per_cycle, kind="modelled, from the tile")
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
    row(
        "longest path",
        report.path_ps,
        "ps",
        "synthesised, by ABC's timer, without wires and set-up",
    )
    row("flip-flop share", share, kind=f"synthesised, of {whole}")
    row(
        "memories",
        report.memory_bits,
        "bits",
        f"synthesised, left out: more than {MACRO_WORDS} words; {report.memory_ports} ports",
    )
    row("tool", report.tool)
    Console(highlight=False).print(table)
