"""RunCheck against its golden model, at the edge of every rule and at random."""

from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.check import PROGRAM_WORDS_MAX, alignments, check_run
from lutra_golden.control.registers import CONTEXT, REGISTERS, ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports
from lutra_hw.control.check import RunCheck
from lutra_sim.bench.simulate import simulate

WIDE = NANO.with_(
    pass_tokens=3, max_context=512, head_dim=32, ports=two_ports(weights=64, data=1024)
)


def _cases(config: AcceleratorConfig) -> list[dict[str, int]]:
    """Runs that may start, each with one register at or beyond a limit."""
    rng, align = Random(1), alignments(config)
    sound = {name: 8 * align.get(name, 0) for name in CONTEXT} | {"N_TOKENS": config.pass_tokens}
    top = config.max_context - config.pass_tokens
    longest = PROGRAM_WORDS_MAX * config.word_bytes
    values = {name: [step * n for n in (0, 1, 2)] for name, step in align.items()}
    for name, step in align.items():
        values[name] += [8 * step + (1 << bit) for bit in range(step.bit_length())]
    values["PROGRAM_BYTES"] += [longest, min(longest + config.word_bytes, (1 << 32) - 1)]
    values |= {
        "N_TOKENS": [0, 1, config.pass_tokens, config.pass_tokens + 1, 255],
        "LOGITS_FROM": [0, config.pass_tokens, config.pass_tokens + 1, 255],
        "POSITION": [0, top, top + 1, config.max_context, (1 << 16) - 1],
    }
    cases = [sound | {name: value} for name in CONTEXT for value in values[name]]
    pairs = [rng.sample(CONTEXT, 2) for _ in range(300)]
    return cases + [sound | {name: rng.choice(values[name]) for name in pair} for pair in pairs]


@pytest.mark.parametrize("config", [NANO, WIDE], ids=["nano", "wide"])
def test_refuses_what_golden_refuses(config: AcceleratorConfig) -> None:
    dut, cases, codes = RunCheck(config), _cases(config), set[int]()

    async def check(ctx: Any) -> None:
        for registers in cases:
            for name, value in registers.items():
                assert value < 1 << REGISTERS[name].width
                ctx.set(getattr(dut.context, name.lower()), value)
            await ctx.tick()
            expected = check_run(config, registers)
            assert ctx.get(dut.code) == expected, registers
            codes.add(expected)

    simulate(dut, check)
    assert codes == {code for code in ErrorCode if code < ErrorCode.BUS}
