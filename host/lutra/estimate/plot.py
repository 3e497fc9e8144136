"""A roofline of an estimate: what engine and memory allow, and what operations reach."""

from dataclasses import dataclass
from pathlib import Path

from lutra.estimate.speed import Estimate, Phase
from lutra.serving.plans.plot import new_figure

__all__ = ["Spot", "spots", "write_roofline"]

_MARKERS = {"prefill": "o", "decode": "s"}
_GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Spot:
    """An operation of a phase: multiply-accumulates per byte that it reads, and per second."""

    phase: str
    name: str
    intensity: float
    macs_per_s: float


def spots(found: Estimate) -> list[Spot]:
    """All operations that multiply and read, of both phases."""
    phases: dict[str, Phase] = {"prefill": found.prefill, "decode": found.decode}
    return [
        Spot(
            phase=name,
            name=part.name,
            intensity=part.n_macs / part.n_bytes,
            macs_per_s=part.n_macs * phase.clock_hz / part.cycles,
        )
        for name, phase in phases.items()
        for part in phase.parts
        if part.n_macs and part.n_bytes
    ]


def write_roofline(found: Estimate, path: Path) -> None:
    """Write the picture: the roof of the body's products, and a spot for each operation.

    Those of attention have a roof of their own, and those of a head with other digits, too.
    """
    figure = new_figure()
    axes = figure.subplots()
    seen = spots(found)
    for phase, marker in _MARKERS.items():
        own = [each for each in seen if each.phase == phase]
        axes.plot(
            [each.intensity for each in own], [each.macs_per_s / _GIGA for each in own], marker,
            markersize=6, alpha=0.8, label=phase,
        )  # fmt: skip
        for each in own:
            axes.annotate(
                each.name, (each.intensity, each.macs_per_s / _GIGA), fontsize=7,
                textcoords="offset points", xytext=(5, -3),
            )  # fmt: skip
    low = min(each.intensity for each in seen) / 2
    high = 2 * max(max(each.intensity for each in seen), found.peak_macs_per_s / found.bytes_per_s)
    corner = found.peak_macs_per_s / found.bytes_per_s
    axes.plot(
        [low, corner, high],
        [
            low * found.bytes_per_s / _GIGA,
            found.peak_macs_per_s / _GIGA,
            found.peak_macs_per_s / _GIGA,
        ],
        "k-", linewidth=1,
        label=f"{found.bytes_per_s / _GIGA:.3g} GB/s, {found.peak_macs_per_s / _GIGA:.4g} GMAC/s",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("multiply-accumulates per byte")
    axes.set_ylabel(f"GMAC/s ({found.kind})")
    axes.set_title(
        f"{found.model} in {found.format} on {found.target}: decode "
        f"{found.decode.tokens_per_s:.3g} tokens/s, prefill {found.prefill.tokens_per_s:.3g}; "
        f"error up to {found.error.worst:.1%}",
        fontsize=9,
    )
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
