"""MatmulEngine with every datapath against the golden models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.arith.fixed import round_shift
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import NANO
from lutra_golden.core.fabric import Fabric
from lutra_golden.matmul.engine import LANES, EngineParams, GroupedWeights
from lutra_golden.matmul.lookup import BITS, LookupParams
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_golden.timing.matmul import MatmulTiming
from lutra_hw.matmul.accumulate import AccumulatorBanks, RowRegisters
from lutra_hw.matmul.engine import DATAPATHS, MatmulEngine
from lutra_hw.matmul.engines import build_engine
from lutra_hw.matmul.lookup import LookupEngine
from lutra_sim.bench.simulate import run_cocotb, simulate, stream_put

GROUPS = ActivationGroups(size=32)


def _small(cls: type[EngineParams], tile: tuple[int, int, int], **values: Any) -> EngineParams:
    step_tokens, step_rows, step_depth = tile
    base = {
        "pass_tokens": 4 if step_tokens > 1 else 3,
        "acc_blocks": 18 * step_rows // LANES,
        "weight_buffer_words": 64,
        "act_tiles": 4,
        "depth_tile": step_depth,
        "sum_width": 20 + values.get("a_width", 8) + values.get("scale_width", 8)
        if cls.grouped
        else 24,
    }
    return cls(
        step_tokens=step_tokens, step_rows=step_rows, step_depth=step_depth, **(base | values)
    )


PARAMS = {
    "ternary": _small(TernaryParams, (1, 8, 24)),
    "ternary-2x16": _small(TernaryParams, (2, 16, 24), max_planes=3),
    "nano": NANO.matmul,
    "lut": _small(LutParams, (1, 8, 16), depth_tile=64, weight_buffer_words=128),
    "lut-whole": _small(LutParams, (1, 8, 32), depth_tile=32, max_planes=4),
    "lut-w1": _small(LutParams, (1, 8, 16), depth_tile=16, max_planes=1),
    "lut-2x64": _small(LutParams, (2, 64, 4), depth_tile=16, acc_blocks=48, max_planes=4),
    "lut-4x8-a16": _small(
        LutParams, (4, 8, 8), depth_tile=16, a_width=16, pass_tokens=8, max_planes=3
    ),
    "mixpe": _small(MixpeParams, (1, 8, 8), depth_tile=16),
    "mixpe-2x8-a16": _small(MixpeParams, (2, 8, 8), depth_tile=24, a_width=16),
    "mixpe-w8": _small(MixpeParams, (1, 16, 8), depth_tile=8, w_width=8, max_planes=1),
    "mac": _small(MacParams, (1, 8, 4), depth_tile=16),
    "mac-w2-a16": _small(MacParams, (1, 8, 8), depth_tile=16, w_width=2, a_width=16, max_planes=4),
    "mac-2x16-w8": _small(MacParams, (2, 16, 8), depth_tile=24, w_width=8, max_planes=1),
    # group scales of more than eight bits
    "lut-w2-s16": _small(LutParams, (1, 8, 32), depth_tile=32, max_planes=2, scale_width=16),
    "lut-2x16-w4-s16": _small(LutParams, (2, 16, 8), depth_tile=16, max_planes=4, scale_width=16),
    "mixpe-s16": _small(MixpeParams, (1, 8, 16), depth_tile=32, max_planes=1, scale_width=16),
    "mac-w8-a16-s16": _small(
        MacParams, (1, 8, 8), depth_tile=16, w_width=8, a_width=16, max_planes=1, scale_width=16
    ),
    "mac-s11": _small(MacParams, (1, 8, 8), depth_tile=16, scale_width=11),
    # offsets of weights, groups of activations, both
    "lut-o20": _small(
        LutParams, (1, 8, 16), depth_tile=16, max_planes=4, offset_width=20, sum_width=40
    ),
    "lut-g32": _small(
        LutParams, (1, 8, 16), depth_tile=32, max_planes=4, a_groups=GROUPS, sum_width=43
    ),
    "lut-g32-o27-s16": _small(
        LutParams,
        (1, 16, 16),
        depth_tile=32,
        max_planes=4,
        a_groups=GROUPS,
        offset_width=27,
        scale_width=16,
        sum_width=50,
    ),
    "mixpe-g32-o20": _small(
        MixpeParams, (1, 8, 8), depth_tile=16, a_groups=GROUPS, offset_width=20, sum_width=47
    ),
    "mac-2x16-g64-o20": _small(
        MacParams,
        (2, 16, 8),
        depth_tile=16,
        w_width=8,
        max_planes=1,
        a_groups=ActivationGroups(size=64, shift_max=3),
        offset_width=20,
        sum_width=43,
    ),
    "mac-g32-s16": _small(
        MacParams, (1, 8, 8), depth_tile=16, scale_width=16, a_groups=GROUPS, sum_width=51
    ),
    # ternary and binary digits, one group of tokens and several
    "lookup": _small(LookupParams, (2, 16, 24), pass_tokens=2, act_tiles=10),
    "lookup-2x32": _small(LookupParams, (2, 32, 48), act_tiles=10, max_planes=4),
    # of primitives, as their twins compute
    "lookup-xcup": _small(
        LookupParams, (2, 16, 24), pass_tokens=2, act_tiles=10, fabric=Fabric.XCUP
    ),
}


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        MatmulEngine(12)  # type: ignore[arg-type]
    assert str(error.value) == "params must be EngineParams, not 12"
    with pytest.raises(TypeError) as error:
        LookupEngine(PARAMS["lut"])  # type: ignore[arg-type]
    assert str(error.value).startswith("params must be LookupParams, not LutParams(")


def test_rejects_a_depth_tile_of_uneven_words() -> None:
    with pytest.raises(ValueError) as error:
        MatmulEngine(TernaryParams(step_depth=12, depth_tile=12))
    assert str(error.value) == "depth_tile must be a multiple of 8 (activations of a word), not 12"


@pytest.mark.parametrize("name", [name for name in PARAMS if "lookup" not in name])
def test_parts_keep_the_timing(name: str) -> None:
    """The golden cycle formula adds up latencies that the parts of the engine have."""
    params = PARAMS[name]
    timing = MatmulTiming(params)
    datapath = DATAPATHS[params.kind](params)
    assert (datapath.latency, datapath.prepare_cycles) == (
        params.datapath_latency,
        params.prepare_cycles,
    )
    accumulators = AccumulatorBanks(params, 20, timing.accumulate_lag)
    assert accumulators.latency == timing.accumulate_latency
    assert RowRegisters(params, datapath.o_width).lag == timing.row_lag


def test_every_engine_has_its_component() -> None:
    assert DATAPATHS.keys() | {"lookup"} == ENGINES.keys()
    assert isinstance(build_engine(PARAMS["lookup"]), LookupEngine)
    assert isinstance(build_engine(PARAMS["lut"]), MatmulEngine)


@pytest.mark.parametrize("name", [n for n in PARAMS if n not in ("nano", "lookup-xcup")])
def test_a_command(name: str) -> None:
    """In Amaranth's own simulator: a command between accumulators of other rows and tokens."""
    params, rng = PARAMS[name], np.random.default_rng(1)
    planes, depth_tiles, row_blocks = min(2, params.max_planes), 2, 2 * params.block_rows
    if isinstance(params, LookupParams):
        planes = BITS | 4
    tokens, base = range(1, params.pass_tokens - 1), params.block_rows
    depth = depth_tiles * params.tile_depth(planes)
    a = rng.integers(-128, 128, (params.pass_tokens, depth))
    shifts = rng.integers(0, params.a_shift_max + 1, (params.pass_tokens, depth_tiles))
    rows = row_blocks * LANES
    if params.grouped:
        bits = planes * params.w_width
        weights = GroupedWeights(
            codes=rng.integers(0, 1 << bits, (rows, depth)),
            scale=rng.integers(0, 1 << params.scale_width, (rows, depth_tiles)),
            zero=rng.integers(0, (2 << bits) - 1, (rows, depth_tiles)),
            bits=bits,
            group=params.depth_tile,
            offset=rng.integers(-99999, 100000, (rows, depth_tiles))
            if params.offset_width
            else None,
        )
        shift = 1 + params.scale_width + params.shift_min
    else:
        weights, shift = GroupedWeights.from_integers(rng.integers(-4, 5, (rows, depth))), 0
    words = params.pack(weights, planes)
    dut = build_engine(params)
    results = np.zeros((params.pass_tokens, rows), np.int64)

    async def put_weights(ctx: Any) -> None:
        for index, word in enumerate(words):
            value = int.from_bytes(word.tobytes(), "little")
            await stream_put(ctx, dut.weights, value, stall=index % 3)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.act.en, 1)
        for token, word in np.ndindex(params.pass_tokens, depth // LANES):
            ctx.set(dut.act.addr, {"token": token, "word": word})
            data: Any = a[token, word * LANES : (word + 1) * LANES].tolist()
            if params.a_groups is not None:
                data = {"q": data, "shift": int(shifts[token, word * LANES // params.depth_tile])}
            ctx.set(dut.act.data, data)
            await ctx.tick()
        ctx.set(dut.act.en, 0)
        command = {
            "depth_tiles": depth_tiles,
            "row_blocks": row_blocks,
            "planes": planes,
            "acc_base": base,
            "token_first": tokens.start,
            "token_count": len(tokens),
            "shift": shift - params.shift_min,
        }
        await stream_put(ctx, dut.cmd, command)
        await ctx.tick().until(dut.done)
        for token, block in np.ndindex(params.pass_tokens, row_blocks):
            pair, bank = divmod(base + block, 2)
            ctx.set(dut.acc.addr, {"token": token, "pair": pair})
            await ctx.tick()
            results[token, block * LANES : (block + 1) * LANES] = [
                ctx.get(dut.acc.data[bank][lane]) for lane in range(LANES)
            ]

    simulate(dut, bench, put_weights)
    used = slice(tokens.start, tokens.stop)
    groups = shifts[used] if params.a_groups is not None else None
    expected = params.matmul(a[used], words, row_blocks, planes, groups)
    assert (results[tokens.start : tokens.stop] == round_shift(expected, shift)).all()
    # those of other tokens are as after a reset
    assert not results[: tokens.start].any() and not results[tokens.stop :].any()


SLOW = {
    "nano",
    "lut-2x64",
    "lut-2x16-w4-s16",
    "mixpe-s16",
    "mac-w8-a16-s16",
    "mac-s11",
    "lut-o20",
    "lut-g32",
    "mac-g32-s16",
    "lookup-2x32",
    "lookup-xcup",
}
"""Variants of what others cover, left to the whole run."""


@pytest.mark.cocotb
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PARAMS],
)
def test_bench(tmp_path: Path, name: str) -> None:
    bench = "lutra_sim.bench.matmul.tb_engine"
    run_cocotb(build_engine(PARAMS[name]), bench, tmp_path, parameters=PARAMS[name])
