"""cocotb bench of :mod:`lutra_hw.axi.width`: converters of what is read, and of what is written."""

from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb

from lutra_golden.axi.width import Transfer, WidthParams, beats_of, word_beats, words_of
from lutra_hw.ports import dma_command, dma_write_data
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    pack,
    reset,
    unpack,
)

__all__ = ["WidthBenchParams", "converts", "sustains_the_narrower_side"]


@dataclass(frozen=True, kw_only=True)
class WidthBenchParams:
    """Widths, and whether the converter is one of what is written."""

    width: WidthParams
    writes: bool


BENCH = bench_params(WidthBenchParams)
PARAMS = BENCH.width
COMMAND = dma_command().members["payload"].shape
WORD = dma_write_data(8 * PARAMS.word_bytes).members["payload"].shape
BEAT = dma_write_data(8 * PARAMS.beat_bytes).members["payload"].shape
LENGTHS = [1, 2, 0, PARAMS.ratio, 1, 1, 0, PARAMS.ratio + 1, 3, 1, 1, 2 * PARAMS.ratio - 1]


def _transfers(rng: Random, lengths: list[int]) -> list[Transfer]:
    """Transfers of these lengths, of which each begins anywhere in a beat."""
    return [Transfer(PARAMS.word_bytes * rng.randrange(1 << 16), n) for n in lengths]


class _Bench:
    def __init__(self, dut: Any, transfers: list[Transfer], p_stall: float, p_sink: float) -> None:
        self.rng = rng = Random(cocotb.RANDOM_SEED)
        self.transfers = transfers
        stall = {"p_stall": p_stall, "rng": rng}
        self.cmd, self.i = StreamSource(dut, "cmd", **stall), StreamSource(dut, "i", **stall)
        StreamSink(dut, "o_cmd", p_stall=p_sink, rng=rng)
        StreamSink(dut, "o", p_stall=p_sink, rng=rng)
        self.o_cmd, self.o = StreamMonitor(dut, "o_cmd"), StreamMonitor(dut, "o")
        self.beats = [beats_of(PARAMS, each) for each in transfers]
        self.inputs, self.expected = self._written() if BENCH.writes else self._read()

    def _read(self) -> tuple[list[int], list[int]]:
        n_bits = 8 * PARAMS.beat_bytes
        beats = [self.rng.getrandbits(n_bits) for each in self.beats for _ in range(each.count)]
        return beats, list(words_of(PARAMS, self.transfers, beats))

    def _written(self) -> tuple[list[int], list[int]]:
        n_bytes = PARAMS.word_bytes
        words = [
            (self.rng.getrandbits(8 * n_bytes), self.rng.choice([-1, 0, self.rng.getrandbits(99)]))
            for each in self.transfers
            for _ in range(each.count)
        ]
        words = [(word, strobe & (1 << n_bytes) - 1) for word, strobe in words]
        packed = [pack(WORD, {"data": word, "strb": strobe}) for word, strobe in words]
        beats = word_beats(PARAMS, self.transfers, words)
        return packed, [pack(BEAT, {"data": beat, "strb": strobe}) for beat, strobe in beats]

    async def run(self) -> None:
        self.cmd.send_all(
            pack(COMMAND, {"addr": each.addr, "beats": each.count}) for each in self.transfers
        )
        self.i.send_all(self.inputs)
        await self.o.wait_for(len(self.expected), max_cycles=100 * len(self.expected) + 1000)
        await self.o_cmd.wait_for(len(self.transfers))
        await self.i.drained()

    def check(self) -> None:
        commands = [unpack(COMMAND, payload) for payload in self.o_cmd.payloads]
        assert [Transfer(each["addr"], each["beats"]) for each in commands] == self.beats
        outputs = self.o.payloads
        if BENCH.writes:
            # data without a strobe may be anything
            outputs = [_strobed(payload) for payload in outputs]
        assert outputs == self.expected


def _strobed(payload: int) -> int:
    beat = unpack(BEAT, payload)
    lanes = range(PARAMS.beat_bytes)
    content = sum(beat["data"] & 255 << 8 * lane for lane in lanes if beat["strb"] >> lane & 1)
    return pack(BEAT, {"data": content, "strb": beat["strb"]})


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5], p_sink=[0.0, 0.5])
async def converts(dut: Any, p_stall: float, p_sink: float) -> None:
    """Commands and data come out as in the model, with stalls on either side."""
    rng = Random(cocotb.RANDOM_SEED)
    lengths = LENGTHS + [rng.choice(LENGTHS) for _ in range(30)]
    bench = _Bench(dut, _transfers(rng, lengths), p_stall, p_sink)
    await reset(dut)
    await bench.run()
    bench.check()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sustains_the_narrower_side(dut: Any) -> None:
    """A word or a beat per cycle, whichever is narrower, over the ends of commands."""
    lengths = [PARAMS.ratio] * 12
    transfers = [
        Transfer(each.addr - each.addr % (PARAMS.word_bytes * PARAMS.ratio), each.count)
        for each in _transfers(Random(1), lengths)
    ]
    bench = _Bench(dut, transfers, 0.0, 0.0)
    await reset(dut)
    await bench.run()
    bench.check()
    n = max(len(bench.inputs), len(bench.expected))
    first = PARAMS.ratio - 1 if len(bench.inputs) > len(bench.expected) else 0
    assert bench.o.cycles[-1] - bench.o.cycles[0] + 1 == n - first
