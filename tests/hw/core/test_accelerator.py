"""Accelerator: Verilog, and whole programs against the golden interpreter."""

import re
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import striped_ports, two_ports
from lutra_hw.core.accelerator import Accelerator, generate_verilog
from lutra_sim.bench.core.story import Story, StorySizes
from lutra_sim.bench.simulate import run_cocotb

SMALL = NANO.with_(
    name="small",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_blocks=32,
    act_tiles=4,
    weight_buffer_words=64,
    hidden_max=64,
    param_words=64,
    head_dim=32,
    n_heads=2,
    n_kv_heads=1,
    max_context=16,
    ports=two_ports(weights=512, data=256, max_outstanding=4, burst_bytes=256),
)
_GROUPED = {"depth_tile": 16, "acc_width": 28, "sum_width": 36, "act_tiles": 5}
_SIZES = StorySizes(hidden=64, intermediate=80, vocab=64)
CASES = {
    "ternary": (SMALL, _SIZES),
    "lut": (
        SMALL.with_(
            engine="lut",
            step_tokens=2,
            step_rows=16,
            step_depth=4,
            w_width=1,
            pass_tokens=4,
            **_GROUPED,
        ),
        _SIZES,
    ),
    "mixpe": (SMALL.with_(engine="mixpe", step_depth=8, w_width=4, **_GROUPED), _SIZES),
    "mixpe-s16": (
        SMALL.with_(
            engine="mixpe",
            step_depth=8,
            w_width=4,
            scale_width=16,
            **(_GROUPED | {"sum_width": 44}),
        ),
        _SIZES,
    ),
    "mac": (
        # a pass of 80 words is replayed
        SMALL.with_(engine="mac", step_depth=4, w_width=8, weight_buffer_words=128, **_GROUPED),
        _SIZES,
    ),
    "lookup": (
        SMALL.with_(
            engine="lookup", step_tokens=2, step_rows=16, act_tiles=5, w_width=1, pass_tokens=4
        ),
        _SIZES,
    ),
    "biases and norms": (SMALL.with_(param_words=128, qkv_bias=True, qk_norm=True), _SIZES),
    # a word of 320 bits is three beats of both ports, and a beat of both ports holds two words
    "striped": (SMALL.with_(ports=striped_ports(2, 64, max_outstanding=4, burst_bytes=64)), _SIZES),
    "striped, wide": (SMALL.with_(ports=striped_ports(4, 256, burst_bytes=256)), _SIZES),
    "cache of four bits": (SMALL.with_(key_width=4, value_width=4), _SIZES),
    "nano": (NANO, StorySizes(hidden=256, intermediate=160, vocab=128)),
}


def test_verilog_has_the_ports() -> None:
    whole = generate_verilog(SMALL)
    text = whole[whole.index("module accelerator(") :]
    text = text[: text.index("endmodule")]
    declared = set(re.findall(r"^  (?:input|output)\b(?: \[\d+:0\])? (\w+);$", text, re.MULTILINE))
    header = re.search(r"module accelerator\((.*?)\);$", text, re.MULTILINE | re.DOTALL)
    assert header is not None
    assert set(re.split(r"[,\s]+", header[1])) == declared
    groups = {name.split("__")[0] for name in declared}
    assert groups == {"clk", "rst", "bus_rst", "irq", "s_axi", "m_axi_0", "m_axi_1"}
    assert {"m_axi_1__arid", "m_axi_1__bresp", "s_axi__wstrb", "m_axi_0__rlast"} <= declared
    assert not any(name.startswith("m_axi_0__w") for name in declared)
    assert "src =" not in whole


@pytest.mark.parametrize(
    ("blocks", "sizes", "needed"),
    [
        (16, StorySizes(intermediate=64, vocab=160), 20),
        (32, StorySizes(intermediate=136, vocab=64), 34),
        (16, StorySizes(hidden=256, intermediate=64, vocab=128), 32),
    ],
)
def test_a_story_that_the_accumulators_do_not_hold(
    blocks: int, sizes: StorySizes, needed: int
) -> None:
    message = f"^acc_blocks must be at least {needed} for a story of .*, not {blocks}$"
    with pytest.raises(ValueError, match=message):
        Story(SMALL.with_(acc_blocks=blocks), sizes, Random(0))


@pytest.mark.cocotb
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bench(case: str, tmp_path: Path) -> None:
    config, sizes = CASES[case]
    run_cocotb(
        Accelerator(config),
        "lutra_sim.bench.core.tb_accelerator",
        tmp_path,
        parameters={"config": config, "sizes": sizes},
    )
