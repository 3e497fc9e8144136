"""Verilog of the primitives that a netlist uses: twins to simulate and to prove with."""

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PRIMITIVES", "all_twins", "twins_for_rtlil", "with_twins"]

PRIMITIVES = ("LUT6_2", "CARRY8", "RAM32M16", "DSP48E2")
"""Primitives of UltraScale+ that have a twin."""


def with_twins(verilog: str) -> str:
    """``verilog`` and the twins of the primitives that it uses, which coverage leaves out."""
    twins = _twins([name for name in PRIMITIVES if re.search(rf"^ *{name} ", verilog, re.M)])
    if not twins:
        return verilog
    return f"{verilog}\n/* verilator coverage_off */\n{twins}/* verilator coverage_on */\n"


def twins_for_rtlil(text: str) -> str:
    """Twins of the primitives that RTLIL has cells of; empty where there are none."""
    return _twins([name for name in PRIMITIVES if f" cell \\{name} " in text])


def all_twins() -> str:
    """Every twin there is."""
    return _twins(PRIMITIVES)


def _twins(names: Sequence[str]) -> str:
    folder = Path(__file__).parent
    return "\n".join((folder / f"{name.lower()}.v").read_text("utf-8") for name in names)
