"""Bus errors, aborts, resets and silent ports at random places of whole programs.

After each of them the accelerator has said what happened, nothing but what the run owns was
touched, and the next run is right to the last bit.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.hw.core.test_accelerator import SMALL

from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import DOORBELL_BYTES, Descriptor, line_bytes
from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import (
    CONTROL_ABORT,
    REGISTERS,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_DRAINING,
    STATUS_ERROR,
    STATUS_SATURATED,
    ErrorCode,
)
from lutra_golden.control.result import RESULT_BYTES, Result
from lutra_golden.core.ports import Purpose, Response
from lutra_golden.timing.memory import IDEAL_MEMORY, random_timing
from lutra_sim.bench.core.story import Story, StorySizes
from lutra_sim.rtl.device import Simulator

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

_TILES = [
    ([3], [(0, 0, 0)], 0),
    ([7, 1, 4], [(1, 2, 0), (0, 1, 1)], 2),
    ([2, 5], [(1, 1, 1), (3, 1, 0)], 0),
]
"""Tokens, position, tokens and sequence of their chunks, and first logits of runs; each sees what
those before it wrote."""
_LINE = line_bytes(SMALL)
_STALE = b"\x5a"
_LIMIT = 100_000  # cycles of a run that does not hang
_WATCHDOG = 2000


class Campaign:
    """A simulated accelerator, and what memory holds before and after each tile.

    Runs are started by descriptors, which lie behind that, or by registers.
    """

    def __init__(self, seed: int, *, described: bool) -> None:
        self.rng, self.described = Random(seed), described
        sizes = StorySizes(hidden=64, intermediate=48, vocab=64, n_layers=1)
        self.story = story = Story(SMALL, sizes, Random(1))
        self.images, self.results = [story.bytes()], list[list[int]]()
        self.chunks = [
            [ChunkEntry(position, n, story.kv_bases[i]) for position, n, i in table]
            for _, table, _ in _TILES
        ]
        for (tokens, _, logits_from), chunks in zip(_TILES, self.chunks, strict=True):
            story.run(tokens, chunks, logits_from)
            self.images.append(story.bytes())
            wanted, golden = range(logits_from, len(tokens)), story.golden
            scales = [Scale(golden.scale.m[t], golden.scale.e[t]) for t in wanted]
            self.results.append(
                [int(golden.argmax[t]) for t in wanted] + [int(pack_scale(s)) for s in scales]
            )
        timing = IDEAL_MEMORY if seed % 3 == 0 else random_timing(seed)
        self.blocks = -(-len(self.images[0]) // _LINE) * _LINE
        self.size = self.blocks + 4 * _LINE
        self.simulator = Simulator(SMALL, self.size, timing)
        self.transfers = list[dict[tuple[int, bool], int]]()
        self.cycles = list[int]()
        self.set_up()
        for tile in range(len(_TILES)):
            self.prepare(tile)
            first = self.simulator.cycles
            self.check_run(tile)
            self.cycles.append(self.simulator.cycles - first)
            self.transfers.append(
                {
                    (number, writes): self.simulator.transfers(number, writes=writes)
                    for number, port in enumerate(SMALL.ports)
                    for writes in (False, True)
                    if (port.writes if writes else port.reads)
                }
            )

    def set_up(self) -> None:
        """Write the registers that all tiles have in common."""
        for name, value in (self.story.registers | {"WATCHDOG": _WATCHDOG}).items():
            for word in range(REGISTERS[name].count):
                self.simulator.write_register(name, value >> 32 * word & 0xFFFFFFFF, word)

    def prepare(self, tile: int) -> None:
        """Memory as it is before the tile."""
        self.simulator.write(0, self.images[tile])
        self.calm()

    def calm(self) -> None:
        """All ports answer as they should."""
        for number, port in enumerate(SMALL.ports):
            if port.reads:
                self.simulator.disturb(number, None)
            if port.writes:
                self.simulator.disturb(number, None, writes=True)

    def ring(self, tile: int) -> None:
        """Start the tile by a descriptor."""
        tokens, _, logits_from = _TILES[tile]
        registers: dict[str, Any] = {
            name.lower(): value for name, value in self.story.registers.items()
        }
        descriptor = Descriptor(
            fingerprint=SMALL.fingerprint,
            result_base=self.blocks,
            tag=tile,
            logits_from=logits_from,
            chunks=tuple(self.chunks[tile]),
            tokens=tuple(tokens),
            **registers,
        )
        at = self.blocks + 2 * _LINE
        self.simulator.write(self.blocks, _STALE * (2 * _LINE) + descriptor.encode(_LINE))
        self.simulator.write_register("IRQ_STATUS", 1)
        self.simulator.write_register("DOORBELL", at // DOORBELL_BYTES)

    def start(self, tile: int) -> None:
        if self.described:
            self.ring(tile)
            return
        tokens, _, logits_from = _TILES[tile]
        for index, token in enumerate(tokens):
            self.simulator.write_register("TOKEN", token, index)
        for index, entry in enumerate(self.chunks[tile]):
            for name, word in zip(("CHUNK", "CHUNK_KV"), entry.words, strict=True):
                self.simulator.write_register(name, word, index)
        self.simulator.write_register("N_TOKENS", len(tokens))
        self.simulator.write_register("LOGITS_FROM", logits_from)
        self.simulator.start()

    def failure(self) -> Failure:
        read = self.simulator.read_register
        address = read("ERROR_ADDRESS") | read("ERROR_ADDRESS", 1) << 32
        return Failure.of(read("ERROR"), address)

    def finish(self) -> int:
        """Wait for the interrupt; returns STATUS."""
        assert self.simulator.run(_LIMIT), "the run hangs"
        status = self.simulator.read_register("STATUS")
        assert status & STATUS_DONE and not status & STATUS_BUSY
        return status

    def check_run(self, tile: int) -> None:
        """A run in peace, and its results to the last bit."""
        self.start(tile)
        assert not self.finish() & STATUS_ERROR, self.failure()
        self.check_results(tile)

    def check_results(self, tile: int) -> None:
        tokens, _, logits_from = _TILES[tile]
        read, wanted = self.simulator.read_register, range(logits_from, len(tokens))
        found = [read("ARGMAX", t) for t in wanted] + [read("SCALE", t) for t in wanted]
        assert found == self.results[tile]
        if self.described:
            n = len(wanted)
            data = self.simulator.read(self.blocks, 2 * _LINE)
            result = Result.decode(data)
            assert (result.status & ~STATUS_SATURATED, result.tag) == (STATUS_DONE, tile)
            assert [*result.argmax, *result.scale] == self.results[tile]
            assert data[RESULT_BYTES + 8 * n :] == _STALE * (2 * _LINE - RESULT_BYTES - 8 * n)
        assert self.simulator.read(0, len(self.images[0])) == self.images[tile + 1]


def bus_error(campaign: Campaign, tile: int) -> None:
    """An error with random data, at any transfer of any port."""
    rng, simulator = campaign.rng, campaign.simulator
    counts = {port: n for port, n in campaign.transfers[tile].items() if n}
    number, writes = rng.choice(list(counts))
    response = rng.choice([Response.SLVERR, Response.DECERR])
    simulator.disturb(number, rng.randrange(counts[number, writes]), response, writes=writes)
    campaign.start(tile)
    status, failure = campaign.finish(), campaign.failure()
    assert status & STATUS_ERROR and not status & STATUS_DRAINING
    assert (failure.code, failure.response) == (ErrorCode.BUS, response)
    purpose = list(Purpose)[failure.purpose]
    assert purpose in SMALL.ports[number].purposes and (purpose is Purpose.WRITE) == writes
    assert failure.address < campaign.size


def abort(campaign: Campaign, tile: int) -> None:
    """An abort in any cycle, up to a little behind the end."""
    simulator = campaign.simulator
    campaign.start(tile)
    ended = simulator.run(campaign.rng.randrange(1, campaign.cycles[tile] + 20))
    simulator.write_register("CONTROL", CONTROL_ABORT)
    if campaign.finish() & STATUS_ERROR:
        assert not ended
        assert campaign.failure().code == ErrorCode.ABORT
    else:
        campaign.check_results(tile)


def reset(campaign: Campaign, tile: int) -> None:
    """A reset of the accelerator alone in any cycle, of any length."""
    simulator = campaign.simulator
    campaign.start(tile)
    simulator.run(campaign.rng.randrange(1, campaign.cycles[tile] + 20))
    simulator.reset_core(campaign.rng.choice([1, 2, 4, 16, 64]))
    campaign.set_up()


def silence(campaign: Campaign, tile: int) -> None:
    """A port that answers no more from any transfer on: the watchdog; then a reset of all."""
    rng, simulator = campaign.rng, campaign.simulator
    counts = {port: n for port, n in campaign.transfers[tile].items() if n}
    number, writes = rng.choice(list(counts))
    simulator.disturb(number, rng.randrange(counts[number, writes]), None, writes=writes)
    campaign.start(tile)
    assert campaign.finish() & STATUS_ERROR
    assert campaign.failure().code == ErrorCode.WATCHDOG
    simulator.reset()
    campaign.set_up()


Kind = Callable[[Campaign, int], None]


@pytest.mark.parametrize("described", [False, True], ids=["registers", "descriptors"])
@pytest.mark.parametrize("kind", [bus_error, abort, reset, silence])
@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.slow)], ids=["50", "1000"])
def test_the_next_run_is_right(kind: Kind, n: int, described: bool) -> None:
    per_memory = 50
    for seed in range(n // per_memory):
        campaign = Campaign(seed, described=described)
        for _ in range(per_memory):
            tile = campaign.rng.randrange(len(_TILES))
            campaign.prepare(tile)
            kind(campaign, tile)
            campaign.calm()
            # the same run again, in a memory of which a failed one may have changed its own only
            campaign.check_run(tile)
        campaign.simulator.close()
