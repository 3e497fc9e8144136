"""The monitor of a trace: what the simulated memory's complaints are taken for."""

import pytest

from lutra_golden.control.memory import Memory
from lutra_golden.core.configs import NANO
from lutra_sim.diagnosis.monitor import Monitor
from lutra_sim.diagnosis.reads import ReadCheck
from lutra_sim.diagnosis.view import CONTROL, WRITES, Found, Reference, RunView
from lutra_sim.rtl.build import WirePort


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
        config=NANO, executed=[], memory=Memory(0), registers={}, tokens=[], chunks=[]
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
        Reference(config=NANO, executed=[], memory=memory, registers={}, tokens=[], chunks=[]),
        {f"core.{name}": WirePort(wire=name, fields={}) for name in names},
        names,
    )
    check, n = ReadCheck(view), NANO.load_word_bytes
    check.reads["load.rd_cmd"].commands.append([n, 1])
    word = int.from_bytes(bytes(range(n, 2 * n)), "little")
    view.values = ["0", "0", "1", f"{word:b}"]
    check.step(fetches=False)
    view.values[3] = f"{word ^ 0x100:b}"
    with pytest.raises(Found) as error:
        check.step(fetches=False)
    assert error.value.finding.unit == "reads of load (reader, width converter, arbiter)"
    assert error.value.finding.text == f"the word read at {n:#x} is wrong in byte 1"
