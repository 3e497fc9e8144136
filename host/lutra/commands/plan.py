"""``lutra plan``: how a request is best divided between devices, and what that will take."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutra.commands.options import (
    add_activation_group,
    add_format,
    add_group,
    add_head,
    add_json,
    add_kv,
    real,
    rounding,
    whole,
)
from lutra.open_model import open_packed_model
from lutra.progress import StepProgress
from lutra.serving.plans.check import CheckedPoint, check_predictions, run_workload, summary
from lutra.serving.plans.costs import Workload
from lutra.serving.plans.measure import MOST_SESSIONS
from lutra.serving.plans.planner import USUAL, Planner, workload_within
from lutra.serving.plans.plot import check_plot, write_plot
from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import Alternative, Choice, Slo, pareto
from lutra.serving.plans.sites import common_capabilities, parse_sites
from lutra_golden.errors import LutraError

__all__ = ["add_plan"]

_ROWS = 12  # alternatives that are printed
_POINTS = 20


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra plan``."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="folder, GGUF file, Hugging Face id, a shipped model, or random:SHAPE (default tales)",
    )
    add_format(
        parser,
        "the checkpoint's own if its weights are integers, otherwise W8A8, with random: W4A8",
    )
    add_group(parser)
    add_kv(parser)
    add_activation_group(parser, "as the devices run it")
    add_head(parser, "as the devices run it")
    parser.add_argument(
        "--devices",
        required=True,
        metavar="A,B",
        help="devices to divide requests between, such as rtl,cpu or cpu:1,cpu:1 with one thread "
        "each; kv260, u50, u55c and pynq_z2 are boards that are modelled",
    )
    parser.add_argument(
        "-p", "--n-prompt", type=whole(1), metavar="N",
        help=f"tokens of a prompt (default {USUAL.prompt}, or three quarters of the context)",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--n-gen", type=whole(1), metavar="N",
        help=f"tokens of an answer (default {USUAL.answer}, or to the context's end)",
    )  # fmt: skip
    parser.add_argument(
        "-b", "--batch", type=whole(1, MOST_SESSIONS), default=1, metavar="N",
        help=f"requests that come at once (default 1, at most {MOST_SESSIONS})",
    )  # fmt: skip
    parser.add_argument(
        "--slo",
        metavar="ttft=S,tpot=S",
        help="seconds that the first token, and each one after it, may take",
    )
    parser.add_argument(
        "--link",
        metavar="LATENCY,BYTES",
        help="seconds of latency and bytes per second of the way between devices, in place of what "
        "is measured (to boards that are modelled: gigabit Ethernet)",
    )
    parser.add_argument(
        "--cycles",
        action="store_true",
        help="count the clock cycles of device rtl, by the clock that it is built for, in place of "
        "the seconds of its simulation",
    )
    parser.add_argument(
        "--refresh", action="store_true", help="measure the devices again, whatever is kept"
    )
    parser.add_argument(
        "--budget", type=real("above 0", lambda s: s > 0), default=20.0, metavar="S",
        help="seconds that measuring a device takes at most (default 20)",
    )  # fmt: skip
    parser.add_argument(
        "--check",
        type=whole(1),
        nargs="?",
        const=_POINTS,
        metavar="N",
        help=f"also run N random requests (default {_POINTS}) of up to these sizes by their plans, "
        "and compare the time with the prediction",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        help="also run requests of these sizes by each plan that is printed, and time them",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of --check")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the alternatives (.svg or .png)"
    )
    add_json(parser)
    parser.set_defaults(command=_plan)


def _plan(args: argparse.Namespace) -> int:
    slo = Slo.parse(args.slo) if args.slo is not None else Slo()
    link = None if args.link is None else _link(args.link)
    sites = parse_sites(args.devices.split(","))
    if args.plot is not None:
        check_plot(args.plot)
    runs = "--check" if args.check else "--run"
    if (args.check or args.run) and not all(site.is_here for site in sites):
        raise LutraError(f"{runs} runs plans: give devices that are here, no modelled boards")
    if (args.check or args.run) and args.cycles:
        raise LutraError(f"{runs} compares seconds of this machine: leave --cycles out")
    points, took = list[CheckedPoint](), list[CheckedPoint]()
    with StepProgress() as progress:
        model = open_packed_model(
            args.model,
            **rounding(args),
            progress=progress,
            capabilities=common_capabilities(sites),
        )
        workload = workload_within(model, args.n_prompt, args.n_gen, args.batch)
        with Planner.open(
            model,
            sites,
            link=link,
            by_cycles=args.cycles,
            refresh=args.refresh,
            budget_s=args.budget,
            progress=progress,
        ) as planner:
            choice = planner.choose(workload, slo, progress=progress)
            progress.pause()
            shown = _shown(choice, planner)
            if not args.json:
                _print(choice, shown, planner)

            def note(point: CheckedPoint, into: list[CheckedPoint]) -> None:
                into.append(point)
                if not args.json:
                    print(point.describe(planner.labels), flush=True)

            for i, each in enumerate(shown if args.run else ()):
                progress("running plans", i / len(shown))
                note(run_workload(planner, workload, each, seed=args.seed), took)
            for point in check_predictions(
                planner, workload, args.check or 0, slo=slo, seed=args.seed, progress=progress
            ):
                note(point, points)
    if args.plot is not None:
        write_plot(choice, planner.labels, args.plot)
        print(f"wrote {args.plot}", file=sys.stderr)
    if args.json:
        print(json.dumps(_figures(choice, planner, workload, slo, points, took)))
    elif points:
        print(summary(points))
    return 0


def _link(text: str) -> LinkProfile:
    parts = text.split(",")
    try:
        latency, rate = map(float, parts)
        if not (0 <= latency < float("inf") and 0 < rate < float("inf")):
            raise ValueError
    except ValueError:
        raise LutraError(
            f"--link must be LATENCY,BYTES, such as 0.001,1.25e8 for gigabit Ethernet, not {text!r}"
        ) from None
    return LinkProfile(latency_s=latency, bytes_per_s=rate, kind="modelled")


def _print(choice: Choice, shown: Sequence[Alternative], planner: Planner) -> None:
    labels = planner.labels
    print("| plan | first token, s | per token, s | all done, s | hand-over, s | kind |")
    print("|---|---:|---:|---:|---:|---|")
    for each in shown:
        c, mark = each.cost, " (chosen)" * (each is choice.chosen)
        print(
            f"| {each.describe(labels)}{mark} | {c.ttft_s:.4g} | {c.tpot_s:.4g} | {c.seconds:.4g} "
            f"| {c.exposed_s:.2g} | {c.kind} |"
        )
    print(f"chosen: {choice.chosen.describe(labels)}: {choice.reason}")
    searched = "all plans of these kinds" if choice.exact else "balanced pipelines alone"
    left = len(choice.alternatives) - len(shown)
    print(f"{left} more plans are slower than one of their kind; looked at {searched}", flush=True)


def _shown(choice: Choice, planner: Planner) -> list[Alternative]:
    """The best of each kind on each kind of devices, the quickest first, and the one chosen."""
    kinds = {site: profile.fingerprint for site, profile in planner.profiles.items()}
    found: dict[object, Alternative] = {}
    for each in choice.alternatives:
        routes = [route for plan in each.plans for route in (plan.prefill, plan.decode)]
        key = each.kind, *(tuple(kinds[stage.site] for stage in route) for route in routes)
        if each is choice.chosen:
            found[key] = each
        found.setdefault(key, each)
    shown = list(found.values())[:_ROWS]
    return shown if choice.chosen in shown else [choice.chosen, *shown[:-1]]


def _figures(
    choice: Choice,
    planner: Planner,
    workload: Workload,
    slo: Slo,
    points: Sequence[CheckedPoint],
    took: Sequence[CheckedPoint],
) -> dict[str, Any]:
    labels, front = planner.labels, pareto(choice.alternatives)

    def row(each: Alternative) -> dict[str, Any]:
        c = each.cost
        return {
            "plan": each.describe(labels),
            "type": each.kind,
            "devices": [labels[site] for site in sorted(each.sites)],
            "ttft_s": c.ttft_s,
            "tpot_s": c.tpot_s,
            "seconds": c.seconds,
            "exposed_s": c.exposed_s,
            "kind": c.kind,
            "meets_slo": slo.missed(c) <= 1,
            "on_front": any(each is other for other in front),
        }

    return {
        "model": planner.model.name,
        "format": planner.model.format,
        "prompt": workload.prompt,
        "answer": workload.answer,
        "requests": workload.requests,
        "devices": {
            label: {
                "kind": planner.profiles[i].kind,
                "fingerprint": planner.profiles[i].fingerprint,
                "corrections": planner.profiles[i].runs,
            }
            for i, label in enumerate(labels)
        },
        "links": [
            {
                "from": labels[i],
                "to": labels[j],
                "latency_s": link.latency_s,
                "bytes_per_s": link.bytes_per_s,
                "meeting_s": link.meeting_s,
                "kind": link.kind,
            }
            for (i, j), link in planner.links.items()
        ],
        "chosen": row(choice.chosen),
        "reason": choice.reason,
        "exact": choice.exact,
        "alternatives": [row(each) for each in choice.alternatives],
        "runs": [point.to_json(labels) for point in took],
        "check": [point.to_json(labels) for point in points],
    }
