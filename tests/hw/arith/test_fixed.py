"""Expressions of ``arith.fixed`` against the golden model."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Module, Shape, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith import fixed
from lutra_hw.arith.fixed import bit_length, leaves, magnitude, round_shift, saturate
from lutra_sim.bench.simulate import simulate


class Expression(wiring.Component):
    """``o = expression(m, x, n)``, a cycle later."""

    def __init__(
        self, shape: Shape, out: Shape, expression: Callable[[Module, Value, Value], Value]
    ) -> None:
        self._expression = expression
        super().__init__({"x": In(shape), "n": In(6), "o": Out(out)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += self.o.eq(self._expression(m, self.x, self.n))
        return m


def _evaluate(dut: Expression, pairs: list[tuple[int, int]]) -> list[int]:
    results: list[int] = []

    async def bench(ctx: Any) -> None:
        for x, n in pairs:
            ctx.set(dut.x, x)
            ctx.set(dut.n, n)
            await ctx.tick()
            results.append(ctx.get(dut.o))

    simulate(dut, bench)
    return results


def _values(shape: Shape, seed: int = 1) -> list[int]:
    """Every value of a small shape; corners and values of every magnitude of a large one."""
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    high = low + (1 << shape.width) - 1
    if shape.width <= 9:
        return list(range(low, high + 1))
    rng = Random(seed)
    corners = [low, low + 1, -1, 0, 1, high - 1, high, high >> 1, (high >> 1) + 1]
    powers = [s * (1 << bit) + d for bit in range(shape.width) for s in (-1, 1) for d in (-1, 0, 1)]
    some = [rng.randint(low, high) >> rng.randrange(shape.width) for _ in range(300)]
    return [x for x in corners + powers + some if low <= x <= high]


@pytest.mark.parametrize("shape", [signed(7), unsigned(7), signed(58), unsigned(62)], ids=repr)
def test_round_shift(shape: Shape) -> None:
    out = Shape(shape.width + 1, shape.signed)
    rng = Random(2)
    pairs = [(x, n) for x in _values(shape) for n in (0, 1, 2, 63, rng.randrange(64))]
    xs, shifts = zip(*pairs, strict=True)
    dut = Expression(shape, out, lambda m, x, n: round_shift(x, n))
    assert _evaluate(dut, pairs) == fixed.round_shift(xs, shifts).tolist()


@pytest.mark.parametrize(("width", "limit"), [(9, 4), (9, 8), (9, 9), (9, 1), (40, 32), (4, 8)])
def test_saturate(width: int, limit: int) -> None:
    xs = _values(signed(width))
    dut = Expression(signed(width), signed(limit), lambda m, x, n: saturate(x, limit))
    assert _evaluate(dut, [(x, 0) for x in xs]) == fixed.saturate(xs, limit).tolist()


@pytest.mark.parametrize(("width", "limit"), [(9, 4), (9, 8), (9, 9), (9, 1), (40, 32), (4, 8)])
def test_leaves(width: int, limit: int) -> None:
    xs = _values(signed(width))
    dut = Expression(signed(width), unsigned(1), lambda m, x, n: leaves(x, limit))
    expected = [int(x != y) for x, y in zip(xs, fixed.saturate(xs, limit).tolist(), strict=True)]
    assert _evaluate(dut, [(x, 0) for x in xs]) == expected


@pytest.mark.parametrize("width", [1, 2, 8, 33])
def test_magnitude(width: int) -> None:
    xs = _values(signed(width))
    dut = Expression(signed(width), unsigned(width), lambda m, x, n: magnitude(x))
    assert _evaluate(dut, [(x, 0) for x in xs]) == [abs(x) for x in xs]


@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 58, 63])
def test_bit_length(width: int) -> None:
    xs = _values(unsigned(width))
    dut = Expression(unsigned(width), unsigned(7), lambda m, x, n: bit_length(m, x))
    assert _evaluate(dut, [(x, 0) for x in xs]) == fixed.bit_length(xs).tolist()
