"""The monitor of a trace: what the simulated memory's complaints are taken for."""

import pytest

from lutra_golden.control.memory import Memory
from lutra_golden.core.configs import NANO
from lutra_sim.diagnosis.monitor import Monitor
from lutra_sim.diagnosis.view import CONTROL, WRITES, Reference


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
