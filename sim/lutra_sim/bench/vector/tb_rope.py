"""cocotb bench of :class:`lutra_hw.vector.rope.RopeQuant`."""

from random import Random
from typing import Any

import cocotb
import numpy as np

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.quantize import Q_MAX, q_max_of
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.attention.cache import kv_bytes
from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_golden.timing.rope import rope_cycles
from lutra_golden.vector.heads import FIXED_FRAC, FIXED_WIDTH, HeadBias, HeadNorm
from lutra_golden.vector.rope import rope_quantize, rope_quantize_fixed, rope_table
from lutra_hw.ports import dma_command, dma_write_data
from lutra_hw.vector.rope import RopeQuant, rope_command
from lutra_sim.bench.control.chunks import ChunkTable, random_chunks
from lutra_sim.bench.ports import PortMemory, PulseMonitor
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    pack,
    reset,
    unpack,
)

__all__ = ["follows_golden"]

PARAMS = bench_params(AcceleratorConfig)
BEAT = PARAMS.word_bytes
HEADS = PARAMS.n_heads + 2 * PARAMS.n_kv_heads
IS_FIXED = PARAMS.vector.qkv_bias or PARAMS.vector.qk_norm


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(
    p_stall=[0.0, 0.5, 0.98],
    biased=sorted({False, PARAMS.vector.qkv_bias}),
    normed=sorted({False, PARAMS.vector.qk_norm}),
)
async def follows_golden(dut: Any, p_stall: float, biased: bool, normed: bool) -> None:
    """Queries, their scales, keys, values and the record of scales, for tiles of every size.

    Every other tile is one chunk; more of them take no more cycles. With biases and without norms,
    two tiles of three have centres of keys.
    """
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    component = RopeQuant(PARAMS)
    members = component.signature.members
    acc, table, scale, q, q_scale = (
        PortMemory(members[name].signature) for name in ("acc", "rope", "scale_r", "q_w", "qs_w")
    )
    for memory, name in ((acc, "acc"), (table, "rope"), (scale, "scale_r")):
        memory.serve(dut, name)
    param = None
    if IS_FIXED:
        param = PortMemory(members["param"].signature)
        param.serve(dut, "param")
    chunk_table = ChunkTable(dut, PARAMS)
    q.record(dut, "q_w")
    q_scale.record(dut, "qs_w")
    source, accepted = StreamSource(dut, "cmd"), StreamMonitor(dut, "cmd")
    StreamSink(dut, "kv_cmd", p_stall=p_stall, rng=Random(1), wait_for_valid=p_stall > 0.9)
    StreamSink(dut, "kv_data", p_stall=p_stall, rng=Random(2), wait_for_valid=p_stall > 0.9)
    commands, beats = StreamMonitor(dut, "kv_cmd"), StreamMonitor(dut, "kv_data")
    done, stall = PulseMonitor(dut, "done"), PulseMonitor(dut, "stall")
    saturated = PulseMonitor(dut, "saturated")
    await reset(dut)

    n, d, limit = PARAMS.pass_tokens, PARAMS.head_dim, 1 << (PARAMS.matmul.acc_width - 1)
    sizes = [n, 1, 0, *range(2, n, max(1, n // 3)), n]
    seen, measured = 0, []
    for case, count in enumerate(sizes):
        bases = [BOUNDARY_BYTES * int(page) for page in rng.integers(1 << 27, size=n)]
        position = (0, PARAMS.max_context - count, *rng.integers(1, 9, len(sizes)))[case]
        entries = [ChunkEntry(int(position), 0, bases[0])]
        if case % 2 == 0 and count:
            entries = random_chunks(Random(cocotb.RANDOM_SEED + case), PARAMS, count, bases)
        chunk_table.load(entries)
        tile = list(chunks(entries, count))
        x = rng.integers(-limit, limit, (n, HEADS, d)) >> rng.integers(
            0, PARAMS.matmul.acc_width, (n, HEADS, 1)
        )
        whole, rope = rope_table(PARAMS.max_context, d, 10000.0), np.zeros((n, d), np.int64)
        for chunk in tile:
            rope[chunk.tokens] = whole[chunk.position : chunk.position + chunk.n_tokens]
        s = Scale(rng.integers(1 << 15, 1 << 16, n), rng.integers(-40, 0, n))
        if case == 0:
            rope = rng.choice([-(1 << 15), (1 << 15) - 1, 0], rope.shape)
            x[0] = rng.choice([-limit, limit - 1], (HEADS, d))
            x[-1] = 0
            x[-1, :, -1] = rng.integers(-2, 3, HEADS)
        if case == 3:
            s.m[0] = s.e[0] = 0
        weights = Scale(rng.integers(1 << 15, 1 << 16, 3), rng.integers(-30, 10, 3))
        bias = HeadBias(rng.integers(-(1 << 15), 1 << 15, (HEADS, d)), int(rng.integers(0, 17)))
        centred = biased and not normed and case % 3 > 0
        # within what keys reach
        reach = 1 << min(15, FIXED_WIDTH - 1 - FIXED_FRAC + bias.frac)
        centre = rng.integers(-reach, reach, (PARAMS.n_kv_heads, d))
        gammas = rng.integers(-(1 << 15), 1 << 15, (2, d)) >> rng.integers(0, 16, (2, 1))
        gamma_frac, eps = int(rng.integers(0, 17)), int(rng.integers(0, 1 << 16))
        if case == 0:
            bias.values[:] = rng.choice([-(1 << 15), (1 << 15) - 1], (HEADS, d))
            gammas[:] = rng.choice([-(1 << 15), (1 << 15) - 1], (2, d))
            # of the last token nothing but zeros, without epsilon
            x[-1], bias.values[0], bias.values[-1], eps = 0, 0, 0, 0
        if case == 3:
            bias.values[:2] = 0
        offset = BEAT * int(rng.integers((1 << 32) // BEAT))

        acc.load(x.reshape(n, HEADS, 2, -1, 8).transpose(0, 1, 3, 2, 4).reshape(n, -1, 2, 8))
        table.load(rope.reshape(n, 2, -1, 8).transpose(0, 2, 1, 3))
        scale.load([{"m": m, "e": e} for m, e in zip(s.m, s.e, strict=True)])
        q.words.clear()
        q_scale.words.clear()
        packed = [{"m": m, "e": e} for m, e in zip(weights.m, weights.e, strict=True)]
        command = {"kv_offset": offset, "token_count": count}
        command |= dict(zip(("scale_q", "scale_k", "scale_v"), packed, strict=True))
        if param is not None:
            taken = HEADS * d // 8 + max(2, PARAMS.n_kv_heads) * d // 8
            word = int(rng.integers(0, PARAMS.vector.param_words - taken + 1))
            command["param_word"] = word
            blocks = [_blocks(bias.values)] * biased
            blocks += [_blocks(centre if centred else gammas)]
            noise = rng.integers(-(1 << 15), 1 << 15, (word, 8))
            param.load(np.concatenate([noise, *blocks]))
        if PARAMS.vector.qkv_bias:
            command |= {"bias": biased, "bias_frac": bias.frac, "centre": centred}
        if PARAMS.vector.qk_norm:
            command |= {"qk_norm": normed, "gamma_frac": gamma_frac, "eps": eps}
        saturated.cycles.clear()
        source.send(pack(rope_command(PARAMS), command))
        await done.wait_for(case + 1)

        x, rope, s = x[:count], rope[:count], Scale(s.m[:count], s.e[:count])
        kv = PARAMS.n_heads + PARAMS.n_kv_heads
        parts = (slice(0, PARAMS.n_heads), slice(PARAMS.n_heads, kv), slice(kv, HEADS))
        expected, flag = [], Saturation()
        for i, (part, t) in enumerate(zip(parts, (rope, rope, None), strict=True)):
            w_scale = Scale(weights.m[i], weights.e[i])
            q_max = q_max_of(PARAMS.attention.key_width) if i else Q_MAX
            if not (biased or normed):
                expected.append(rope_quantize(x[:, part], s, w_scale, t, q_max))
                continue
            away = centre if centred and i == 1 else None
            biases = HeadBias(bias.values[part], bias.frac, away) if biased else None
            norm = HeadNorm(gammas[i], gamma_frac, eps) if normed and i < 2 else None
            expected.append(
                rope_quantize_fixed(x[:, part], s, w_scale, t, biases, norm, q_max, flag)
            )
        assert bool(saturated.cycles) == flag.seen
        assert len(q.words) == count * PARAMS.n_heads * d // 8
        assert len(q_scale.words) == count * PARAMS.n_heads
        if count:
            values = q.array(count, PARAMS.n_heads, d // 8).reshape(count, PARAMS.n_heads, d)
            assert (values == expected[0][0]).all()
            scales = q_scale.array(count, PARAMS.n_heads)
            assert (scales == np.stack(expected[0][1], axis=-1)).all()
        memory = _collect(commands.payloads[seen:], beats.payloads[seen:])
        written: dict[int, int] = {}
        for chunk in tile:
            own = [
                (x[chunk.tokens], Scale(s.m[chunk.tokens], s.e[chunk.tokens]))
                for x, s in expected[1:]
            ]
            written |= _cache(chunk.kv_base + offset, chunk.position, own)
        assert memory == written
        assert len(commands.payloads) == seen + count * (2 * PARAMS.n_kv_heads + 1)
        seen = len(commands.payloads)

        cycles = done.cycles[-1] - accepted.cycles[-1]
        if p_stall == 0:
            dut._log.info("%d tokens in %d cycles", count, cycles)
            bound = rope_cycles(PARAMS, count, bias=biased, qk_norm=normed, centre=centred)
            measured.append((count, cycles - bound))
    least = -40 if biased or normed else 0
    assert all(least <= difference <= 0 for _, difference in measured), measured
    assert len(done.cycles) == len(sizes)
    assert bool(stall.cycles) == (p_stall > 0)


def _blocks(heads: np.ndarray) -> np.ndarray:
    """Vectors ``[heads, d]`` as blocks of eight in the order of accumulators."""
    return heads.reshape(len(heads), 2, -1, 8).transpose(0, 2, 1, 3).reshape(-1, 8)


def _cache(base: int, position: int, heads: list[tuple[Any, Scale]]) -> dict[int, int]:
    """Address and value of every byte of the cache that is written."""
    found: dict[int, int] = {}
    for offset, (x, _) in zip((0, PARAMS.kv_v_offset), heads, strict=True):
        for m, g in np.ndindex(*x.shape[:2]):
            address = base + offset + g * PARAMS.kv_head_bytes
            address += (position + m) * PARAMS.kv_row_bytes
            found |= {
                address + i: v
                for i, v in enumerate(kv_bytes(x[m, g], PARAMS.attention.key_width).tolist())
            }
    record = np.concatenate([pack_scale(s) for _, s in heads], axis=1).astype("<u4")
    for m in range(len(record)):
        address = base + PARAMS.kv_s_offset + (position + m) * PARAMS.kv_scale_bytes
        raw = record[m].tobytes().ljust(PARAMS.kv_scale_bytes, b"\0")
        found |= {address + i: value for i, value in enumerate(raw)}
    return found


def _collect(commands: list[int], beats: list[int]) -> dict[int, int]:
    """Address and value of every byte that ``commands`` and ``beats`` write."""
    found: dict[int, int] = {}
    for bits, beat in zip(commands, beats, strict=True):
        command = unpack(dma_command().members["payload"].shape, bits)
        word = unpack(dma_write_data(8 * BEAT).members["payload"].shape, beat)
        assert command["addr"] % BEAT == 0
        assert command["beats"] == 1
        raw = word["data"].to_bytes(BEAT, "little")
        bytes_ = {command["addr"] + i: raw[i] for i in range(BEAT) if word["strb"] >> i & 1}
        assert not found.keys() & bytes_.keys()
        found |= bytes_
    return found
