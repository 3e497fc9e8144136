"""Cells are counted as the LUTs, registers and blocks that they occupy."""

import pytest

from lutra_flows.synth.cells import ecp5_resources, xilinx_resources


def test_xilinx_cells():
    found = xilinx_resources(
        {
            "LUT1": 1,
            "LUT6": 20,
            "INV": 300,
            "RAM32M16": 2,
            "RAM32M": 10,
            "RAM64M8": 100,
            "RAM64X1D": 1000,
            "SRL16E": 5,
            "FDRE": 7,
            "FDSE": 70,
            "FDCE": 700,
            "CARRY4": 3,
            "DSP48E2": 4,
            "RAMB18E2": 3,
            "RAMB36E2": 10,
            "URAM288": 6,
            "MUXF7": 9,
            "$scopeinfo": 8,
        }
    )
    assert found.lut == 321
    assert found.lut_ram == 2 * 8 + 10 * 4 + 100 * 8 + 1000 * 2 + 5
    assert found.ff == 777
    assert (found.carry, found.dsp, found.bram, found.uram) == (3, 4, 11.5, 6)
    assert found.other == {"MUXF7": 9}


def test_ecp5_cells():
    found = ecp5_resources(
        {"LUT4": 7, "CCU2C": 10, "TRELLIS_DPR16X4": 2, "TRELLIS_FF": 5, "DP16KD": 3, "PFUMX": 1}
        | {"MULT18X18D": 4}
    )
    assert (found.lut, found.lut_ram, found.ff, found.carry) == (27, 12, 5, 10)
    assert (found.dsp, found.bram, found.uram) == (4, 3, 0)
    assert found.other == {"PFUMX": 1}


def test_cells_that_were_not_mapped_are_not_ignored():
    with pytest.raises(
        ValueError, match=r"^cells must be mapped to the target, not \$mem_v2, \$mul$"
    ):
        xilinx_resources({"LUT6": 1, "$mul": 2, "$mem_v2": 1})
