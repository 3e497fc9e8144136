"""cocotb bench of :class:`lutra_hw.vector.unit.VectorUnit`."""

from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.arith.scale import pack_scale, scale_from_float
from lutra_golden.control.chunks import ChunkEntry, chunks
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import (
    FLAG_BIAS,
    FLAG_CENTRE,
    FLAG_FIRST,
    FLAG_LOGITS,
    FLAG_PLAIN,
    FLAG_QK_NORM,
    FLAG_STREAM,
    Instruction,
    NormSource,
    Opcode,
    encode,
)
from lutra_golden.control.memory import Memory
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.norm import norm_cycles
from lutra_golden.timing.residual import residual_cycles
from lutra_golden.timing.rope import rope_cycles
from lutra_golden.vector.rope import rope_table
from lutra_hw.ports import INSTRUCTION_SHAPE, SCALE_LAYOUT, dma_command, dma_write_data
from lutra_hw.vector.unit import VectorUnit
from lutra_sim.bench.control.chunks import ChunkTable, random_chunks
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

__all__ = ["executes"]

PARAMS = bench_params(AcceleratorConfig)
BEAT = PARAMS.word_bytes
WRITE_CYCLES = 23
"""From the last beat to the writer's idle."""
KV_BASE, LOGITS_BASE, MEMORY_BYTES = 1 << 16, 1 << 22, 1 << 23


def scale(x: float) -> int:
    """Packed scale of ``x``."""
    return int(pack_scale(scale_from_float(x)))


def program() -> list[Instruction]:
    """Instructions as a layer and the head have them, with every source and flag."""
    words = PARAMS.vector.hidden_max // 8
    beat_words = max(1, BEAT // 32)
    rows = min(PARAMS.matmul.acc_blocks, PARAMS.vector.param_words) // 2 // beat_words * beat_words

    def norm(source: NormSource, n_words: int, flags: int = 0) -> Instruction:
        args = {
            "source": source,
            "n_words": n_words,
            "param_word": 3,
            "gamma_frac": 12,
            "inv_n": scale(1 / (8 * n_words)),
            "eps": scale(1e-5),
            "scale_a": scale(2.0 ** (PARAMS.matmul.a_width - 16)),
            "scale_b": scale(0.013),
        }
        return Instruction(Opcode.NORMQ, flags, args=args)

    def rope(offset: int, flags: int = 0) -> Instruction:
        args = {"kv_offset": offset, "param_word": 2, "bias_frac": 9, "gamma_frac": 13, "eps": 77}
        args |= {"scale_q": scale(0.3), "scale_k": scale(0.011), "scale_v": scale(1.7)}
        return Instruction(Opcode.ROPEQ, flags, args=args)

    def add(scale_w: float) -> Instruction:
        return Instruction(
            Opcode.RESADD, args={"scale_w": scale(scale_w), "n_words": words, "frac": 8}
        )

    def head(flags: int, first: int, n_words: int, param: int, base: int) -> Instruction:
        args = {"row_first": 8 * first, "n_words": n_words, "param_word": param, "acc_base": base}
        return Instruction(Opcode.LOGITS, flags, args=args)

    flags = FLAG_BIAS * PARAMS.vector.qkv_bias | FLAG_QK_NORM * PARAMS.vector.qk_norm
    attention_words = PARAMS.n_heads * PARAMS.head_dim // 8
    return [
        norm(NormSource.RESIDUAL, words),
        rope(PARAMS.kv_layer_bytes),
        *([rope(2 * PARAMS.kv_layer_bytes, flags)] if flags else []),
        *([rope(0, FLAG_BIAS | FLAG_CENTRE)] if PARAMS.vector.qkv_bias else []),
        norm(NormSource.ATTENTION, min(words, attention_words)),
        add(0.001),
        norm(NormSource.GATE, min(words, PARAMS.matmul.acc_blocks // 2)),
        head(FLAG_STREAM | FLAG_FIRST, 0, words // beat_words * beat_words, 0, 0),
        add(1e6 * 2.0 ** (PARAMS.matmul.a_width - 8)),
        norm(NormSource.SWIGLU, min(words, PARAMS.matmul.acc_blocks // 2), FLAG_PLAIN),
        add(0.5),
        norm(NormSource.RESIDUAL, words, FLAG_LOGITS),
        head(FLAG_LOGITS | FLAG_FIRST, 0, rows, 0, 0),
        head(FLAG_LOGITS, rows, beat_words, 1, rows),
        head(FLAG_STREAM | FLAG_LOGITS, 1, beat_words, 0, words - beat_words),
    ]


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.5])
async def executes(dut: Any, p_stall: float) -> None:
    """All state after every instruction, for tiles of several sizes."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    component = VectorUnit(PARAMS)
    members = component.signature.members
    acc, attention, act, q, q_scale = (
        PortMemory(members[name].signature) for name in ("acc", "attention", "act", "q_w", "qs_w")
    )
    acc.serve(dut, "acc")
    attention.serve(dut, "attention")
    act.record(dut, "act")
    q.record(dut, "q_w")
    q_scale.record(dut, "qs_w")
    source, accepted = StreamSource(dut, "cmd"), StreamMonitor(dut, "cmd")
    StreamSink(dut, "wr_cmd", p_stall=p_stall, rng=Random(1))
    StreamSink(dut, "wr_data", p_stall=p_stall, rng=Random(2))
    commands, beats = StreamMonitor(dut, "wr_cmd"), StreamMonitor(dut, "wr_data")
    results = [StreamSource(dut, f"result_{name}") for name in ("cmd", "data")]
    done, saturated = PulseMonitor(dut, "done"), PulseMonitor(dut, "saturated")
    chunk_table = ChunkTable(dut, PARAMS)
    dut.wr_idle.value = 1
    for name in ("param_w", "rope_w", "embed_w"):
        getattr(dut, f"{name}__en").value = 0
    await reset(dut)
    cocotb.start_soon(_writer(dut))

    n, d = PARAMS.pass_tokens, PARAMS.head_dim
    golden = Interpreter(PARAMS, Memory(MEMORY_BYTES))
    # a reset does not change it
    golden.argmax[:] = await read_words(dut, "argmax", n)
    golden.params[:] = rng.integers(-(1 << 14), 1 << 14, golden.params.shape)
    golden.acc[:] = rng.integers(-(1 << 17), 1 << 17, golden.acc.shape)
    golden.attention[:] = rng.integers(-(1 << 20), 1 << 20, golden.attention.shape)
    acc.load(golden.acc.reshape(n, -1, 2, 8))
    attention.load(golden.attention.reshape(n, -1, 8))
    await _fill(dut, members, "param_w", golden.params)

    seen = n_done = 0
    has_saturated = False
    for n_tokens, logits_from in ((n, n - 1), (1, 0), (n - 1, 0), (n - 1, n - 1)):
        entries = [ChunkEntry(int(rng.integers(PARAMS.max_context - n)), 0, KV_BASE)]
        if n_tokens > 1:
            bases = range(KV_BASE, LOGITS_BASE, LOGITS_BASE // 16)
            entries = random_chunks(Random(n_tokens), PARAMS, n_tokens, bases)
        chunk_table.load(entries)
        golden.chunks[: len(entries)] = entries
        table = rope_table(PARAMS.max_context, d, 1e4)
        for chunk in chunks(entries, n_tokens):
            golden.rope[chunk.tokens] = table[chunk.position : chunk.position + chunk.n_tokens]
        golden.residual[:] = rng.integers(-(1 << 20), 1 << 20, golden.residual.shape)
        await _fill(dut, members, "rope_w", golden.rope.reshape(n, -1, 8))
        dut.embed_low.value = 0
        await _fill(dut, members, "embed_w", golden.residual.reshape(n, -1, 8))
        low = rng.integers(-(1 << 31), 1 << 31, golden.residual[:, :8].shape)
        dut.embed_low.value = 1
        await _fill(dut, members, "embed_w", low.reshape(n, -1, 8))
        golden.residual[:, :8] = golden.residual[:, :8] & ~0xFFFF | low & 0xFFFF
        registers = {
            "N_TOKENS": n_tokens,
            "LOGITS_FROM": logits_from,
            "LOGITS_BASE": LOGITS_BASE,
            "LOGITS_STRIDE": 64 * BEAT,
        }
        golden.registers |= registers
        for name, value in registers.items():
            getattr(dut, f"context__{name.lower()}").value = value

        for instruction in program():
            code = encode(instruction) + encode(Instruction(Opcode.END))
            golden.memory.write(0, code.ljust(-(-len(code) // BEAT) * BEAT, b"\0"))
            golden.registers["PROGRAM_BYTES"] = len(code)
            golden.run()
            source.send(pack(INSTRUCTION_SHAPE, int.from_bytes(encode(instruction), "little")))
            n_done += 1
            saturated.cycles.clear()
            await done.wait_for(n_done)

            flagged = instruction.flags & FLAG_LOGITS
            count = max(0, n_tokens - logits_from) if flagged else n_tokens
            cycles = done.cycles[-1] - accepted.cycles[-1]
            match instruction.opcode:
                case Opcode.NORMQ:
                    n_words, source_of = instruction.args["n_words"], instruction.args["source"]
                    latency = norm_cycles(n_words, count, NormSource(source_of))
                    assert cycles == 2 + latency
                    if count:
                        rows = act.array(n, n_words).reshape(n, -1)
                        first = logits_from if flagged else 0
                        span = slice(first, first + count)
                        assert (rows[span] == golden.activations[span, : 8 * n_words]).all()
                case Opcode.ROPEQ:
                    values = q.array(n_tokens, PARAMS.n_heads, d // 8)
                    values = values.reshape(n_tokens, PARAMS.n_heads, d)
                    assert (values == golden.queries[:n_tokens]).all()
                    scales = q_scale.array(n_tokens, PARAMS.n_heads)
                    assert (scales == np.stack(golden.query_scale, axis=-1)[:n_tokens]).all()
                    size = count * PARAMS.n_kv_heads * (2 * d + 8)
                    seen = _check_memory(golden.memory, commands, beats, seen, size)
                    if not p_stall:
                        # 2 cycles to decode
                        bias, qk_norm, centre = (
                            bool(instruction.flags & flag)
                            for flag in (FLAG_BIAS, FLAG_QK_NORM, FLAG_CENTRE)
                        )
                        latency = rope_cycles(
                            PARAMS, count, bias=bias, qk_norm=qk_norm, centre=centre
                        )
                        latency += WRITE_CYCLES + 2
                        assert latency - 40 * (bias or qk_norm) <= cycles <= latency
                case Opcode.RESADD:
                    n_words = instruction.args["n_words"]
                    assert cycles == 2 + residual_cycles(n_words, count)
                case _:
                    size = count * instruction.args["n_words"] * 32
                    seen = _check_memory(golden.memory, commands, beats, seen, size)
            scales = [unpack(SCALE_LAYOUT, word) for word in await read_words(dut, "scales", n)]
            found = [(s["m"], s["e"]) for s in scales]
            assert found == list(zip(*(x.tolist() for x in golden.scale), strict=True))
            assert await read_words(dut, "argmax", n) == golden.argmax.tolist()
            assert bool(saturated.cycles) == golden.saturated
            has_saturated |= golden.saturated
    assert has_saturated
    assert len(done.cycles) == n_done
    # and what others write in between
    for result, written in zip(results, (commands, beats), strict=True):
        n = len(written.payloads)
        sent = [int(x) for x in rng.integers(1, 1 << 60, 20)]
        result.send_all(sent)
        assert (await written.wait_for(n + 20))[n:] == sent


async def _writer(dut: Any) -> None:
    """Drive ``wr_idle``: low for ``WRITE_CYCLES`` after every beat."""
    left = 0
    while True:
        await RisingEdge(dut.clk)
        dut.wr_idle.value = int(left == 0)
        left -= left > 0
        await ReadOnly()
        if dut.wr_data__valid.value == 1 and dut.wr_data__ready.value == 1:
            left = WRITE_CYCLES


async def _fill(dut: Any, members: Any, name: str, values: np.ndarray) -> None:
    """Write ``values`` ``[*address, lanes]`` through the write port ``name``."""
    signature = members[name].signature
    en, addr, data = (getattr(dut, f"{name}__{part}") for part in ("en", "addr", "data"))
    fields = [key for key, _ in signature.addr_layout]
    for index in np.ndindex(values.shape[:-1]):
        await RisingEdge(dut.clk)
        en.value = 1
        addr.value = pack(signature.addr_layout, dict(zip(fields, index, strict=True)))
        data.value = pack(signature.payload_layout, values[index].tolist())
    await RisingEdge(dut.clk)
    en.value = 0


def _check_memory(
    memory: Memory, commands: StreamMonitor, beats: StreamMonitor, seen: int, size: int
) -> int:
    """Compare what was written since beat ``seen`` with ``memory``; ``size`` bytes, no more."""
    layout = dma_write_data(8 * BEAT).members["payload"].shape
    addresses = [
        command["addr"] + BEAT * beat
        for command in (
            unpack(dma_command().members["payload"].shape, x) for x in commands.payloads
        )
        for beat in range(command["beats"])
    ]
    assert len(addresses) == len(beats.payloads)
    written = 0
    for address, bits in zip(addresses[seen:], beats.payloads[seen:], strict=True):
        beat = unpack(layout, bits)
        lanes = [i for i in range(BEAT) if beat["strb"] >> i & 1]
        raw = beat["data"].to_bytes(BEAT, "little")
        expected = memory.read(address + lanes[0], len(lanes)).tolist()
        assert [raw[i] for i in lanes] == expected
        written += len(lanes)
    assert written == size
    return len(addresses)
