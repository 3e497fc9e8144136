"""Registers that carry a value beside a pipeline."""

from collections.abc import Sequence
from typing import Any

from amaranth import Module, Signal, Value
from amaranth.hdl import ValueCastable
from amaranth.lib import data

__all__ = ["delay"]


def delay(
    m: Module,
    value: Value | ValueCastable,
    cycles: int,
    *,
    name: str | None = None,
    reset_less: bool = False,
    flags: Sequence[str] = (),
) -> list[Any]:
    """Return ``value`` and its copies 1 to ``cycles`` cycles later, ``cycles + 1`` in all.

    Registers are ``name_1`` and so on, after ``value`` unless there is a ``name``. A reset clears
    them, or with ``reset_less`` none of them, or of a struct with ``flags`` only these fields.
    """
    name = name or Value.cast(value).name
    stages: list[Any] = [value]
    for cycle in range(1, cycles + 1):
        if flags:
            stages.append(_delay_flags(m, stages[-1], f"{name}_{cycle}", flags))
        else:
            stages.append(_delay_once(m, stages[-1], f"{name}_{cycle}", reset_less))
    return stages


def _delay_once(m: Module, value: Any, name: str, reset_less: bool) -> Any:
    stage = Signal(value.shape(), name=name, reset_less=reset_less)
    m.d.sync += stage.eq(value)
    return stage


def _delay_flags(m: Module, value: Any, name: str, flags: Sequence[str]) -> Any:
    stage = Signal(value.shape(), name=name)
    fields = Signal(value.shape(), name=f"{name}_fields", reset_less=True)
    kept = Signal(data.StructLayout(dict.fromkeys(flags, 1)), name=f"{name}_flags")
    m.d.sync += fields.eq(value)
    m.d.comb += stage.eq(fields)
    for flag in flags:
        m.d.sync += getattr(kept, flag).eq(getattr(value, flag))
        m.d.comb += getattr(stage, flag).eq(getattr(kept, flag))
    return stage
