"""RopeQuant against the golden model."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_hw.vector.rope import RopeQuant
from lutra_sim.bench.simulate import run_cocotb

# one pair per head, two records of scales in a beat
NARROW = NANO.with_(
    name="narrow",
    step_depth=24,
    depth_tile=24,
    pass_tokens=5,
    acc_blocks=10,
    head_dim=16,
    n_heads=3,
    n_kv_heads=1,
    max_context=16,
)
# the second pass is the slowest
WIDE = NANO.with_(
    name="wide",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_width=18,
    acc_blocks=96,
    head_dim=128,
    n_heads=4,
    n_kv_heads=1,
    max_context=32,
)
# accumulators of 28 bits
NARROW_28 = with_engine(NARROW, "mac")
FOUR_BITS = [
    config.with_(name=f"{config.name}-kv4", key_width=4, value_width=4)
    for config in (
        NARROW,
        # a record of scales that fills a beat
        NARROW_28.with_(n_heads=2, n_kv_heads=2, acc_blocks=12),
        NANO.with_(name="nano-both", qkv_bias=True, qk_norm=True),
        NANO,
    )
]
BIAS = NARROW.with_(name="narrow-bias", qkv_bias=True)
NORM = WIDE.with_(name="wide-norm", qk_norm=True)
BOTH = [
    config.with_(name=f"{config.name}-both", qkv_bias=True, qk_norm=True)
    for config in (NARROW_28, WIDE, NANO)
]


def test_rejects_a_config_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        RopeQuant("nano")  # type: ignore[arg-type]
    assert str(error.value) == "config must be an AcceleratorConfig, not 'nano'"


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "config",
    [
        NARROW,
        BOTH[0],
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (NARROW_28, WIDE, BIAS, NORM, *BOTH[1:])
        ),
        NANO,
        FOUR_BITS[0],
        *(pytest.param(each, marks=pytest.mark.slow) for each in FOUR_BITS[1:]),
    ],
    ids=lambda config: config.name,
)
def test_follows_golden(config: AcceleratorConfig, tmp_path: Path) -> None:
    run_cocotb(RopeQuant(config), "lutra_sim.bench.vector.tb_rope", tmp_path, parameters=config)
