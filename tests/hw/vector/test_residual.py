"""ResidualAdd and Logits against the golden model."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_hw.vector.residual import Logits, ResidualAdd
from lutra_sim.bench.simulate import run_cocotb

SMALL = NANO.with_(
    name="small",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_width=20,
    acc_blocks=18,
    hidden_max=40,
    param_words=16,
    head_dim=32,
)
CONFIGS = [SMALL, with_engine(SMALL, "mac", a_width=16), NANO]


@pytest.mark.parametrize("block", [ResidualAdd, Logits])
def test_rejects_a_config_of_another_kind(block: type) -> None:
    with pytest.raises(TypeError) as error:
        block("nano")
    assert str(error.value) == "config must be an AcceleratorConfig, not 'nano'"


@pytest.mark.cocotb
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_residual_add(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(
        ResidualAdd(config), "lutra_sim.bench.vector.tb_residual", tmp_path, parameters=config
    )


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "config",
    [*CONFIGS[:2], pytest.param(NANO, marks=pytest.mark.slow)],
    ids=lambda config: config.name,
)
def test_logits(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(Logits(config), "lutra_sim.bench.vector.tb_logits", tmp_path, parameters=config)
