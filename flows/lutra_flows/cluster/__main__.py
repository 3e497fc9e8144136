"""Policies of a cluster and its size, simulated by events: ``python -m lutra_flows.cluster``.

By default two pairs, each with Lutra's policy, those of Splitwise and DistServe and single devices:
KV260 with a GPU (Qwen2.5-0.5B), U55C with an H200 (BitNet 2B-4T). ``--cards`` takes numbers of
equal cards instead. Times of devices are *modelled*: boards by the cycle formulas of the
configuration that there is for them, GPUs from bytes; requests have the shape of a public trace.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lutra.commands.options import real, whole
from lutra.models.random import RANDOM_SHAPES
from lutra.progress import StepProgress
from lutra.serving.plans.plot import check_plot
from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import Slo
from lutra_flows.cluster.by_cost import ByCost
from lutra_flows.cluster.cluster import Cluster, Failure, simulate
from lutra_flows.cluster.devices import GPUS, MACHINES, Shaped, make_machine
from lutra_flows.cluster.goodput import Load, best_division, capacity, goodput
from lutra_flows.cluster.machine import Machine
from lutra_flows.cluster.policies import DistServe, PolicyMaker, Replicas, Splitwise
from lutra_flows.cluster.report import (
    PolicyRow,
    ScaleRow,
    policy_table,
    scale_table,
    write_scale_plot,
)
from lutra_flows.cluster.trace import SHAPES
from lutra_golden.errors import LutraError

__all__ = ["LINKS", "main", "measure_cards", "measure_pair"]

Progress = Callable[[str, float], None]
PAIRS, SYSTEM = ("kv260,rtx3060,qwen2.5-0.5b", "u55c,h200,bitnet-2b-4t"), "u55c,bitnet-2b-4t"
LINKS = {
    # gigabit Ethernet, 94 % of it; the port of a KV260
    "kv260": LinkProfile(latency_s=1e-4, bytes_per_s=117e6, kind="modelled"),
    "pynq_z2": LinkProfile(latency_s=1e-4, bytes_per_s=117e6, kind="modelled"),
}
"""Links of a board, where they are slower than :data:`SOCKET`."""
SOCKET = LinkProfile(latency_s=1.6e-5, bytes_per_s=1.43e9, kind="measured")
"""A socket on one machine: half of 31 us for 10 KB and back, 16 MiB in 11.7 ms."""
_LOAD = 0.8  # of what the best policy serves within the SLO
_ALONE = 1e-3  # requests per second
_CLOSE = 1.1  # a rate that is expected is tried with this much more or less
_CARD_SIMULATIONS, _PAIR_SIMULATIONS = 13, 75  # for the estimate of the time left


def measure_pair(
    cluster: Cluster, load: Load, *, note: Callable[[], None] = lambda: None
) -> list[PolicyRow]:
    """Each policy on two unlike devices: its goodput, and all at four fifths of the best one."""
    names = [machine.name for machine, _ in cluster.machines]
    makers: list[PolicyMaker] = [ByCost(load.slo), Replicas(), *map(Replicas, names)]
    rates = [goodput(cluster, maker, load, note=note) for maker in makers]
    for maker in (Splitwise(names[0]), DistServe(names[0])):
        best, rate = best_division(maker, cluster, load, note=note)
        makers.append(best)
        rates.append(rate)
    # where nothing meets the SLO, one request after the other
    rate = _LOAD * max(rates) or _ALONE
    trace, rows = load.trace(cluster, rate), list[PolicyRow]()
    for maker, most in zip(makers, rates, strict=True):
        note()
        label = maker.name
        if isinstance(maker, Splitwise | DistServe):
            label += f", prompts on {maker.prompts}"
        outcome = simulate(cluster, maker, trace)
        rows.append(PolicyRow.of(label, most, rate, outcome, load.slo))
    return rows


def measure_cards(
    cluster: Cluster,
    cards: Sequence[int],
    load: Load,
    *,
    note: Callable[[], None] = lambda: None,
) -> list[ScaleRow]:
    """Numbers of ``cluster`` on one network, with Lutra's policy; one card dies in the middle."""
    rows, maker = list[ScaleRow](), ByCost(load.slo)
    guess, pace = 1.0, 2.0
    for n in sorted(cards):
        note()
        own = cluster.times(n)
        limit = capacity(own, maker, load)
        most = goodput(own, maker, load, guess=guess * n, pace=pace, limit=limit, note=note)
        if most:
            # so many more serve about so many times as much
            guess, pace = most / n, _CLOSE
        rate = _LOAD * most or n * _ALONE
        trace = load.trace(own, rate)
        note()
        outcome, without = simulate(own, maker, trace), None
        if own.n_devices > 1:
            note()
            name, half = own.machines[0][0].name, trace[len(trace) // 2].at
            without = simulate(own, maker, trace, [Failure(kind=name, at=half)])
        rows.append(ScaleRow.of(own, n, most, rate, outcome, without, load.slo))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables as Markdown; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--pair", action="append", metavar="A,B,SHAPE",
        help=f"two devices of {', '.join(MACHINES)}, and a model's shape "
        f"(default {' and '.join(PAIRS)})",
    )  # fmt: skip
    parser.add_argument(
        "--cards", metavar="N,N", help="numbers of cards, such as 1,10,1000, instead of pairs"
    )
    parser.add_argument(
        "--system", action="append", metavar="A[,B],SHAPE",
        help=f"what --cards counts: a device, or some together (default {SYSTEM})",
    )  # fmt: skip
    parser.add_argument(
        "--faster", type=real("above 0", lambda x: x > 0), default=1.0, metavar="X",
        help="let boards be X times as fast as their configuration (default 1)",
    )  # fmt: skip
    parser.add_argument("--trace", choices=tuple(SHAPES), default="conversation")
    parser.add_argument(
        "--slo", default="ttft=1,tpot=0.2", metavar="ttft=S,tpot=S",
        help="seconds for the first token and each behind it (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--link", metavar="LATENCY,BYTES", help="seconds, and bytes per second")
    parser.add_argument(
        "--requests", type=whole(10), default=300, metavar="N",
        help="requests of a simulation at least, or 8 for each device (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=real("above 0", lambda x: x > 0), default=20.0, metavar="S",
        help="seconds in which they come at least (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot --cards (.svg or .png)")
    args = parser.parse_args(argv)
    try:
        found = _measure(args)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except (LutraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    slo = Slo.parse(args.slo)
    link = None if args.link is None else _link(args.link)
    if args.plot is not None:
        if args.cards is None:
            raise LutraError("--plot draws numbers of cards: give --cards, too")
        check_plot(args.plot)
    load = Load(
        shape=SHAPES[args.trace], slo=slo, requests=args.requests, seconds=args.seconds,
        seed=args.seed,
    )  # fmt: skip
    found: dict[str, Any] = {
        "trace": args.trace, "slo": args.slo, "requests": args.requests, "seconds": args.seconds,
        "seed": args.seed, "faster": args.faster,
    }  # fmt: skip
    with StepProgress() as progress:
        if args.cards is None:
            for text in args.pair or PAIRS:
                rows = _pair(text, load, link, args.faster, progress)
                found[text] = [row.to_json() for row in rows]
        else:
            cards, scaled = _cards(args.cards), list[ScaleRow]()
            for text in args.system or [SYSTEM]:
                scaled += _scale(text, cards, load, link, args.faster, progress)
            found["cards"] = [row.to_json() for row in scaled]
            if args.plot is not None:
                write_scale_plot(scaled, args.plot)
    return found


def _pair(
    text: str, load: Load, link: LinkProfile | None, faster: float, progress: Progress
) -> list[PolicyRow]:
    *names, shape = text.split(",")
    if len(names) != 2 or names[0] == names[1]:
        raise LutraError(f"--pair must be two unlike devices and a shape, not {text!r}")
    cluster = _cluster(names, shape, link, faster, progress)
    note = _Count(f"simulating {text}", _PAIR_SIMULATIONS, progress)
    rows = measure_pair(cluster, load, note=note)
    print(f"{_describe(cluster, shape, load)}; all at {rows[0].rate:.3g} requests/s\n")
    print(policy_table(rows) + "\n", flush=True)
    return rows


def _scale(
    text: str,
    cards: Sequence[int],
    load: Load,
    link: LinkProfile | None,
    faster: float,
    progress: Progress,
) -> list[ScaleRow]:
    *names, shape = text.split(",")
    cluster = _cluster(names, shape, link, faster, progress)
    note = _Count(f"simulating {text}", len(cards) * _CARD_SIMULATIONS, progress)
    rows = measure_cards(cluster, cards, load, note=note)
    print(f"{_describe(cluster, shape, load)}; at {_LOAD:.0%} of the requests/s\n")
    print(scale_table(rows) + "\n", flush=True)
    return rows


class _Count:
    """Progress by the simulations that are usual."""

    def __init__(self, label: str, usual: int, progress: Progress) -> None:
        self._label, self._usual, self._progress, self._n = label, usual, progress, 0

    def __call__(self) -> None:
        self._progress(self._label, min(self._n / self._usual, 0.99))
        self._n += 1


def _cluster(
    names: Sequence[str], shape: str, link: LinkProfile | None, faster: float, progress: Progress
) -> Cluster:
    for name in names:
        if name not in MACHINES:
            raise LutraError(f"a device must be one of {', '.join(MACHINES)}, not {name!r}")
    if not names or shape not in RANDOM_SHAPES:
        raise LutraError(
            f"give devices and one of the shapes {', '.join(RANDOM_SHAPES)}, not "
            f"{','.join([*names, shape])!r}"
        )
    shaped = Shaped.of(shape, progress)
    machines = list[tuple[Machine, int]]()
    for i, name in enumerate(names):
        progress(f"modelling {name}", i / len(names))
        machines.append((make_machine(name, shaped, faster=1.0 if name in GPUS else faster), 1))
    slowest = min((LINKS.get(name, SOCKET) for name in names), key=lambda each: each.bytes_per_s)
    return Cluster(machines=machines, link=link or slowest)


def _describe(cluster: Cluster, shape: str, load: Load) -> str:
    names = " + ".join(machine.name for machine, _ in cluster.machines)
    link = cluster.link
    return (
        f"{names}, {shape}, {load.shape.name}, first token within {load.slo.ttft_s} s, each behind "
        f"it {load.slo.tpot_s} s, link {1e6 * link.latency_s:.3g} us and "
        f"{link.bytes_per_s / 1e6:.4g} MB/s; devices modelled, simulated by events"
    )


def _cards(text: str) -> list[int]:
    try:
        cards = [int(each) for each in text.split(",")]
    except ValueError:
        cards = [0]
    if min(cards) < 1:
        raise LutraError(f"--cards must be numbers of cards, such as 1,10,1000, not {text!r}")
    return cards


def _link(text: str) -> LinkProfile:
    try:
        latency, rate = (float(each) for each in text.split(","))
        if not (0 <= latency < float("inf") and 0 < rate < float("inf")):
            raise ValueError
    except ValueError:
        raise LutraError(
            f"--link must be LATENCY,BYTES, such as 0.0001,1.17e8, not {text!r}"
        ) from None
    return LinkProfile(latency_s=latency, bytes_per_s=rate, kind="modelled")


if __name__ == "__main__":
    sys.exit(main())
