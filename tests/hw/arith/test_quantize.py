"""Quantizer against the golden model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.fixed import round_shift
from lutra_golden.arith.quantize import q_max_of, quantize, quantize_factor
from lutra_golden.arith.scale import Scale
from lutra_hw.arith.quantize import Quantizer
from lutra_sim.bench.arith.tb_quantize import QuantizerSize
from lutra_sim.bench.simulate import run_cocotb, simulate


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("8", 32), TypeError, "lanes must be an integer, not '8'"),
        ((8, 2.0), TypeError, "y_width must be an integer, not 2.0"),
        ((8, 32, "8"), TypeError, "q_width must be an integer, not '8'"),
        ((0, 32), ValueError, "lanes must be positive, not 0"),
        ((8, 0), ValueError, "y_width must be in 1..48, not 0"),
        ((8, 49), ValueError, "y_width must be in 1..48, not 49"),
        ((8, 32, 12), ValueError, "q_width must be 8 or 16, not 12"),
    ],
)
def test_rejects(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        Quantizer(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(("q_width", "unit"), [(8, 1), (16, 1), (8, 1 << 37)])
def test_latency(q_width: int, unit: int) -> None:
    """With a large ``unit`` products are shifted by more than 31."""
    dut = Quantizer(2, 48, q_width)
    factor = quantize_factor(1000 * unit, q_max_of(q_width))
    vectors = [(1000, -1000), (0, 1), (500, -500), (4, 3), (-4, -3), (0, 0)]
    vectors = [(a * unit, b * unit) for a, b in vectors]
    results = []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.factor, {"m": int(factor.m), "e": int(factor.e)})
        for vector in [*vectors, *[(0, 0)] * dut.latency]:
            ctx.set(dut.y, vector)
            results.append([ctx.get(dut.q[lane]) for lane in (0, 1)])
            await ctx.tick()

    simulate(dut, bench)
    assert results[dut.latency :] == quantize(vectors, factor, q_max_of(q_width)).tolist()


def test_the_most_negative_code_is_never_given() -> None:
    """At 16 bits the factor's error alone reaches it, so only the clamp keeps it out."""
    maxima = np.arange(1 << 15, 1 << 16)
    factors = quantize_factor(maxima, 32767)
    index = int((round_shift(-maxima * factors.m, -factors.e) < -32767).argmax())
    y_max, factor = int(maxima[index]), Scale(factors.m[index], factors.e[index])
    dut = Quantizer(2, 17, 16)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.factor, {"m": int(factor.m), "e": int(factor.e)})
        ctx.set(dut.y, (y_max, -y_max))
        for _ in range(dut.latency):
            await ctx.tick()
        assert [ctx.get(dut.q[lane]) for lane in (0, 1)] == [32767, -32767]

    assert round_shift(-y_max * factor.m, -factor.e) == -32768
    simulate(dut, bench)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "size",
    [
        QuantizerSize(lanes=8, y_width=32),
        QuantizerSize(lanes=3, y_width=48),
        QuantizerSize(lanes=1, y_width=9),
        QuantizerSize(lanes=8, y_width=32, q_width=16),
        QuantizerSize(lanes=2, y_width=47, q_width=16),
    ],
    ids=lambda size: f"{size.lanes}x{size.y_width}-{size.q_width}",
)
def test_golden(size: QuantizerSize, tmp_path: Path) -> None:
    bench = "lutra_sim.bench.arith.tb_quantize"
    dut = Quantizer(size.lanes, size.y_width, size.q_width)
    run_cocotb(dut, bench, tmp_path, parameters=size)
