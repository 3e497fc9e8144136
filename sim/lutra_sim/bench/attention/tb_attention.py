"""cocotb bench of :class:`lutra_hw.attention.attention.AttentionUnit`."""

from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from lutra_golden.arith.fixed import Int, Saturation
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.attention.attention import attend, first_seen
from lutra_golden.attention.cache import kv_bytes
from lutra_golden.attention.pairs import fetches
from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.attention import AttentionTiming
from lutra_hw.attention.attention import ATTEND_COMMAND, AttentionUnit
from lutra_hw.ports import dma_command
from lutra_sim.bench.control.chunks import ChunkTable, random_chunks
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    pack,
    reset,
    unpack,
)

__all__ = ["corners", "extremes", "several_chunks", "tiles"]

CONFIG = bench_params(AcceleratorConfig)
_LIMIT_MS = CONFIG.attention.pair_cycles
KV_BASE, KV_OFFSET = 0x12_3456_7000, 0x8765_4300
"""Of the sequence, and of the layer in it."""
KV_LIMIT = 1 << (CONFIG.attention.key_width - 1)
LAYOUTS = AttentionUnit(CONFIG).signature.members
DMA_COMMAND = dma_command().members["payload"].shape


@dataclass
class Tile:
    """Arguments of :func:`attend`, without parameters."""

    q: Int  # [M, n_heads, D]
    q_scale: Scale  # [M, n_heads]
    k: Int  # [n_kv_heads, P, D]
    k_scale: Scale  # [P, n_kv_heads]
    v: Int
    v_scale: Scale
    position: int
    frac: int
    window: int = 0

    def expected(self, saturation: Saturation | None = None) -> Int:
        return attend(CONFIG.attention, **vars(self), saturation=saturation)


def _scale(rng: np.random.Generator, shape: tuple[int, ...], e: int, spread: int) -> Scale:
    m = rng.integers(1 << 15, 1 << 16, shape)
    m[rng.random(shape) < 0.2] = 0xFFFF
    return Scale(m, e + rng.integers(-spread, spread + 1, shape))


def _tile(
    rng: np.random.Generator, position: int, n_tokens: int, spread: int = 1, window: int = 0
) -> Tile:
    """Random elements; scores of a few log2 units when ``spread`` is small."""
    n, heads, kv, dim = position + n_tokens, CONFIG.n_heads, CONFIG.n_kv_heads, CONFIG.head_dim
    return Tile(
        q=rng.integers(-127, 128, (n_tokens, heads, dim)),
        q_scale=_scale(rng, (n_tokens, heads), -24, spread),
        k=rng.integers(-KV_LIMIT, KV_LIMIT, (kv, n, dim)),
        k_scale=_scale(rng, (n, kv), -22, spread),
        v=rng.integers(-KV_LIMIT, KV_LIMIT, (kv, n, dim)),
        v_scale=_scale(rng, (n, kv), -22, spread),
        position=position,
        frac=int(rng.integers(8, 20)),
        window=window,
    )


def _cache(tile: Tile, kv_base: int) -> dict[int, int]:
    """The layer's cache by byte address of the beats; what no token may see is not there, or noise
    where it shares a beat with what one sees."""
    beats: dict[int, int] = {}
    kv_addr = kv_base + KV_OFFSET
    rng = Random(tile.position)
    n, seen = tile.k.shape[1], first_seen(tile.position, tile.window)
    for group in range(CONFIG.n_kv_heads):
        for base, rows in ((0, tile.k), (CONFIG.kv_v_offset, tile.v)):
            for p in range(seen, n):
                addr = kv_addr + base + group * CONFIG.kv_head_bytes + p * CONFIG.kv_row_bytes
                place = addr % CONFIG.word_bytes
                beat = beats.get(addr - place, rng.getrandbits(CONFIG.word_width))
                raw = bytearray(beat.to_bytes(CONFIG.word_bytes, "little"))
                raw[place : place + CONFIG.kv_row_bytes] = kv_bytes(
                    rows[group, p], CONFIG.attention.key_width
                ).tobytes()
                beats[addr - place] = int.from_bytes(raw, "little")
    scales = np.zeros(-(-n * CONFIG.kv_scale_bytes // CONFIG.word_bytes) * CONFIG.word_bytes, "u1")
    record = np.concatenate([pack_scale(tile.k_scale), pack_scale(tile.v_scale)], axis=1)
    for p in range(n):
        raw = np.frombuffer(record[p].astype("<u4").tobytes(), "u1")
        scales[p * CONFIG.kv_scale_bytes :][: len(raw)] = raw
    first_beat = seen * CONFIG.kv_scale_bytes // CONFIG.word_bytes * CONFIG.word_bytes
    for start in range(first_beat, len(scales), CONFIG.word_bytes):
        beat = scales[start : start + CONFIG.word_bytes].tobytes()
        beats[kv_addr + CONFIG.kv_s_offset + start] = int.from_bytes(beat, "little")
    return beats


class Harness:
    """Drives the unit, and is its memory."""

    def __init__(self, dut: Any, *, p_stall: float = 0.0, latency: int = 0) -> None:
        self.dut, self.latency = dut, latency
        self.cmd = StreamSource(dut, "cmd")
        self.data = StreamSource(dut, "rd_data", p_stall=p_stall, rng=Random(1))
        StreamSink(dut, "rd_cmd", p_stall=p_stall, rng=Random(2))
        self.accepted = StreamMonitor(dut, "cmd")
        self.fetched = StreamMonitor(dut, "rd_cmd")
        self.beats = StreamMonitor(dut, "rd_data")
        self.chunks = ChunkTable(dut, CONFIG)
        self.memory: dict[int, int] = {}
        self.done: list[int] = []
        self.stalls = self.saturated = self.n_rests = 0
        for name in ("q_w__en", "qs_w__en", "out__addr"):
            getattr(dut, name).value = 0
        cocotb.start_soon(self._watch())
        cocotb.start_soon(self._serve())

    async def run(self, tile: Tile) -> Int:
        """The output of ``tile``, after checking what it fetched and whether it saturated."""
        return await self.run_chunks([tile], [ChunkEntry(tile.position, 0, KV_BASE)])

    async def run_chunks(self, tiles: list[Tile], entries: list[ChunkEntry]) -> Int:
        """The output of a command whose chunks are ``tiles``, after checking what it fetched."""
        self.memory, first, expected = {}, 0, []
        for tile, entry in zip(tiles, entries, strict=True):
            self.memory |= _cache(tile, entry.kv_base)
            await self._write("q_w", self._queries(tile, first))
            m, e = tile.q_scale
            await self._write(
                "qs_w",
                [
                    ({"token": first + t, "head": h}, {"m": m[t, h], "e": e[t, h]})
                    for t in range(m.shape[0])
                    for h in range(CONFIG.n_heads)
                ],
            )
            base, n = entry.kv_base + KV_OFFSET, len(tile.q)
            expected += fetches(CONFIG, base, tile.position, n, tile.window)
            first += n
        first_fetch, n_done = len(self.fetched.payloads), len(self.done)
        self.saturated, flag = 0, Saturation()
        self.chunks.load(entries)
        # the unit reads its table all the time, as the table is written long before a command
        await ClockCycles(self.dut.clk, 2)
        await self.command(first, tiles[0].frac, tiles[0].window)
        assert len(self.done) == n_done + 1
        for tile in tiles:
            tile.expected(flag)
        assert bool(self.saturated) == flag.seen
        got = [tuple(unpack(DMA_COMMAND, bits).values()) for bits in self.fetched.payloads]
        assert got[first_fetch:] == expected
        return await self._read(first)

    async def command(self, token_count: int, frac: int, window: int = 0) -> None:
        """One command, until it is done."""
        n_done = len(self.done)
        fields = {"kv_offset": KV_OFFSET, "token_count": token_count}
        self.cmd.send(pack(ATTEND_COMMAND, {**fields, "frac": frac, "window": window}))
        while len(self.done) == n_done:
            await RisingEdge(self.dut.clk)
        await RisingEdge(self.dut.clk)
        assert self.dut.busy.value == 0

    def _queries(self, tile: Tile, first: int) -> list[tuple[dict[str, int], list[int]]]:
        n_tokens, n_heads, dim = tile.q.shape
        return [
            ({"token": first + t, "head": h, "word": w}, tile.q[t, h, 8 * w : 8 * w + 8].tolist())
            for t in range(n_tokens)
            for h in range(n_heads)
            for w in range(dim // 8)
        ]

    async def _write(self, name: str, writes: list[tuple[dict[str, int], Any]]) -> None:
        port = LAYOUTS[name].signature
        en, addr, data = (getattr(self.dut, f"{name}__{part}") for part in ("en", "addr", "data"))
        for place, value in writes:
            await RisingEdge(self.dut.clk)
            en.value = 1
            addr.value = pack(port.addr_layout, place)
            data.value = pack(port.payload_layout, value)
        await RisingEdge(self.dut.clk)
        en.value = 0

    async def _read(self, n_tokens: int) -> Int:
        port, n_words = LAYOUTS["out"].signature, CONFIG.n_heads * CONFIG.head_dim // 8
        values = []
        for index in range(n_tokens * n_words + 1):
            await RisingEdge(self.dut.clk)
            token, word = divmod(min(index, n_tokens * n_words - 1), n_words)
            self.dut.out__addr.value = pack(port.addr_layout, {"token": token, "word": word})
            await ReadOnly()
            values += unpack(port.payload_layout, self.dut.out__data.value.to_unsigned())
        return np.array(values[8:]).reshape(n_tokens, CONFIG.n_heads, CONFIG.head_dim)

    async def _watch(self) -> None:
        was_busy = False
        while True:
            await RisingEdge(self.dut.clk)
            await ReadOnly()
            if self.dut.rst.value == 0:
                self.stalls += int(self.dut.stall.value == 1)
                self.saturated += int(self.dut.saturated.value == 1)
                busy = self.dut.busy.value == 1
                self.n_rests += was_busy and not busy
                was_busy = busy
                if self.dut.done.value == 1:
                    self.done.append(self.accepted.cycle)

    async def _serve(self) -> None:
        """Queue the beats of each fetch ``latency`` cycles after it was accepted."""
        n_served = 0
        while True:
            await RisingEdge(self.dut.clk)
            if n_served == len(self.fetched.payloads):
                continue
            if self.fetched.cycle - self.fetched.cycles[n_served] < self.latency:
                continue
            fetch = unpack(DMA_COMMAND, self.fetched.payloads[n_served])
            addresses = range(fetch["addr"], fetch["addr"] + CONFIG.word_bytes * fetch["beats"])
            self.data.send_all(self.memory[addr] for addr in addresses[:: CONFIG.word_bytes])
            n_served += 1


def _tiles() -> list[tuple[int, int]]:
    """(position, tokens): one token at the ends and between, tiles of every size."""
    last, tile = CONFIG.max_context, CONFIG.pass_tokens
    decode = [(p, 1) for p in sorted({0, 1, min(7, last - 1), last - 1})]
    early = [(p, n) for p in (0, 5) for n in range(1, tile + 1) if p + n <= last]
    return decode + early + [(last - tile, n) for n in sorted({min(2, tile), tile})]


def _windows() -> list[tuple[int, int, int]]:
    """(position, tokens, window): the query alone, the tile and its edges, more than there is."""
    rng, last, tile = Random(6), CONFIG.max_context, CONFIG.pass_tokens
    cases = []
    for position in sorted({0, 1, last // 2 - 1, last - tile}):
        n = rng.randint(1, tile)
        windows = {1, 2, tile - 1, tile, tile + 1, position, position + 1, position + n, 0xFFFF}
        cases += [(position, tile, window) for window in sorted(windows - {0})]
        cases += [(position, n, window) for window in rng.sample(range(1, last + 1), 2)]
    return cases + [(last - 1, 1, window) for window in (1, 2, last - 1, last)]


@cocotb.test(timeout_time=2 * _LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(
    (("p_stall", "latency"), [(0.0, 0), (0.0, 20), (0.4, 7)]), ("windowed", [False, True])
)
async def tiles(dut: Any, p_stall: float, latency: int, windowed: bool) -> None:
    """One command after another, decode and prefill, in the stated number of cycles."""
    rng, timing = np.random.default_rng(3), AttentionTiming(CONFIG)
    harness = Harness(dut, p_stall=p_stall, latency=latency)
    await reset(dut)
    cases = _windows() if windowed else [(*case, 0) for case in _tiles()]
    for position, n_tokens, window in cases:
        tile = _tile(rng, position, n_tokens, window=window)
        n_beats, n_stalls = len(harness.beats.payloads), harness.stalls
        np.testing.assert_array_equal(await harness.run(tile), tile.expected())
        if p_stall:
            continue
        start = harness.accepted.cycles[-1]
        first_beat = harness.beats.cycles[n_beats] - start
        assert harness.done[-1] - start == timing.cycles(position, n_tokens, first_beat, window)
        # until the first beat, and never again: the latency of memory is paid once
        assert harness.stalls - n_stalls == first_beat - 1


@cocotb.test(timeout_time=_LIMIT_MS, timeout_unit="ms")
async def corners(dut: Any) -> None:
    """Zeros, equal scores, scores and outputs that saturate, alone too, and no tokens at all."""
    rng = np.random.default_rng(4)
    position, n_tokens = min(9, CONFIG.max_context - CONFIG.pass_tokens), CONFIG.pass_tokens
    harness = Harness(dut)
    await reset(dut)

    def tile(**changes: Any) -> Tile:
        return Tile(**{**vars(_tile(rng, position, n_tokens)), **changes})

    def scales(m: int, e: int) -> Scale:
        return Scale(np.full(shape, m), np.full(shape, e))

    shape = position + n_tokens, CONFIG.n_kv_heads
    base, holes = tile(), _scale(rng, shape, -22, 3)
    empty = rng.random(shape) < 0.5
    holes.m[empty], holes.e[empty] = 0, 0
    lowest, highest = np.full_like(base.v, -KV_LIMIT), np.full_like(base.v, KV_LIMIT - 1)
    cases = [
        tile(q=np.zeros_like(base.q)),
        tile(q_scale=Scale(np.zeros_like(base.q_scale.m), np.zeros_like(base.q_scale.e))),
        tile(k_scale=scales(0, 0)),
        tile(v_scale=scales(0, 0)),
        tile(v_scale=holes),
        tile(k=base.k[:, :1].repeat(shape[0], axis=1), k_scale=scales(40000, -22)),  # equal scores
        tile(q=np.full_like(base.q, -127), k=lowest, v=lowest),
        tile(v=highest, v_scale=scales(0xFFFF, 3)),  # the output saturates
        tile(v=lowest, v_scale=scales(0xFFFF, 3)),
        tile(k_scale=_scale(rng, shape, -2, 1)),  # scores saturate on both sides
        tile(k_scale=_scale(rng, shape, 40, 1)),
        tile(k_scale=_scale(rng, shape, -60, 1)),  # scores vanish
        tile(frac=0),
        tile(frac=255),
    ]
    # one query meets one key and one value that are not zero. Nothing saturates; a score; an
    # output; a score of one and an output of a small weight, which would be shifted to the left
    unit = Scale(np.full_like(base.q_scale.m, 1 << 15), np.full_like(base.q_scale.e, -15))
    top, clamped = KV_LIMIT - 1, 6 + shape[0].bit_length()
    for token, head in ((0, 0), (n_tokens - 1, CONFIG.n_heads - 1)):
        for q_one, k_one, dims, v_one, k_scale, v_e in (
            (1, 1, 1, 1, scales(1 << 15, -40), -22),
            (127, top, CONFIG.head_dim, 1, scales(0xFFFF, -12), -22),
            (1, 1, 1, top, scales(1 << 15, -40), clamped),
            (1, 1, 1, 1, scales(1 << 15, -11), -22),
            (1, -1, 1, 1, scales(15 << 12, -12), 40),
        ):
            q, k, v = (np.zeros_like(x) for x in (base.q, base.k, base.v))
            at = head // CONFIG.attention.q_per_kv, position + token
            q[token, head, :dims], k[(*at, slice(dims))], v[(*at, 0)] = q_one, k_one, v_one
            v_scale = scales(1 << 15, v_e)
            cases.append(
                tile(q=q, q_scale=unit, k=k, k_scale=k_scale, v=v, v_scale=v_scale, frac=8)
            )
    for case in cases:
        np.testing.assert_array_equal(await harness.run(case), case.expected())
        n_fetched = len(harness.fetched.payloads)
        await harness.command(0, 12)
        assert len(harness.fetched.payloads) == n_fetched


@cocotb.test(timeout_time=_LIMIT_MS, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """Exponents far apart."""
    rng = np.random.default_rng(5)
    harness = Harness(dut, p_stall=0.1)
    await reset(dut)
    for spread in (4, 9, 20, 60):
        n_tokens = int(rng.integers(1, CONFIG.pass_tokens + 1))
        position = int(rng.integers(0, min(40, CONFIG.max_context - n_tokens) + 1))
        tile = _tile(rng, position, n_tokens, spread)
        np.testing.assert_array_equal(await harness.run(tile), tile.expected())
        tile.window = int(rng.integers(1, position + n_tokens + 1))
        np.testing.assert_array_equal(await harness.run(tile), tile.expected())


@cocotb.test(timeout_time=2 * _LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize((("p_stall", "latency"), [(0.0, 0), (0.4, 7)]))
async def several_chunks(dut: Any, p_stall: float, latency: int) -> None:
    """Tokens of several sequences in one command; busy until the last chunk is done."""
    rng, n = np.random.default_rng(7), CONFIG.pass_tokens
    harness = Harness(dut, p_stall=p_stall, latency=latency)
    await reset(dut)
    for case in range(12):
        window = int(rng.choice([0, 1, 3, CONFIG.max_context]))
        n_tokens, frac = int(rng.integers(1, n + 1)), int(rng.integers(8, 20))
        bases = [KV_BASE + (i << 32) for i in range(n)]
        entries = random_chunks(Random(case), CONFIG, n_tokens, bases)
        tiles = [
            _tile(rng, chunk.position, chunk.n_tokens, window=window)
            for chunk in chunks(entries, n_tokens)
        ]
        for tile in tiles:
            tile.frac = frac
        n_rests = harness.n_rests
        expected = np.concatenate([tile.expected() for tile in tiles])
        np.testing.assert_array_equal(await harness.run_chunks(tiles, entries), expected)
        assert harness.n_rests == n_rests + 1
