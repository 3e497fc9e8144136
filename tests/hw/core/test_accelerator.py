"""Accelerator: Verilog, and whole programs against the golden interpreter."""

import re
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra.hw.core.accelerator import ENGINES, Accelerator, generate_verilog
from lutra.sim.bench.core.story import StorySizes
from lutra.sim.bench.simulate import run_cocotb
from lutra.sim.golden.core.config import NANO, AcceleratorConfig

SMALL = AcceleratorConfig(
    name="small",
    n_tables=8,
    m_tile=3,
    row_blocks_max=32,
    act_tiles=4,
    weight_buffer_words=64,
    hidden_max=64,
    param_words=64,
    head_dim=32,
    n_heads=2,
    n_kv_heads=1,
    max_context=16,
    weight_axi_width=512,
    data_axi_width=256,
    max_outstanding=4,
    burst_bytes=256,
)
SIZES = {
    "small": (SMALL, StorySizes(hidden=64, intermediate=80, vocab=64)),
    "nano": (NANO, StorySizes(hidden=256, intermediate=160, vocab=128)),
}


def test_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "other", ENGINES["ternary"])
    monkeypatch.delitem(ENGINES, "ternary")
    with pytest.raises(ValueError) as error:
        Accelerator(SMALL)
    assert str(error.value) == "engine must be one of ['other'], not 'ternary'"


def test_verilog_has_the_ports() -> None:
    whole = generate_verilog(SMALL)
    text = whole[whole.index("module accelerator(") :]
    text = text[: text.index("endmodule")]
    declared = set(re.findall(r"^  (?:input|output)\b(?: \[\d+:0\])? (\w+);$", text, re.MULTILINE))
    header = re.search(r"module accelerator\((.*?)\);$", text, re.MULTILINE | re.DOTALL)
    assert header is not None
    assert set(re.split(r"[,\s]+", header[1])) == declared
    groups = {name.split("__")[0] for name in declared}
    assert groups == {"clk", "rst", "irq", "s_axi", "m_axi_w", "m_axi_d"}
    assert {"m_axi_d__arid", "m_axi_d__bresp", "s_axi__wstrb", "m_axi_w__rlast"} <= declared
    assert not any(name.startswith("m_axi_w__w") for name in declared)
    assert "src =" not in whole


@pytest.mark.cocotb
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_bench(size: str, tmp_path: Path) -> None:
    config, sizes = SIZES[size]
    run_cocotb(
        Accelerator(config),
        "lutra.sim.bench.core.tb_accelerator",
        tmp_path,
        parameters={"config": config, "sizes": sizes},
    )
