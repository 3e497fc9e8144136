"""Instructions leave behind in the recorder what the interpreter has made of them."""

import numpy as np
import pytest

from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import (
    FIELDS,
    FLAG_LOGITS,
    FLAG_STREAM,
    Instruction,
    NormSource,
    Opcode,
    Unit,
)
from lutra_golden.control.memory import Memory
from lutra_golden.control.recorder import Recorder, Words, packed
from lutra_golden.core.configs import NANO
from lutra_golden.matmul.engine import LANES

WEIGHTS, LOGITS = 0x1000, 0x8000


def make(opcode: Opcode, flags: int = 0, **args: int) -> Instruction:
    return Instruction(opcode, flags, args=dict.fromkeys(FIELDS[opcode], 0) | args)


@pytest.fixture
def interpreter() -> Interpreter:
    interpreter = Interpreter(NANO, Memory(0x10000))
    interpreter.registers |= {
        "WEIGHT_BASE": WEIGHTS,
        "LOGITS_BASE": LOGITS,
        "LOGITS_STRIDE": 256,
        "N_TOKENS": 2,
        "LOGITS_FROM": 1,
    }
    interpreter.chunks[0] = ChunkEntry()
    interpreter.tokens[:2] = 3, 1
    rows = np.arange(4 * 16, dtype="<i2").reshape(4, 16) - 20
    interpreter.memory.write(WEIGHTS, rows.tobytes())
    return interpreter


def test_packs_the_first_element_into_the_lowest_bits() -> None:
    assert packed(np.array([1, -1, 3]), 4) == 0x3F1
    words = Words(first=(1, 2), values=np.array([[[1, 2], [3, -4]]]), width=8)
    assert words.items() == {(1, 2): 0x0201, (1, 3): 0xFC03}


def test_records_words_stores_and_order(interpreter: Interpreter) -> None:
    recorder = Recorder(interpreter)
    ones = make(Opcode.LDPARAM, n_words=2, param_word=4)
    stream = make(Opcode.LOGITS, FLAG_LOGITS | FLAG_STREAM, n_words=2)
    for instruction in (make(Opcode.EMBED, n_words=2), ones, stream):
        interpreter.execute(instruction)
    recorder.close()
    interpreter.execute(ones)

    embed, param, logits = recorder.executed
    assert [(each.index, each.unit, each.number) for each in recorder.executed] == [
        (0, Unit.LOAD, 0),
        (1, Unit.LOAD, 1),
        (2, Unit.VECTOR, 0),
    ]
    rows = interpreter.residual[:2, : 2 * LANES].reshape(2, 2, LANES)
    assert np.array_equal(embed.words["embed_w"].values, rows)
    assert embed.words["embed_w"].items()[1, 1] == packed(rows[1, 1], 32)
    assert set(param.words["param_w"].items()) == {(4,), (5,)}
    assert logits.tokens == range(1, 2)
    [(address, data)] = logits.stores
    assert address == LOGITS + 256
    assert np.array_equal(data.view("<i4"), rows[1].reshape(-1))
    assert not embed.stores
    assert recorder.of(Unit.LOAD) == [embed, param]


def test_knows_who_made_an_accumulator(interpreter: Interpreter) -> None:
    recorder = Recorder(interpreter)
    interpreter.execute(make(Opcode.LDPARAM, n_words=8))
    interpreter.execute(make(Opcode.RESADD, n_words=2, scale_w=0))
    interpreter.execute(make(Opcode.NORMQ, n_words=2, source=NormSource.RESIDUAL, inv_n=0))
    resadd, norm = recorder.executed[1:]
    assert resadd.makers is not None
    assert (resadd.makers == -1).all()
    assert resadd.acc is not None
    assert resadd.acc.shape == (NANO.pass_tokens, NANO.matmul.acc_blocks, LANES)
    assert set(norm.words) == {"act", "scale_w"}
    assert norm.words["act"].width == NANO.matmul.a_width
    scale = norm.words["scale_w"].items()[(0,)]
    assert scale & 0xFFFF == interpreter.scale.m[0]
