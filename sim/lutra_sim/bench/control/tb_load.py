"""cocotb bench of :class:`lutra_hw.control.load.LoadUnit`."""

from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_golden.control.chunks import chunks
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import ADDRESS_UNIT, FLAG_LOW, Instruction, Opcode, encode
from lutra_golden.control.memory import Memory
from lutra_golden.core.config import AcceleratorConfig
from lutra_sim.bench.control.chunks import ChunkTable, random_chunks
from lutra_sim.bench.control.responder import ReadResponder
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSource, reset

__all__ = ["fetches_only_what_it_needs", "keeps_its_latency", "loads"]

CONFIG = bench_params(AcceleratorConfig)
BEAT = CONFIG.word_bytes
FAR = -(-BEAT // ADDRESS_UNIT) * ADDRESS_UNIT  # where beats and addresses begin
WEIGHT_BASE = 0x10000
ROPE = 0x4000  # offsets from WEIGHT_BASE
EMBED = 0x20000
FAR_TOKEN = 40_001
ROW_WORDS = CONFIG.vector.hidden_max // 8


def _ldparam(address: int, first: int, n_words: int) -> Instruction:
    args = {"address": address, "param_word": first, "n_words": n_words}
    return Instruction(Opcode.LDPARAM, args=args)


def _ldrope() -> Instruction:
    return Instruction(Opcode.LDROPE, args={"address": ROPE})


def _embed(n_words: int, shift: int, flags: int = 0) -> Instruction:
    args = {"address": EMBED, "n_words": n_words, "shift": shift}
    return Instruction(Opcode.EMBED, flags, args=args)


class _Job:
    """A memory, registers and a golden interpreter that has run the instructions."""

    def __init__(
        self, rng: Random, instructions: list[Instruction], n_tokens: int, *, n_chunks: int = 1
    ) -> None:
        """At most ``n_chunks`` chunks of any sizes, one without a number of tokens."""
        self.instructions, self.n_tokens = instructions, n_tokens
        self.chunks = random_chunks(rng, CONFIG, n_tokens, [0] * n_chunks)
        self.tokens = [rng.randrange(20) for _ in range(n_tokens)]
        self.tokens[-1] = FAR_TOKEN
        self.memory = Memory(WEIGHT_BASE + EMBED + (FAR_TOKEN + 1) * ROW_WORDS * 16)
        self.memory.write(WEIGHT_BASE, rng.randbytes(EMBED + 20 * ROW_WORDS * 16))
        for instruction in instructions:
            if instruction.opcode is Opcode.EMBED:
                size = instruction.args["n_words"] * 16
                row = np.array([-(1 << 15), (1 << 15) - 1] * (size // 4), np.int16).tobytes()
                self.memory.write(WEIGHT_BASE + EMBED + FAR_TOKEN * size, row)
        program = b"".join(encode(i) for i in [*instructions, Instruction(Opcode.END)])
        # whole beats of the widest data port; behind END nothing is executed
        program += bytes(-len(program) % ADDRESS_UNIT)
        self.memory.write(0, program)
        self.golden = Interpreter(CONFIG, self.memory)
        self.golden.tokens[:n_tokens] = self.tokens
        self.golden.chunks[: len(self.chunks)] = self.chunks
        self.golden.registers |= {
            "PROGRAM_BYTES": len(program),
            "WEIGHT_BASE": WEIGHT_BASE,
            "N_TOKENS": n_tokens,
        }
        self.golden.run()


class _Buffers:
    """Memories behind the write ports, the token memory, and a count of ``done``."""

    def __init__(self, dut: Any, tokens: list[int]) -> None:
        self.param = np.zeros((CONFIG.vector.param_words, 8), np.int64)
        self.rope = np.zeros((CONFIG.pass_tokens, CONFIG.head_dim // 8, 8), np.int64)
        self.embed = np.zeros((CONFIG.pass_tokens, CONFIG.vector.hidden_max // 8, 8), np.int64)
        self.done: list[int] = []
        self.cycle = self.stalled = self.busy = 0
        self._dut, self._tokens = dut, tokens
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        dut, data = self._dut, 0
        while True:
            await RisingEdge(dut.clk)
            self.cycle += 1
            dut.tokens__data.value = data
            await ReadOnly()
            index = int(dut.tokens__addr.value)
            data = self._tokens[index] if index < len(self._tokens) else 0
            self._store(self.param, dut, "param_w", 16)
            self._store(self.rope, dut, "rope_w", 16)
            self._store(self.embed, dut, "embed_w", 32, low=dut.embed_low.value == 1)
            self.stalled += int(dut.stall.value)
            self.busy += int(dut.busy.value)
            if dut.done.value == 1:
                self.done.append(self.cycle)

    @staticmethod
    def _store(
        buffer: NDArray[np.int64], dut: Any, name: str, width: int, *, low: bool = False
    ) -> None:
        """Take what a write port writes; if ``low``, the 16 low bits of its elements."""
        if getattr(dut, f"{name}__en").value == 0:
            return
        value = int(getattr(dut, f"{name}__data").value)
        addr = int(getattr(dut, f"{name}__addr").value)
        lanes = [value >> width * i & ((1 << width) - 1) for i in range(8)]
        lanes = [lane - (lane >> (width - 1) << width) for lane in lanes]
        token_bits = (buffer.shape[0] - 1).bit_length()
        at = (addr & ((1 << token_bits) - 1), addr >> token_bits) if buffer.ndim == 3 else (addr,)
        keep = -(1 << 16) if low else 0
        buffer[at] = buffer[at] & keep | np.array(lanes) & ~keep


async def _start(dut: Any, job: _Job, latency: int, p_stall: float) -> tuple[Any, ...]:
    source = StreamSource(dut, "cmd")
    accepted = StreamMonitor(dut, "cmd")
    memory = ReadResponder(
        dut, "rd_cmd", "rd_data", job.memory, latency=latency, p_stall=p_stall, rng=Random(1)
    )
    buffers = _Buffers(dut, job.tokens)
    dut.context__weight_base.value = WEIGHT_BASE
    ChunkTable(dut, CONFIG).load(job.chunks)
    dut.context__n_tokens.value = job.n_tokens
    await reset(dut)
    source.send_all(int.from_bytes(encode(i), "little") for i in job.instructions)
    for _ in range(20_000):
        await RisingEdge(dut.clk)
        if len(buffers.done) == len(job.instructions):
            break
    # all is written when done comes
    assert (buffers.param == job.golden.params).all()
    assert (buffers.rope.reshape(CONFIG.pass_tokens, -1) == job.golden.rope).all()
    assert (buffers.embed.reshape(CONFIG.pass_tokens, -1) == job.golden.residual).all()
    return accepted, memory, buffers


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(
    (
        ("n_tokens", "n_chunks"),
        [(1, 1), (3, 1), (CONFIG.pass_tokens, 1), (CONFIG.pass_tokens, CONFIG.pass_tokens)],
    ),
    ("p_stall", [0.0, 0.5]),
    ("latency", [1, 30]),
)
async def loads(dut: Any, n_tokens: int, n_chunks: int, p_stall: float, latency: int) -> None:
    """Every buffer holds what the golden model's holds, and ``done`` comes once for each."""
    rng = Random(cocotb.RANDOM_SEED)
    last = CONFIG.vector.param_words - 5
    instructions = [
        _ldparam(0, 0, 1),
        _ldparam(3 * FAR, 1, 7),
        _ldrope(),
        _embed(ROW_WORDS, 16),
        _ldparam(FAR, last, 5),
        _ldparam(0, 9, 0),
        _ldparam(20 * FAR, 20, 33),
        _embed(4, 0),
        _ldrope(),
        _embed(ROW_WORDS - 4, rng.randrange(17)),
        _embed(ROW_WORDS - 8, rng.randrange(17), FLAG_LOW),
        _ldparam(20 * FAR, 20, 3),
        _embed(ROW_WORDS, 16),
        _embed(4, 0, FLAG_LOW),
    ]
    job = _Job(rng, instructions, n_tokens, n_chunks=n_chunks)
    _, _, buffers = await _start(dut, job, latency, p_stall)
    await ClockCycles(dut.clk, 50)
    assert len(buffers.done) == len(instructions)
    assert dut.busy.value == 0 and dut.stall.value == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def fetches_only_what_it_needs(dut: Any) -> None:
    """One transfer per LDPARAM, per chunk of an LDROPE and per row of an EMBED, of whole beats."""
    rng = Random(cocotb.RANDOM_SEED)
    job = _Job(rng, [_ldparam(FAR, 0, 5), _ldrope(), _embed(ROW_WORDS, 3)], 3, n_chunks=2)
    _, memory, _ = await _start(dut, job, 1, 0.0)
    row = ROW_WORDS * 16
    position_bytes = 2 * CONFIG.head_dim
    assert memory.commands == [
        (WEIGHT_BASE + FAR, -(-5 * 16 // BEAT)),
        *(
            (
                WEIGHT_BASE + ROPE + chunk.position * position_bytes,
                chunk.n_tokens * position_bytes // BEAT,
            )
            for chunk in chunks(job.chunks, job.n_tokens)
        ),
        *((WEIGHT_BASE + EMBED + token * row, row // BEAT) for token in job.tokens),
    ]


_BITS = (CONFIG.head_dim // 8).bit_length()
_ROW_BITS = ROW_WORDS.bit_length()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(
    (
        ("instruction", "n_tokens", "cycles"),
        [
            (_ldparam(0, 0, 0), 1, None),
            (_ldparam(0, 0, 1), 1, 1 + 1),
            (_ldparam(0, 0, 33), 1, 33 + 1),
            (_ldrope(), 3, 3 * CONFIG.head_dim // 8 + _BITS),
            (_embed(ROW_WORDS, 3), 1, ROW_WORDS + _ROW_BITS),
            # the requests of later rows hide behind the words of earlier ones
            (_embed(ROW_WORDS, 3), 3, 3 * ROW_WORDS + _ROW_BITS),
        ],
    ),
    ("latency", [3, 40]),
)
async def keeps_its_latency(
    dut: Any, instruction: Instruction, n_tokens: int, cycles: int | None, latency: int
) -> None:
    """Cycles from an instruction to ``done`` are those that the component states."""
    job = _Job(Random(1), [instruction], n_tokens)
    accepted, _, buffers = await _start(dut, job, latency, 0.0)
    measured = buffers.done[0] - accepted.cycles[0]
    expected = 2 if cycles is None else cycles + latency + 5
    dut._log.info(f"measured {measured}, expected {expected}")
    assert measured == expected
    assert buffers.busy == measured
