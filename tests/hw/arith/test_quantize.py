"""Quantizer against the golden model."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra.hw.arith.quantize import Quantizer
from lutra.sim.bench.arith.tb_quantize import QuantizerSize
from lutra.sim.bench.simulate import run_cocotb, simulate
from lutra.sim.golden.arith.quantize import quantize_factor, quantize_int8


@pytest.mark.parametrize(
    ("lanes", "y_width", "kind", "message"),
    [
        ("8", 32, TypeError, "lanes must be an integer, not '8'"),
        (8, 2.0, TypeError, "y_width must be an integer, not 2.0"),
        (0, 32, ValueError, "lanes must be positive, not 0"),
        (8, 0, ValueError, "y_width must be in 1..47, not 0"),
        (8, 48, ValueError, "y_width must be in 1..47, not 48"),
    ],
)
def test_rejects(lanes: Any, y_width: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        Quantizer(lanes, y_width)
    assert str(error.value) == message


def test_latency() -> None:
    dut = Quantizer(2, 16)
    factor = quantize_factor(1000)
    vectors = [(1000, -1000), (0, 1), (500, -500), (4, 3), (-4, -3), (0, 0)]
    results = []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.factor, {"m": int(factor.m), "e": int(factor.e)})
        for vector in [*vectors, *[(0, 0)] * dut.latency]:
            ctx.set(dut.y, vector)
            results.append([ctx.get(dut.q[lane]) for lane in (0, 1)])
            await ctx.tick()

    simulate(dut, bench)
    assert results[dut.latency :] == quantize_int8(vectors, factor).tolist()


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "size",
    [
        QuantizerSize(lanes=8, y_width=32),
        QuantizerSize(lanes=3, y_width=47),
        QuantizerSize(lanes=1, y_width=9),
    ],
    ids=lambda size: f"{size.lanes}x{size.y_width}",
)
def test_golden(size: QuantizerSize, tmp_path: Path) -> None:
    bench = "lutra.sim.bench.arith.tb_quantize"
    run_cocotb(Quantizer(size.lanes, size.y_width), bench, tmp_path, parameters=size)
