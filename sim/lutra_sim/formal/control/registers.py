"""Beginning and end of runs in the register file."""

from amaranth import Module

from lutra_golden.control.registers import ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.registers import RegisterFile
from lutra_sim.formal.property import Property, past

__all__ = ["RunEnds"]


class RunEnds(Property):
    """A failed run is cleared at once, and over, or reported, when the memory owes nothing.

    Nothing starts in a clear, whatever the host writes; and the watchdog ends even a run whose
    memory owes for ever.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(RegisterFile(config))

    def rules(self, m: Module) -> None:
        dut, busy = self.dut, self.probe("busy", 1)
        control = dut.control
        self.assume(m, ~control.begin | control.ready)
        fails = busy & ((dut.failure.code != ErrorCode.NONE) | dut.expired)
        # what comes in a clear belongs to it
        known = past(m, dut.clear & control.keeps, "known")
        self.claim(m, "a failure clears", ~past(m, fails, "fails") | dut.clear | ~busy | known)
        freed = past(m, dut.clear & dut.idle, "freed")
        self.claim(m, "a clear ends when nothing is owed", ~freed | ~dut.clear)
        kept = past(m, control.keeps, "kept")
        self.claim(m, "and the run with it, unless it is reported", ~freed | ~busy | kept)
        owes = past(m, dut.clear & ~dut.idle, "owes")
        self.claim(m, "a clear lasts while something is owed", ~owes | dut.clear)
        self.claim(m, "nothing starts in a clear", ~((dut.start | control.ready) & dut.clear))
        hopeless = past(m, dut.clear & dut.expired, "hopeless")
        self.claim(m, "the watchdog ends any wait", ~hopeless | ~busy)
