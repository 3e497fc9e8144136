"""``lutra deploy``: Lutra, a bitstream and a model on a board, by SSH; see ``docs/boards.md``."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lutra.commands.options import add_json
from lutra.deploy.deployment import Deployment, Done
from lutra.deploy.link import check_target
from lutra.deploy.overlay import Overlay, check_model, find_overlay
from lutra.models import find_model, shipped_models
from lutra.open_model import open_packed_model
from lutra.packed.file import is_packed
from lutra.progress import StepProgress
from lutra_golden.core.boards import Flow
from lutra_golden.errors import LutraError
from lutra_golden.timing.boards import BOARD_PROFILES

__all__ = ["add_deploy"]


def add_deploy(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra deploy``."""
    parser.add_argument("target", metavar="USER@HOST", help="board, as ssh takes it")
    parser.add_argument(
        "--build",
        type=Path,
        metavar="FOLDER",
        help="folder of `lutra build` (default: the only build-BOARD here)",
    )
    parser.add_argument(
        "--bitstream",
        type=Path,
        metavar="FILE",
        help="bitstream in the place of a build's, with its .hwh and lutra.json beside it",
    )
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help=f"packed model, or a shipped one: {', '.join(shipped_models())} (default tales)",
    )
    parser.add_argument(
        "--agent",
        action="store_true",
        help="copy the agent alone, and run models on this PC: for boards without NumPy",
    )
    parser.add_argument(
        "--emulate",
        choices=sorted(BOARD_PROFILES),
        metavar="BOARD",
        help="have the other machine simulate a board, without a bitstream: "
        f"{', '.join(sorted(BOARD_PROFILES))}",
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="Python on the board that has PYNQ (default: that of PYNQ's images, or python3)",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="FOLDER",
        help="packages for a board without internet, as `pip download` leaves them",
    )
    parser.add_argument("--no-test", action="store_true", help="leave the self-test out")
    add_json(parser)
    parser.set_defaults(command=_deploy)


def _deploy(args: argparse.Namespace) -> int:
    check_target(args.target)
    overlay = _overlay(args)
    with StepProgress() as progress:
        packed = None
        if overlay is not None:
            packed = open_packed_model(args.model, progress=progress)
            check_model(overlay, packed)
        deployment = Deployment(
            target=args.target,
            overlay=overlay,
            model=_model(args),
            agent=args.agent,
            emulate=args.emulate,
            python=args.python,
            wheels=args.wheels,
        )
        done: list[Done] = []
        for step in deployment.steps(packed, test=not args.no_test, progress=progress):
            done.append(step)
            if not args.json:
                progress.pause()
                _print(step)
    if args.json:
        print(json.dumps({"target": args.target, "steps": [asdict(step) for step in done]}))
    return 0 if all(step.ok for step in done) else 1


def _print(step: Done) -> None:
    if step.name == "next":
        print(f"{step.name:<10}  {step.text}", flush=True)
    else:
        wrong = "" if step.ok else "WRONG: "
        print(f"{step.name:<10}  {wrong}{step.text} ({step.seconds:.1f} s)", flush=True)


def _overlay(args: argparse.Namespace) -> Overlay | None:
    """The bitstream; None where there is none to copy."""
    given = args.build is not None or args.bitstream is not None
    if args.emulate is not None:
        if given or args.agent:
            raise LutraError(
                "--emulate simulates the board: leave --build, --bitstream and --agent out"
            )
        return None
    if args.build is not None and args.bitstream is not None:
        raise LutraError("--build and --bitstream exclude each other: leave one out")
    if args.agent and "@" not in args.target:
        raise LutraError(f"--agent needs a user: give USER@{args.target}")
    overlay = find_overlay(args.build, args.bitstream)
    if args.agent and overlay.board.flow == Flow.VITIS:
        raise LutraError(f"a {overlay.board.title} has no agent: leave --agent out")
    return overlay


def _model(args: argparse.Namespace) -> str | Path:
    """The folder of a packed model, or the name of one that the package has."""
    path = find_model(args.model)
    if args.model in shipped_models() and not is_packed(path):
        return args.model
    if args.agent or is_packed(path):
        return path
    raise LutraError(f"the model {path} is not packed: run `lutra pack {path} -o OUT` first")
