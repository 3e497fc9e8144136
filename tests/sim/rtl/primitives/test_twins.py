"""Twins join the netlists that use them; that of DSP48E2 adds as UG579 says, or refuses.

Those of the other primitives are proven equal to Yosys' models: see the catalogue of proofs.
"""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.fabric import Fabric
from lutra_hw.fabric.accumulate import Accumulate
from lutra_hw.netlist import to_rtlil, to_verilog
from lutra_sim.bench.fabric.slices import ADDER, Slices, SlicesParams
from lutra_sim.bench.simulate import BenchFailure, run_cocotb
from lutra_sim.rtl.primitives.twins import PRIMITIVES, all_twins, twins_for_rtlil, with_twins

BENCH = "lutra_sim.bench.fabric.tb_slices"


def _modules(text: str) -> list[str]:
    return [name for name in PRIMITIVES if f"module {name} " in text]


def test_netlists_get_the_twins_that_they_use() -> None:
    cell = Accumulate(4, 4, Fabric.XCUP)
    verilog = to_verilog(cell, "cell")
    joined = with_twins(verilog)
    assert joined.startswith(verilog)
    assert _modules(joined) == ["LUT6_2", "CARRY8"]
    assert _modules(twins_for_rtlil(to_rtlil(Accumulate(4, 4, Fabric.XCUP), "cell"))) == [
        "LUT6_2",
        "CARRY8",
    ]
    assert _modules(all_twins()) == list(PRIMITIVES)


def test_other_netlists_stay_as_they_are() -> None:
    verilog = to_verilog(Accumulate(4, 4, Fabric.GENERIC), "cell")
    assert with_twins(verilog) == verilog
    assert twins_for_rtlil(to_rtlil(Accumulate(4, 4, Fabric.GENERIC), "cell")) == ""


def _run(params: SlicesParams, tmp_path: Path) -> None:
    # a run that ends by $fatal leaves no counts, and twins have none
    run_cocotb(Slices(params), BENCH, tmp_path, parameters=params, coverage=False)


@pytest.mark.cocotb
def test_dsp48e2_adds(tmp_path: Path) -> None:
    _run(SlicesParams(changed={}), tmp_path)


OTHER = {
    "USE_MULT": "MULTIPLY",
    "USE_SIMD": "TWO24",
    **{name: 1 - value for name, value in ADDER.items() if isinstance(value, int)},
}


@pytest.mark.cocotb
@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_dsp48e2_refuses_parameters(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="twin_of_DSP48E2_has_no_such_parameters"):
        _run(SlicesParams(changed={name: value}), tmp_path)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("port", "value"),
    [
        ("opmode", 0b00_010_11_11),  # Z = P
        ("opmode", 0b01_001_11_11),  # W = P
        ("opmode", 0b00_001_11_01),  # X = M
        ("opmode", 0b00_001_10_11),  # Y of all ones
        ("alumode", 0b0011),  # Z - W - X - Y - CIN
        ("inmode", 0b00001),
        ("carryin", 1),
        ("carryinsel", 0b010),
    ],
)
def test_dsp48e2_refuses_modes(port: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(BenchFailure, match="the twin of DSP48E2 has no such OPMODE"):
        _run(SlicesParams(changed={}, port=port, value=value), tmp_path)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("name", "value"),
    [("CEA2", 0), ("CEB2", 0), ("CEC", 0), ("CEP", 0), ("RSTA", 1), ("RSTP", 1)],
)
def test_dsp48e2_refuses_to_stop(name: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(BenchFailure, match="the twin of DSP48E2 has no such OPMODE"):
        _run(SlicesParams(changed={name: value}), tmp_path)
