"""Cells of a netlist, counted as the resources of an FPGA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Resources", "ecp5_resources", "xilinx_resources"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of an FPGA.

    ``lut`` are LUTs of logic, ``lut_ram`` those that hold memories and shift registers; ``bram``
    counts 36-kbit blocks on Xilinx, where an 18-kbit one is a half, and 18-kbit blocks on ECP5;
    ``carry`` counts carry cells as the family's netlist has them. ``other`` are cells that take
    nothing of the above, by type.
    """

    lut: int = 0
    lut_ram: int = 0
    ff: int = 0
    carry: int = 0
    dsp: int = 0
    bram: float = 0
    uram: int = 0
    other: Mapping[str, int]


# LUTs that a cell occupies (UG474 and UG574, chapters on distributed RAM and shift registers)
_XILINX_LUT_RAM = {
    "RAM16X1D": 2, "RAM16X1D_1": 2, "RAM32X1S": 1, "RAM32X1D": 2, "RAM32X2S": 2, "RAM32M": 4,
    "RAM32M16": 8, "RAM32X16DR8": 8, "RAM64X1S": 1, "RAM64X1D": 2, "RAM64M": 4, "RAM64M8": 8,
    "RAM64X8SW": 8, "RAM128X1S": 2, "RAM128X1D": 4, "RAM256X1S": 4, "RAM256X1D": 8,
    "RAM512X1S": 8, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip
_XILINX = {
    # a LUT1 and an INV are counted, though a placer often merges them with what they feed
    "lut": dict.fromkeys(("INV", "LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "LUT6_2"), 1),
    "lut_ram": _XILINX_LUT_RAM,
    "ff": dict.fromkeys(
        [f"FD{kind}E{suffix}" for kind in "RSCP" for suffix in ("", "_1")] + ["LDCE", "LDPE"], 1
    ),
    "carry": {"CARRY4": 1, "CARRY8": 1},
    "dsp": {"DSP48E1": 1, "DSP48E2": 1},
    "bram": {"RAMB18E1": 0.5, "RAMB18E2": 0.5, "RAMB36E1": 1, "RAMB36E2": 1},
    "uram": {"URAM288": 1, "URAM288_BASE": 1},
}
_ECP5 = {
    # a carry cell is two LUTs; a RAM's sixteen words of four bits take the LUTs of three slices
    "lut": {"LUT4": 1, "CCU2C": 2},
    "lut_ram": {"TRELLIS_DPR16X4": 6},
    "ff": {"TRELLIS_FF": 1},
    "carry": {"CCU2C": 1},
    "dsp": {"MULT18X18D": 1, "ALU54B": 1, "MULT9X9D": 1},
    "bram": {"DP16KD": 1, "PDPW16KD": 1},
    "uram": {},
}


def xilinx_resources(cells: Mapping[str, int]) -> Resources:
    """Resources of a netlist of ``synth_xilinx``, from its number of cells of each type."""
    return _resources(cells, _XILINX)


def ecp5_resources(cells: Mapping[str, int]) -> Resources:
    """Resources of a netlist of ``synth_ecp5``."""
    return _resources(cells, _ECP5)


def _resources(cells: Mapping[str, int], costs: Mapping[str, Mapping[str, float]]) -> Resources:
    totals = {
        kind: sum(cost[cell] * n for cell, n in cells.items() if cell in cost)
        for kind, cost in costs.items()
    }
    counted = set().union(*costs.values())
    other = {
        cell: n for cell, n in cells.items() if cell not in counted and not cell.startswith("$")
    }
    unmapped = [cell for cell in cells if cell.startswith("$") and cell != "$scopeinfo"]
    if unmapped:
        raise ValueError(f"cells must be mapped to the target, not {', '.join(sorted(unmapped))}")
    whole = {kind: int(total) for kind, total in totals.items() if kind != "bram"}
    return Resources(**whole, bram=totals["bram"], other=other)
