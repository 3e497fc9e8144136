"""NormQuant against the golden model."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_hw.vector.norm import NormQuant
from lutra_sim.bench.simulate import run_cocotb

SMALL = NANO.with_(
    name="small",
    pass_tokens=3,
    step_depth=15,
    depth_tile=15,
    act_tiles=8,
    acc_blocks=24,
    hidden_max=96,
    n_heads=2,
    param_words=32,
)
SMALL_16 = with_engine(SMALL, "mac", a_width=16)
SMALL_G32 = with_engine(SMALL, "mac", depth_tile=32, a_groups=ActivationGroups(size=32))
# longer than heads, and than a half of the residual stream
SMALL_G128 = with_engine(
    SMALL.with_(hidden_max=192), "mac", a_groups=ActivationGroups(size=128, shift_max=3)
)


def test_rejects_a_config_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        NormQuant("nano")  # type: ignore[arg-type]
    assert str(error.value) == "config must be AcceleratorConfig, not 'nano'"


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "config",
    [SMALL, SMALL_16, SMALL_G32, SMALL_G128, pytest.param(NANO, marks=pytest.mark.slow)],
    ids=lambda config: config.name,
)
def test_golden(config: AcceleratorConfig, tmp_path: Path) -> None:
    bench = "lutra_sim.bench.vector.tb_norm"
    run_cocotb(NormQuant(config), bench, tmp_path, parameters=config)
