"""HeadScales against the golden model: factors, scales, their order and their cycles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from lutra_golden.arith.quantize import quantize_factor, quantize_step
from lutra_golden.arith.scale import Scale, scale_mul
from lutra_golden.core.configs import NANO
from lutra_golden.timing.rope import HEAD_CYCLES, HEAD_NORM_CYCLES
from lutra_golden.vector.heads import FIXED_UNIT, HeadNorm, head_norm
from lutra_golden.vector.rope import ROPE_FRAC
from lutra_hw.vector.head_scales import HeadScales
from lutra_sim.bench.simulate import simulate

HEADS, KEYS_END, VALUES_END, TOKENS = 4, 6, 8, 3
KINDS = np.repeat([0, 1, 2], [HEADS, KEYS_END - HEADS, VALUES_END - KEYS_END])
Y_WIDTH = 47
FEATURED = NANO.with_(qkv_bias=True, qk_norm=True)


def test_rejects_a_config_of_another_kind() -> None:
    config: Any = "nano"
    with pytest.raises(TypeError) as error:
        HeadScales(config, Y_WIDTH)
    assert str(error.value) == "config must be an AcceleratorConfig, not 'nano'"


@pytest.mark.parametrize(
    ("config", "fixed", "normed"),
    [
        (NANO, False, False),
        (NANO.with_(qkv_bias=True), True, False),
        (FEATURED, False, False),
        (FEATURED, True, False),
        (FEATURED, True, True),
        pytest.param(NANO.with_(key_width=4, value_width=4), False, False, id="four-bits"),
        pytest.param(FEATURED.with_(key_width=4, value_width=4), True, True, id="four-bits-normed"),
    ],
)
def test_tile(config: Any, fixed: bool, normed: bool) -> None:
    rng = np.random.default_rng(1)
    shape = TOKENS, VALUES_END
    y_max = rng.integers(0, 1 << Y_WIDTH, shape) >> rng.integers(0, Y_WIDTH, shape)
    y_max[1, :7:2], y_max[2, 0] = 0, (1 << Y_WIDTH) - 1
    s = Scale(rng.integers(1 << 15, 1 << 16, TOKENS), rng.integers(-30, 0, TOKENS))
    weights = Scale(rng.integers(1 << 15, 1 << 16, 3), rng.integers(-30, 10, 3))
    v = rng.integers(-(1 << 27), 1 << 27, (*shape, config.head_dim))
    v[0, 1] >>= 26
    v[1, 0], v[2, 2] = 0, -(1 << 27)

    # two tiles: with the least and the largest epsilon
    for eps, gamma_frac in ((0, 12), ((1 << 16) - 1, 0)):
        _, root = head_norm(v, HeadNorm(np.zeros(config.head_dim, np.int64), gamma_frac, eps))
        unit = scale_mul(
            Scale(s.m[:, None], s.e[:, None]), Scale(weights.m[KINDS], weights.e[KINDS])
        )
        if fixed:
            unit = Scale(np.full(shape, FIXED_UNIT.m), np.full(shape, FIXED_UNIT.e))
        if normed:
            is_normed = np.broadcast_to(np.arange(VALUES_END) < KEYS_END, shape)
            unit = Scale(*(np.where(is_normed, a, b) for a, b in zip(root, unit, strict=True)))
        step = _by_kind(config, quantize_step, y_max)
        step = Scale(step.m, step.e - np.where(step.m == 0, 0, ROPE_FRAC))
        modes = {"fixed": fixed, "qk_norm": normed, "eps": eps, "gamma_frac": gamma_frac}
        scales, factors, cycles = _run(config, y_max, s, weights, (v * v).sum(axis=-1), modes)
        assert scales == list(
            zip(*(x.reshape(-1).tolist() for x in scale_mul(step, unit)), strict=True)
        )
        factor = _by_kind(config, quantize_factor, y_max)
        assert factors == list(zip(factor.m.flat, factor.e.flat, strict=True))
        between = np.where(normed & (KINDS < 2), HEAD_CYCLES + HEAD_NORM_CYCLES, HEAD_CYCLES)
        assert (np.diff(cycles).reshape(-1)[: len(KINDS) - 1] == between[:-1]).all()


def _by_kind(config: Any, of: Callable[[Any, int], Scale], y_max: np.ndarray) -> Scale:
    """Results of ``of`` with 127 for queries, and with the cache's range for keys and values."""
    query, kv = of(y_max, 127), of(y_max, {8: 127, 4: 7}[config.attention.key_width])
    return Scale(*(np.where(KINDS == 0, a, b) for a, b in zip(query, kv, strict=True)))


def _run(
    config: Any, y_max: np.ndarray, s: Scale, weights: Scale, squares: np.ndarray, modes: Any
) -> tuple[list[Any], list[Any], list[int]]:
    """Scales and factors in order, and the cycles in which heads end."""
    dut = HeadScales(config, Y_WIDTH)
    scales: list[Any] = []
    factors: list[Any] = []
    cycles: list[int] = []

    async def drive(ctx: Any) -> None:
        for name, m, e in zip(("scale_q", "scale_k", "scale_v"), *weights, strict=True):
            ctx.set(getattr(dut, name), {"m": int(m), "e": int(e)})
        for name, value in modes.items():
            if hasattr(dut, name):
                ctx.set(getattr(dut, name), value)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for token, head in np.ndindex(*y_max.shape):
            # the buffers hold two tokens
            while len(factors) < (token - 1) * y_max.shape[1]:
                await ctx.tick()
            addr = {"head": head, "odd": token & 1}
            if config.vector.qk_norm:
                ctx.set(dut.squares.en, 1)
                ctx.set(dut.squares.addr, addr)
                ctx.set(dut.squares.data, int(squares[token, head]))
                await ctx.tick()
                ctx.set(dut.squares.en, 0)
            ctx.set(dut.maximum.en, 1)
            ctx.set(dut.maximum.addr, addr)
            ctx.set(dut.maximum.data, int(y_max[token, head]))
            await ctx.tick()
            ctx.set(dut.maximum.en, 0)

    async def serve(ctx: Any) -> None:
        token = 0
        while len(factors) < y_max.size:
            ctx.set(dut.scale_r.data, {"m": int(s.m[token]), "e": int(s.e[token])})
            token = min(ctx.get(dut.scale_r.addr.token), len(s.m) - 1)
            await ctx.tick()

    async def collect(ctx: Any) -> None:
        cycle = 0
        while len(scales) < y_max.size or len(factors) < y_max.size:
            if ctx.get(dut.scale.en):
                index = divmod(len(scales), y_max.shape[1])
                assert (ctx.get(dut.scale.addr.token), ctx.get(dut.scale.addr.head)) == index
                scales.append((ctx.get(dut.scale.data.m), ctx.get(dut.scale.data.e)))
            factored = ctx.get(dut.factored)
            if factored:
                cycles.append(cycle)
                token, head = divmod(len(factors), y_max.shape[1])
                ctx.set(dut.factor.addr, {"head": head, "odd": token & 1})
            await ctx.tick()
            cycle += 1
            if factored:
                # written at the edge, read at the next one
                await ctx.tick()
                cycle += 1
                factors.append((ctx.get(dut.factor.data.m), ctx.get(dut.factor.data.e)))

    simulate(dut, drive, serve, collect)
    return scales, factors, cycles
