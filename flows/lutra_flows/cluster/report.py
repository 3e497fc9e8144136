"""Tables and pictures of simulated clusters."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

from lutra.serving.plans.plot import new_figure
from lutra.serving.plans.search import Slo
from lutra_flows.cluster.cluster import Cluster, Outcome, Quantiles
from lutra_flows.pages import markdown_table

__all__ = ["PolicyRow", "ScaleRow", "policy_table", "scale_table", "write_scale_plot"]

_LATENCIES = "first token, s: p50, p90, p99", "a token, ms: p50, p90, p99"


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """A policy on a cluster: requests per second within the SLO, ``goodput``, and what becomes of
    the trace at ``rate``."""

    policy: str
    goodput: float
    rate: float
    ttft_s: Quantiles
    tpot_s: Quantiles
    exposed_s: Quantiles
    moved: float
    tokens_per_s: float
    attained: float
    busy: dict[str, float]

    @classmethod
    def of(
        cls, policy: str, goodput: float, rate: float, outcome: Outcome, slo: Slo
    ) -> "PolicyRow":
        """The figures of an outcome."""
        return cls(
            policy=policy,
            goodput=goodput,
            rate=rate,
            ttft_s=outcome.ttft_s,
            tpot_s=outcome.tpot_s,
            exposed_s=outcome.exposed_s,
            moved=outcome.moved,
            tokens_per_s=outcome.tokens_per_s,
            attained=outcome.attained(slo),
            busy=outcome.busy,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """So many ``cards``: requests per second within the SLO, and the trace at ``rate``.

    ``lost`` is the share of requests that meet the SLO if one card dies in the middle, ``again``
    the requests that it had, ``gap_s`` the longest time between two tokens of one of them.
    """

    system: str
    cards: int
    goodput: float
    rate: float
    ttft_s: Quantiles
    tpot_s: Quantiles
    tokens_per_s: float
    attained: float
    busy: dict[str, float]
    sending: float
    sent_bytes_per_s: float
    lost: float | None
    again: int
    gap_s: float

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        cards: int,
        goodput: float,
        rate: float,
        outcome: Outcome,
        without: Outcome | None,
        slo: Slo,
    ) -> "ScaleRow":
        """The figures of an outcome, and of one in which a card died, if there is one."""
        hit = [] if without is None else [job for job in without.jobs if job.attempt]
        return cls(
            system=" + ".join(machine.name for machine, _ in cluster.machines),
            cards=cards,
            goodput=goodput,
            rate=rate,
            ttft_s=outcome.ttft_s,
            tpot_s=outcome.tpot_s,
            tokens_per_s=outcome.tokens_per_s,
            attained=outcome.attained(slo),
            busy=outcome.busy,
            sending=outcome.sending,
            sent_bytes_per_s=outcome.sent_bytes / outcome.seconds,
            lost=None if without is None else without.attained(slo),
            again=len(hit),
            gap_s=max((job.worst_gap_s for job in hit), default=0.0),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def policy_table(rows: Sequence[PolicyRow]) -> str:
    """The policies as Markdown."""
    kinds = list(rows[0].busy)
    heads = (
        "policy",
        "requests/s within the SLO",
        *_LATENCIES,
        "tokens/s",
        "meet the SLO",
        "handed over",
        "not hidden, ms: p50, p99",
        f"busy: {', '.join(kinds)}",
    )
    lines = list[Sequence[str]]()
    for row in rows:
        exposed = "-"
        if row.moved:
            exposed = f"{1e3 * row.exposed_s.p50:.3g}, {1e3 * row.exposed_s.p99:.3g}"
        lines.append(
            (
                row.policy,
                f"{row.goodput:.3g}",
                _three(row.ttft_s, 1),
                _three(row.tpot_s, 1e3),
                f"{row.tokens_per_s:,.0f}",
                f"{row.attained:.0%}",
                f"{row.moved:.0%}",
                exposed,
                ", ".join(f"{row.busy[kind]:.0%}" for kind in kinds),
            )
        )
    return markdown_table(heads, lines, numbers_from=1)


def scale_table(rows: Sequence[ScaleRow]) -> str:
    """The numbers of cards as Markdown."""
    heads = (
        "cards",
        "requests/s within the SLO",
        "tokens/s",
        *_LATENCIES,
        "busy",
        "MB/s sent, the busiest port",
        "one card dies: meet the SLO",
        "begun again",
        "longest pause, s",
    )
    lines = list[Sequence[str]]()
    for row in rows:
        lost = ("-", "-", "-")
        if row.lost is not None:
            lost = (f"{row.lost:.1%} (else {row.attained:.1%})", str(row.again), f"{row.gap_s:.3g}")
        lines.append(
            (
                f"{row.cards:,}",
                f"{row.goodput:.3g}",
                f"{row.tokens_per_s:,.0f}",
                _three(row.ttft_s, 1),
                _three(row.tpot_s, 1e3),
                ", ".join(f"{each:.0%}" for each in row.busy.values()),
                f"{row.sent_bytes_per_s / 1e6:,.3g}, {row.sending:.1%}",
                *lost,
            )
        )
    return markdown_table(heads, lines, numbers_from=0)


def _three(found: Quantiles, factor: float) -> str:
    return ", ".join(f"{factor * each:.3g}" for each in (found.p50, found.p90, found.p99))


def write_scale_plot(rows: Sequence[ScaleRow], path: Path) -> None:
    """Draw requests per second and times to the first token by the number of cards.

    A rate of 0 has no place on a logarithmic axis, and is left out; without any other the axis is
    linear.
    """
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    for system in dict.fromkeys(row.system for row in rows):
        own = [row for row in rows if row.system == system]
        cards = [row.cards for row in own]
        left.plot(cards, [row.goodput or nan for row in own], "o-", label=system)
        right.plot(cards, [row.ttft_s.p50 for row in own], "o-", label=f"{system}, half of them")
        right.plot(cards, [row.ttft_s.p99 for row in own], "o:", label=f"{system}, 99 of 100")
    for axes, title in ((left, "requests/s within the SLO"), (right, "time to the first token, s")):
        axes.set_xscale("log")
        if axes is right or any(row.goodput for row in rows):
            axes.set_yscale("log")
        axes.set_xlabel("cards")
        axes.set_ylabel(f"{title} (simulated by events)")
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
