"""The interpreter: single instructions against NumPy, and every fault of a broken program."""

from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import (
    Scale,
    pack_scale,
    scale_from_float,
    scale_to_float,
    unpack_scale,
)
from lutra_golden.attention.attention import attend
from lutra_golden.attention.cache import kv_bytes, kv_elements
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.interpreter import Interpreter, ProgramError, RunError
from lutra_golden.control.isa import (
    FIELDS,
    FLAG_BIAS,
    FLAG_CENTRE,
    FLAG_FIRST,
    FLAG_LOGITS,
    FLAG_LOW,
    FLAG_PLAIN,
    FLAG_QK_NORM,
    FLAG_STREAM,
    Instruction,
    NormSource,
    Opcode,
    decode,
    encode,
)
from lutra_golden.control.memory import Memory, MemoryFault
from lutra_golden.control.registers import ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.core.ports import two_ports
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.vector.residual import LOGIT_SHIFT

CONFIG = NANO.with_(
    name="test",
    step_depth=24,
    depth_tile=24,
    pass_tokens=3,
    acc_blocks=16,
    act_tiles=4,
    weight_buffer_words=64,
    hidden_max=64,
    param_words=16,
    head_dim=32,
    n_heads=2,
    n_kv_heads=1,
    max_context=8,
    ports=two_ports(weights=512, data=256),
)
PROGRAM, WEIGHTS, KV, LOGITS = 0, 0x1000, 0x8000, 0xC000
ONE = int(pack_scale(scale_from_float(1.0)))


def make(opcode: Opcode, flags: int = 0, **args: int) -> Instruction:
    return Instruction(opcode, flags, args=dict.fromkeys(FIELDS[opcode], 0) | args)


@pytest.fixture
def interpreter() -> Interpreter:
    interpreter = Interpreter(CONFIG, Memory(0x10000))
    interpreter.registers |= {
        "PROGRAM_BASE": PROGRAM,
        "WEIGHT_BASE": WEIGHTS,
        "LOGITS_BASE": LOGITS,
        "LOGITS_STRIDE": 256,
        "N_TOKENS": 2,
    }
    interpreter.chunks[0] = ChunkEntry(kv_base=KV)
    return interpreter


def run(interpreter: Interpreter, *instructions: Instruction) -> None:
    code = b"".join(map(encode, instructions))
    interpreter.memory.write(PROGRAM, code)
    interpreter.registers["PROGRAM_BYTES"] = len(code)
    interpreter.run()


END = Instruction(Opcode.END)


# -- running


def test_what_stands_behind_end_is_not_executed(interpreter: Interpreter) -> None:
    run(interpreter, END, make(Opcode.LDROPE))


def test_a_program_without_end_is_an_error(interpreter: Interpreter) -> None:
    interpreter.memory.write(WEIGHTS, bytes(256))
    with pytest.raises(RunError, match=r"^the program has no END in 1 instructions: load") as error:
        run(interpreter, make(Opcode.LDROPE))
    assert error.value.failure.code is ErrorCode.NO_END


def test_an_unknown_opcode_is_an_error_when_its_turn_comes(interpreter: Interpreter) -> None:
    interpreter.memory.write(WEIGHTS, np.arange(256, dtype="<i2").tobytes())
    unknown = bytes([max(Opcode) + 1]) + bytes(31)
    code = encode(make(Opcode.LDROPE)) + unknown + encode(END)
    interpreter.memory.write(PROGRAM, code)
    interpreter.registers["PROGRAM_BYTES"] = len(code)
    with pytest.raises(RunError, match=r"^instruction 1 has an unknown opcode: load the ") as error:
        interpreter.run()
    assert error.value.failure.code is ErrorCode.OPCODE
    assert interpreter.rope[1, 0] == 32
    interpreter.memory.write(PROGRAM, encode(END) + unknown)
    interpreter.run()


def test_an_interrupt_while_a_program_is_decoded_leaves_no_part_of_it(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter.memory.write(WEIGHTS, bytes(256))
    code, left = [make(Opcode.LDROPE), make(Opcode.LDROPE), END], 2

    def interrupted(data: bytes) -> Instruction:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr("lutra_golden.control.interpreter.decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(interpreter, *code)
    run(interpreter, *code)


def test_a_program_that_was_never_written_is_a_fault(interpreter: Interpreter) -> None:
    interpreter.registers["PROGRAM_BYTES"] = 64
    with pytest.raises(MemoryFault, match=r"^read of byte 0x0, which was never written$"):
        interpreter.run()


@pytest.mark.parametrize(
    ("registers", "table", "code", "message"),
    [
        ({"N_TOKENS": 0}, [], "N_TOKENS", r"N_TOKENS must be in 1\.\.3"),
        ({"N_TOKENS": 4}, [], "N_TOKENS", r"N_TOKENS must be in 1\.\.3"),
        ({"WEIGHT_BASE": WEIGHTS + 32}, [], "WEIGHT_BASE", "WEIGHT_BASE must be a multiple of 64"),
        ({}, [ChunkEntry(7)], "CHUNK", "the position of a chunk plus its tokens must be at most 8"),
        ({}, [ChunkEntry(7, 1), ChunkEntry(8)], "CHUNK", ".*"),
    ],
)
def test_registers_are_checked_before_anything_is_done(
    interpreter: Interpreter,
    registers: dict[str, int],
    table: list[ChunkEntry],
    code: str,
    message: str,
) -> None:
    interpreter.memory.write(WEIGHTS, np.arange(1024, dtype="<i2").tobytes())
    interpreter.chunks[:2] = [ChunkEntry(6), ChunkEntry(9)]
    run(interpreter, END)
    interpreter.registers |= registers
    interpreter.chunks[: len(table)] = table
    with pytest.raises(RunError, match=f"^{message}$") as error:
        run(interpreter, make(Opcode.LDROPE), END)
    assert error.value.failure.code is ErrorCode[code]
    assert not interpreter.rope.any()


def test_a_wait_that_can_not_be_met_is_an_error(interpreter: Interpreter) -> None:
    interpreter.memory.write(WEIGHTS, bytes(256))
    load = make(Opcode.LDROPE)
    attend = replace(make(Opcode.ATTEND), waits=(2, 0, 0, 0))
    message = r"^ATTEND waits for 2 LOAD instructions, but only 1 come before it$"
    with pytest.raises(ProgramError, match=message):
        run(interpreter, load, attend, load, END)


def test_a_changed_program_is_decoded_anew(interpreter: Interpreter) -> None:
    interpreter.memory.write(WEIGHTS, np.arange(256, dtype="<i2").tobytes())
    run(interpreter, make(Opcode.LDROPE), END)
    assert interpreter.rope[1, 0] == 32
    run(interpreter, make(Opcode.LDROPE, address=64), END)
    assert interpreter.rope[1, 0] == 64


# -- load unit


def test_parameters_are_loaded(interpreter: Interpreter) -> None:
    values = np.arange(-16, 16, dtype="<i2")
    interpreter.memory.write(WEIGHTS + 64, values.tobytes())
    run(interpreter, make(Opcode.LDPARAM, address=64, param_word=12, n_words=4), END)
    np.testing.assert_array_equal(interpreter.params[12:].reshape(-1), values)


def test_parameters_beyond_the_buffer_are_an_error(interpreter: Interpreter) -> None:
    with pytest.raises(ProgramError, match=r"^LDPARAM writes word 16 of 16$"):
        run(interpreter, make(Opcode.LDPARAM, param_word=13, n_words=4), END)


def test_parameters_that_were_never_written_are_a_fault(interpreter: Interpreter) -> None:
    with pytest.raises(MemoryFault, match=rf"^read of byte {WEIGHTS + 64:#x}, which was never"):
        run(interpreter, make(Opcode.LDPARAM, address=64, n_words=1), END)


def test_rotary_rows_follow_the_position(interpreter: Interpreter) -> None:
    table = np.arange(8 * 32, dtype="<i2").reshape(8, 32)
    interpreter.memory.write(WEIGHTS, table.tobytes())
    interpreter.chunks[0] = ChunkEntry(5)
    run(interpreter, make(Opcode.LDROPE), END)
    np.testing.assert_array_equal(interpreter.rope[:2], table[5:7])


def test_embedding_rows_follow_the_tokens(interpreter: Interpreter) -> None:
    rows = np.arange(-80, 80, dtype="<i2").reshape(10, 16)
    interpreter.memory.write(WEIGHTS, rows.tobytes())
    interpreter.tokens[:2] = [9, 0]
    run(interpreter, make(Opcode.EMBED, n_words=2, shift=5), END)
    np.testing.assert_array_equal(interpreter.residual[:2, :16], rows[[9, 0]].astype(np.int64) * 32)


@pytest.mark.parametrize("flags", [0, FLAG_LOW])
def test_halves_of_a_stream_are_put_together(interpreter: Interpreter, flags: int) -> None:
    """Without the flag the low halves overwrite the high ones."""
    rng = np.random.default_rng(2)
    stream = rng.integers(-(1 << 31), 1 << 31, (2, 32))
    stream[0, :4] = -1, -(1 << 31), (1 << 31) - 1, 0x8000
    halves = np.stack([stream >> 16, stream])
    interpreter.memory.write(WEIGHTS, halves.astype(np.uint16).astype("<u2").tobytes())
    interpreter.tokens[:2] = 0, 1
    run(
        interpreter,
        make(Opcode.EMBED, n_words=4, shift=16),
        make(Opcode.EMBED, flags, address=128, n_words=4),
        END,
    )
    low = stream.astype(np.int16)
    np.testing.assert_array_equal(interpreter.residual[:2, :32], stream if flags else low)
    assert not interpreter.residual[:, 32:].any()


# -- matmul unit


def _matmul(interpreter: Interpreter, *, planes: int = 1, acc_base: int = 0, flags: int = 0):
    rng = np.random.default_rng(planes)
    limit = (3**planes - 1) // 2
    w = rng.integers(-limit, limit + 1, (32, 40))
    words = CONFIG.matmul.pack(GroupedWeights.from_integers(w), planes)
    padded = np.zeros((len(words), CONFIG.weight_word_bytes), np.uint8)
    padded[:, : words.shape[1]] = words
    interpreter.memory.write(WEIGHTS, padded.tobytes())
    interpreter.activations[:] = rng.integers(-127, 128, interpreter.activations.shape)
    instruction = make(
        Opcode.LMMA,
        flags,
        depth_tiles=2,
        row_blocks=4,
        planes=planes,
        acc_base=acc_base,
        n_words=len(words),
    )
    return instruction, interpreter.activations[:, :40] @ w.T


@pytest.mark.parametrize("planes", [1, 2, 5])
def test_matmul_is_the_integer_product(interpreter: Interpreter, planes: int) -> None:
    instruction, expected = _matmul(interpreter, planes=planes, acc_base=6)
    run(interpreter, instruction, END)
    np.testing.assert_array_equal(interpreter.acc[:2, 6:10].reshape(2, -1), expected[:2])
    assert not interpreter.acc[2].any()
    assert not interpreter.acc[:, :6].any()


def test_a_flipped_weight_bit_is_seen(interpreter: Interpreter) -> None:
    """Decoded weights in the interpreter's cache are never older than the memory."""
    instruction, expected = _matmul(interpreter)
    run(interpreter, instruction, END)
    byte = interpreter.memory.read(WEIGHTS, 1).tobytes()[0]
    interpreter.memory.write(WEIGHTS, bytes([byte ^ 1]))
    run(interpreter, instruction, END)
    assert not np.array_equal(interpreter.acc[:2, :4].reshape(2, -1), expected[:2])
    interpreter.memory.write(WEIGHTS, bytes([byte]))
    run(interpreter, instruction, END)
    np.testing.assert_array_equal(interpreter.acc[:2, :4].reshape(2, -1), expected[:2])


@pytest.mark.parametrize(("first", "computed"), [(0, [0, 1]), (1, [1]), (2, [])])
def test_flagged_instructions_skip_tokens(
    interpreter: Interpreter, first: int, computed: list[int]
) -> None:
    instruction, expected = _matmul(interpreter, flags=FLAG_LOGITS)
    interpreter.registers["LOGITS_FROM"] = first
    run(interpreter, instruction, END)
    for token in range(3):
        wanted = expected[token] if token in computed else np.zeros(32)
        np.testing.assert_array_equal(interpreter.acc[token, :4].reshape(-1), wanted)


def test_a_wrong_word_count_is_an_error(interpreter: Interpreter) -> None:
    instruction, _ = _matmul(interpreter)
    wrong = replace(instruction, args=dict(instruction.args) | {"n_words": 9})
    with pytest.raises(ProgramError, match=r"^LMMA of \(2, 4, 1\) needs 8 words, not 9$"):
        run(interpreter, wrong, END)


def test_words_that_are_no_weights_are_an_error(interpreter: Interpreter) -> None:
    instruction, _ = _matmul(interpreter)
    interpreter.memory.write(WEIGHTS, b"\x0f")
    message = (
        rf"^LMMA reads no weights at {WEIGHTS:#x}: the index of a code of three trits must be in "
        r"0\.\.13, not 15$"
    )
    with pytest.raises(ProgramError, match=message):
        run(interpreter, instruction, END)


# -- vector unit


def test_norm_of_the_residual_stream(interpreter: Interpreter) -> None:
    rng = np.random.default_rng(1)
    interpreter.residual[:2] = rng.integers(-(1 << 24), 1 << 24, (2, 64))
    gamma = rng.integers(1 << 12, 1 << 14, 64)
    interpreter.params[2:10] = gamma.reshape(8, 8)
    unit = 2.0**-16
    run(
        interpreter,
        make(
            Opcode.NORMQ,
            source=NormSource.RESIDUAL,
            n_words=8,
            param_word=2,
            gamma_frac=13,
            inv_n=int(pack_scale(scale_from_float(1 / 64))),
            eps=int(pack_scale(scale_from_float(1e-5))),
            scale_a=int(pack_scale(scale_from_float(unit))),
        ),
        END,
    )
    x = interpreter.residual[:2] * unit
    y = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * gamma / 2**13
    scale = scale_to_float(Scale(interpreter.scale.m[:2], interpreter.scale.e[:2]))
    np.testing.assert_allclose(np.abs(y).max(axis=1) / 127, scale, rtol=3e-4)
    actual = interpreter.activations[:2, :64] * scale[:, None]
    assert np.abs(actual - y).max() < 0.51 * scale.max()


def test_a_gate_accumulator_beyond_its_width_is_an_error(interpreter: Interpreter) -> None:
    interpreter.acc[0, 1, 3] = 1 << (CONFIG.vector.gate_width - 1)
    gate = make(Opcode.NORMQ, source=NormSource.GATE, n_words=1, scale_a=ONE, scale_b=ONE)
    with pytest.raises(ProgramError) as error:
        run(interpreter, gate, END)
    assert str(error.value) == "gate accumulators must fit signed(20), not 0..524288"
    interpreter.acc[0, 1, 3] = 1 << (CONFIG.matmul.acc_width - 1)
    silu = replace(gate, args=dict(gate.args) | {"source": int(NormSource.SWIGLU)})
    with pytest.raises(ProgramError) as error:
        run(interpreter, silu, END)
    assert str(error.value) == "gate accumulators must fit signed(24), not 0..8388608"


@pytest.mark.parametrize("source", [NormSource.GATE, NormSource.SWIGLU])
def test_a_gate_beyond_the_accumulators_is_an_error(
    interpreter: Interpreter, source: NormSource
) -> None:
    gate = make(Opcode.NORMQ, source=source, n_words=9, scale_a=ONE, scale_b=ONE)
    with pytest.raises(ProgramError) as error:
        run(interpreter, gate, END)
    assert str(error.value) == "NORMQ reads block 17 of 16"


@pytest.mark.parametrize("a_width", [8, 16])
def test_swiglu_without_norm(a_width: int) -> None:
    """The way of a Llama layer's gate: SiLU, times up, quantised as it is."""
    rng = np.random.default_rng(1)
    config = with_engine(CONFIG, "mac", a_width=a_width)
    interpreter = Interpreter(config, Memory(0x10000))
    interpreter.registers |= {"PROGRAM_BASE": PROGRAM, "N_TOKENS": 2}
    interpreter.acc[:] = rng.integers(-(1 << 24), 1 << 24, interpreter.acc.shape)
    interpreter.scale.m[:2], interpreter.scale.e[:2] = (40000, 50000), (-30, -31)
    s = scale_to_float(Scale(interpreter.scale.m[:2], interpreter.scale.e[:2]))[:, None]
    interpreter.params[:] = 1 << 13
    run(
        interpreter,
        make(
            Opcode.NORMQ,
            FLAG_PLAIN,
            source=NormSource.SWIGLU,
            n_words=4,
            gamma_frac=13,
            scale_a=int(pack_scale(scale_from_float(0.02))),
            scale_b=int(pack_scale(scale_from_float(0.5))),
        ),
        END,
    )
    gate, up = interpreter.acc[:2, :8].reshape(2, 4, 2, 8).transpose(2, 0, 1, 3).reshape(2, 2, 32)
    x = gate * s * 0.02
    y = x / (1 + np.exp(-x)) * (up * s * 0.5)
    scale = scale_to_float(Scale(interpreter.scale.m[:2], interpreter.scale.e[:2]))[:, None]
    peak = np.abs(y).max(axis=1, keepdims=True)
    q_max = (1 << (a_width - 1)) - 1
    np.testing.assert_allclose(scale, peak / q_max, rtol=4e-4)
    error = np.abs(interpreter.activations[:2, :32] * scale - y) / peak
    assert error.max() < 0.5 / q_max + 3e-4


def test_saturation_is_reported_of_the_last_run_alone(interpreter: Interpreter) -> None:
    interpreter.scale.m[:], interpreter.scale.e[:] = 1 << 15, -15
    interpreter.residual[0, 0] = (1 << 31) - 10
    interpreter.acc[0, 0, 0] = 9
    add = make(Opcode.RESADD, scale_w=ONE, n_words=2)
    run(interpreter, add, END)
    assert interpreter.residual[0, 0] == (1 << 31) - 1
    assert not interpreter.saturated  # reached, not passed
    run(interpreter, add, END)
    assert interpreter.residual[0, 0] == (1 << 31) - 1
    assert interpreter.saturated
    interpreter.acc[0, 0, 0] = -1
    run(interpreter, add, END)
    assert interpreter.residual[0, 0] == (1 << 31) - 2
    assert not interpreter.saturated


def test_saturation_stays_until_the_end_of_a_run(interpreter: Interpreter) -> None:
    interpreter.scale.m[:], interpreter.scale.e[:] = 1 << 15, -15
    interpreter.residual[0, 8] = (1 << 31) - 1
    interpreter.acc[0, 1, 0] = 1
    both, first = (make(Opcode.RESADD, scale_w=ONE, n_words=n) for n in (2, 1))
    run(interpreter, first, END)
    assert not interpreter.saturated
    run(interpreter, both, first, END)
    assert interpreter.saturated


def test_logits_and_their_largest(interpreter: Interpreter) -> None:
    """Chunks are compared as they come; of equal logits the lowest row wins."""
    rng = np.random.default_rng(1)
    interpreter.params[:4] = rng.integers(1, 1 << 15, (4, 8))
    acc = rng.integers(-(1 << 20), 1 << 20, (2, 32))
    interpreter.acc[:2, 4:8] = acc.reshape(2, 4, 8)
    chunk = make(Opcode.LOGITS, FLAG_LOGITS, n_words=2, acc_base=4)
    first = replace(chunk, flags=FLAG_LOGITS | FLAG_FIRST)
    second = replace(
        chunk, args=dict(chunk.args) | {"row_first": 16, "param_word": 2, "acc_base": 6}
    )
    run(interpreter, first, second, END)
    x = acc * interpreter.params[:4].reshape(-1)
    expected = np.floor(x / 2.0**LOGIT_SHIFT + 0.5)
    for m in range(2):
        data = interpreter.memory.read(LOGITS + 256 * m, 128).view("<i4")
        np.testing.assert_array_equal(data, expected[m])
    np.testing.assert_array_equal(interpreter.argmax[:2], expected.argmax(axis=1))

    interpreter.acc[:2, 4:8] = 0
    run(interpreter, first, second, END)
    np.testing.assert_array_equal(interpreter.argmax[:2], [0, 0])


def test_the_residual_stream_is_stored_as_it_is(interpreter: Interpreter) -> None:
    rng = np.random.default_rng(3)
    stream = rng.integers(-(1 << 31), 1 << 31, interpreter.residual.shape)
    interpreter.residual[:] = stream
    interpreter.registers["LOGITS_FROM"] = 2
    store = make(Opcode.LOGITS, FLAG_STREAM, row_first=8, n_words=3, acc_base=5)
    run(interpreter, store, END)
    for m in range(2):
        data = interpreter.memory.read(LOGITS + 256 * m + 32, 96).view("<i4")
        np.testing.assert_array_equal(data, stream[m, 40:])
    with pytest.raises(ProgramError, match=r"^LOGITS reads word 8 of 8 of the residual stream$"):
        run(interpreter, replace(store, args={**store.args, "acc_base": 6}), END)


def test_logits_of_no_token_touch_nothing(interpreter: Interpreter) -> None:
    interpreter.registers["LOGITS_FROM"] = 2
    run(interpreter, make(Opcode.LOGITS, FLAG_LOGITS | FLAG_FIRST, n_words=2), END)
    with pytest.raises(MemoryFault):
        interpreter.memory.read(LOGITS, 1)


# -- attention unit


def test_keys_and_values_are_stored_where_they_are_read(interpreter: Interpreter) -> None:
    interpreter.scale.m[:], interpreter.scale.e[:] = 1 << 15, -15
    interpreter.memory.write(WEIGHTS, np.full(8 * 32, 1 << 13, "<i2").tobytes())
    interpreter.acc[:] = np.random.default_rng(1).integers(-1000, 1000, interpreter.acc.shape)
    load = make(Opcode.LDROPE)
    rope = make(Opcode.ROPEQ, kv_offset=32, scale_q=ONE, scale_k=ONE, scale_v=ONE)
    attend = make(Opcode.ATTEND, kv_offset=32, frac=8)
    run(interpreter, load, rope, END)
    base = KV + 32
    for offset in (0, CONFIG.kv_v_offset):
        interpreter.memory.read(base + offset, 2 * CONFIG.head_dim)
    interpreter.memory.read(base + CONFIG.kv_s_offset, 2 * CONFIG.kv_scale_bytes)
    # a value head takes rows 96..127, its pairs of blocks lo, hi
    rows = interpreter.acc[0, 12:16].reshape(2, 2, 8)
    value = rows.transpose(1, 0, 2).reshape(-1)
    stored = interpreter.memory.read(base + CONFIG.kv_v_offset, 32).view(np.int8)
    np.testing.assert_array_equal(stored, np.round(value * 127 / np.abs(value).max()))
    # the first token sees nothing but itself
    run(interpreter, load, rope, attend, END)
    np.testing.assert_allclose(interpreter.attention[0, :32] / 256, value, atol=4.5)


@pytest.mark.parametrize("window", [0, 1, 2, 3, 5, 6, 65535])
@pytest.mark.parametrize("kv_width", [8, 4])
@pytest.mark.parametrize("position", [4, 5])
def test_attention_reads_its_window_and_nothing_else(
    interpreter: Interpreter, window: int, kv_width: int, position: int
) -> None:
    config = CONFIG.with_(key_width=kv_width, value_width=kv_width)
    interpreter.config = config
    rng, n, limit = np.random.default_rng(5), 2, 1 << (kv_width - 1)
    first = max(position - window + 1, 0) if window else 0
    count = position + n - first
    rows = rng.integers(-limit, limit, (2, config.max_context, config.head_dim))  # keys, values
    scales = Scale(*rng.integers([[1 << 15], [-24]], [[1 << 16], [-20]], (2, 2 * 8)))
    records = pack_scale(scales).reshape(8, 2)  # of 8 bytes
    for kind, offset in enumerate((0, config.kv_v_offset)):
        written = kv_bytes(rows[kind, first : position + n], kv_width).tobytes()
        interpreter.memory.write(KV + offset + first * config.kv_row_bytes, written)
    written = records[first : position + n].astype("<u4").tobytes()
    assert config.kv_scale_bytes == 8
    interpreter.memory.write(KV + config.kv_s_offset + 8 * first, written)
    assert len(written) == 8 * count
    interpreter.chunks[0] = ChunkEntry(position, kv_base=KV)
    interpreter.queries[:] = rng.integers(-127, 128, interpreter.queries.shape)
    interpreter.query_scale.m[:], interpreter.query_scale.e[:] = 1 << 15, -25
    run(interpreter, make(Opcode.ATTEND, frac=20, window=window), END)

    query_scale = Scale(interpreter.query_scale.m[:n], interpreter.query_scale.e[:n])
    m, e = (part.reshape(8, 2)[: position + n] for part in scales)
    expected = attend(
        config.attention,
        interpreter.queries[:n],
        query_scale,
        rows[:1, : position + n],
        Scale(m[:, :1], e[:, :1]),
        rows[1:, : position + n],
        Scale(m[:, 1:], e[:, 1:]),
        position,
        20,
        window,
    )
    np.testing.assert_array_equal(interpreter.attention[:n], expected.reshape(n, -1))
    if first:  # one more is not there
        with pytest.raises(MemoryFault):
            run(interpreter, make(Opcode.ATTEND, frac=20, window=window + 1), END)


FEATURED = CONFIG.with_(name="featured", param_words=64, qkv_bias=True, qk_norm=True)


def natural(blocks: np.ndarray) -> np.ndarray:
    """Heads ``[..., heads, 32]`` of blocks ``[..., blocks, 8]``, which are lo, hi, lo, hi."""
    rest = blocks.shape[:-2]
    return blocks.reshape(*rest, -1, 2, 2, 8).swapaxes(-3, -2).reshape(*rest, -1, 32)


@pytest.mark.parametrize("kv_width", [8, 4])
@pytest.mark.parametrize(
    "flags", [0, FLAG_BIAS, FLAG_BIAS | FLAG_CENTRE, FLAG_QK_NORM, FLAG_BIAS | FLAG_QK_NORM]
)
def test_biases_and_norms_of_heads(flags: int, kv_width: int) -> None:
    """Against float, without rotation: queries, and keys and values as stored."""
    rng = np.random.default_rng(flags)
    config = FEATURED.with_(key_width=kv_width, value_width=kv_width)
    interpreter = Interpreter(config, Memory(0x10000))
    interpreter.registers |= {"PROGRAM_BASE": PROGRAM, "N_TOKENS": 2}
    interpreter.chunks[0] = ChunkEntry(kv_base=KV)
    interpreter.acc[:] = rng.integers(-1000, 1000, interpreter.acc.shape)
    interpreter.params[:] = rng.integers(-(1 << 14), 1 << 14, interpreter.params.shape)
    interpreter.scale.m[:], interpreter.scale.e[:] = 1 << 15, -15
    interpreter.rope[:, :16] = 1 << 14
    args = {"scale_q": ONE, "scale_k": ONE, "scale_v": ONE} | {"param_word": 3, "eps": 4295}
    run(interpreter, make(Opcode.ROPEQ, flags, bias_frac=4, gamma_frac=13, **args), END)

    x, word = natural(interpreter.acc[:2, :16]).astype(np.float64), 3
    if flags & FLAG_BIAS:
        x += natural(interpreter.params[word : word + 16]) / 2**4
        word += 16
    if flags & FLAG_CENTRE:
        x[:, 2] -= natural(interpreter.params[word : word + 4])[0] / 2**4
    if flags & FLAG_QK_NORM:
        gamma = natural(interpreter.params[word : word + 8]) / 2**13
        root = np.sqrt((x[:, :3] ** 2).mean(axis=-1, keepdims=True) + 1e-6)
        x[:, :3] *= gamma[[0, 0, 1]] / root

    scale = scale_to_float(interpreter.query_scale)[:2, :, None]
    assert (np.abs(interpreter.queries[:2] * scale - x[:, :2]) <= 0.53 * scale).all()
    assert np.abs(interpreter.queries[:2]).max() == 127
    records = interpreter.memory.read(KV + config.kv_s_offset, 2 * config.kv_scale_bytes)
    scales = scale_to_float(unpack_scale(records.view("<u4").reshape(2, -1)))
    for index, offset in enumerate((0, config.kv_v_offset)):
        data = interpreter.memory.read(KV + offset, 2 * config.kv_row_bytes)
        stored = kv_elements(data.reshape(2, -1), kv_width)
        assert np.abs(stored).max() == (1 << (kv_width - 1)) - 1
        step = scales[:, index, None]
        assert (np.abs(stored * step - x[:, 2 + index]) <= 0.53 * step).all()


@pytest.mark.parametrize(
    ("config", "flags", "args", "message"),
    [
        (
            CONFIG,
            FLAG_BIAS,
            {},
            "ROPEQ with FLAG_BIAS needs a configuration with qkv_bias, not test",
        ),
        (
            CONFIG.with_(qkv_bias=True),
            FLAG_BIAS | FLAG_QK_NORM,
            {},
            "ROPEQ with FLAG_QK_NORM needs a configuration with qk_norm, not test",
        ),
        (FEATURED, FLAG_BIAS, {"param_word": 49}, "ROPEQ reads word 64 of 64"),
        (FEATURED, FLAG_QK_NORM, {"param_word": 57}, "ROPEQ reads word 64 of 64"),
        (FEATURED, FLAG_BIAS | FLAG_QK_NORM, {"param_word": 41}, "ROPEQ reads word 64 of 64"),
        (FEATURED, FLAG_BIAS | FLAG_CENTRE, {"param_word": 45}, "ROPEQ reads word 64 of 64"),
        (
            FEATURED,
            FLAG_BIAS | FLAG_CENTRE | FLAG_QK_NORM,
            {},
            "ROPEQ with FLAG_CENTRE needs FLAG_BIAS and not FLAG_QK_NORM",
        ),
        (
            FEATURED,
            FLAG_CENTRE,
            {},
            "ROPEQ with FLAG_CENTRE needs FLAG_BIAS and not FLAG_QK_NORM",
        ),
        (FEATURED, FLAG_BIAS, {"bias_frac": 17}, "bias_frac of ROPEQ must be at most 16, not 17"),
    ],
)
def test_broken_head_parameters_are_errors(
    config: AcceleratorConfig, flags: int, args: dict[str, int], message: str
) -> None:
    interpreter = Interpreter(config, Memory(0x10000))
    interpreter.registers |= {"PROGRAM_BASE": PROGRAM, "N_TOKENS": 1}
    with pytest.raises(ProgramError) as error:
        run(interpreter, make(Opcode.ROPEQ, flags, **args), END)
    assert str(error.value) == message


def test_attention_to_positions_never_written_is_a_fault(interpreter: Interpreter) -> None:
    interpreter.chunks[0] = ChunkEntry(1, kv_base=KV)
    with pytest.raises(MemoryFault, match=rf"^read of byte {KV + CONFIG.kv_s_offset:#x}, which"):
        run(interpreter, make(Opcode.ATTEND), END)
