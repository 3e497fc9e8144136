"""RunUnit: its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports
from lutra_sim.bench.control.front import RunFront
from lutra_sim.bench.simulate import run_cocotb

CONFIGS = {
    "nano": NANO,
    # words of one instruction, and of four
    "narrow": NANO.with_(pass_tokens=3, head_dim=32, max_context=64),
    "wide": NANO.with_(
        pass_tokens=20, head_dim=128, ports=two_ports(weights=1024, data=1024), acc_blocks=256
    ),
}


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "nano")) for name in CONFIGS],
)
def test_bench(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    run_cocotb(RunFront(config), "lutra_sim.bench.control.tb_runs", tmp_path, parameters=config)
