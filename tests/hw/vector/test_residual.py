"""ResidualAdd and Logits against the golden model."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import NANO, AcceleratorConfig, with_engine
from lutra_hw.vector.residual import Logits, ResidualAdd
from lutra_sim.bench.simulate import run_cocotb

SMALL = AcceleratorConfig(
    name="small",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_width=20,
    row_blocks_max=18,
    hidden_max=40,
    param_words=16,
    head_dim=32,
    data_axi_width=256,
    weight_axi_width=1024,
)
CONFIGS = [SMALL, with_engine(SMALL, "mac", a_width=16), NANO]


@pytest.mark.parametrize("block", [ResidualAdd, Logits])
def test_rejects_a_config_of_another_kind(block: type) -> None:
    with pytest.raises(TypeError) as error:
        block("nano")
    assert str(error.value) == "config must be an AcceleratorConfig, not 'nano'"


def test_logits_need_a_word_per_beat() -> None:
    narrow = AcceleratorConfig(
        name="narrow",
        step_depth=24,
        depth_tile=24,
        head_dim=16,
        data_axi_width=128,
        weight_axi_width=1024,
    )
    with pytest.raises(ValueError) as error:
        Logits(narrow)
    assert str(error.value) == "data_axi_width must be at least 256, not 128"


@pytest.mark.cocotb
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_residual_add(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(
        ResidualAdd(config), "lutra_sim.bench.vector.tb_residual", tmp_path, parameters=config
    )


@pytest.mark.cocotb
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_logits(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(Logits(config), "lutra_sim.bench.vector.tb_logits", tmp_path, parameters=config)
