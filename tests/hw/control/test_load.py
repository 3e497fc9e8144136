"""LoadUnit: its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_hw.control.load import LoadUnit
from lutra_sim.bench.simulate import run_cocotb

SMALL = NANO.with_(
    pass_tokens=5,
    head_dim=32,
    hidden_max=96,
    param_words=64,
    max_context=64,
)


@pytest.mark.cocotb
@pytest.mark.parametrize("config", [NANO, SMALL], ids=["nano", "small"])
def test_bench(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(LoadUnit(config), "lutra_sim.bench.control.tb_load", tmp_path, parameters=config)
