"""Plans: which device runs which layers of prompts, and which of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lutra_golden.errors import LutraError

__all__ = ["Plan", "PlanKind", "Route", "Stage", "whole"]

PlanKind = Literal["whole", "phase split", "pipeline"]


@dataclass(frozen=True)
class Stage:
    """Consecutive ``layers`` on the device number ``site``; the last of them bring the head."""

    site: int
    layers: range


Route = tuple[Stage, ...]
"""All layers, in their order."""


def whole(site: int, n_layers: int) -> Route:
    """All layers on one device."""
    return (Stage(site, range(n_layers)),)


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
        """The way a request is divided: not at all, by its phases, or else by its layers."""
        if self.prefill != self.decode:
            return "phase split"
        return "whole" if len(self.decode) == 1 else "pipeline"

    @property
    def sites(self) -> frozenset[int]:
        """Numbers of the devices that take part."""
        return frozenset(stage.site for stage in (*self.prefill, *self.decode))

    def describe(self, labels: Sequence[str]) -> str:
        """The plan in words, with the ``labels`` of the devices."""

        def route(stages: Route) -> str:
            if len(stages) == 1:
                return labels[stages[0].site]
            parts = [f"{s.layers.start}-{s.layers.stop - 1} on {labels[s.site]}" for s in stages]
            return f"layers {', '.join(parts)}"

        if self.prefill == self.decode:
            return f"all on {route(self.decode)}" if self.kind == "whole" else route(self.decode)
        return f"prompts: {route(self.prefill)}; answers: {route(self.decode)}"


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
