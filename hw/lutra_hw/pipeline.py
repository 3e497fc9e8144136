"""Registers that carry a value beside a pipeline."""

from typing import Any

from amaranth import Module, Signal, Value
from amaranth.hdl import ValueCastable

__all__ = ["delay"]


def delay(m: Module, value: Value | ValueCastable, cycles: int) -> list[Any]:
    """Return ``value`` and its copies 1 to ``cycles`` cycles later, ``cycles + 1`` in all."""
    stages: list[Any] = [value]
    for cycle in range(1, cycles + 1):
        stage = Signal(value.shape(), name=f"{Value.cast(value).name}_{cycle}")
        m.d.sync += stage.eq(stages[-1])
        stages.append(stage)
    return stages
