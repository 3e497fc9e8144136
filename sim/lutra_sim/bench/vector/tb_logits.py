"""cocotb bench of :class:`lutra_hw.vector.residual.Logits`."""

from random import Random
from typing import Any

import cocotb
import numpy as np
from numpy.typing import NDArray

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.residual import logits_cycles
from lutra_golden.vector.residual import logits
from lutra_hw.ports import dma_command, dma_write_data
from lutra_hw.vector.residual import LOGITS_COMMAND, Logits
from lutra_sim.bench.ports import PortMemory, PulseMonitor, read_words
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    pack,
    reset,
    unpack,
)

__all__ = ["writes_logits"]

PARAMS = bench_params(AcceleratorConfig)
BEAT = PARAMS.word_bytes


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.6, 0.95])
async def writes_logits(dut: Any, p_stall: float) -> None:
    """Chunks of rows reach memory where they belong; the arg-max goes over chunks."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    tokens, blocks = PARAMS.pass_tokens, PARAMS.matmul.acc_blocks
    acc_limit = 1 << (PARAMS.matmul.acc_width - 1)
    members = Logits(PARAMS).signature.members
    acc_memory, param_memory, residual_memory = (
        PortMemory(members[name].signature) for name in ("acc", "param", "residual")
    )
    acc_memory.serve(dut, "acc")
    param_memory.serve(dut, "param")
    residual_memory.serve(dut, "residual")
    source, accepted = StreamSource(dut, "cmd"), StreamMonitor(dut, "cmd")
    StreamSink(dut, "o_cmd", p_stall=p_stall, rng=Random(1), wait_for_valid=p_stall > 0.9)
    StreamSink(dut, "o_data", p_stall=p_stall, rng=Random(2), wait_for_valid=p_stall > 0.9)
    commands, beats = StreamMonitor(dut, "o_cmd"), StreamMonitor(dut, "o_data")
    done, stall = PulseMonitor(dut, "done"), PulseMonitor(dut, "stall")
    await reset(dut)

    unit = max(1, BEAT // 32)  # words that fill whole beats
    acc = rng.integers(-acc_limit, acc_limit, (tokens, blocks, 8))
    acc[0, 0, :2] = acc_limit - 1, -acc_limit
    scales = rng.integers(0, 1 << 15, (PARAMS.vector.param_words, 8))
    scales[0, :4] = (1 << 15) - 1, (1 << 15) - 1, -(1 << 15) + 1, 0
    acc[-1, : blocks // 2] = 3  # ties, unless the scales differ
    scales[PARAMS.vector.param_words // 2 :] = 77
    acc_memory.load(acc.reshape(tokens, -1, 2, 8))
    param_memory.load(scales)
    words = PARAMS.vector.hidden_max // 8 // unit * unit
    residual = rng.integers(-(1 << 31), 1 << 31, (tokens, words, 8))
    residual[0, 0, :5] = (1 << 31) - 1, -(1 << 31), 0, -1, 1 << 30
    residual_memory.load(residual)

    half = PARAMS.vector.param_words // 2
    long = min(blocks, half) // unit * unit
    #        first, stream, from, tokens, rows from, words, parameters, accumulators
    chunks = [
        (1, 0, 0, tokens, 0, long, 0, 0),
        (0, 0, 0, tokens, 8 * long, unit, half, 0),
        (1, 0, 0, tokens, 0, long, half, 0),  # all negative or tied somewhere
        (0, 0, 0, tokens, 8 * long, long, half, 0),  # equal to the last: the first rows stay
        (1, 1, 0, tokens, 0, words, 0, 0),
        (0, 1, 1, 1, 8 * unit, unit, 3, words - unit),
        (1, 0, 0, tokens, 0, unit, half, 0),
        (0, 0, tokens - 1, 0, 0, unit, 0, 0),
        (0, 0, tokens - 1, 1, 64 * unit, unit, 5, blocks - unit),
        (1, 0, 1, 1, 1 << 20, 2 * unit, 3, 1),
        (0, 0, 1, tokens - 1, 8 * unit, 3 * unit, 1, 2),
    ]
    stride, base = BEAT * 7_000_001, BEAT * 12_345_677
    expected_argmax = np.zeros(tokens, np.int64)
    best = np.zeros(tokens, np.int64)
    n_commands = n_beats = 0
    for index, chunk in enumerate(chunks):
        first, stream, token_first, count, row_first, n_words, param, block = chunk
        source.send(
            pack(
                LOGITS_COMMAND,
                {
                    "row_first": row_first,
                    "n_words": n_words,
                    "param_word": param,
                    "acc_base": block,
                    "first": first,
                    "stream": stream,
                    "token_first": token_first,
                    "token_count": count,
                    "addr": base,
                    "stride": stride,
                },
            )
        )
        await done.wait_for(index + 1)

        memory = _collect(commands.payloads[n_commands:], beats.payloads[n_beats:])
        assert len(commands.payloads) == n_commands + count
        n_commands, n_beats = len(commands.payloads), len(beats.payloads)
        span = slice(token_first, token_first + count)
        blocks_of = slice(block, block + n_words)
        if stream:
            values = residual[span, blocks_of].reshape(count, 8 * n_words)
        else:
            values = logits(
                acc[span, blocks_of].reshape(count, 8 * n_words),
                scales[param : param + n_words].reshape(-1),
            )
        expected = {
            base + (token_first + t) * stride + 4 * (row_first + row): int(value)
            for t in range(count)
            for row, value in enumerate(values[t])
        }
        assert memory == expected
        if count:
            better = (values.max(axis=1) > best[span]) | bool(first)
            rows = row_first + values.argmax(axis=1)
            expected_argmax[span] = np.where(better, rows, expected_argmax[span])
            best[span] = np.where(better, values.max(axis=1), best[span])
        assert await read_words(dut, "argmax", tokens) == expected_argmax.tolist()
        if p_stall == 0:
            cycles = done.cycles[-1] - accepted.cycles[-1]
            assert cycles == logits_cycles(n_words, token_first, count)
    assert len(done.cycles) == len(chunks)
    assert bool(stall.cycles) == (p_stall > 0)


def _collect(commands: list[int], beats: list[int]) -> dict[int, int]:
    """Address and value of every int32 that ``commands`` and ``beats`` write."""
    found: dict[int, int] = {}
    taken = 0
    for bits in commands:
        command = unpack(dma_command().members["payload"].shape, bits)
        assert command["addr"] % BEAT == 0
        for beat in range(command["beats"]):
            word = unpack(dma_write_data(8 * BEAT).members["payload"].shape, beats[taken])
            assert word["strb"] == (1 << BEAT) - 1
            raw = word["data"].to_bytes(BEAT, "little")
            addr = command["addr"] + beat * BEAT
            values: NDArray[np.int32] = np.frombuffer(raw, "<i4")
            found |= {addr + 4 * i: int(value) for i, value in enumerate(values)}
            taken += 1
    assert taken == len(beats)
    return found
