"""A kernel: descriptors that are started as XRT starts them, to the last bit."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.hw.core.test_accelerator import SMALL

from lutra_golden.control.ap_ctrl import XRT_ADDR_WIDTH
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import QUEUE_DEPTH, Descriptor, Kind, line_bytes
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import IDENT, STATUS_DONE, STATUS_ERROR, ErrorCode
from lutra_golden.control.result import Result, result_bytes
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.timing.memory import random_timing
from lutra_sim.bench.core.story import Story, StorySizes
from lutra_sim.rtl.xrt import XrtKernel

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]

N_SLOTS = 6
LIMIT = 200_000


class Campaign:
    """A kernel and a golden device with the same memory; descriptors lie behind the story's."""

    def __init__(self, config: AcceleratorConfig, sizes: StorySizes) -> None:
        self.fingerprint, self.line = config.fingerprint, line_bytes(config)
        self.room = result_bytes(self.line, config.pass_tokens)
        self.slot = self.room + self.line
        """Bytes of a result block and the descriptor behind it."""
        self.story = Story(config, sizes, Random(1))
        image = self.story.bytes()
        self.blocks = -(-len(image) // self.line) * self.line
        image += bytes(self.blocks - len(image))
        size = self.blocks + N_SLOTS * self.slot
        self.golden = Interpreter(config, Memory(size))
        self.kernel = XrtKernel(config, size, random_timing(3))
        for memory in (self.golden.memory, self.kernel):
            memory.write(0, image + bytes(size - self.blocks))

    def descriptor(self, slot: int, **values: Any) -> Descriptor:
        registers: dict[str, Any] = {
            name.lower(): value for name, value in self.story.registers.items()
        }
        kv = self.story.kv_bases[0]
        shape: dict[str, Any] = {"chunks": (ChunkEntry(0, 0, kv),), "tokens": (3, 1, 4)}
        return Descriptor(
            fingerprint=self.fingerprint,
            result_base=self.blocks + slot * self.slot,
            tag=slot,
            **(registers | shape | values),
        )

    def start(self, descriptor: Descriptor) -> None:
        """Place a descriptor in both memories, start it by XRT, and run the golden device."""
        base = descriptor.result_base
        data = bytes(self.room) + descriptor.encode(self.line)
        self.kernel.write(base, data)
        self.golden.memory.write(base, data)
        self.kernel.start(base + self.room)
        self.golden.run_descriptor(base + self.room)

    def check(self, slot: int) -> Result:
        """Wait for a run; its result block, and memory if it is the last one, are golden."""
        assert self.kernel.wait(LIMIT), "the run hangs"
        at = self.blocks + slot * self.slot
        found = Result.decode(self.kernel.read(at, self.room))
        expected = Result.decode(self.golden.memory.read(at, self.room).tobytes())
        assert found.counters["cycles"] > 0
        found.counters = dict(expected.counters)
        assert found == expected
        return found

    def check_memory(self) -> None:
        """All but the counters in result blocks is golden."""
        size = self.kernel.memory_bytes
        for slot in range(N_SLOTS):
            # compared before
            at = self.blocks + slot * self.slot
            self.golden.memory.write(at, self.kernel.read(at, self.room))
        assert self.kernel.read(0, size) == self.golden.memory.read(0, size).tobytes()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (SMALL, StorySizes(hidden=64, intermediate=48, vocab=64, n_layers=1)), id="small"
        ),
        pytest.param(
            (NANO, StorySizes(hidden=256, intermediate=160, vocab=128, n_layers=1)),
            marks=pytest.mark.slow,
            id="nano",
        ),
    ],
)
def campaign(request: pytest.FixtureRequest) -> Any:
    found = Campaign(*request.param)
    yield found
    found.kernel.close()


def test_a_run(campaign: Campaign) -> None:
    campaign.start(campaign.descriptor(0, logits_from=1))
    result = campaign.check(0)
    assert (result.status & STATUS_ERROR, len(result.argmax)) == (0, 2)
    campaign.check_memory()


def test_a_queue_of_runs(campaign: Campaign) -> None:
    """More than fit into the accelerator's queue, each of which goes on where the last ended."""
    kv = campaign.story.kv_bases[1]
    assert N_SLOTS > QUEUE_DEPTH + 1
    for slot in range(N_SLOTS):
        chunks = (ChunkEntry(slot, 0, kv),)
        campaign.start(campaign.descriptor(slot, tokens=(slot + 5,), chunks=chunks))
    assert campaign.kernel.n_started > QUEUE_DEPTH
    for slot in range(N_SLOTS):
        assert campaign.check(slot).status & STATUS_DONE
    assert campaign.kernel.n_started == 0
    campaign.check_memory()


def test_what_is_not_carried_out_is_done_too(campaign: Campaign) -> None:
    """An address that cannot be rung; a descriptor for another configuration; then a sound one."""
    sound = campaign.descriptor(1, kind=Kind.CHECKSUM, chunks=(), tokens=())
    campaign.kernel.write(campaign.blocks, bytes(campaign.room))
    for address in (campaign.blocks + 8, 1 << 40):
        campaign.kernel.start(address)
    campaign.start(replace(sound, fingerprint=1))
    campaign.start(campaign.descriptor(2, kind=Kind.CHECKSUM, chunks=(), tokens=()))
    for _ in range(2):
        assert campaign.kernel.wait(LIMIT)
    assert campaign.kernel.read(campaign.blocks, campaign.room) == bytes(campaign.room)
    assert campaign.check(1).failure.code == ErrorCode.FINGERPRINT
    assert campaign.check(2).checksum


def test_registers_lie_behind(campaign: Campaign) -> None:
    assert campaign.kernel.read_register("IDENT") == IDENT
    with pytest.raises(ValueError, match=r"^address of a word must be in 0\.\.0x1ffc, not 0x2000$"):
        campaign.kernel.read_word(1 << XRT_ADDR_WIDTH)
