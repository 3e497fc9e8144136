"""Runs of descriptors: what they touch, and in which order their results are written."""

from amaranth import Cat, Module, Mux, Signal

from lutra_golden.control.result import RESULT
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.result import ResultWriter
from lutra_hw.control.runs import RunState, RunUnit
from lutra_sim.formal.property import Property, past

__all__ = ["ResultOrder", "RunBounds"]

_IDLE = 0  # first state of the writer


class ResultOrder(Property):
    """A result block is handed over whole, and its status when all else was answered.

    What the writer is told stays as it is until it is done; memory takes words when it likes, and
    is not idle in the cycle after it took one.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(ResultWriter(config))

    def rules(self, m: Module) -> None:
        dut = self.dut
        running = Signal()
        m.d.sync += running.eq((running | dut.start) & ~dut.done)
        for name in ("report", "line", "token", "n_results", "n_made", "tag"):
            value = getattr(dut, name)
            self.assume(m, ~running | (value == past(m, value, name)))
        cmd, data = (self.channels[name] for name in ("wr_cmd", "wr_data"))
        moved = cmd.transfer | data.transfer
        self.assume(m, ~(dut.wr_idle & past(m, moved, "moved")))

        # commands that are ahead of their data, plus one
        ahead = Signal(2, init=1)
        m.d.sync += ahead.eq(ahead + cmd.transfer - data.transfer)
        self.claim(m, "commands wait unchanged", self.kept(m, cmd))
        self.claim(m, "words wait unchanged", self.kept(m, data))
        self.claim(m, "a command has its word", ahead != 3)
        offered = cmd.valid | data.valid
        answered = Signal(init=1)
        m.d.sync += answered.eq((dut.wr_idle & ~offered) | (answered & ~moved))
        self.claim(m, "done: all was handed over", ~dut.done | ((ahead == 1) & ~offered))
        self.claim(m, "done: the block is in memory", ~(dut.done & dut.report) | dut.wr_idle)

        status = RESULT["status"].first
        place, index = self.probe("place", 6), self.probe("index", 6)
        taken = Cat(self.probe(name, 1) for name in ("cmd_taken", "data_taken"))
        state, is_offered = self.probe("fsm_state", 3), self.probe("offered", 1)
        is_status = dut.report & is_offered & (place == status)
        waited = past(m, answered, "answered")
        first = ~past(m, is_status, "was_status")
        self.claim(m, "the status comes when all else was answered", ~(is_status & first) | waited)
        # for the induction
        comes = running & dut.report & (index == status) & (state != _IDLE)
        self.claim(m, "nothing is under way before it", ~comes | (answered & ~is_offered))
        self.claim(m, "a word is taken in parts", is_offered | ~taken.any())
        self.claim(m, "one part at a time", ~taken.all())
        expected = Mux(taken[0], 2, Mux(taken[1], 0, 1))
        self.claim(m, "parts are counted", ahead == expected)
        self.claim(m, "it rests when nothing was asked", running == (state != _IDLE))
        self.claim(m, "and offers nothing", running | ~is_offered)


class RunBounds(Property):
    """A run of a descriptor touches nothing unless it is busy, and asks for one thing at a time.

    The register file keeps a run busy until it is over, or fails and is cleared.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(RunUnit(config))

    def rules(self, m: Module) -> None:
        dut = self.dut
        control, bus = dut.control, dut.control.bus
        fetching = Signal()
        with m.If(dut.start):
            m.d.sync += fetching.eq(1)
        with m.Elif(dut.finished | control.clear):
            m.d.sync += fetching.eq(0)
        busy = past(m, control.busy | control.begin, "busy")
        self.assume(m, ~control.ready | ~control.busy, ~control.stop | control.busy)
        # it stays busy; a clear follows a failure, and lasts
        ended = past(m, (control.over & ~control.stop) | control.clear, "ended")
        stopped, cleared = past(m, control.stop, "stopped"), past(m, control.clear, "cleared")
        self.assume(m, ~busy | control.busy | ended, busy | ~control.busy)
        self.assume(m, control.clear | ~stopped, ~control.clear | stopped | cleared)
        self.assume(m, ~(control.clear & (control.ready | control.stop)))
        self.assume(m, ~dut.finished | fetching)

        state = self.probe("state", 5)
        rests = state == RunState.IDLE
        self.claim(m, "begins only when it may", ~control.begin | control.ready)
        self.claim(m, "engaged until it rests", control.engaged == ~rests)
        touches = dut.start | dut.raw | dut.wanted | bus.write_en | control.over
        self.claim(m, "what rests touches nothing", ~rests | ~touches)
        self.claim(m, "one fetch at a time", ~(dut.start & fetching))
        self.claim(m, "over after all fetches", ~(control.over & fetching))
        # for the induction
        waits = (state == RunState.FETCH) | (state == RunState.RUN)
        fails = (state == RunState.FAILED) & control.clear
        self.claim(m, "a fetch is waited for", ~fetching | waits | fails)
        is_failure = ~control.engaged | (state == RunState.FAILED)
        self.claim(m, "a run that is cleared has failed", ~control.clear | is_failure)
