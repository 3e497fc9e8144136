"""RegisterFile: its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.configs import NANO
from lutra_hw.control.registers import RegisterFile
from lutra_sim.bench.simulate import run_cocotb


@pytest.mark.cocotb
@pytest.mark.parametrize("pass_tokens", [3, 8])
def test_bench(pass_tokens: int, tmp_path: Path) -> None:
    config = NANO.with_(pass_tokens=pass_tokens)
    run_cocotb(
        RegisterFile(config), "lutra_sim.bench.control.tb_registers", tmp_path, parameters=config
    )
