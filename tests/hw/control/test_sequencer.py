"""Sequencer: its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_hw.control.sequencer import Sequencer
from lutra_sim.bench.simulate import run_cocotb


@pytest.mark.cocotb
@pytest.mark.parametrize("config", [NANO, NANO.with_(head_dim=16)], ids=["nano", "narrow"])
def test_bench(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(
        Sequencer(config), "lutra_sim.bench.control.tb_sequencer", tmp_path, parameters=config
    )
