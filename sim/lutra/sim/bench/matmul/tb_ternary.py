"""cocotb bench of :class:`lutra.hw.matmul.ternary.TernaryEngine`."""

from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra.hw.matmul.contract import TILE_COMMAND, acc_read_port, act_write_port
from lutra.hw.matmul.ternary import TernaryEngine
from lutra.sim.bench.ports import PulseMonitor
from lutra.sim.bench.simulate import bench_params
from lutra.sim.bench.stream import StreamMonitor, StreamSource, pack, reset, unpack
from lutra.sim.golden.matmul.ternary import TernaryParams, lookup_matmul, pack_words

__all__ = [
    "accumulators_are_readable_meanwhile",
    "back_to_back",
    "corners",
    "cycles_are_as_stated",
    "empty_commands",
    "fills_its_buffer_and_waits",
    "one_block_of_one_plane",
    "one_weight_bit",
    "random_commands",
]

PARAMS = bench_params(TernaryParams)
ENGINE = TernaryEngine(PARAMS)


@dataclass(frozen=True)
class Command:
    """A tile of a matmul: the first ``depth`` activations of some tokens, some rows."""

    row_blocks: int
    planes: int
    depth: int
    tokens: range
    acc_base: int = 0

    @property
    def k_tiles(self) -> int:
        """Depth tiles."""
        return -(-self.depth // PARAMS.k_tile)

    @property
    def limit(self) -> int:
        """Largest weight of ``planes`` digits."""
        return (3**self.planes - 1) // 2

    @property
    def cycles(self) -> int:
        """Cycles in an idle engine."""
        return ENGINE.cycles(self.k_tiles, self.row_blocks, self.planes, len(self.tokens))

    def random_weights(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Weights of which a quarter are extreme or zero."""
        shape = (self.row_blocks * PARAMS.lanes, self.depth)
        w = rng.integers(-self.limit, self.limit + 1, shape)
        corner = rng.choice([-self.limit, 0, self.limit], shape)
        return np.where(rng.random(shape) < 0.25, corner, w)


class Bench:
    """Drives the engine and follows its accumulators in a model of them."""

    def __init__(self, dut: Any, *, p_stall: float = 0.0) -> None:
        seed = cocotb.RANDOM_SEED
        self.dut, self.rng = dut, np.random.default_rng(seed)
        self._cmd = StreamSource(dut, "cmd")
        self.weights_source = StreamSource(dut, "weights", p_stall=p_stall, rng=Random(seed))
        self.cmd, self.weights = StreamMonitor(dut, "cmd"), StreamMonitor(dut, "weights")
        self.done = PulseMonitor(dut, "done")
        self._addr = acc_read_port(PARAMS).addr_layout
        self._acc = acc_read_port(PARAMS).payload_layout
        self.activations = np.zeros((PARAMS.m_tile, PARAMS.act_tiles * PARAMS.k_tile), np.int64)
        self.expected: dict[tuple[int, int], list[int]] = {}  # of (token, block)
        dut.act__en.value = 0
        dut.acc__addr.value = 0

    async def start(self) -> None:
        """Reset."""
        await reset(self.dut)

    async def write_activations(self, a: NDArray[np.int64]) -> None:
        """Fill the activation buffer, in a random order."""
        port, lanes = act_write_port(PARAMS), PARAMS.lanes
        self.activations = a
        order = list(np.ndindex(a.shape[0], a.shape[1] // lanes))
        for index in self.rng.permutation(len(order)):
            token, word = order[index]
            await RisingEdge(self.dut.clk)
            payload = a[token, word * lanes : (word + 1) * lanes]
            self.dut.act__en.value = 1
            self.dut.act__addr.value = pack(port.addr_layout, {"token": token, "word": word})
            self.dut.act__data.value = pack(port.payload_layout, payload)
        await RisingEdge(self.dut.clk)
        self.dut.act__en.value = 0

    async def random_activations(self) -> None:
        """Activations of which a quarter are extreme or zero, beyond any command's depth too."""
        shape, limit = self.activations.shape, 1 << (PARAMS.a_width - 1)
        a = self.rng.integers(-limit, limit, shape)
        corner = self.rng.choice([-limit, 0, limit - 1], shape)
        await self.write_activations(np.where(self.rng.random(shape) < 0.25, corner, a))

    def send(self, command: Command, w: NDArray[np.int64] | None = None) -> None:
        """Send a command and its weights."""
        w = command.random_weights(self.rng) if w is None else w
        self.send_command(command)
        self.send_words(command, pack_words(PARAMS, w, command.planes))

    def send_words(self, command: Command, words: NDArray[np.uint8]) -> None:
        """Send the packed weights of a command, and follow what it will do."""
        self.weights_source.send_all(int.from_bytes(word.tobytes(), "little") for word in words)
        a = self.activations[command.tokens.start : command.tokens.stop]
        sums = lookup_matmul(PARAMS, a[:, : command.k_tiles * PARAMS.k_tile], words, command.planes)
        blocks = sums.reshape(len(command.tokens), command.row_blocks, PARAMS.lanes)
        for token, token_blocks in zip(command.tokens, blocks, strict=True):
            for block, lanes in enumerate(token_blocks, command.acc_base):
                self.expected[token, block] = lanes.tolist()

    def send_command(self, command: Command, **fields: int) -> None:
        """Send a command alone, with some ``fields`` replaced."""
        value = {
            "k_tiles": command.k_tiles,
            "row_blocks": command.row_blocks,
            "planes": command.planes,
            "acc_base": command.acc_base,
            "token_first": command.tokens.start,
            "token_count": len(command.tokens),
        }
        self._cmd.send(pack(TILE_COMMAND, value | fields))

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
    """The largest sums of either sign, and zero."""
    bench = Bench(dut)
    await bench.start()
    n_done = 0
    limit = 1 << (PARAMS.a_width - 1)
    for value in (-limit, limit - 1, 0):
        await bench.write_activations(np.full_like(bench.activations, value))
        for base, planes in enumerate((1, PARAMS.max_planes)):
            depth = min(PARAMS.act_tiles * PARAMS.k_tile, PARAMS.max_depth(planes))
            for index, sign in enumerate((-1, 1, 0)):
                command = Command(1, planes, depth, range(1), acc_base=2 * index + base)
                bench.send(command, np.full((PARAMS.lanes, depth), sign * command.limit))
                n_done += 1
        await bench.done.wait_for(n_done)
        await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.3, 0.8])
async def random_commands(dut: Any, p_stall: float) -> None:
    """Odd numbers of rows, tokens and activations; commands sent at once and one by one."""
    bench = await _start(dut, p_stall=p_stall)
    choose = Random(cocotb.RANDOM_SEED)
    depth_max = 3 * PARAMS.k_tile
    for index, row_blocks in enumerate([1, 1, 2, 3, 7, 16, 1, 2, 3, 1]):
        planes = choose.choice([1, 2, PARAMS.max_planes])
        words = row_blocks * planes
        fits = words <= PARAMS.weight_buffer_words
        most = max(1, min(PARAMS.m_tile, 120 // words)) if fits else 1
        count = choose.randrange(1, most + 1)
        first = choose.randrange(PARAMS.m_tile - count + 1)
        command = Command(
            row_blocks=row_blocks,
            planes=planes,
            depth=choose.choice([1, PARAMS.k_tile, PARAMS.k_tile + 1, depth_max - 1, depth_max]),
            tokens=range(first, first + count),
            acc_base=choose.randrange(PARAMS.acc_blocks - row_blocks + 1),
        )
        bench.send(command)
        if index % 4 == 3:
            await bench.done.wait_for(index + 1)
            await bench.check()
            await bench.random_activations()
            bench.expected.clear()
    await bench.done.wait_for(10)
    await bench.check()
    assert dut.busy.value == 0


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def one_block_of_one_plane(dut: Any) -> None:
    """Both tables are ready when the words come: the second pass needs the sum of the first."""
    bench = await _start(dut)
    for index in range(3):
        command = Command(1, 1, PARAMS.act_tiles * PARAMS.k_tile, range(1), acc_base=1)
        bench.send_command(command)
        await bench.cmd.wait_for(index + 1)
        await ClockCycles(dut.clk, 3 * PARAMS.n_entries)
        bench.send_words(command, pack_words(PARAMS, command.random_weights(bench.rng), 1))
        await bench.done.wait_for(index + 1)
        await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def cycles_are_as_stated(dut: Any) -> None:
    """Passes shorter than the making of a table, as long, and longer."""
    bench = await _start(dut)
    n_words = 0
    commands = [
        Command(1, 1, PARAMS.k_tile, range(1)),
        Command(1, 1, 4 * PARAMS.k_tile, range(2)),
        Command(13, 1, 3 * PARAMS.k_tile, range(2)),
        Command(14, 1, 3 * PARAMS.k_tile, range(2)),
        Command(3, 5, 3 * PARAMS.k_tile, range(3)),
        Command(8, 2, 4 * PARAMS.k_tile, range(1)),
        Command(32, 1, 4 * PARAMS.k_tile, range(1)),
        Command(32, 2, 4 * PARAMS.k_tile, range(1)),
    ]
    for index, command in enumerate(commands):
        bench.send(command)
        await bench.done.wait_for(index + 1)
        assert bench.done.cycles[-1] - bench.cmd.cycles[-1] == command.cycles
        n_words += command.k_tiles * command.row_blocks * command.planes
        assert len(bench.weights.payloads) == n_words
        await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def back_to_back(dut: Any) -> None:
    """A command that waits begins with no cycle lost; weights stream at full rate."""
    bench = await _start(dut)
    commands = [
        Command(16, 1, 2 * PARAMS.k_tile, range(2)),
        Command(7, 2, PARAMS.k_tile, range(1), acc_base=16),
        Command(16, 1, 3 * PARAMS.k_tile, range(1)),
        Command(1, 5, 2 * PARAMS.k_tile, range(1), acc_base=16),
        Command(32, 1, PARAMS.k_tile, range(2)),
    ]
    for command in commands:
        bench.send(command)
    await bench.done.wait_for(len(commands))
    await bench.check()
    n_entries, cycles = PARAMS.n_entries, [c.cycles for c in commands]
    assert bench.done.cycles[0] - bench.cmd.cycles[0] == cycles[0]
    for index, command in enumerate(commands[1:3], 1):
        words = command.k_tiles * len(command.tokens) * command.row_blocks * command.planes
        assert bench.done.cycles[index] - bench.done.cycles[index - 1] == words
    # the short passes of the fourth command end when the table of the next may begin
    assert bench.done.cycles[3] - bench.done.cycles[2] <= 2 * n_entries
    assert bench.done.cycles[4] - bench.done.cycles[3] <= 2 * 32 + n_entries


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def empty_commands(dut: Any) -> None:
    """Done at once and in order, without a word."""
    bench = await _start(dut)
    some = Command(2, 2, PARAMS.k_tile, range(1))
    n_done = 0
    for field in ("token_count", "row_blocks", "planes", "k_tiles"):
        bench.send_command(some, **{field: 0})
        n_done += 1
        await bench.done.wait_for(n_done)
        assert bench.done.cycles[-1] - bench.cmd.cycles[-1] == 1 + ENGINE.latency
    for field in ("token_count", "planes"):
        bench.send(some)
        bench.send_command(some, **{field: 0})
        bench.send_command(some, **{field: 0})
        n_done += 3
    await bench.done.wait_for(n_done)
    await ClockCycles(dut.clk, 40)
    assert len(bench.done.cycles) == n_done
    assert len(bench.weights.payloads) == 2 * 4
    assert dut.busy.value == 0
    await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def fills_its_buffer_and_waits(dut: Any) -> None:
    """Words are taken before their command; ``stall`` is a command without words."""
    bench = await _start(dut)
    words = PARAMS.weight_buffer_words
    command = Command(2, 1, PARAMS.k_tile, range(PARAMS.m_tile))
    w = command.random_weights(bench.rng)
    bench.send_command(command)
    await bench.cmd.wait_for(1)
    await ClockCycles(dut.clk, 30)
    assert (dut.busy.value, dut.stall.value) == (1, 1)
    bench.send_words(command, pack_words(PARAMS, w, 1))
    await bench.done.wait_for(1)
    await RisingEdge(dut.clk)
    assert (dut.busy.value, dut.stall.value) == (0, 0)

    row_blocks = min(words // 2, PARAMS.acc_blocks)
    command = Command(row_blocks, 1, 3 * PARAMS.k_tile, range(2))
    bench.send_words(command, pack_words(PARAMS, command.random_weights(bench.rng), 1))
    await ClockCycles(dut.clk, words + 20)
    assert len(bench.weights.payloads) == 2 + words
    assert dut.weights__ready.value == 0
    bench.send_command(command)
    await bench.done.wait_for(2)
    assert bench.done.cycles[-1] - bench.cmd.cycles[-1] == command.cycles
    await bench.check()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def one_weight_bit(dut: Any) -> None:
    """A flipped sign bit shows in its row and nowhere else."""
    bench = await _start(dut)
    command = Command(3, 2, 2 * PARAMS.k_tile, range(1))
    w = np.full((3 * PARAMS.lanes, command.depth), 4)
    words = pack_words(PARAMS, w, 2)
    bench.send_command(command)
    bench.send_words(command, words)
    await bench.done.wait_for(1)
    await bench.check()
    before = dict(bench.expected)

    lane, table = 5, PARAMS.n_tables - 1
    bit = 5 * (lane * PARAMS.n_tables + table) + 4
    words[-1, bit // 8] ^= 1 << (bit % 8)
    bench.send_command(command)
    bench.send_words(command, words)
    await bench.done.wait_for(2)
    await bench.check()
    changed = [
        (key, index)
        for key, lanes in bench.expected.items()
        for index, value in enumerate(lanes)
        if value != before[key][index]
    ]
    assert changed == [((0, 2), lane)]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def accumulators_are_readable_meanwhile(dut: Any) -> None:
    """Blocks of a former command keep their values while others are computed."""
    bench = await _start(dut)
    bench.send(Command(5, 1, PARAMS.k_tile, range(PARAMS.m_tile)))
    await bench.done.wait_for(1)
    former = dict(bench.expected)
    bench.send(Command(9, 5, 3 * PARAMS.k_tile, range(PARAMS.m_tile), acc_base=5))
    bench.expected, later = former, bench.expected
    while len(bench.done.cycles) < 2:
        await bench.check()
    bench.expected = later
    await bench.check()
