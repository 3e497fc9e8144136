"""cocotb bench of the matmul engines, the same for each of them."""

from collections import Counter
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int, round_shift
from lutra_golden.core.config import ENGINES
from lutra_golden.matmul.engine import LANES, OFFSET_MAX, EngineParams, GroupedWeights
from lutra_golden.matmul.lookup import BITS, LookupParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_golden.timing.matmul import engine_timing
from lutra_hw.matmul.contract import acc_read_port, act_write_port, tile_command
from lutra_sim.bench.ports import PulseMonitor
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSource, pack, reset, unpack

__all__ = [
    "accumulators_are_readable_meanwhile",
    "back_to_back",
    "corners",
    "coverage_is_complete",
    "covers_formats_edges_and_extremes",
    "cycles_are_as_stated",
    "empty_commands",
    "fills_its_buffer_and_waits",
    "one_block_of_one_plane",
    "one_weight_bit",
    "random_commands",
]

PARAMS: EngineParams = bench_params(*ENGINES.values())
TIMING = engine_timing(PARAMS)
_A_MIN, _A_MAX = -(1 << (PARAMS.a_width - 1)), (1 << (PARAMS.a_width - 1)) - 1
_SCALE_MAX = (1 << PARAMS.scale_width) - 1

PLANES = sorted({1, (PARAMS.max_planes + 1) // 2, PARAMS.max_planes})
if isinstance(PARAMS, LookupParams):
    PLANES = [1, *(BITS | planes for planes in PLANES)]
MOST = PARAMS.most_planes
TWO = BITS | 2 if isinstance(PARAMS, LookupParams) else min(2, PARAMS.max_planes)
"""Two planes, or one if there are no more."""
EDGES = ("one", "last", "odd", "many")
STALLS = (0.0, 0.3, 0.8)
EXTREMES = ("random", "lowest", "highest")
COVERAGE: Counter[tuple[int, str, float, str]] = Counter()
"""Commands by planes, tile edge, chance of a stall and extreme value."""


@dataclass(frozen=True)
class Command:
    """A tile of a matmul: the first ``depth_tiles`` of some tokens' activations, some rows.

    ``blocks`` counts what the engine computes at once, ``first`` likewise the accumulators.
    """

    blocks: int
    planes: int
    depth_tiles: int
    tokens: range
    first: int = 0
    shift: int = PARAMS.shift_min

    @property
    def row_blocks(self) -> int:
        """Blocks of eight rows."""
        return self.blocks * PARAMS.block_rows

    @property
    def acc_base(self) -> int:
        """First block of eight rows."""
        return self.first * PARAMS.block_rows

    @property
    def depth(self) -> int:
        """Activations of a token."""
        return self.depth_tiles * PARAMS.tile_depth(self.planes)

    @property
    def passes(self) -> int:
        """Passes of the engine."""
        return TIMING.passes(self.depth_tiles, self.planes, self.tokens)

    @property
    def replays(self) -> bool:
        """True if words are used for more than one group of tokens."""
        return TIMING.passes(1, 1, self.tokens) > 1

    @property
    def words(self) -> int:
        """Weight words of a pass."""
        return PARAMS.pass_words(self.row_blocks, self.planes)

    @property
    def cycles(self) -> int:
        """Cycles in an idle engine."""
        return TIMING.cycles(
            self.depth_tiles,
            self.row_blocks,
            self.planes,
            len(self.tokens),
            token_first=self.tokens.start,
        )

    @property
    def pass_cycles(self) -> int:
        """Cycles that a pass adds in an engine that is never idle."""
        return TIMING.pass_cycles(self.row_blocks, self.planes)

    @property
    def bits(self) -> int:
        """Bits of a code of ``planes`` digits."""
        return min(8, self.planes * PARAMS.w_width)

    def weights(self, rng: np.random.Generator, extreme: str = "random") -> GroupedWeights:
        """Weights of which a quarter are extreme or zero, or all are extreme."""
        shape = (self.row_blocks * LANES, self.depth)
        if isinstance(PARAMS, TernaryParams | LookupParams):
            low, high = PARAMS.integers(self.planes)
            w = _random(rng, shape, low, high, 0)
            w = {"random": w, "lowest": w * 0 + high, "highest": w * 0 + low}[extreme]
            return _integers(w)
        top, groups = (1 << self.bits) - 1, (shape[0], self.depth_tiles)
        codes = _random(rng, shape, 0, top)
        scale = _random(rng, groups, 0, _SCALE_MAX)
        zero = _random(rng, groups, 0, 2 * top, top)
        offset, room = None, 0
        if PARAMS.offset_width:
            room = min(OFFSET_MAX, (1 << (PARAMS.offset_width - 1)) - 1 - 2 * top * _SCALE_MAX)
            offset = _random(rng, groups, -room, room, 0)
        if extreme != "random":
            code = top if extreme == "lowest" else 0
            codes, scale, zero = codes * 0 + code, scale * 0 + _SCALE_MAX, zero * 0 + 2 * top
            zero -= 2 * code
            if offset is not None:
                offset = offset * 0 + (room if extreme == "lowest" else -room)
        return GroupedWeights(
            codes=codes,
            scale=scale,
            zero=zero,
            bits=self.bits,
            group=PARAMS.depth_tile,
            offset=offset,
        )

    def pack(self, weights: GroupedWeights) -> NDArray[np.uint8]:
        """Weight words."""
        return PARAMS.pack(weights, self.planes)


def _integers(w: Int) -> GroupedWeights:
    """Weights that are integers of eight bits, -128 too."""
    codes, one = w + 128, np.ones((len(w), 1), np.int64)
    return GroupedWeights(codes=codes, scale=one, zero=256 * one, bits=8, group=w.shape[1])


def _random(
    rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int, *corners: int
) -> Int:
    """Integers of which a quarter are corners."""
    corner = rng.choice([low, high, *corners], shape)
    return np.where(rng.random(shape) < 0.25, corner, rng.integers(low, high + 1, shape))


def _wrap(x: Int) -> Int:
    """The low bits of a result, which are all that an accumulator shows."""
    return (x + (1 << (PARAMS.acc_width - 1))) % (1 << PARAMS.acc_width) - (
        1 << (PARAMS.acc_width - 1)
    )


class Bench:
    """Drives the engine and follows its accumulators in a model of them."""

    def __init__(self, dut: Any, *, p_stall: float = 0.0) -> None:
        seed = cocotb.RANDOM_SEED
        self.dut, self.rng = dut, np.random.default_rng(seed)
        self._cmd = StreamSource(dut, "cmd")
        self.weights_source = StreamSource(dut, "weights", p_stall=p_stall, rng=Random(seed))
        self.cmd, self.weights = StreamMonitor(dut, "cmd"), StreamMonitor(dut, "weights")
        self.done, self.stall = PulseMonitor(dut, "done"), PulseMonitor(dut, "stall")
        self._addr = acc_read_port(PARAMS).addr_layout
        self._acc = acc_read_port(PARAMS).payload_layout
        self.activations = np.zeros(
            (PARAMS.pass_tokens, PARAMS.act_tiles * PARAMS.depth_tile), np.int64
        )
        self.shifts = np.zeros((PARAMS.pass_tokens, PARAMS.act_tiles), np.int64)
        self.expected: dict[tuple[int, int], list[int]] = {}  # of (token, block of eight rows)
        dut.act__en.value = 0
        dut.acc__addr.value = 0

    async def start(self) -> None:
        """Reset."""
        await reset(self.dut)

    async def write_activations(self, a: Int, shifts: Int | None = None) -> None:
        """Fill the activation buffer, in a random order; groups have the largest ``shifts`` unless
        others are given."""
        port = act_write_port(PARAMS)
        self.activations = a
        self.shifts = self.shifts * 0 + PARAMS.a_shift_max if shifts is None else shifts
        order = list(np.ndindex(a.shape[0], a.shape[1] // LANES))
        for index in self.rng.permutation(len(order)):
            token, word = order[index]
            await RisingEdge(self.dut.clk)
            payload: Any = a[token, word * LANES : (word + 1) * LANES]
            if PARAMS.a_groups is not None:
                shift = int(self.shifts[token, word * LANES // PARAMS.depth_tile])
                payload = {"q": payload, "shift": shift}
            self.dut.act__en.value = 1
            self.dut.act__addr.value = pack(port.addr_layout, {"token": token, "word": word})
            self.dut.act__data.value = pack(port.payload_layout, payload)
        await RisingEdge(self.dut.clk)
        self.dut.act__en.value = 0

    async def random_activations(self) -> None:
        """Activations of which a quarter are extreme or zero, beyond any command's depth too."""
        a = _random(self.rng, self.activations.shape, _A_MIN, _A_MAX, 0)
        await self.write_activations(a, _random(self.rng, self.shifts.shape, 0, PARAMS.a_shift_max))

    def integers(self, command: Command) -> Int:
        """The activations that a command multiplies by, ``[M, depth]``."""
        shifts = self.shifts.repeat(PARAMS.depth_tile, axis=1)
        return (self.activations << shifts)[command.tokens, : command.depth]

    def send(self, command: Command, weights: GroupedWeights | None = None) -> None:
        """Send a command and its weights."""
        weights = command.weights(self.rng) if weights is None else weights
        self.send_command(command)
        self.send_words(command, command.pack(weights))

    def send_words(self, command: Command, words: NDArray[np.uint8]) -> None:
        """Send the packed weights of a command, and follow what it will do."""
        self.weights_source.send_all(int.from_bytes(word.tobytes(), "little") for word in words)
        tokens = slice(command.tokens.start, command.tokens.stop)
        a = self.activations[tokens, : command.depth]
        shifts = self.shifts[tokens, : command.depth_tiles] if PARAMS.a_groups else None
        sums = PARAMS.matmul(a, words, command.row_blocks, command.planes, shifts)
        results = _wrap(round_shift(sums, command.shift))
        blocks = results.reshape(len(a), command.row_blocks, LANES)
        for token, token_blocks in zip(command.tokens, blocks, strict=True):
            for block, lanes in enumerate(token_blocks, command.acc_base):
                self.expected[token, block] = lanes.tolist()

    def send_command(self, command: Command, **fields: int) -> None:
        """Send a command alone, with some ``fields`` replaced."""
        value = {
            "depth_tiles": command.depth_tiles,
            "row_blocks": command.row_blocks,
            "planes": command.planes,
            "acc_base": command.acc_base,
            "token_first": command.tokens.start,
            "token_count": len(command.tokens),
            "shift": command.shift - PARAMS.shift_min,
        }
        self._cmd.send(pack(tile_command(PARAMS), value | fields))

    async def check(self) -> None:
        """Read all accumulators that are known, once."""
        pairs = sorted({(token, block // 2) for token, block in self.expected})
        for previous, pair in zip([None, *pairs], [*pairs, pairs[0]], strict=True):
            await RisingEdge(self.dut.clk)
            self.dut.acc__addr.value = pack(self._addr, {"token": pair[0], "pair": pair[1]})
            await ReadOnly()
            if previous is None:
                continue
            blocks = unpack(self._acc, self.dut.acc__data.value.to_unsigned())
            for bank, lanes in enumerate(blocks):
                key = previous[0], 2 * previous[1] + bank
                assert lanes == self.expected.get(key, lanes), key
        await RisingEdge(self.dut.clk)


async def _start(dut: Any, *, p_stall: float = 0.0) -> Bench:
    bench = Bench(dut, p_stall=p_stall)
    await bench.start()
    await bench.random_activations()
    return bench


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def corners(dut: Any) -> None:
    """The largest sums of either sign, and zero, over the whole depth."""
    bench = Bench(dut)
    await bench.start()
    n_done = 0
    for value in (_A_MIN, _A_MAX, 0):
        await bench.write_activations(np.full_like(bench.activations, value))
        for base, planes in enumerate((1, MOST)):
            depth_tiles = _most_tiles(planes)
            if isinstance(PARAMS, TernaryParams):
                depth_tiles = min(depth_tiles, PARAMS.max_depth(planes) // PARAMS.depth_tile)
            for extreme in ("lowest", "highest"):
                command = Command(
                    1, planes, depth_tiles, range(1), first=base, shift=PARAMS.shift_max
                )
                bench.send(command, command.weights(bench.rng, extreme))
                n_done += 1
                await bench.done.wait_for(n_done)
                await bench.check()


def _most_tiles(planes: int) -> int:
    """Depth tiles that the activation buffer holds."""
    return PARAMS.act_tiles * PARAMS.depth_tile // PARAMS.tile_depth(planes)


def _block_words(planes: int) -> int:
    """Words of a pass for the rows that the engine computes at once."""
    return PARAMS.pass_words(PARAMS.block_rows, planes)


def _random_command(choose: Random, blocks: int) -> Command:
    planes = choose.choice(PLANES)
    depth_tiles = choose.randrange(1, _most_tiles(planes) + 1)
    words = PARAMS.pass_words(blocks * PARAMS.block_rows, planes)
    most = PARAMS.pass_tokens if words <= PARAMS.weight_buffer_words else PARAMS.step_tokens
    first = choose.randrange(PARAMS.pass_tokens)
    last = min(first // PARAMS.step_tokens * PARAMS.step_tokens + most, PARAMS.pass_tokens)
    return Command(
        blocks=blocks,
        planes=planes,
        depth_tiles=depth_tiles,
        tokens=range(first, choose.randrange(first, last) + 1),
        first=choose.randrange(PARAMS.acc_blocks // PARAMS.block_rows - blocks + 1),
        shift=choose.randrange(PARAMS.shift_min, PARAMS.shift_max + 1),
    )


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=STALLS)
async def random_commands(dut: Any, p_stall: float) -> None:
    """Odd numbers of rows, tokens and activations; commands sent at once and one by one."""
    bench = await _start(dut, p_stall=p_stall)
    choose = Random(cocotb.RANDOM_SEED)
    most = PARAMS.acc_blocks // PARAMS.block_rows
    for index, blocks in enumerate([1, 1, 2, 3, 7, most, 1, 2, 3, 1]):
        bench.send(_random_command(choose, min(blocks, most)))
        if index % 4 == 3:
            await bench.done.wait_for(index + 1)
            await bench.check()
            await bench.random_activations()
            bench.expected.clear()
    await bench.done.wait_for(10)
    await bench.check()
    assert dut.busy.value == 0
    assert p_stall < 0.5 or bench.stall.cycles


def _edge_command(edge: str, planes: int) -> Command:
    """A command at an edge of the tile, with which activation, row and token it begins or ends."""
    m, step_tokens, most = (
        PARAMS.pass_tokens,
        PARAMS.step_tokens,
        PARAMS.acc_blocks // PARAMS.block_rows,
    )
    fits = min(most, PARAMS.weight_buffer_words // _block_words(planes))
    first = step_tokens // 2
    match edge:
        case "one":  # of everything
            return Command(1, planes, 1, range(1))
        case "last":  # of everything
            return Command(1, planes, _most_tiles(planes), range(m - 1, m), first=most - 1)
        case "odd":  # tokens that neither begin nor end with a group
            return Command(
                min(fits, 3),
                planes,
                1,
                range(first, max(first + 1, m - step_tokens + (step_tokens + 1) // 2)),
            )
        case _:
            return Command(min(fits, 5), planes, min(2, _most_tiles(planes)), range(m))


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(p_stall=STALLS)
async def covers_formats_edges_and_extremes(dut: Any, p_stall: float) -> None:
    """Every number of digits at every edge of the tile, with every kind of values."""
    bench = await _start(dut, p_stall=p_stall)
    n_done = 0
    for extreme in EXTREMES:
        if extreme != "random":
            await bench.write_activations(np.full_like(bench.activations, _A_MIN))
        for planes, edge in product(PLANES, EDGES):
            command = _edge_command(edge, planes)
            weights = command.weights(bench.rng, extreme)
            bench.send(command, weights)
            sums = bench.integers(command) @ weights.doubled().T
            sign = {"random": 0, "lowest": -1, "highest": 1}[extreme]
            # one bit of two's complement is 0 or -1
            zero = extreme == "lowest" and planes == BITS | 1
            assert not sign or (np.sign(sums) == (0 if zero else sign)).all()
            COVERAGE[planes, edge, p_stall, extreme] += 1
            n_done += 1
            if edge == "many":
                await bench.done.wait_for(n_done)
                await bench.check()
                bench.expected.clear()
    # words come while tables are written, more of them than a pass takes
    assert p_stall < 0.5 or bench.stall.cycles or isinstance(PARAMS, LookupParams)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def one_block_of_one_plane(dut: Any) -> None:
    """Both sets are ready when the words come: the second pass needs the sum of the first."""
    bench = await _start(dut)
    for index in range(3):
        shift = min(PARAMS.shift_min + 5, PARAMS.shift_max)
        command = Command(1, 1, PARAMS.act_tiles, range(1), first=1, shift=shift)
        bench.send_command(command)
        await bench.cmd.wait_for(index + 1)
        await ClockCycles(dut.clk, 3 * TIMING.spacing)
        bench.send_words(command, command.pack(command.weights(bench.rng)))
        await bench.done.wait_for(index + 1)
        await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def cycles_are_as_stated(dut: Any) -> None:
    """Passes shorter than the preparation of a set, as long, and longer; blocks likewise."""
    bench = await _start(dut)
    n_words, most = 0, PARAMS.acc_blocks // PARAMS.block_rows
    some = min(3, _most_tiles(MOST))
    shapes = [
        (1, 1, 1, range(1)),
        (1, 1, PARAMS.act_tiles, range(PARAMS.pass_tokens)),
        (2, 1, PARAMS.act_tiles, range(1)),
        (most, 1, 2, range(PARAMS.pass_tokens)),
        (1, MOST, some, range(PARAMS.pass_tokens - 1, PARAMS.pass_tokens)),
        (2, MOST, some, range(PARAMS.pass_tokens // 2, PARAMS.pass_tokens)),
        (most, MOST, 1, range(1)),
    ]
    # around the least length of a pass
    shapes += [
        (blocks, 1, 3, range(2))
        for blocks in range(TIMING.spacing // PARAMS.steps - 1, TIMING.spacing // PARAMS.steps + 2)
        if 1 <= blocks <= most
    ]
    for index, shape in enumerate(shapes):
        command = Command(*shape)
        if command.replays and command.words > PARAMS.weight_buffer_words // 2:
            command = Command(*shape[:3], range(1))
        bench.send(command)
        await bench.done.wait_for(index + 1)
        assert bench.done.cycles[-1] - bench.cmd.cycles[-1] == command.cycles, command
        n_words += PARAMS.n_words(command.depth_tiles, command.row_blocks, command.planes)
        assert len(bench.weights.payloads) == n_words
        await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def back_to_back(dut: Any) -> None:
    """A command that waits begins with no cycle lost; weights stream at full rate."""
    bench = await _start(dut)
    most = PARAMS.acc_blocks // PARAMS.block_rows
    most = min(most, PARAMS.weight_buffer_words // _block_words(1))
    planes = TWO
    # passes that are as long as it takes to prepare one
    long = min(most, -(-(TIMING.spacing + 2) // _block_words(1)))
    two = min(most, -(-(TIMING.spacing + 2) // _block_words(planes)))
    commands = [
        Command(long, 1, 2, range(PARAMS.pass_tokens)),
        Command(two, planes, 1, range(1)),
        Command(long, 1, 3, range(1)),
        Command(1, MOST, 2, range(1)),
        Command(most, 1, 1, range(PARAMS.pass_tokens)),
    ]
    for command in commands:
        bench.send(command)
    await bench.done.wait_for(len(commands))
    await bench.check()
    assert bench.done.cycles[0] - bench.cmd.cycles[0] == commands[0].cycles
    differences = np.diff(bench.done.cycles).tolist()
    for command, cycles in zip(commands[1:3], differences[:2], strict=True):
        assert cycles == command.passes * command.pass_cycles
    # the short passes of the fourth command end when the set of the next may begin
    for command, cycles in zip(commands[3:], differences[2:], strict=True):
        assert cycles <= command.passes * command.pass_cycles + TIMING.spacing
    assert len(bench.stall.cycles) < TIMING.spacing


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def empty_commands(dut: Any) -> None:
    """Done at once and in order, without a word."""
    bench = await _start(dut)
    some = Command(2, 1, 1, range(1))
    n_done = 0
    for field in ("token_count", "row_blocks", "planes", "depth_tiles"):
        bench.send_command(some, **{field: 0})
        n_done += 1
        await bench.done.wait_for(n_done)
        assert bench.done.cycles[-1] - bench.cmd.cycles[-1] == 1 + TIMING.empty_latency
    for field in ("token_count", "planes"):
        bench.send(some)
        bench.send_command(some, **{field: 0})
        bench.send_command(some, **{field: 0})
        n_done += 3
    await bench.done.wait_for(n_done)
    await ClockCycles(dut.clk, 40 + TIMING.latency)
    assert len(bench.done.cycles) == n_done
    assert len(bench.weights.payloads) == 2 * some.words
    assert dut.busy.value == 0
    await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def fills_its_buffer_and_waits(dut: Any) -> None:
    """Words are taken before their command; ``stall`` is a command without words."""
    bench = await _start(dut)
    depth = PARAMS.weight_buffer_words
    command = Command(1, 1, 1, range(PARAMS.pass_tokens))
    bench.send_command(command)
    await bench.cmd.wait_for(1)
    await ClockCycles(dut.clk, TIMING.lead + 10)
    assert (dut.busy.value, dut.stall.value) == (1, 1)
    bench.send_words(command, command.pack(command.weights(bench.rng)))
    await bench.done.wait_for(1)
    await RisingEdge(dut.clk)
    assert (dut.busy.value, dut.stall.value) == (0, 0)

    # a pass that fills the buffer, or comes near it
    planes, one = MOST, _block_words(MOST)
    blocks = min(depth // one, PARAMS.acc_blocks // PARAMS.block_rows)
    depth_tiles = min(_most_tiles(planes), depth // (one * blocks) + 1)
    command = Command(blocks, planes, depth_tiles, range(PARAMS.pass_tokens))
    former = len(bench.weights.payloads)
    n_words = PARAMS.n_words(depth_tiles, command.row_blocks, planes)
    bench.send_words(command, command.pack(command.weights(bench.rng)))
    await ClockCycles(dut.clk, depth + 20)
    assert len(bench.weights.payloads) == former + min(depth, n_words)
    assert dut.weights__ready.value == (n_words < depth)
    bench.send_command(command)
    await bench.done.wait_for(2)
    if command.words <= depth // 2:
        assert bench.done.cycles[-1] - bench.cmd.cycles[-1] == command.cycles
    await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def one_weight_bit(dut: Any) -> None:
    """A flipped bit of a digit, a scale, a zero point or an offset shows in its row and nowhere
    else."""
    bench = Bench(dut)
    await bench.start()
    await bench.write_activations(np.ones_like(bench.activations))
    command = Command(2, MOST, 2, range(1))
    weights = command.weights(bench.rng, "lowest")
    words = command.pack(weights)
    bench.send_command(command)
    bench.send_words(command, words)
    await bench.done.wait_for(1)
    await bench.check()

    row = PARAMS.step_rows - 3
    digit = PARAMS.digit_bits // PARAMS.step_rows * row
    # of a ternary code the sign, of others the lowest digit of a code, or the sign of an activation
    bits = [digit + (4 if isinstance(PARAMS, TernaryParams) else 0)]
    if PARAMS.grouped:
        side = PARAMS.digit_bits + PARAMS.side_width * row
        bits += [side, side + PARAMS.scale_width]
    for index, bit in enumerate(bits):
        before = dict(bench.expected)
        words[-1, bit // 8] ^= 1 << (bit % 8)
        bench.send_command(command)
        bench.send_words(command, words)
        await bench.done.wait_for(2 + index)
        await bench.check()
        changed = [
            (block * LANES + lane)
            for (_, block), lanes in bench.expected.items()
            for lane, value in enumerate(lanes)
            if value != before[0, block][lane]
        ]
        assert changed == [PARAMS.step_rows + row]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def accumulators_are_readable_meanwhile(dut: Any) -> None:
    """Blocks of a former command keep their values while others are computed."""
    bench = await _start(dut)
    most = PARAMS.acc_blocks // PARAMS.block_rows
    few = most // 2
    bench.send(Command(few, 1, 1, range(PARAMS.step_tokens)))
    await bench.done.wait_for(1)
    former = dict(bench.expected)
    tiles = min(3, _most_tiles(MOST))
    bench.send(Command(most - few, MOST, tiles, range(PARAMS.step_tokens), first=few))
    bench.expected, later = former, bench.expected
    while len(bench.done.cycles) < 2:
        await bench.check()
    bench.expected = later
    await bench.check()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def coverage_is_complete(dut: Any) -> None:
    """Every coverage point of the bench was hit; runs after the other tests."""
    bench = Bench(dut)
    await bench.start()
    step = f"{PARAMS.step_tokens}x{PARAMS.step_rows}x{PARAMS.step_depth}"
    name = f"{PARAMS.kind} {step} A{PARAMS.a_width}"
    for edge, p_stall in product(EDGES, STALLS):
        counts = {
            f"{planes} planes, {extreme}": COVERAGE[planes, edge, p_stall, extreme]
            for planes, extreme in product(PLANES, EXTREMES)
        }
        dut._log.info(f"coverage of {name}, edge {edge}, stall {p_stall}: {counts}")
        missing = [key for key, count in counts.items() if count == 0]
        assert missing == []
