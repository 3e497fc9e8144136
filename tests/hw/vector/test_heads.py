"""FixedHeads against the golden model, word by word."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.scale import Scale
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.vector.heads import FIXED_FRAC, HeadBias, HeadNorm, fixed_heads, head_norm
from lutra_hw.vector.heads import FixedHeads
from lutra_sim.bench.simulate import simulate

SMALL = NANO.with_(
    name="small",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_blocks=16,
    param_words=32,
    head_dim=32,
    n_heads=2,
    n_kv_heads=1,
    max_context=16,
)
BOTH = SMALL.with_(qkv_bias=True, qk_norm=True)
BOTH_28 = with_engine(BOTH, "mac")
HEADS, D, PAIRS, WORD = 4, 32, 2, 1
KINDS = ((0, 2), (2, 3), (3, 4))


def blocks(heads: np.ndarray) -> np.ndarray:
    """Natural order ``[..., heads, D]`` as blocks ``[..., blocks, 8]``."""
    pairs = heads.reshape(*heads.shape[:-1], 2, PAIRS, 8).swapaxes(-3, -2)
    return pairs.reshape(*heads.shape[:-2], -1, 8)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ("nano", TypeError, "config must be an AcceleratorConfig, not 'nano'"),
        (NANO, ValueError, "config must have qkv_bias or qk_norm, unlike 'nano'"),
    ],
)
def test_rejects(config: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        FixedHeads(config)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("config", "biased", "normed", "centred"),
    [
        (SMALL.with_(qkv_bias=True), True, False, False),
        (SMALL.with_(qkv_bias=True), True, False, True),
        (SMALL.with_(qk_norm=True), False, True, False),
        (BOTH, True, False, False),
        (BOTH, True, False, True),
        (BOTH, False, True, False),
        (BOTH, True, True, False),
        (BOTH_28, True, True, False),
    ],
)
def test_words(config: AcceleratorConfig, biased: bool, normed: bool, centred: bool) -> None:
    """Every word of a tile in order, at full rate, with corners of every kind."""
    rng = np.random.default_rng(2 * biased + normed)
    dut, n, limit = FixedHeads(config), config.pass_tokens, 1 << (config.matmul.acc_width - 1)
    for case in range(4):
        x = rng.integers(-limit, limit, (n, HEADS, D)) >> rng.integers(0, 20, (n, HEADS, 1))
        s = Scale(rng.integers(1 << 15, 1 << 16, n), rng.integers(-45, -20, n))
        weights = Scale(rng.integers(1 << 15, 1 << 16, 3), rng.integers(-20, -5, 3))
        bias = HeadBias(rng.integers(-(1 << 15), 1 << 15, (HEADS, D)), int(rng.integers(0, 17)))
        gammas = rng.integers(-(1 << 15), 1 << 15, (2, D))
        if case == 0:
            x[0], x[1] = rng.choice([-limit, limit - 1], (2, HEADS, D))
            s.e[:2], weights.e[:] = (-20, -50), -12
            bias.values[:] = rng.choice([-(1 << 15), (1 << 15) - 1], (HEADS, D))
            gammas[:] = rng.choice([-(1 << 15), (1 << 15) - 1], (2, D))
            bias = HeadBias(bias.values, 0)
        if case == 1:
            x[0], s.m[1], s.e[1] = 0, 0, 0
            bias = HeadBias(bias.values * 0, 16)
        if case == 2:
            # far beyond the limits of the shift
            s.e[:] = 40, -200, -60

        expected, squares = np.zeros((n, HEADS, D), np.int64), np.zeros((n, HEADS), np.int64)
        flag = Saturation()
        for kind, (first, end) in enumerate(KINDS):
            part = HeadBias(bias.values[first:end], bias.frac) if biased else None
            weight = Scale(weights.m[kind], weights.e[kind])
            v = fixed_heads(x[:, first:end], s, weight, part, flag)
            squares[:, first:end] = (v * v).sum(axis=-1)
            if normed and kind < 2:
                v, _ = head_norm(v, HeadNorm(gammas[kind], 0, 0))
            expected[:, first:end] = v
        params = [*blocks(bias.values)] if biased else []
        away = np.zeros((HEADS, D), np.int64)
        if centred:
            away[2] = gammas[0] << (FIXED_FRAC - bias.frac)
        params = np.array([np.zeros(8), *params, *blocks(gammas)]).astype(int)
        modes = (bias.frac, biased, normed, centred)
        assert _run(dut, x, s, weights, params, modes, expected, squares, away) == flag.seen


def _run(
    dut: Any,
    x: np.ndarray,
    s: Scale,
    weights: Scale,
    params: np.ndarray,
    flags: tuple[int, bool, bool, bool],
    expected: np.ndarray,
    squares: np.ndarray,
    away: np.ndarray,
) -> bool:
    """A word that has left its range is told."""
    config = dut.config
    frac, biased, normed, centred = flags
    acc = blocks(x).reshape(len(x), -1, 2, 8).tolist()
    gap = 2 if biased and (normed or centred) else 1
    order = [
        (token, head, pair, half)
        for token in range(len(x))
        for head in range(HEADS)
        for pair in range(PAIRS)
        for half in range(2)
    ]
    found, taken, sums, saturated = {}, {}, {}, []

    n_cycles = len(order) * gap + dut.latency + 2

    async def memories(ctx: Any) -> None:
        """Data a cycle after their addresses."""
        addresses = ctx.tick().sample(
            dut.scale_r.addr.token, dut.acc.addr.token, dut.acc.addr.pair, dut.param.addr.word
        )
        for _ in range(n_cycles):
            _, _, token, acc_token, pair, word = await addresses
            token, acc_token = min(token, len(x) - 1), min(acc_token, len(x) - 1)
            ctx.set(dut.scale_r.data, {"m": int(s.m[token]), "e": int(s.e[token])})
            ctx.set(dut.acc.data, acc[acc_token][min(pair, len(acc[0]) - 1)])
            ctx.set(dut.param.data, params[min(word, len(params) - 1)].tolist())

    async def drive(ctx: Any) -> None:
        for name, m, e in zip(("scale_q", "scale_k", "scale_v"), *weights, strict=True):
            ctx.set(getattr(dut, name), {"m": int(m), "e": int(e)})
        ctx.set(dut.param_word, WORD)
        if config.vector.qkv_bias:
            ctx.set(dut.bias, biased)
            ctx.set(dut.bias_frac, frac)
            ctx.set(dut.centre, centred)
        if config.vector.qk_norm:
            ctx.set(dut.qk_norm, normed)
        for token, head, pair, half in order:
            slot = {"valid": 1, "token": token, "head": head, "pair": pair}
            ctx.set(dut.i, {"high": half, "slot": slot | {"second": 0, "record": 0}})
            await ctx.tick()
            if gap == 2:
                ctx.set(dut.i.slot.valid, 0)
                await ctx.tick()
        # the second pass does not count
        ctx.set(dut.i.slot.valid, 1)
        ctx.set(dut.i.slot.second, 1)
        await ctx.tick()
        ctx.set(dut.i.slot.valid, 0)

    async def collect(ctx: Any) -> None:
        for cycle in range(n_cycles):
            if cycle >= dut.latency:
                index, rest = divmod(cycle - dut.latency, gap)
                if index < len(order) and not rest:
                    found[order[index]] = [*ctx.get(dut.y)]
                    if config.vector.qkv_bias:
                        taken[order[index]] = [*ctx.get(dut.away)]
            saturated.append(ctx.get(dut.saturated))
            if config.vector.qk_norm and ctx.get(dut.squares.en):
                key = ctx.get(dut.squares.addr.head), ctx.get(dut.squares.addr.odd)
                sums.setdefault(key, []).append(ctx.get(dut.squares.data))
            await ctx.tick()

    simulate(dut, drive, memories, collect)
    assert len(found) == len(order)
    for (token, head, pair, half), y in found.items():
        first = 16 * half + 8 * pair
        assert y == expected[token, head, first : first + 8].tolist()
        if config.vector.qkv_bias:
            at = taken[token, head, pair, half]
            assert at == away[head, first : first + 8].tolist()
    if config.vector.qk_norm:
        for head in range(HEADS):
            assert sums[head, 0] == squares[::2, head].tolist()
            assert sums[head, 1] == squares[1::2, head].tolist()
    return any(saturated)
