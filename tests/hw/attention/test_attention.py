"""AttentionUnit against the golden model."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_hw.attention.attention import AttentionUnit
from lutra_sim.bench.simulate import run_cocotb


def _config(name: str, **changes: int) -> AcceleratorConfig:
    """``nano`` with other sizes; one head is one beat."""
    return NANO.with_(name=name, **changes)


SMALL = _config("small", head_dim=16, n_heads=3, n_kv_heads=1, pass_tokens=4, max_context=32)
ODD = _config("odd", head_dim=32, n_heads=3, n_kv_heads=3, pass_tokens=3, max_context=16)
TINY = _config("tiny", head_dim=8, n_heads=1, n_kv_heads=1, pass_tokens=1, max_context=8)
FOUR_BITS = [
    config.with_(name=f"{config.name}-kv4", key_width=4, value_width=4)
    for config in (SMALL, ODD, TINY, NANO)
]
PARTS = [
    config.with_(name=f"{config.name}-{n}-cycles", pair_cycles=n)
    for config, n in (
        (TINY.with_(head_dim=16), 2),
        (SMALL, 2),
        (ODD, 2),
        (FOUR_BITS[1], 4),
        (NANO.with_(max_context=64), 8),
    )
]


def test_rejects_config_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        AttentionUnit("nano")  # type: ignore[arg-type]
    assert str(error.value) == "config must be an AcceleratorConfig, not 'nano'"


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        TINY,
        FOUR_BITS[0],
        PARTS[0],
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (ODD, NANO, *FOUR_BITS[1:], *PARTS[1:])
        ),
    ],
    ids=lambda config: config.name,
)
def test_against_golden(config: AcceleratorConfig, tmp_path: Path) -> None:
    bench = "lutra_sim.bench.attention.tb_attention"
    long = config.max_context > 64
    run_cocotb(AttentionUnit(config), bench, tmp_path, parameters=config, optimize=long)
