"""Plans: which device runs which layers of prompts, and which of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lutra_golden.errors import LutraError

__all__ = ["Plan", "PlanKind", "Route", "RowShare", "Stage", "by_rows", "whole"]

PlanKind = Literal["whole", "phase split", "pipeline", "row split"]


@dataclass(frozen=True)
class RowShare:
    """A device's part of every matrix, and of the heads of attention (of ``rows``, too, if left
    out), by weight beside those of the others."""

    site: int
    rows: float
    heads: float | None = None

    @property
    def heads_weight(self) -> float:
        """Weight of its heads."""
        return self.rows if self.heads is None else self.heads


@dataclass(frozen=True)
class Stage:
    """Consecutive ``layers`` on the device number ``site``; the last of them bring the head.

    With ``shares`` several devices compute each of them together, ``site`` being the first one.
    """

    site: int
    layers: range
    shares: tuple[RowShare, ...] = ()

    def __post_init__(self) -> None:
        sites = self.sites
        if len(set(sites)) != len(sites) or sites[0] != self.site or len(self.shares) == 1:
            raise LutraError(
                f"a stage of device {self.site} has shares of devices {list(sites)}: give two or "
                "more different ones, that one first"
            )

    @property
    def sites(self) -> tuple[int, ...]:
        """Numbers of the devices that compute it; all of them have its keys and values."""
        return tuple(share.site for share in self.shares) or (self.site,)


Route = tuple[Stage, ...]
"""All layers, in their order."""


def whole(site: int, n_layers: int) -> Route:
    """All layers on one device."""
    return (Stage(site, range(n_layers)),)


def by_rows(shares: Sequence[RowShare], n_layers: int) -> Route:
    """All layers, the rows of each divided between devices."""
    return (Stage(shares[0].site, range(n_layers), tuple(shares)),)


@dataclass(frozen=True)
class Plan:
    """Ways through the layers: ``prefill`` for prompts, ``decode`` for answers.

    Where they differ, keys and values go from the ones to the others while a prompt is computed.
    """

    prefill: Route
    decode: Route

    def __post_init__(self) -> None:
        ends = {_end(self.prefill), _end(self.decode)}
        if len(ends) != 1:
            raise LutraError(f"the routes of a plan end at layers {sorted(ends)}: give all layers")

    @classmethod
    def on(cls, site: int, n_layers: int) -> "Plan":
        """Everything on one device."""
        return cls(whole(site, n_layers), whole(site, n_layers))

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return _end(self.decode)

    @property
    def kind(self) -> PlanKind:
        """The way a request is divided: not at all, by the rows of its layers, by its phases, or
        else by its layers."""
        if self.prefill != self.decode:
            return "phase split"
        if len(self.decode) > 1:
            return "pipeline"
        return "row split" if self.decode[0].shares else "whole"

    @property
    def is_handed_over(self) -> bool:
        """True if answers need keys and values where the prompt has left none."""
        have, need = (
            {(site, i) for stage in route for site in stage.sites for i in stage.layers}
            for route in (self.prefill, self.decode)
        )
        return not need <= have

    @property
    def sites(self) -> frozenset[int]:
        """Numbers of the devices that take part."""
        return frozenset(site for stage in (*self.prefill, *self.decode) for site in stage.sites)

    def describe(self, labels: Sequence[str]) -> str:
        """The plan in words, with the ``labels`` of the devices."""

        def route(stages: Route) -> str:
            if len(stages) == 1:
                return stage(stages[0])
            parts = [f"{s.layers.start}-{s.layers.stop - 1} on {stage(s)}" for s in stages]
            return f"layers {', '.join(parts)}"

        def stage(one: Stage) -> str:
            if not one.shares:
                return labels[one.site]
            rows = _percent([share.rows for share in one.shares])
            heads = _percent([share.heads_weight for share in one.shares])
            words = [
                f"{rows[i]} of rows" + f" and {heads[i]} of heads" * (heads != rows)
                + f" on {labels[share.site]}"
                for i, share in enumerate(one.shares)
            ]  # fmt: skip
            return ", ".join(words)

        if self.prefill == self.decode:
            return f"all on {route(self.decode)}" if self.kind == "whole" else route(self.decode)
        return f"prompts: {route(self.prefill)}; answers: {route(self.decode)}"


def _percent(weights: Sequence[float]) -> list[str]:
    return [f"{weight / sum(weights):.0%}" for weight in weights]


def _end(route: Route) -> int:
    """Layers of a route; LutraError unless they are all there, in their order."""
    at = 0
    for stage in route:
        if stage.layers.start != at or stage.layers.step != 1 or len(stage.layers) == 0:
            raise LutraError(
                f"a route must have consecutive layers from 0 on, not {stage.layers} at layer {at}"
            )
        at = stage.layers.stop
    if not at:
        raise LutraError("a route has no layers: give at least one stage")
    return at
