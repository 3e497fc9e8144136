"""Tables, lookups and sums against the golden model."""

from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Value

from lutra_golden.matmul.table import build_table, encode_trits, relative_signs, sum_lookups
from lutra_golden.matmul.ternary import TernaryParams
from lutra_hw.matmul.table import SignedSum, TernaryDatapath
from lutra_sim.bench.simulate import simulate


def test_rejects_no_values() -> None:
    with pytest.raises(ValueError) as error:
        SignedSum(0, 10)
    assert str(error.value) == "n must be positive, not 0"


def _value(o: int, negate: int, width: int) -> int:
    value = o - (1 << (width - 1))
    return -value if negate else value


def _sum(ctx: Any, dut: SignedSum) -> int:
    return _value(ctx.get(dut.o), ctx.get(dut.o_negate), dut.o_width)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("n", "latency"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 2), (24, 3)])
def test_signed_sum(n: int, latency: int, relative: bool) -> None:
    rng = Random(n)
    dut = SignedSum(n, 4, relative=relative)
    assert dut.latency == latency
    corners = [([value] * n, negate) for value in (-8, 7, 0) for negate in (0, (1 << n) - 1)]
    sums = [([rng.randrange(-8, 8) for _ in range(n)], rng.getrandbits(n)) for _ in range(100)]
    expected, results = [], []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.en, (1 << latency) - 1)
        for values, negate in [*corners, *sums, *[([0] * n, 0)] * latency]:
            ctx.set(dut.i, [value + 8 for value in values])
            bits = [negate >> k & 1 for k in range(n)]
            if relative:
                bits[1:] = [bits[k] ^ bits[k & (k - 1)] for k in range(1, n)]
            ctx.set(dut.negate, sum(bit << k for k, bit in enumerate(bits)))
            expected.append(sum(-v if negate >> i & 1 else v for i, v in enumerate(values)))
            results.append(_sum(ctx, dut))
            await ctx.tick()
        ctx.set(dut.en, 0)
        ctx.set(dut.i, [15] * n)
        await ctx.tick().repeat(latency)
        assert _sum(ctx, dut) == 0

    simulate(dut, bench)
    assert results[latency:] == expected[:-latency]


def _signed(o: int, negate: int, dut: TernaryDatapath) -> list[int]:
    mask = (1 << dut.o_width) - 1
    return [
        _value(o >> row * dut.o_width & mask, negate >> row & 1, dut.o_width)
        for row in range(dut.params.step_rows)
    ]


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        TernaryDatapath(12)  # type: ignore[arg-type]
    assert str(error.value) == "params must be TernaryParams, not 12"


@pytest.mark.parametrize(
    "params",
    [
        TernaryParams(step_depth=15, depth_tile=15),
        TernaryParams(step_depth=3, depth_tile=3, a_width=16),
        TernaryParams(step_rows=16, step_depth=21, depth_tile=21),
    ],
    ids=["five", "one", "rows"],
)
@pytest.mark.parametrize("stall", [False, True])
def test_datapath(params: TernaryParams, stall: bool) -> None:
    """Tables of one set are written, at the shortest distance, while the other is looked up."""
    rng = np.random.default_rng(params.step_depth + stall)
    dut = TernaryDatapath(params)
    low, high = -(1 << (params.a_width - 1)), (1 << (params.a_width - 1)) - 1
    n_passes = 8
    a = rng.integers(low, high + 1, (n_passes, params.n_tables, 3))
    a[0], a[1], a[2] = low, high, np.where(np.arange(3) == 1, low, high)
    tables = build_table(a)
    # every code comes up in every table, then all signs equal, which makes the largest sums
    trits = np.array(list(product((-1, 0, 1), repeat=3)))
    shape = (n_passes, dut.prepare_cycles, params.step_rows, params.n_tables)
    codes = encode_trits(trits[rng.integers(0, 27, shape)])
    codes[:, 0, 0], codes[:, -1, 0] = encode_trits(np.array([[1, 1, 1], [-1, -1, -1]]))
    codes[:, 1, 0] = encode_trits(np.array([1, -1, 1]))
    codes[:, 2] = 0
    history: list[list[int]] = []  # of every cycle
    expected: dict[int, list[int]] = {}  # by the cycle of the result

    async def bench(ctx: Any) -> None:
        async def tick() -> None:
            o = ctx.get(Value.cast(dut.o))
            history.append(_signed(o, ctx.get(dut.negate), dut))
            await ctx.tick()

        for index, cycle in np.ndindex(n_passes + 1, dut.prepare_cycles):
            enable = index > 0 and not (stall and rng.random() < 0.4)
            ctx.set(dut.start, cycle == 0 and index < n_passes)
            ctx.set(dut.start_set, index % 2 if cycle == 0 else rng.integers(2).item())
            ctx.set(dut.en, enable)
            ctx.set(dut.set, (index + 1) % 2)
            if index:
                flat = relative_signs(codes[index - 1, cycle]).ravel().tolist()
                ctx.set(dut.digits, sum(code << 5 * i for i, code in enumerate(flat)))
            if enable:
                sums = sum_lookups(tables[index - 1], codes[index - 1, cycle])
                expected[len(history) + dut.latency] = sums.tolist()
            await tick()
            if cycle == 0 and index < n_passes:
                ctx.set(dut.i, a[index].ravel().tolist())
        ctx.set(dut.en, 0)
        for _ in range(dut.latency + 3):
            await tick()

    simulate(dut, bench)
    assert {cycle: history[cycle] for cycle in expected} == expected
    # without a step nothing moves
    held = set(range(min(expected), len(history))) - expected.keys()
    assert all(history[cycle] == history[cycle - 1] for cycle in held)
    assert not stall or len(held) > 30
