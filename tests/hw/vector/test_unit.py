"""VectorUnit against the golden interpreter."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_hw.vector.unit import VectorUnit
from lutra_sim.bench.simulate import run_cocotb

SMALL = NANO.with_(
    name="small",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_blocks=18,
    act_tiles=7,
    hidden_max=40,
    param_words=16,
    head_dim=32,
    n_heads=2,
    n_kv_heads=1,
    max_context=32,
)
SMALL_16 = with_engine(SMALL, "mac", a_width=16)
FEATURED = SMALL.with_(name="small-featured", param_words=32, qkv_bias=True, qk_norm=True)


def test_rejects_a_config_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        VectorUnit("nano")  # type: ignore[arg-type]
    assert str(error.value) == "config must be an AcceleratorConfig, not 'nano'"


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "config",
    [SMALL, SMALL_16, FEATURED, pytest.param(NANO, marks=pytest.mark.slow)],
    ids=lambda config: config.name,
)
def test_executes(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(VectorUnit(config), "lutra_sim.bench.vector.tb_unit", tmp_path, parameters=config)
