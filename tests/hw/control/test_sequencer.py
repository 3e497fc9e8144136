"""Sequencer: configurations it refuses, and its bench."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import NANO, AcceleratorConfig
from lutra_hw.control.sequencer import Sequencer
from lutra_sim.bench.simulate import run_cocotb


def test_rejects() -> None:
    with pytest.raises(ValueError) as error:
        Sequencer(replace(NANO, data_axi_width=128, head_dim=16))
    assert str(error.value) == "data_axi_width must be at least 256, not 128"


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "config", [NANO, replace(NANO, data_axi_width=256, head_dim=32)], ids=["nano", "narrow"]
)
def test_bench(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(
        Sequencer(config), "lutra_sim.bench.control.tb_sequencer", tmp_path, parameters=config
    )
