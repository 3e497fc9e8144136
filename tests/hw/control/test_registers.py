"""RegisterFile: its bench."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra.hw.control.registers import RegisterFile
from lutra.sim.bench.simulate import run_cocotb
from lutra.sim.golden.core.config import NANO


@pytest.mark.cocotb
@pytest.mark.parametrize("m_tile", [3, 8])
def test_bench(m_tile: int, tmp_path: Path) -> None:
    config = replace(NANO, m_tile=m_tile)
    run_cocotb(
        RegisterFile(config), "lutra.sim.bench.control.tb_registers", tmp_path, parameters=config
    )
