"""The monitor of a trace: what complaints of the simulated memory and hangs are taken for."""

from collections.abc import Mapping

import numpy as np
import pytest

from lutra_golden.control.isa import Instruction, Opcode, Unit
from lutra_golden.control.memory import Memory
from lutra_golden.control.recorder import Executed
from lutra_golden.control.registers import CONTEXT
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import Purpose, striped_ports
from lutra_sim.diagnosis.monitor import WATCHED, Monitor
from lutra_sim.diagnosis.reads import ReadCheck, ReadCommand
from lutra_sim.diagnosis.view import CONTROL, WRITES, Finding, Found, Reference, RunView
from lutra_sim.rtl.build import WirePort

READS = "reads of {} (reader, width converter, arbiter)"
COMMAND = {"addr": (0, 32), "beats": (32, 24)}
START = {"sequencer.start": 1}
FETCH = {"sequencer.start": 1, "sequencer.raw": 1}
ASKED = {"sequencer.rd_cmd__valid": 1, "sequencer.rd_cmd__ready": 1}
ASKED |= {"sequencer.rd_cmd__payload": 2 << 32 | 0x40}
CAME = {"sequencer.rd_data__valid": 1, "sequencer.rd_data__ready": 1}
RAW = {"sequencer.raw": 1}
FINISHED = {"sequencer.finished": 1}
RESULT = {
    f"vector.{side}_data__{part}": value
    for side in ("result", "wr")
    for part, value in (("valid", 1), ("ready", 1), ("payload", 0x1F))
}


def watching(*executed: Executed) -> Monitor:
    """A monitor of a run with these instructions and no token."""
    reference = Reference(
        config=NANO,
        executed=executed,
        memory=Memory(1 << 16),
        registers=dict.fromkeys(CONTEXT, 0),
        tokens=[],
        chunks=[],
        argmax=[7, 9],
    )
    address = {"token": (0, 4), "pair": (4, 4)}
    fields = {"matmul.acc__addr": address, "vector.wr_data__payload": {"data": (0, 4)}}
    fields["vector.wr_data__payload"]["strb"] = (4, 4)
    ports = {
        f"core.{name}": WirePort(wire=name, fields=fields.get(name, COMMAND)) for name in WATCHED
    }
    return Monitor(reference, ports)


def after(monitor: Monitor, *cycles: Mapping[str, int]) -> Finding | None:
    """The first finding in cycles in which these wires are not 0."""
    for number, wires in enumerate(cycles):
        found = monitor.cycle(number, [f"{wires.get(name, 0):b}" for name in monitor.wires])
        if found is not None:
            return found
    return None


@pytest.mark.parametrize(
    ("error", "unit"),
    [
        ("m_axi_1__wlast is 1 in beat 1 of 2 of the burst to 0x40, in cycle 9", WRITES),
        ("m_axi_1__awaddr 0x40: 8 bytes lie outside the memory of 4 bytes, in cycle 9", WRITES),
        ("the payload of m_axi_1__wvalid changed before m_axi_1__wready rose, in cycle 9", WRITES),
        (
            "m_axi_0__araddr 0xff0: a burst of 2 beats (64 bytes) crosses a 4 KB boundary",
            "reads of weights (reader, width converter, arbiter)",
        ),
        (
            "m_axi_1 reads 32 bytes at 0x40, of which 0x48 was never written, in cycle 9",
            "reads of fetch or load or attention (reader, width converter, arbiter)",
        ),
        ("register read at 0x0 was answered with response 2, in cycle 9", CONTROL),
        ("no progress for 20000 cycles: load IDLE", None),
    ],
)
def test_the_way_to_memory_is_named(error: str, unit: str | None) -> None:
    """By the channel, where nothing inside the accelerator was wrong before."""
    reference = Reference(
        config=NANO, executed=[], memory=Memory(0), registers={}, tokens=[], chunks=[], argmax=[]
    )
    found = Monitor(reference, {}).refused(error, 9)
    assert (found and found.unit) == unit
    assert found is None or (found.cycle, found.text) == (9, error)


def test_a_word_is_compared_when_it_is_offered() -> None:
    """A unit may use the parts of a word before it takes it."""
    names = [f"load.{s}__{part}" for s in ("rd_cmd", "rd_data") for part in ("valid", "payload")]
    memory = Memory(256)
    memory.write(0, bytes(range(256)))
    view = RunView(
        Reference(
            config=NANO, executed=[], memory=memory, registers={}, tokens=[], chunks=[], argmax=[]
        ),
        {f"core.{name}": WirePort(wire=name, fields={}) for name in names},
        names,
    )
    check, n = ReadCheck(view), NANO.load_word_bytes
    check.reads["load.rd_cmd"].commands.append(ReadCommand(n, 1, n))
    word = int.from_bytes(bytes(range(n, 2 * n)), "little")
    view.values = ["0", "0", "1", f"{word:b}"]
    check.step(fetches=False)
    view.values[3] = f"{word ^ 0x100:b}"
    with pytest.raises(Found) as error:
        check.step(fetches=False)
    assert error.value.finding.unit == "reads of load (reader, width converter, arbiter)"
    assert error.value.finding.text == f"the word read at {n:#x} is wrong in byte 1"


def test_a_striped_word_is_compared_with_its_parts() -> None:
    """The first half of each comes from the first lane, and the second lane lies behind it."""
    config, memory = NANO.with_(ports=striped_ports(2, 512)), Memory(512)
    memory.write(0, bytes(range(256)) + bytes(256))
    product = Instruction(Opcode.LMMA, args={"address": 0, "n_words": 2})
    executed = Executed(
        index=0,
        number=0,
        instruction=product,
        tokens=range(1),
        words={},
        stores=[],
        saturated=False,
    )
    reference = Reference(
        config=config, executed=[executed], memory=memory, registers=dict.fromkeys(CONTEXT, 0),
        tokens=[], chunks=[], argmax=[],
    )  # fmt: skip
    names = [f"sequencer.weight_cmd__{part}" for part in ("valid", "ready", "payload")]
    names += [f"matmul.weights__{part}" for part in ("valid", "ready", "payload")]
    view = RunView(
        reference, {f"core.{name}": WirePort(wire=name, fields=COMMAND) for name in names}, names
    )
    check = ReadCheck(view)
    view.values = ["1", "1", f"{2 << 32:b}", "0", "0", "0"]
    check.step(fetches=False)
    mask = (1 << config.matmul.word_bits) - 1
    halves = [bytes(range(at, at + 64)) for at in range(0, 256, 64)]
    words = [halves[0] + halves[2], halves[1] + halves[3]]
    for word in words:
        payload = int.from_bytes(word, "little") & mask
        view.values = ["0", "0", "0", "1", "0", f"{payload:b}"]
        check.step(fetches=False)
        assert check.asks(Purpose.WEIGHTS, 64) and not check.asks(Purpose.WEIGHTS, 256)
        view.values = ["0", "0", "0", "1", "1", f"{payload:b}"]
        check.step(fetches=False)
    assert not check.asks(Purpose.WEIGHTS, 0)
    view.values = ["1", "1", f"{2 << 32:b}", "0", "0", "0"]
    with pytest.raises(Found, match="reads 2 words at 0x0 too many"):
        check.step(fetches=False)
    check.reads["sequencer.weight_cmd"].n_commands = 0
    check.step(fetches=False)
    view.values = ["0", "0", "0", "1", "0", f"{(int.from_bytes(words[0], 'little') & mask) ^ 1:b}"]
    with pytest.raises(Found, match=r"^the word read at 0x0 is wrong in byte 0$"):
        check.step(fetches=False)


@pytest.mark.parametrize(
    ("cycles", "unit", "text"),
    [
        ([], CONTROL, "the program is not begun"),
        (
            [FETCH, RAW | {"sequencer.rd_cmd__valid": 1}],
            READS.format("fetch"),
            "a command of the sequencer is not taken",
        ),
        (
            [FETCH, RAW | ASKED, RAW | CAME, RAW],
            READS.format("fetch"),
            "1 of 2 words came that were asked for",
        ),
        (
            [FETCH, RAW | ASKED, RAW | CAME, RAW | CAME, RAW | {"sequencer.word__valid": 1}],
            CONTROL,
            "a word of the descriptor is not taken",
        ),
        (
            [FETCH, RAW | ASKED, RAW | CAME, RAW | CAME, RAW],
            "sequencer",
            "all words of the descriptor came, and its fetch does not end",
        ),
        ([FETCH, RAW | ASKED, RAW | CAME, RAW | CAME, RAW | FINISHED], CONTROL, None),
        # what is wrong is what was when the run failed
        (
            [FETCH, RAW | ASKED, {"registers.clear": 1}, {}],
            READS.format("fetch"),
            "0 of 2 words came that were asked for",
        ),
    ],
)
def test_who_keeps_a_program_from_beginning(
    cycles: list[dict[str, int]], unit: str, text: str | None
) -> None:
    """Words of the descriptor that go elsewhere are not what control does wrong."""
    monitor = watching()
    assert after(monitor, *cycles) is None
    found = monitor.stuck()
    assert (found.unit, found.text) == (unit, text or "the program is not begun")


@pytest.mark.parametrize(
    ("cycle", "unit", "signal"),
    [
        ({}, CONTROL, "sequencer.finished"),
        (RESULT | {"vector.wr_idle": 1}, CONTROL, "sequencer.finished"),
        (RESULT, WRITES, "vector.wr_idle"),
        (
            RESULT | {"vector.result_data__ready": 0, "vector.wr_data__ready": 0},
            WRITES,
            "vector.wr_data__ready",
        ),
    ],
)
def test_who_keeps_a_run_from_ending(cycle: dict[str, int], unit: str, signal: str) -> None:
    monitor = watching()
    assert after(monitor, START, FINISHED, cycle) is None
    found = monitor.stuck()
    assert (found.unit, found.signal) == (unit, signal)


@pytest.mark.parametrize("part", ["valid", "ready", "payload"])
def test_the_vector_unit_hands_on_the_result(part: str) -> None:
    wire = f"vector.{'result' if part == 'ready' else 'wr'}_data__{part}"
    found = after(watching(), START, FINISHED, RESULT | {wire: 0})
    assert found is not None
    assert (found.unit, found.signal) == ("vector unit", wire)


def writing_logits(tokens: range) -> Executed:
    return Executed(
        index=3,
        number=0,
        instruction=Instruction(opcode=Opcode.LOGITS, args={}),
        tokens=tokens,
        words={},
        stores=[],
        saturated=False,
    )


@pytest.mark.parametrize("finished", [True, False])
def test_arg_max_of_tokens_that_have_logits(finished: bool) -> None:
    """Read a cycle after its address, and complete when the program is."""
    monitor = watching(writing_logits(range(1, 2)))
    monitor._view.accepted[Unit.VECTOR] = monitor._view.done[Unit.VECTOR] = 1
    looks = (0, 0), (1, 5), (1, 9), (0, 8)
    cycles = [{"vector.argmax__addr": i, "vector.argmax__data": row} for i, row in looks]
    found = after(monitor, START, FINISHED if finished else {}, *cycles)
    if not finished:
        assert found is None
        return
    assert found is not None
    assert (found.unit, found.signal) == ("vector unit (logits)", "vector.argmax__data")
    assert found.text == "entry 1 of the table of argmax reads 0x8, not 0x9"


def storing(first: int) -> Executed:
    """An instruction that writes 64 bytes."""
    instruction = Instruction(opcode=Opcode.ROPEQ, args={})
    return Executed(
        index=6,
        number=0,
        instruction=instruction,
        tokens=range(0),
        words={},
        stores=[(first, np.zeros(64, np.uint8))],
        saturated=False,
    )


@pytest.mark.parametrize(
    ("address", "stored", "unit"),
    [
        # asked for, when no instruction writes there
        (0x1000, 0x2000, WRITES),
        # asked for, while the instruction writes
        (0x1000, 0x1010, "attention unit"),
        # not asked for
        (0x3000, 0x2000, READS.format("fetch or load or attention")),
    ],
)
def test_what_is_read_before_it_is_written(address: int, stored: int, unit: str) -> None:
    """The writer, if the unit was right to read; else who read too early."""
    attend = Executed(
        index=7,
        number=0,
        instruction=Instruction(opcode=Opcode.ATTEND, args={"kv_offset": 0}),
        tokens=range(0),
        words={},
        stores=[],
        saturated=False,
    )
    monitor = watching(storing(stored), attend)
    view = monitor._view
    view.accepted[storing(0).unit] = view.accepted[attend.unit] = 1
    reads = monitor._reads.reads["attention.rd_cmd"]
    reads.commands.append(ReadCommand(0x1000, 4, 256))
    error = (
        f"m_axi_1__araddr {address:#x}: 64 bytes overlap with m_axi_1__awaddr 0x1040, which has "
    )
    found = monitor.refused(error + "not been answered yet, in cycle 9", 9)
    assert found is not None
    assert found.unit == unit
